/* tls/tls.h: what Python calls in blipmq._tls: contexts, and the table of functions for the core.
 *
 * Invariant: a context is never changed after its creation. It lives until its last reference is released: Python's, the core's,
 * and one of each connection.
 *
 * The C compiler and cffi read this file, so it has no macros besides the guard.
 */
#ifndef BQ_TLS_H
#define BQ_TLS_H

#include "net/secure_ops.h"

/* Texts are PEM, with their size in bytes. They are only read during the call. */
typedef struct bqtls_settings {
    const char *chain; /* the broker's certificate, then those of its issuers */
    uint32_t chain_size;
    const char *key; /* the private key of the first certificate, not encrypted */
    uint32_t key_size;
    const char *client_ca; /* the authorities of clients' certificates; size 0: clients are not asked for one */
    uint32_t client_ca_size;
    const uint8_t *alpn; /* protocols as in RFC 7301: each name behind a byte with its length; size 0: not negotiated */
    uint32_t alpn_size;
    uint8_t require_client_cert; /* 1: refuse clients without a certificate */
    uint8_t only_tls13;          /* 1: refuse TLS 1.2 */
    uint8_t chacha_first;        /* 1: this processor has no AES instructions, so prefer ChaCha20 */
} bqtls_settings_t;

enum bqtls_part { BQTLS_LIBRARY, BQTLS_CHAIN, BQTLS_KEY, BQTLS_KEY_ENCRYPTED, BQTLS_PAIR, BQTLS_CLIENT_CA, BQTLS_ALPN };

typedef struct bqtls_error {
    int32_t part;    /* enum bqtls_part: where the error is */
    char reason[96]; /* OpenSSL's text */
} bqtls_error_t;

/* NULL and an error if the settings cannot be used. The result is a reference; release it with bqtls_context_free. */
void *bqtls_context_new(const bqtls_settings_t *settings, bqtls_error_t *error);
/* A new context of the same certificates and settings, which accepts no ticket of the old one. NULL and an error: no memory. */
void *bqtls_context_renewed(void *context, bqtls_error_t *error);
void *bqtls_context_share(void *context); /* another reference to it */
void bqtls_context_free(void *context);

const bq_secure_ops_t *bqtls_ops(void);
const char *bqtls_library(void); /* the name and version of the library in use */

#endif
