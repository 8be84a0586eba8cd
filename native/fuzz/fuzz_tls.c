/* fuzz_tls.c: blipmq._tls in memory, with a real client whose bytes are changed, cut and repeated on their way.
 *
 * The input chooses version and certificates, then the steps. Random numbers of the library are the same in every run.
 *
 * Invariant: as in tls_ends.h; and as long as nothing was changed, both directions carry exactly what was written. A connection
 * that has failed stays failed, and no plaintext comes before its handshake is done.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/pem.h>
#include <openssl/rand.h>

#include "fuzz.h"
#include "../../tests/native/tls_ends.h"

#define STEPS_MAX 200
#define FLIGHT_BYTES_MAX (256u << 10)

static uint64_t chance;

static int same_bytes(unsigned char *into, int size) {
    for (int i = 0; i < size; i++) into[i] = (unsigned char)(random_next(&chance) >> 32);
    return 1;
}
static int always_ready(void) { return 1; }

/* Made once: contexts do not change. Server: without and with certificates of clients. Client: TLS 1.2, 1.3, with a certificate.
 */
static struct {
    void *server[2];
    SSL_CTX *client[3];
} made;

static SSL_CTX *client_context(int version, bool certificate) {
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    CHECK(context && SSL_CTX_set_max_proto_version(context, version));
    if (!certificate) return context;
    BIO *text = BIO_new_mem_buf(CERTIFICATE, -1), *key_text = BIO_new_mem_buf(KEY, -1);
    X509 *own = PEM_read_bio_X509(text, NULL, NULL, NULL);
    EVP_PKEY *key = PEM_read_bio_PrivateKey(key_text, NULL, NULL, NULL);
    CHECK(own && key && SSL_CTX_use_cert_and_key(context, own, key, NULL, 1) == 1);
    X509_free(own);
    EVP_PKEY_free(key);
    BIO_free(text);
    BIO_free(key_text);
    return context;
}

static void make_contexts(void) {
    static const RAND_METHOD SAME = {.bytes = same_bytes, .pseudorand = same_bytes, .status = always_ready};
    RAND_set_rand_method(&SAME);
    for (int asks = 0; asks < 2; asks++) made.server[asks] = server_context(asks);
    made.client[0] = client_context(TLS1_2_VERSION, false);
    made.client[1] = client_context(TLS1_3_VERSION, false);
    made.client[2] = client_context(TLS1_3_VERSION, true);
}

typedef struct run {
    ends_t ends;
    bool done, failed, ended, bent; /* bent: bytes on their way were changed */
    bytes_t delayed;                /* of the client, not arrived */
    bytes_t written, read;          /* of the client, at the server */
    bytes_t waiting, answered;      /* of the server: not taken, and taken */
    bytes_t arrived;                /* at the client */
} run_t;

static void look(run_t *run, int result) {
    CHECK(!run->failed || result == BQ_SECURE_FAILED);
    run->failed = result == BQ_SECURE_FAILED;
    CHECK(!run->failed || run->bent);
    if (!run->failed) return;
    bq_secure_error_t error;
    bqtls_ops()->failed(run->ends.server, &error);
    CHECK(memchr(error.reason, 0, sizeof error.reason) && memchr(error.detail, 0, sizeof error.detail) && error.reason[0]);
}

/* The client goes on; what it sends waits in `delayed`. */
static void client_goes_on(run_t *run) {
    uint8_t chunk[4096];
    size_t size = 0;
    SSL_do_handshake(run->ends.client);
    bytes_t on_the_way = run->ends.to_server;
    run->ends.to_server = (bytes_t){0};
    client_exchange(&run->ends);
    if (SSL_is_init_finished(run->ends.client))
        while (SSL_read_ex(run->ends.client, chunk, sizeof chunk, &size) == 1) bytes_add(&run->arrived, chunk, size);
    else
        SSL_do_handshake(run->ends.client);
    ERR_clear_error();
    client_exchange(&run->ends);
    bytes_add(&run->delayed, run->ends.to_server.at, run->ends.to_server.size);
    free(run->ends.to_server.at);
    run->ends.to_server = on_the_way;
}

static void client_writes(run_t *run, uint32_t size) {
    static const uint8_t ZEROS[20000];
    size_t taken = 0;
    if (!SSL_is_init_finished(run->ends.client) || run->written.size > FLIGHT_BYTES_MAX) return;
    if (SSL_write_ex(run->ends.client, ZEROS, size % sizeof ZEROS, &taken) == 1) bytes_add(&run->written, ZEROS, taken);
    client_goes_on(run);
}

static void arrive(run_t *run, size_t size) {
    if (size > run->delayed.size) size = run->delayed.size;
    bytes_add(&run->ends.to_server, run->delayed.at, size);
    bytes_drop(&run->delayed, size);
}

