/* tls_ends.h: the two ends of a TLS connection in memory: the functions of blipmq._tls, and OpenSSL as the client. Shared by
 * test_tls.c and fuzz_tls.c.
 *
 * Invariant: each call gets its input and its room in blocks of exactly their size, so the sanitizers find a use beyond them.
 */
#ifndef BQ_TLS_ENDS_H
#define BQ_TLS_ENDS_H

#include <stdbool.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "check.h"
#include "tls/tls.h"

/* A certificate of its own authority, and its key. They protect nothing. */
static const char CERTIFICATE[] = "-----BEGIN CERTIFICATE-----\n"
                                  "MIIBljCCATugAwIBAgIUAMUfHu6ixYGqFvrJXmCxhtthdjswCgYIKoZIzj0EAwIw\n"
                                  "FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEzMDIxMTAxOVoYDzIxMjYxMTA2\n"
                                  "MjExMDE5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO\n"
                                  "PQMBBwNCAAQWMW8jlwAynQnl1a71WE4UJP1Mjn/AwY8Kmpn0b63HelOaq9Nab3NZ\n"
                                  "fVs2OB+9aH92q3C3CVL79sdic8qv40vGo2kwZzAdBgNVHQ4EFgQUZH79SKNBRdaK\n"
                                  "19gRyWL8DqbAIoYwHwYDVR0jBBgwFoAUZH79SKNBRdaK19gRyWL8DqbAIoYwDwYD\n"
                                  "VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID\n"
                                  "SQAwRgIhAJQq/2iVnDKgQwG9kadkSZ8Ly0RARArM198ONj7LoNwLAiEA2MCfUedO\n"
                                  "c8PR/N9PqoW/iluWAa9Oqt1fM838azCoJQA=\n"
                                  "-----END CERTIFICATE-----\n";
static const char KEY[] = "-----BEGIN PRIVATE KEY-----\n"
                          "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgyD2yDC+XTkTNtdzP\n"
                          "JpA6Jb/aRuiMMNO+X0syPwKAzXahRANCAAQWMW8jlwAynQnl1a71WE4UJP1Mjn/A\n"
                          "wY8Kmpn0b63HelOaq9Nab3NZfVs2OB+9aH92q3C3CVL79sdic8qv40vG\n"
                          "-----END PRIVATE KEY-----\n";

typedef struct bytes {
    uint8_t *at;
    size_t size, room;
} bytes_t;

static inline void bytes_add(bytes_t *bytes, const void *from, size_t size) {
    if (bytes->size + size > bytes->room) {
        bytes->room = 2 * (bytes->size + size);
        bytes->at = realloc(bytes->at, bytes->room);
        CHECK(bytes->at);
    }
    if (size) memcpy(bytes->at + bytes->size, from, size);
    bytes->size += size;
}

static inline void bytes_drop(bytes_t *bytes, size_t size) {
    CHECK(size <= bytes->size);
    bytes->size -= size;
    if (bytes->size && size) memmove(bytes->at, bytes->at + size, bytes->size);
}

/* `to_server` and `to_client` are on their way. */
typedef struct ends {
    void *server;
    SSL *client;
    bytes_t to_server, to_client;
    uint32_t room; /* in the output of each call of the server */
} ends_t;

static inline void *server_context(bool asks) {
    bqtls_error_t error;
    bqtls_settings_t settings = {
        .chain = CERTIFICATE, .chain_size = sizeof CERTIFICATE - 1, .key = KEY, .key_size = sizeof KEY - 1};
    if (asks) {
        settings.client_ca = CERTIFICATE;
        settings.client_ca_size = sizeof CERTIFICATE - 1;
    }
    void *context = bqtls_context_new(&settings, &error);
    CHECK(context);
    return context;
}

