/* tls/secure.c: bq_secure_ops_t over OpenSSL: handshakes, and records of one connection.
 *
 *      open ──► shake … shake ──DONE──► read, write … ──► goodbye ──► close
 *                 └────────FAILED─────────┴──► failed
 *
 * Invariant: a record is sealed only if `out` has room for all of it, so a write is never repeated inside OpenSSL. After a failure
 * no function of OpenSSL runs on the connection again.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include "tls/context.h"

#define RECORD_BYTES_MAX 16384u
/* What a record adds to its plaintext (at most 30 bytes), and alerts that may wait in front of it. */
#define RECORD_ROOM 512u

typedef struct secure {
    SSL *ssl;
    wire_t wire;
    context_t *context;
    bq_secure_error_t *error; /* NULL: no failure, or no memory for its text */
    bool failed;
    bool ended; /* our close_notify is in the output */
} secure_t;

/* ---- begin and end ------------------------------------------------------------------------------------------------------- */

static void secure_close(void *pointer) {
    secure_t *secure = pointer;
    SSL_free(secure->ssl);
    bqtls_context_free(secure->context);
    free(secure->error);
    free(secure);
}

static void *secure_open(void *context) {
    ERR_clear_error();
    secure_t *secure = calloc(1, sizeof *secure);
    if (!secure) return NULL;
    secure->context = bqtls_context_share(context);
    secure->ssl = SSL_new(context_ssl(context));
    BIO *bio = bio_over(context_bio(context), &secure->wire);
    if (!secure->ssl || !bio) {
        BIO_free(bio);
        ERR_clear_error();
        secure_close(secure);
        return NULL;
    }
    SSL_set_bio(secure->ssl, bio, bio);
    SSL_set_accept_state(secure->ssl);
    return secure;
}

/* ---- results ------------------------------------------------------------------------------------------------------------- */

static int fail(secure_t *secure) {
    secure->failed = true;
    secure->error = calloc(1, sizeof *secure->error);
    if (secure->error) {
        long verified = SSL_get_verify_result(secure->ssl);
        error_text(secure->error->reason, sizeof secure->error->reason);
        if (verified != X509_V_OK)
            snprintf(secure->error->detail, sizeof secure->error->detail, "%s", X509_verify_cert_error_string(verified));
    }
    ERR_clear_error();
    return BQ_SECURE_FAILED;
}

/* The result of a call of OpenSSL that returned `code` and was not successful. */
static int outcome(secure_t *secure, int code) {
    switch (SSL_get_error(secure->ssl, code)) {
    case SSL_ERROR_WANT_READ: return BQ_SECURE_WANT;
    case SSL_ERROR_WANT_WRITE: return BQ_SECURE_FULL;
    case SSL_ERROR_ZERO_RETURN: return BQ_SECURE_END;
    default: return fail(secure);
    }
}

/* Prepare a call. False: the connection has failed. */
static bool begin(secure_t *secure, bq_secure_io_t *io) {
    secure->wire.io = io;
    ERR_clear_error(); /* SSL_get_error takes any error of this thread for its own */
    return !secure->failed;
}

/* ---- the calls ----------------------------------------------------------------------------------------------------------- */

static int secure_shake(void *pointer, bq_secure_io_t *io) {
    secure_t *secure = pointer;
    if (!begin(secure, io)) return BQ_SECURE_FAILED;
    int code = SSL_do_handshake(secure->ssl);
    return code == 1 ? BQ_SECURE_DONE : outcome(secure, code);
}

/* SSL_read would find nothing: all input is used, and OpenSSL keeps no part of a record, no answer and no end. This check costs
 * less than SSL_read, which makes room for a record before it looks for one. */
static bool nothing_left(const secure_t *secure) {
    const SSL *ssl = secure->ssl;
    return secure->wire.io->in_used == secure->wire.io->in_size && !SSL_has_pending(ssl) && !SSL_in_init(ssl) &&
           !SSL_want_write(ssl) && !(SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN);
}

static int secure_read(void *pointer, bq_secure_io_t *io, uint8_t *into, uint32_t room, uint32_t *got) {
    secure_t *secure = pointer;
    *got = 0;
    if (!begin(secure, io)) return BQ_SECURE_FAILED;
    while (*got < room && !nothing_left(secure)) {
        size_t size = 0;
        int code = SSL_read_ex(secure->ssl, into + *got, room - *got, &size);
        if (code != 1) {
            int result = outcome(secure, code); /* an end or a failure is found again by the next call */
            return *got ? BQ_SECURE_DONE : result;
        }
        *got += (uint32_t)size;
    }
    return *got ? BQ_SECURE_DONE : BQ_SECURE_WANT;
}

static int secure_write(void *pointer, bq_secure_io_t *io, const uint8_t *from, uint32_t size, uint32_t *taken) {
    secure_t *secure = pointer;
    *taken = 0;
    if (!begin(secure, io)) return BQ_SECURE_FAILED;
    if (SSL_in_init(secure->ssl)) { /* an answer of TLS itself comes first */
        int code = SSL_do_handshake(secure->ssl);
        if (code != 1) return outcome(secure, code);
    }
    while (*taken < size) {
        uint32_t part = size - *taken < RECORD_BYTES_MAX ? size - *taken : RECORD_BYTES_MAX;
        size_t sealed = 0;
        if (io->out_size - io->out_used < part + RECORD_ROOM) return BQ_SECURE_FULL;
        int code = SSL_write_ex(secure->ssl, from + *taken, part, &sealed);
        if (code != 1) return outcome(secure, code);
        *taken += (uint32_t)sealed;
    }
    return BQ_SECURE_DONE;
}

