/* Tests of blipmq._tls with a client that does what Python's `ssl` cannot: key updates, renegotiation, many silent connections.
 *
 *      test_tls            the behaviour, under the sanitizers
 *      test_tls memory     bytes of an idle connection, of a handshake half done, and of one with the longest ClientHello
 */
#include <malloc.h>

#include "tls_ends.h"
#include "tls/handshake_size.h"

#define UPDATES 10000
#define CONNECTIONS 400

static SSL_CTX *client_context(int version) {
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    CHECK(context);
    CHECK(SSL_CTX_set_min_proto_version(context, version) && SSL_CTX_set_max_proto_version(context, version));
    return context;
}

/* Both directions carry data. */
static void expect_traffic(ends_t *ends) {
    bytes_t got = {0}, sent = {0};
    uint8_t back[8] = {0};
    CHECK(SSL_write(ends->client, "ping", 4) == 4);
    client_exchange(ends);
    CHECK(server_read(ends, 100, &got) == BQ_SECURE_DONE && got.size == 4 && !memcmp(got.at, "ping", 4));
    bytes_add(&sent, "pong", 4);
    CHECK(server_write(ends, &sent) == BQ_SECURE_DONE);
    client_exchange(ends);
    CHECK(SSL_read(ends->client, back, sizeof back) == 4 && !memcmp(back, "pong", 4));
    free(got.at);
    free(sent.at);
}

static void test_key_updates_are_answered(void *context) {
    SSL_CTX *settings = client_context(TLS1_3_VERSION);
    ends_t ends = ends_open(context, settings);
    ends_shake(&ends);
    for (int i = 0; i < 3; i++) {
        CHECK(SSL_key_update(ends.client, SSL_KEY_UPDATE_REQUESTED));
        expect_traffic(&ends);
    }
    ends_close(&ends);
    SSL_CTX_free(settings);
}

/* A client that asks for new keys and does not read the answers: once the output is full, no more of it is read and kept. */
static void test_unread_answers_stop_the_input(void *context, bool with_data) {
    SSL_CTX *settings = client_context(TLS1_3_VERSION);
    ends_t ends = ends_open(context, settings);
    bytes_t got = {0};
    int result;
    ends_shake(&ends);
    for (int i = 0; i < UPDATES; i++) {
        CHECK(SSL_key_update(ends.client, SSL_KEY_UPDATE_REQUESTED));
        CHECK(with_data ? SSL_write(ends.client, "x", 1) == 1 : SSL_do_handshake(ends.client) == 1);
    }
    client_exchange(&ends);
    ends.room = 0;
    while ((result = server_read(&ends, 100, &got)) != BQ_SECURE_FULL) CHECK(result == BQ_SECURE_DONE);
    size_t left = ends.to_server.size;
    CHECK(left > UPDATES * 20);
    for (int i = 0; i < 100; i++) CHECK(server_read(&ends, 100, &got) == BQ_SECURE_FULL && ends.to_server.size == left);
    CHECK(!ends.to_client.size);
    ends.room = 1000;
    while ((result = server_read(&ends, 100, &got)) != BQ_SECURE_WANT)
        CHECK(result == BQ_SECURE_DONE || result == BQ_SECURE_FULL);
    CHECK(got.size == (with_data ? UPDATES : 0) && ends.to_client.size > UPDATES * 20 && ends.to_client.size < UPDATES * 40);
    client_exchange(&ends);
    expect_traffic(&ends);
    free(got.at);
    ends_close(&ends);
    SSL_CTX_free(settings);
}

/* An answer that waits for room comes in front of the next record, and a write waits for it. */
static void test_a_write_sends_the_waiting_answer_first(void *context) {
    SSL_CTX *settings = client_context(TLS1_3_VERSION);
    ends_t ends = ends_open(context, settings);
    bytes_t got = {0}, sent = {0};
    uint8_t back[8];
    ends_shake(&ends);
    for (int i = 0; i < 2; i++)
        CHECK(SSL_key_update(ends.client, SSL_KEY_UPDATE_REQUESTED) && SSL_do_handshake(ends.client) == 1);
    client_exchange(&ends);
    ends.room = 7;
    CHECK(server_read(&ends, 100, &got) == BQ_SECURE_FULL && ends.to_client.size == 7);
    bytes_add(&sent, "pong", 4);
    CHECK(server_write(&ends, &sent) == BQ_SECURE_FULL && sent.size == 4);
    ends.room = 17u << 10;
    CHECK(server_write(&ends, &sent) == BQ_SECURE_DONE);
    client_exchange(&ends);
    CHECK(SSL_read(ends.client, back, sizeof back) == 4 && !memcmp(back, "pong", 4));
    expect_traffic(&ends);
    free(got.at);
    free(sent.at);
    ends_close(&ends);
    SSL_CTX_free(settings);
}

static void test_renegotiation_is_refused(void *context) {
    SSL_CTX *settings = client_context(TLS1_2_VERSION);
    ends_t ends = ends_open(context, settings);
    bytes_t got = {0}, sent = {0};
    ends_shake(&ends);
    CHECK(SSL_renegotiate(ends.client) && SSL_do_handshake(ends.client) < 0);
    client_exchange(&ends);
    CHECK(server_read(&ends, 100, &got) == BQ_SECURE_WANT && ends.to_client.size > 0 && ends.to_client.size < 64);
    bytes_add(&sent, "x", 1);
    CHECK(server_write(&ends, &sent) == BQ_SECURE_DONE); /* the connection itself goes on */
    client_exchange(&ends);
    CHECK(SSL_do_handshake(ends.client) <= 0 && ERR_GET_REASON(ERR_peek_error()) == SSL_R_NO_RENEGOTIATION);
    free(got.at);
    free(sent.at);
    ends_close(&ends);
    SSL_CTX_free(settings);
}