static void bend(run_t *run, input_t *input) {
    bytes_t *bytes = &run->delayed;
    uint32_t at = (uint32_t)input_byte(input) << 8 | input_byte(input);
    run->bent = true;
    if (!bytes->size) {
        text_t text = input_bytes(input, input_byte(input));
        bytes_add(bytes, text.bytes, text.size);
        return;
    }
    at %= (uint32_t)bytes->size;
    switch (input_byte(input) % 4) {
    case 0: bytes->at[at] ^= (uint8_t)(1 + input_byte(input) % 255); break;
    case 1: bytes->size = at; break;
    case 2: bytes_drop(bytes, at); break;
    case 3:
        if (bytes->size < FLIGHT_BYTES_MAX) {
            uint8_t *copy = malloc(bytes->size);
            CHECK(copy);
            memcpy(copy, bytes->at, bytes->size);
            bytes_add(bytes, copy, bytes->size);
            free(copy);
        }
        break;
    }
}

static void server_takes(run_t *run, uint32_t room) {
    if (!run->done) {
        int result = server_shake(&run->ends);
        look(run, result);
        run->done = result == BQ_SECURE_DONE;
        if (!run->done) return;
        bq_secure_facts_t facts;
        bqtls_ops()->opened(run->ends.server, &facts);
        CHECK(facts.version[0] && facts.cipher[0] && memchr(facts.subject, 0, sizeof facts.subject));
        return;
    }
    int result = server_read(&run->ends, room, &run->read);
    look(run, result);
    run->ended |= result == BQ_SECURE_END;
    CHECK(run->bent ||
          (run->read.size <= run->written.size &&
           !memcmp(run->read.at ? run->read.at : (void *)"", run->written.at ? run->written.at : (void *)"", run->read.size)));
}

static void server_answers(run_t *run, uint32_t size) {
    static const uint8_t ONES[40000] = {1, 1, 1};
    if (!run->done || run->answered.size > FLIGHT_BYTES_MAX) return;
    if (!run->waiting.size) bytes_add(&run->waiting, ONES, size % sizeof ONES);
    size_t before = run->waiting.size;
    int result = server_write(&run->ends, &run->waiting);
    look(run, result);
    bytes_add(&run->answered, ONES, before - run->waiting.size);
}

static void step(run_t *run, uint8_t what, input_t *input) {
    static const uint32_t ROOMS[] = {0, 1, 30, 600, 17u << 10, 20u << 10, 100u << 10, 5000};
    switch (what % 12) {
    case 0:
    case 1: client_goes_on(run); break;
    case 2: arrive(run, input_byte(input)); break;
    case 3: arrive(run, run->delayed.size); break;
    case 4: bend(run, input); break;
    case 5:
    case 6: server_takes(run, 1 + (uint32_t)input_byte(input) * 256); break;
    case 7: client_writes(run, (uint32_t)input_byte(input) << 8 | input_byte(input)); break;
    case 8: server_answers(run, (uint32_t)input_byte(input) << 8 | input_byte(input)); break;
    case 9: run->ends.room = ROOMS[input_byte(input) % 8]; break;
    case 10:
        if (SSL_version(run->ends.client) == TLS1_3_VERSION && SSL_is_init_finished(run->ends.client))
            SSL_key_update(run->ends.client, SSL_KEY_UPDATE_REQUESTED);
        else
            run->bent |= SSL_renegotiate(run->ends.client) == 1; /* refused, which ends the client */
        client_goes_on(run);
        break;
    case 11:
        if (input_byte(input) & 1)
            SSL_shutdown(run->ends.client);
        else
            look(run, server_goodbye(&run->ends));
        run->bent = true;
        client_goes_on(run);
        break;
    }
}

/* Everything that is on its way arrives. */
static void finish(run_t *run) {
    run->ends.room = 100u << 10;
    for (int i = 0; i < 40 && !run->failed; i++) {
        client_goes_on(run);
        arrive(run, run->delayed.size);
        server_takes(run, 64u << 10);
    }
    client_goes_on(run);
    if (run->bent) return;
    CHECK(run->done && run->read.size == run->written.size);
    CHECK(run->arrived.size == run->answered.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    if (!made.client[0]) make_contexts();
    chance = 0x9e3779b97f4a7c15u;
    uint8_t kind = input_byte(&input);
    run_t run = {.ends = ends_open(made.server[kind & 1], made.client[(kind >> 1) % 3])};
    for (int steps = 0; steps < STEPS_MAX && input.at < input.end; steps++) step(&run, input_byte(&input), &input);
    finish(&run);
    ends_close(&run.ends);
    free(run.delayed.at);
    free(run.written.at);
    free(run.read.at);
    free(run.waiting.at);
    free(run.answered.at);
    free(run.arrived.at);
    return 0;
}