static int secure_goodbye(void *pointer, bq_secure_io_t *io) {
    secure_t *secure = pointer;
    if (!begin(secure, io)) return BQ_SECURE_FAILED;
    if (secure->ended || SSL_in_init(secure->ssl)) return BQ_SECURE_DONE; /* nothing to end */
    int code = SSL_shutdown(secure->ssl);
    if (code < 0) return outcome(secure, code);
    secure->ended = true; /* once more, SSL_shutdown would wait for the peer's */
    return BQ_SECURE_DONE;
}

/* ---- facts --------------------------------------------------------------------------------------------------------------- */

/* A name that does not fit, or that has a NUL inside, is no name: cut, it would be another client's. */
static bool take_name(char *into, size_t room, const char *name, int size) {
    if (size <= 0 || (size_t)size >= room || memchr(name, 0, (size_t)size)) return false;
    memcpy(into, name, (size_t)size);
    into[size] = 0;
    return true;
}

/* The last common name: the most specific one. */
static bool take_common_name(char *into, size_t room, X509 *certificate, bool *has_one) {
    const X509_NAME *subject = X509_get_subject_name(certificate);
    int last = -1, next;
    while ((next = X509_NAME_get_index_by_NID(subject, NID_commonName, last)) >= 0) last = next;
    *has_one = last >= 0;
    if (last < 0) return false;
    unsigned char *text = NULL;
    int size = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, last)));
    bool taken = size >= 0 && take_name(into, room, (const char *)text, size);
    if (size >= 0) OPENSSL_free(text);
    return taken;
}

static bool take_address(char *into, size_t room, const ASN1_OCTET_STRING *address) {
    const uint8_t *bytes = ASN1_STRING_get0_data(address);
    int size = ASN1_STRING_length(address), used = 0;
    if (size == 4) return snprintf(into, room, "%d.%d.%d.%d", bytes[0], bytes[1], bytes[2], bytes[3]) > 0;
    if (size != 16) return false;
    for (int i = 0; i < 16; i += 2)
        used += snprintf(into + used, room - (size_t)used, "%s%X", i ? ":" : "", bytes[i] << 8 | bytes[i + 1]);
    return true;
}

static bool take_alternative(char *into, size_t room, const GENERAL_NAME *name) {
    int kind = 0;
    const void *value = GENERAL_NAME_get0_value(name, &kind);
    if (kind == GEN_IPADD) return take_address(into, room, value);
    if (kind != GEN_DNS && kind != GEN_EMAIL && kind != GEN_URI) return false;
    const char *text = (const char *)ASN1_STRING_get0_data(value);
    int size = ASN1_STRING_length(value);
    for (int i = 0; i < size; i++)
        if (text[i] < 0x20 || text[i] > 0x7e) return false; /* these are ASCII (RFC 5280, 4.2.1.6) */
    return take_name(into, room, text, size);
}

static void take_subject(char *into, size_t room, X509 *certificate) {
    bool has_common_name;
    if (take_common_name(into, room, certificate, &has_common_name) || has_common_name) return;
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++)
        if (take_alternative(into, room, sk_GENERAL_NAME_value(names, i))) break;
    GENERAL_NAMES_free(names);
}

static void secure_opened(void *pointer, bq_secure_facts_t *facts) {
    const secure_t *secure = pointer;
    const unsigned char *protocol = NULL;
    unsigned protocol_size = 0;
    memset(facts, 0, sizeof *facts);
    snprintf(facts->version, sizeof facts->version, "%s", SSL_get_version(secure->ssl));
    snprintf(facts->cipher, sizeof facts->cipher, "%s", SSL_get_cipher_name(secure->ssl));
    SSL_get0_alpn_selected(secure->ssl, &protocol, &protocol_size);
    take_name(facts->alpn, sizeof facts->alpn, (const char *)protocol, (int)protocol_size);
    facts->resumed = SSL_session_reused(secure->ssl) == 1;
    X509 *certificate = SSL_get0_peer_certificate(secure->ssl);
    facts->has_certificate = certificate != NULL;
    if (certificate) take_subject(facts->subject, sizeof facts->subject, certificate);
    ERR_clear_error();
}

static void secure_failed(void *pointer, bq_secure_error_t *error) {
    const secure_t *secure = pointer;
    if (secure->error)
        *error = *secure->error;
    else
        *error = (bq_secure_error_t){.reason = "no memory"};
}

static const bq_secure_ops_t OPS = {.size = sizeof(bq_secure_ops_t),
                                    .open = secure_open,
                                    .close = secure_close,
                                    .shake = secure_shake,
                                    .read = secure_read,
                                    .write = secure_write,
                                    .goodbye = secure_goodbye,
                                    .opened = secure_opened,
                                    .failed = secure_failed,
                                    .context_free = bqtls_context_free};

const bq_secure_ops_t *bqtls_ops(void) { return &OPS; }