static int count_ticket(SSL *client, SSL_SESSION *session) {
    (void)session;
    ++*(int *)SSL_get_app_data(client);
    return 0;
}

static void test_a_handshake_gives_one_ticket(void *context, int version) {
    SSL_CTX *settings = client_context(version);
    int tickets = 0;
    SSL_CTX_set_session_cache_mode(settings, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(settings, count_ticket);
    ends_t ends = ends_open(context, settings);
    SSL_set_app_data(ends.client, &tickets);
    ends_shake(&ends);
    expect_traffic(&ends);
    CHECK(tickets == 1);
    ends_close(&ends);
    SSL_CTX_free(settings);
}

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

static size_t used(void) { return mallinfo2().uordblks; }

/* Bytes of each of many servers whose handshake is done, or has begun. The first ones make what is made once. */
static double bytes_each(void *context, int version, bool whole) {
    static ends_t ends[CONNECTIONS];
    SSL_CTX *settings = client_context(version);
    size_t before = 0, first = CONNECTIONS / 4;
    for (size_t i = 0; i < CONNECTIONS; i++) {
        if (i == first) before = used();
        ends[i] = ends_open(context, settings);
        if (whole) {
            ends_shake(&ends[i]);
            expect_traffic(&ends[i]);
        } else {
            CHECK(SSL_do_handshake(ends[i].client) < 0);
            client_exchange(&ends[i]);
            CHECK(server_shake(&ends[i]) == BQ_SECURE_WANT);
        }
        SSL_free(ends[i].client);
        free(ends[i].to_server.at);
        free(ends[i].to_client.at);
    }
    double each = (double)(used() - before) / (double)(CONNECTIONS - first);
    for (size_t i = 0; i < CONNECTIONS; i++) bqtls_ops()->close(ends[i].server);
    SSL_CTX_free(settings);
    return each;
}

static void test_a_client_hello_that_announces_too_many_bytes_is_refused(void *context) {
    const struct {
        uint32_t size;
        bool refused;
    } cases[] = {{HANDSHAKE_BYTES_MAX, false}, {HANDSHAKE_BYTES_MAX + 1, true}, {131396, true}, {0xffffff, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t cut = 0; cut <= 9; cut++) {
            uint32_t size = cases[i].size;
            uint8_t out[100], first[] = {22, 3, 1, 0, 100, 1, (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
            void *server = bqtls_ops()->open(context);
            bq_secure_io_t io = {.in = first, .in_size = (uint32_t)cut, .out = out, .out_size = sizeof out};
            int result = bqtls_ops()->shake(server, &io);
            io.in_size = sizeof first;
            if (result == BQ_SECURE_WANT) result = bqtls_ops()->shake(server, &io);
            CHECK(result == (cases[i].refused ? BQ_SECURE_FAILED : BQ_SECURE_WANT));
            bq_secure_error_t error;
            bqtls_ops()->failed(server, &error);
            if (cases[i].refused) CHECK(!strcmp(error.reason, "excessive message size"));
            bqtls_ops()->close(server);
        }
}

/* A ClientHello that announces `size` bytes, of which nearly all have come. */
static size_t bytes_of_long_hello(void *context, uint32_t size) {
    void *server = bqtls_ops()->open(context);
    bytes_t message = {0};
    uint8_t out[1000], zeros[16384] = {0};
    uint8_t head[] = {1, (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
    bytes_add(&message, head, sizeof head);
    while (message.size < size) bytes_add(&message, zeros, size - message.size < 16384 ? size - message.size : 16384);
    size_t before = used();
    for (size_t at = 0; at < message.size; at += 16384) {
        uint32_t part = message.size - at < 16384 ? (uint32_t)(message.size - at) : 16384;
        uint8_t record[5 + 16384] = {22, 3, 1, (uint8_t)(part >> 8), (uint8_t)part};
        memcpy(record + 5, message.at + at, part);
        bq_secure_io_t io = {.in = record, .in_size = part + 5, .out = out, .out_size = sizeof out};
        int result = bqtls_ops()->shake(server, &io);
        if (result == BQ_SECURE_FAILED) break;
    }
    size_t bytes = used() - before;
    bqtls_ops()->close(server);
    free(message.at);
    return bytes;
}

static int measure(void *context) {
    printf("%s\n", bqtls_library());
    printf("idle-1.2 %.0f\n", bytes_each(context, TLS1_2_VERSION, true));
    printf("idle-1.3 %.0f\n", bytes_each(context, TLS1_3_VERSION, true));
    printf("begun-1.2 %.0f\n", bytes_each(context, TLS1_2_VERSION, false));
    printf("begun-1.3 %.0f\n", bytes_each(context, TLS1_3_VERSION, false));
    printf("longest-hello %zu\n", bytes_of_long_hello(context, HANDSHAKE_BYTES_MAX));
    return 0;
}

int main(int count, char **words) {
    void *context = server_context(false);
    if (count > 1 && !strcmp(words[1], "memory")) return measure(context);
    test_key_updates_are_answered(context);
    test_unread_answers_stop_the_input(context, true);
    test_unread_answers_stop_the_input(context, false);
    test_a_write_sends_the_waiting_answer_first(context);
    test_renegotiation_is_refused(context);
    test_a_client_hello_that_announces_too_many_bytes_is_refused(context);
    test_a_handshake_gives_one_ticket(context, TLS1_2_VERSION);
    test_a_handshake_gives_one_ticket(context, TLS1_3_VERSION);
    bqtls_context_free(context);
    return 0;
}