static inline ends_t ends_open(void *context, SSL_CTX *client_context) {
    ends_t ends = {.server = bqtls_ops()->open(context), .client = SSL_new(client_context), .room = 20u << 10};
    CHECK(ends.server && ends.client);
    SSL_set_bio(ends.client, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(ends.client);
    return ends;
}

static inline void ends_close(ends_t *ends) {
    bqtls_ops()->close(ends->server);
    SSL_free(ends->client);
    free(ends->to_server.at);
    free(ends->to_client.at);
    ERR_clear_error();
}

/* The client's output is on its way; it takes what has arrived. */
static inline void client_exchange(ends_t *ends) {
    uint8_t chunk[4096];
    int size;
    while ((size = BIO_read(SSL_get_wbio(ends->client), chunk, sizeof chunk)) > 0)
        bytes_add(&ends->to_server, chunk, (size_t)size);
    if (!ends->to_client.size) return;
    BIO_write(SSL_get_rbio(ends->client), ends->to_client.at, (int)ends->to_client.size);
    ends->to_client.size = 0;
}

typedef struct call {
    bq_secure_io_t io;
    uint8_t *in, *out;
} call_t;

static inline call_t call_begin(const ends_t *ends) {
    call_t call = {.in = malloc(ends->to_server.size + !ends->to_server.size), .out = malloc(ends->room + !ends->room)};
    CHECK(call.in && call.out);
    if (ends->to_server.size) memcpy(call.in, ends->to_server.at, ends->to_server.size);
    call.io = (bq_secure_io_t){.in = call.in, .in_size = (uint32_t)ends->to_server.size, .out = call.out, .out_size = ends->room};
    return call;
}

static inline int call_end(ends_t *ends, call_t *call, int result) {
    CHECK(call->io.in_used <= call->io.in_size && call->io.out_used <= call->io.out_size);
    CHECK(result >= BQ_SECURE_DONE && result <= BQ_SECURE_FAILED);
    CHECK(result != BQ_SECURE_WANT || call->io.in_used == call->io.in_size);
    bytes_drop(&ends->to_server, call->io.in_used);
    bytes_add(&ends->to_client, call->out, call->io.out_used);
    free(call->in);
    free(call->out);
    return result;
}

static inline int server_shake(ends_t *ends) {
    call_t call = call_begin(ends);
    return call_end(ends, &call, bqtls_ops()->shake(ends->server, &call.io));
}

/* One call; the plaintext is added to `into`. */
static inline int server_read(ends_t *ends, uint32_t room, bytes_t *into) {
    call_t call = call_begin(ends);
    uint8_t *block = malloc(room);
    uint32_t got = 77;
    CHECK(block);
    int result = call_end(ends, &call, bqtls_ops()->read(ends->server, &call.io, block, room, &got));
    CHECK((got > 0) == (result == BQ_SECURE_DONE) && got <= room);
    bytes_add(into, block, got);
    free(block);
    return result;
}

/* One call; the bytes taken are dropped from `from`. */
static inline int server_write(ends_t *ends, bytes_t *from) {
    call_t call = call_begin(ends);
    uint32_t taken = 77;
    int result = call_end(ends, &call, bqtls_ops()->write(ends->server, &call.io, from->at, (uint32_t)from->size, &taken));
    CHECK(taken <= from->size && (result != BQ_SECURE_DONE || taken == from->size));
    bytes_drop(from, taken);
    return result;
}

static inline int server_goodbye(ends_t *ends) {
    call_t call = call_begin(ends);
    return call_end(ends, &call, bqtls_ops()->goodbye(ends->server, &call.io));
}

/* Run a handshake without obstacles. */
static inline void ends_shake(ends_t *ends) {
    int result = BQ_SECURE_WANT;
    while (result != BQ_SECURE_DONE || !SSL_is_init_finished(ends->client)) {
        int code = SSL_do_handshake(ends->client);
        CHECK(code == 1 || SSL_get_error(ends->client, code) == SSL_ERROR_WANT_READ);
        client_exchange(ends);
        if (result != BQ_SECURE_DONE) result = server_shake(ends);
        CHECK(result != BQ_SECURE_FAILED && result != BQ_SECURE_END);
        client_exchange(ends);
    }
}

#endif
