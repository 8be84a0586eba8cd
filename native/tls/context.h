/* tls/context.h: a context inside the module. */
#ifndef BQ_TLS_CONTEXT_H
#define BQ_TLS_CONTEXT_H

#if defined(__has_include) && !__has_include(<openssl/ssl.h>)
#error "Install OpenSSL 3.0 or newer with its headers (Debian: libssl-dev), or build without TLS: BLIPMQ_WITHOUT_TLS=1"
#endif

#include <openssl/bio.h>
#include <openssl/ssl.h>

#include "tls/handshake_size.h"
#include "tls/tls.h"

#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "BlipMQ needs OpenSSL 3.0 or newer"
#endif

typedef struct context context_t;

SSL_CTX *context_ssl(const context_t *context);
/* The methods of the BIO between a connection's SSL and its io: see bio.c. */
const BIO_METHOD *context_bio(const context_t *context);

/* The thread's oldest error of the library as text, without errors that only say where another one was noticed. */
void error_text(char *text, size_t size);

/* What a connection's BIO works on. */
typedef struct wire {
    bq_secure_io_t *io; /* of the current call */
    handshake_size_t seen;
} wire_t;

BIO_METHOD *bio_methods(void); /* NULL: no memory */
/* A BIO that reads from `wire->io->in` and writes to `wire->io->out`. */
BIO *bio_over(const BIO_METHOD *methods, wire_t *wire);

#endif
