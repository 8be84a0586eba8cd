/* tls/context.c: certificates, keys and rules of a TLS listener, and the errors in them.
 *
 * Invariant: every rule is set here, so neither the library's defaults nor the system's openssl.cnf decide what a broker accepts.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "tls/context.h"

/* TLS 1.2: fresh keys for every connection and authenticated encryption only, as in TLS 1.3. */
#define AES_12                                                                                                                   \
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
#define CHACHA_12 "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
#define AES_13 "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
#define CHACHA_13 "TLS_CHACHA20_POLY1305_SHA256"
#define SECURITY_LEVEL 2 /* keys and signatures of 112 bits at least */
#define SESSION_NAME "blipmq"

struct context {
    atomic_uint references;
    SSL_CTX *ssl;
    BIO_METHOD *bio;
    uint8_t *alpn;
    uint32_t alpn_size;
    bool require_client_cert, only_tls13, chacha_first;
};

SSL_CTX *context_ssl(const context_t *context) { return context->ssl; }
const BIO_METHOD *context_bio(const context_t *context) { return context->bio; }
const char *bqtls_library(void) { return OpenSSL_version(OPENSSL_VERSION); }

/* ---- errors ---------------------------------------------------------------------------------------------------------- */

/* 3.2 and newer report the error of a record a second time. */
static bool is_an_echo(unsigned long code) {
#ifdef SSL_R_RECORD_LAYER_FAILURE
    return ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == SSL_R_RECORD_LAYER_FAILURE;
#else
    (void)code;
    return false;
#endif
}

void error_text(char *text, size_t size) {
    unsigned long code, chosen = 0;
    while ((code = ERR_get_error())) {
        bool better = !chosen || is_an_echo(chosen) || (ERR_GET_LIB(chosen) != ERR_LIB_SSL && ERR_GET_LIB(code) == ERR_LIB_SSL);
        if (better && !(chosen && is_an_echo(code))) chosen = code;
    }
    const char *reason = chosen ? ERR_reason_error_string(chosen) : NULL;
    if (reason)
        snprintf(text, size, "%s", reason);
    else
        snprintf(text, size, "error %lu of the TLS library", chosen);
}

static bool wrong(bqtls_error_t *error, enum bqtls_part part) {
    error->part = part;
    error_text(error->reason, sizeof error->reason);
    return false;
}

static bool wrong_text(bqtls_error_t *error, enum bqtls_part part, const char *reason) {
    error->part = part;
    snprintf(error->reason, sizeof error->reason, "%s", reason);
    return false;
}

/* ---- reading PEM ------------------------------------------------------------------------------------------------------ */

/* The certificates of a text, in their order. NULL: there is none, or one is damaged. */
static STACK_OF(X509) * read_certificates(const char *text, uint32_t size) {
    BIO *bio = BIO_new_mem_buf(text, (int)size);
    STACK_OF(X509) *found = sk_X509_new_null();
    X509 *one = NULL;
    bool whole = bio && found;
    while (whole && (one = PEM_read_bio_X509(bio, NULL, NULL, NULL))) whole = sk_X509_push(found, one) > 0;
    /* The last read failed. Only "no more" is right, and only behind at least one. */
    whole = whole && sk_X509_num(found) > 0 && ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    if (whole) ERR_clear_error();
    BIO_free(bio);
    if (whole) return found;
    sk_X509_pop_free(found, X509_free);
    return NULL;
}

/* No one is there to type a pass phrase when a broker starts. */
static int refuse_pass_phrase(char *into, int room, int writing, void *asked) {
    (void)into;
    (void)room;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

static EVP_PKEY *read_key(const bqtls_settings_t *settings, bqtls_error_t *error) {
    bool asked = false;
    BIO *bio = BIO_new_mem_buf(settings->key, (int)settings->key_size);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, refuse_pass_phrase, &asked) : NULL;
    BIO_free(bio);
    if (!key && asked)
        wrong_text(error, BQTLS_KEY_ENCRYPTED, "the key is encrypted");
    else if (!key)
        wrong(error, BQTLS_KEY);
    return key;
}

/* ---- rules ------------------------------------------------------------------------------------------------------------- */

