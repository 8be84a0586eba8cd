/* net/secure_ops.h: the table of functions between the core and a TLS module. The core knows no TLS library; the module knows no
 * socket and no Python.
 *
 *      transport_secure.c ──(bq_secure_ops_t)──► blipmq/_tls (native/tls/, OpenSSL), or a toy library in tests
 *
 * Invariant: no function keeps a pointer into an io after it returns. One thread at a time uses a state; several threads may use
 * different states of one context at the same time.
 *
 * The C compiler and cffi read this file, so it has no macros besides the guard.
 */
#ifndef BQ_SECURE_OPS_H
#define BQ_SECURE_OPS_H

#include <stdint.h>

/* The ciphertext of one call: `in` came from the socket, `out` is room for bytes to the socket. A call advances both counts. */
typedef struct bq_secure_io {
    const uint8_t *in;
    uint32_t in_size, in_used;
    uint8_t *out;
    uint32_t out_size, out_used;
} bq_secure_io_t;

enum bq_secure_result {
    BQ_SECURE_DONE, /* shake: the handshake is complete. read: `got` bytes, at least 1. write: all bytes. goodbye: in `out` */
    BQ_SECURE_WANT, /* more input is needed; all of `in` is used */
    BQ_SECURE_FULL, /* `out` has no room for the rest; call again with an empty `out`. write: the first `taken` bytes are done */
    BQ_SECURE_END,  /* read: the peer's close_notify */
    BQ_SECURE_FAILED, /* the connection cannot continue. `failed` tells why; an alert may be in `out` */
};

/* Texts are UTF-8 and end with NUL. */
typedef struct bq_secure_facts {
    char version[16], cipher[48];
    char subject[256]; /* of the peer's verified certificate: the common name, else the first alternative name */
    char alpn[16];     /* the chosen protocol, or "" */
    uint8_t resumed, has_certificate;
} bq_secure_facts_t;

typedef struct bq_secure_error {
    char reason[96];  /* the library's text */
    char detail[160]; /* why the peer's certificate was refused, or "" */
} bq_secure_error_t;

typedef struct bq_secure_ops {
    uint32_t size;                /* sizeof(bq_secure_ops_t); the core refuses any other size */
    void *(*open)(void *context); /* the state of one connection, with a reference to the context; NULL: no memory */
    void (*close)(void *state);   /* free the state and release its reference */
    int (*shake)(void *state, bq_secure_io_t *io);
    int (*read)(void *state, bq_secure_io_t *io, uint8_t *into, uint32_t room, uint32_t *got);
    int (*write)(void *state, bq_secure_io_t *io, const uint8_t *from, uint32_t size, uint32_t *taken);
    int (*goodbye)(void *state, bq_secure_io_t *io);
    void (*opened)(void *state, bq_secure_facts_t *facts); /* after shake returned DONE */
    void (*failed)(void *state, bq_secure_error_t *error); /* after FAILED */
    void (*context_free)(void *context);                   /* release the core's reference to the context */
} bq_secure_ops_t;

#endif