static int choose_protocol(SSL *ssl, const uint8_t **chosen, uint8_t *size, const uint8_t *offered, unsigned offered_size,
                           void *arg) {
    const context_t *context = arg;
    (void)ssl;
    if (SSL_select_next_proto((uint8_t **)(uintptr_t)chosen, size, context->alpn, context->alpn_size, offered, offered_size) ==
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_OK;
    return SSL_TLSEXT_ERR_ALERT_FATAL; /* RFC 7301, 3.2: no_application_protocol */
}

static bool set_suites(const context_t *context) {
    SSL_CTX *ssl = context->ssl;
    bool chacha = context->chacha_first;
    return SSL_CTX_set_cipher_list(ssl, chacha ? CHACHA_12 ":" AES_12 : AES_12 ":" CHACHA_12) &&
           SSL_CTX_set_ciphersuites(ssl, chacha ? CHACHA_13 ":" AES_13 : AES_13 ":" CHACHA_13);
}

/* A ticket holds the client's certificate as it was verified once. If that has expired since, a full handshake follows, which
 * refuses it. */
static SSL_TICKET_RETURN use_ticket(SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t size,
                                    SSL_TICKET_STATUS status, void *arg) {
    (void)ssl;
    (void)name;
    (void)size;
    (void)arg;
    const X509 *certificate = session ? SSL_SESSION_get0_peer(session) : NULL;
    if (certificate && X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0) return SSL_TICKET_RETURN_IGNORE_RENEW;
    switch (status) {
    case SSL_TICKET_SUCCESS: return SSL_TICKET_RETURN_USE;
    case SSL_TICKET_SUCCESS_RENEW: return SSL_TICKET_RETURN_USE_RENEW;
    default: return SSL_TICKET_RETURN_IGNORE_RENEW;
    }
}

/* Sessions are stored by the clients, as tickets under keys that only this context has. Their name must be set: without it the
 * library refuses to resume sessions of clients with certificates. */
static bool set_sessions(SSL_CTX *ssl) {
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    return SSL_CTX_set_num_tickets(ssl, 1) && SSL_CTX_set_max_early_data(ssl, 0) && SSL_CTX_set_recv_max_early_data(ssl, 0) &&
           SSL_CTX_set_session_ticket_cb(ssl, NULL, use_ticket, NULL) &&
           SSL_CTX_set_session_id_context(ssl, (const uint8_t *)SESSION_NAME, sizeof SESSION_NAME - 1);
}

static bool set_rules(context_t *context) {
    SSL_CTX *ssl = context->ssl;
    SSL_CTX_clear_options(ssl, SSL_CTX_get_options(ssl));
    SSL_CTX_set_options(ssl, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                 SSL_OP_PRIORITIZE_CHACHA | SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
    SSL_CTX_set_security_level(ssl, SECURITY_LEVEL);
    SSL_CTX_clear_mode(ssl, SSL_CTX_get_mode(ssl));
    SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_max_cert_list(ssl, HANDSHAKE_BYTES_MAX);
    SSL_CTX_set_read_ahead(ssl, 0); /* what follows Finished stays in the io */
    if (context->alpn_size) SSL_CTX_set_alpn_select_cb(ssl, choose_protocol, context);
    return SSL_CTX_set_min_proto_version(ssl, context->only_tls13 ? TLS1_3_VERSION : TLS1_2_VERSION) &&
           SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) && set_suites(context) && set_sessions(ssl);
}

static void set_verification(const context_t *context) {
    bool asks = SSL_CTX_get_client_CA_list(context->ssl) && sk_X509_NAME_num(SSL_CTX_get_client_CA_list(context->ssl)) > 0;
    int mode = SSL_VERIFY_PEER | (context->require_client_cert ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0);
    SSL_CTX_set_verify(context->ssl, asks ? mode : SSL_VERIFY_NONE, NULL);
}

/* ---- contexts ---------------------------------------------------------------------------------------------------------- */

void *bqtls_context_share(void *context) {
    atomic_fetch_add_explicit(&((context_t *)context)->references, 1, memory_order_relaxed);
    return context;
}

void bqtls_context_free(void *pointer) {
    context_t *context = pointer;
    if (!context || atomic_fetch_sub_explicit(&context->references, 1, memory_order_acq_rel) != 1) return;
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->bio);
    free(context->alpn);
    free(context);
}

/* A context with all rules, and without certificates. */
static context_t *context_begin(const bqtls_settings_t *settings, bqtls_error_t *error) {
    ERR_clear_error();
    /* No cleaning at exit: the core's threads may still run then. */
    OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL);
    context_t *context = calloc(1, sizeof *context);
    if (!context) {
        wrong_text(error, BQTLS_LIBRARY, "no memory");
        return NULL;
    }
    atomic_init(&context->references, 1);
    context->require_client_cert = settings->require_client_cert;
    context->only_tls13 = settings->only_tls13;
    context->chacha_first = settings->chacha_first;
    context->alpn_size = settings->alpn_size;
    context->alpn = settings->alpn_size ? malloc(settings->alpn_size) : NULL;
    if (context->alpn) memcpy(context->alpn, settings->alpn, settings->alpn_size);
    context->bio = bio_methods();
    context->ssl = SSL_CTX_new(TLS_server_method());
    if (context->bio && context->ssl && (context->alpn || !context->alpn_size) && set_rules(context)) return context;
    wrong(error, BQTLS_LIBRARY);
    bqtls_context_free(context);
    return NULL;
}

/* The certificates in `chain`, of which the first is the broker's own, and its key. */
static bool use_certificates(context_t *context, STACK_OF(X509) * chain, EVP_PKEY *key, bqtls_error_t *error) {
    X509 *own = sk_X509_shift(chain);
    if (!X509_check_private_key(own, key)) {
        X509_free(own);
        return wrong(error, BQTLS_PAIR);
    }
    bool used = SSL_CTX_use_cert_and_key(context->ssl, own, key, chain, 1) == 1;
    X509_free(own);
    return used || wrong(error, BQTLS_CHAIN);
}

static bool use_identity(context_t *context, const bqtls_settings_t *settings, bqtls_error_t *error) {
    STACK_OF(X509) *chain = read_certificates(settings->chain, settings->chain_size);
    if (!chain) return wrong(error, BQTLS_CHAIN);
    EVP_PKEY *key = read_key(settings, error);
    bool used = key && use_certificates(context, chain, key, error);
    EVP_PKEY_free(key);
    sk_X509_pop_free(chain, X509_free);
    return used;
}

/* Clients' certificates must lead to one of these, and clients are told their names, to choose theirs by. */
static bool use_authorities(context_t *context, const bqtls_settings_t *settings, bqtls_error_t *error) {
    if (!settings->client_ca_size) return true;
    STACK_OF(X509) *authorities = read_certificates(settings->client_ca, settings->client_ca_size);
    if (!authorities) return wrong(error, BQTLS_CLIENT_CA);
    bool used = true;
    for (int i = 0; used && i < sk_X509_num(authorities); i++) {
        X509 *authority = sk_X509_value(authorities, i);
        used = X509_STORE_add_cert(SSL_CTX_get_cert_store(context->ssl), authority) &&
               SSL_CTX_add_client_CA(context->ssl, authority);
    }
    sk_X509_pop_free(authorities, X509_free);
    return used || wrong(error, BQTLS_CLIENT_CA);
}

static bool is_protocol_list(const uint8_t *list, uint32_t size) {
    uint32_t at = 0;
    while (at < size && list[at]) at += 1u + list[at];
    return at == size;
}

void *bqtls_context_new(const bqtls_settings_t *settings, bqtls_error_t *error) {
    if (!is_protocol_list(settings->alpn, settings->alpn_size)) {
        wrong_text(error, BQTLS_ALPN, "not a list of protocols");
        return NULL;
    }
    context_t *context = context_begin(settings, error);
    if (!context) return NULL;
    if (use_identity(context, settings, error) && use_authorities(context, settings, error)) {
        set_verification(context);
        return context;
    }
    bqtls_context_free(context);
    return NULL;
}

/* Everything that `old` got from files, by reference. */
static bool copy_files(context_t *context, const context_t *old) {
    STACK_OF(X509) *chain = NULL;
    STACK_OF(X509_NAME) *names = SSL_CTX_get_client_CA_list(old->ssl);
    SSL_CTX_get0_chain_certs(old->ssl, &chain);
    if (SSL_CTX_use_cert_and_key(context->ssl, SSL_CTX_get0_certificate(old->ssl), SSL_CTX_get0_privatekey(old->ssl), chain, 1) !=
        1)
        return false;
    SSL_CTX_set1_cert_store(context->ssl, SSL_CTX_get_cert_store(old->ssl));
    if (!names) return true;
    STACK_OF(X509_NAME) *copied = SSL_dup_CA_list(names);
    SSL_CTX_set_client_CA_list(context->ssl, copied);
    return copied != NULL;
}

void *bqtls_context_renewed(void *pointer, bqtls_error_t *error) {
    const context_t *old = pointer;
    bqtls_settings_t settings = {.alpn = old->alpn,
                                 .alpn_size = old->alpn_size,
                                 .require_client_cert = old->require_client_cert,
                                 .only_tls13 = old->only_tls13,
                                 .chacha_first = old->chacha_first};
    context_t *context = context_begin(&settings, error);
    if (!context) return NULL;
    if (copy_files(context, old)) {
        set_verification(context);
        return context;
    }
    wrong(error, BQTLS_LIBRARY);
    bqtls_context_free(context);
    return NULL;
}
