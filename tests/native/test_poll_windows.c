/* test_poll_windows.c: the poller, wake-ups, sockets and threads of Windows, on real sockets of this process. The twin of test_poll.c.
 *
 * Invariant checked: a socket reports only events of its interest, except errors. With interest 0 it reports nothing.
 */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <wchar.h>

#include "check.h"
#include "base/poll.h"
#include "base/socket.h"

#define KEY 0x123456789abcdef0ull
#define MANY 200

/* The ready bits of the only socket, or 0. Data on the way over loopback may need a moment, so `within_ms` bounds the wait. */
static uint32_t ready_within(poller_t poller, int within_ms) {
    poll_event_t events[4];
    int count = poll_wait(poller, events, 4, within_ms);
    CHECK(count >= 0);
    uint32_t ready = 0;
    for (int i = 0; i < count; i++) {
        CHECK(events[i].key == KEY);
        ready |= events[i].ready;
    }
    return ready;
}

static SOCKET socket_listening(struct sockaddr_in *address) {
    int size = sizeof *address;
    u_long on = 1;
    SOCKET listener = socket(AF_INET, SOCK_STREAM, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(listener, (struct sockaddr *)address, size) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)address, &size) == 0 && ioctlsocket(listener, FIONBIO, &on) == 0);
    return listener;
}

/* ends[0] connected (it blocks), ends[1] was accepted by poll_accept. */
static void pair_of(SOCKET listener, const struct sockaddr_in *address, int ends[2]) {
    uint8_t peer[16];
    uint16_t port;
    int size = sizeof *address, tries = 0;
    struct sockaddr_in own;
    SOCKET client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (const struct sockaddr *)address, size) == 0);
    while ((ends[1] = poll_accept((int)listener, peer, &port)) == BQ_E_AGAIN && tries++ < 10000) poll_sleep_ms(1);
    static const uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    CHECK(ends[1] >= 0 && getsockname(client, (struct sockaddr *)&own, &size) == 0);
    CHECK(memcmp(peer, mapped, 16) == 0 && port == ntohs(own.sin_port));
    ends[0] = (int)client;
}

static void tcp_pair(int ends[2]) {
    struct sockaddr_in address;
    SOCKET listener = socket_listening(&address);
    pair_of(listener, &address, ends);
    closesocket(listener);
}

static void reset(int fd) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    CHECK(setsockopt((SOCKET)fd, SOL_SOCKET, SO_LINGER, (const char *)&at_once, sizeof at_once) == 0);
    socket_close(fd);
}

static void test_readiness_follows_interest(void) {
    int ends[2];
    poller_t poller = poll_open();
    CHECK(poller != BQ_E_SYSTEM);
    tcp_pair(ends);
    CHECK(poll_set(poller, ends[1], KEY, 0, POLL_READ) == BQ_OK && ready_within(poller, 0) == 0);
    CHECK(send((SOCKET)ends[0], "x", 1, 0) == 1 && ready_within(poller, 10000) == POLL_READ);
    CHECK(ready_within(poller, 0) == POLL_READ); /* level-triggered: still there */
    CHECK(poll_set(poller, ends[1], KEY, POLL_READ, POLL_READ | POLL_WRITE) == BQ_OK);
    CHECK(ready_within(poller, 10000) == (POLL_READ | POLL_WRITE));
    CHECK(poll_set(poller, ends[1], KEY, POLL_READ | POLL_WRITE, POLL_WRITE) == BQ_OK);
    CHECK(ready_within(poller, 10000) == POLL_WRITE);
    CHECK(poll_set(poller, ends[1], KEY, POLL_WRITE, 0) == BQ_OK && ready_within(poller, 0) == 0);
    socket_close(ends[0]);
    CHECK(ready_within(poller, 50) == 0); /* with interest 0 a hang-up is not reported */
    CHECK(poll_set(poller, ends[1], KEY, 0, POLL_READ) == BQ_OK && (ready_within(poller, 10000) & POLL_READ));
    CHECK(poll_set(poller, ends[1], KEY, POLL_READ, 0) == BQ_OK);
    socket_close(ends[1]);
    poll_close(poller);
}

/* A poll for output is pending, because the buffers are full. More interest must not wait for it. */
static void test_a_wider_interest_takes_effect_while_a_poll_is_pending(void) {
    static char bytes[65536];
    int ends[2];
    poller_t poller = poll_open();
    tcp_pair(ends);
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};
    while (socket_send(ends[1], &part, 1) > 0) {}
    CHECK(errno == EAGAIN);
    CHECK(poll_set(poller, ends[1], KEY, 0, POLL_WRITE) == BQ_OK && ready_within(poller, 50) == 0);
    CHECK(send((SOCKET)ends[0], "x", 1, 0) == 1);
    CHECK(poll_set(poller, ends[1], KEY, POLL_WRITE, POLL_WRITE | POLL_READ) == BQ_OK);
    CHECK(ready_within(poller, 10000) == POLL_READ);
    poll_close(poller);
    socket_close(ends[0]);
    socket_close(ends[1]);
}

static void test_one_or_more_signals_wake_until_they_are_cleared(void) {
    poll_wake_t wake;
    poller_t poller = poll_open();
    CHECK(poll_wake_open(&wake) == BQ_OK);
    CHECK(poll_set(poller, wake.read_fd, KEY, 0, POLL_READ) == BQ_OK && ready_within(poller, 0) == 0);
    poll_wake_clear(&wake); /* clearing must not block if there was no signal */
    for (int i = 0; i < 2000; i++) poll_wake_signal(&wake);
    CHECK(ready_within(poller, 10000) == POLL_READ);
    for (int tries = 0; tries < 10000 && ready_within(poller, 1); tries++) poll_wake_clear(&wake);
    CHECK(ready_within(poller, 0) == 0);
    CHECK(poll_set(poller, wake.read_fd, KEY, POLL_READ, 0) == BQ_OK);
    poll_wake_close(&wake);
    poll_wake_close(&wake);
    poll_close(poller);
}

static void test_with_interest_in_errors_only_a_reset_is_the_only_event(void) {
    int ends[2];
    poller_t poller = poll_open();
    tcp_pair(ends);
    CHECK(poll_set(poller, ends[1], KEY, 0, POLL_ERROR) == BQ_OK && ready_within(poller, 0) == 0);
    CHECK(send((SOCKET)ends[0], "x", 1, 0) == 1);
    CHECK(ready_within(poller, 100) == 0); /* the byte is not reported */
    CHECK(poll_set(poller, ends[1], KEY, POLL_ERROR, POLL_READ) == BQ_OK && ready_within(poller, 10000) == POLL_READ);
    CHECK(poll_set(poller, ends[1], KEY, POLL_READ, POLL_ERROR) == BQ_OK && ready_within(poller, 0) == 0);
    CHECK(poll_socket_error(ends[1]) == 0);
    reset(ends[0]);
    CHECK(ready_within(poller, 10000) & POLL_ERROR);
    CHECK(poll_set(poller, ends[1], KEY, POLL_ERROR, 0) == BQ_OK && ready_within(poller, 0) == 0);
    socket_close(ends[1]);
    poll_close(poller);
}

/* More sockets than the table begins with, closed while their polls are pending; their numbers come back. */
static void test_many_sockets_come_and_go(void) {
    static int ends[MANY][2];
    poll_event_t events[MANY];
    struct sockaddr_in address;
    poller_t poller = poll_open();
    SOCKET listener = socket_listening(&address);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            pair_of(listener, &address, ends[i]);
            CHECK(poll_set(poller, ends[i][1], (uint64_t)i, 0, POLL_READ) == BQ_OK);
        }
        CHECK(poll_wait(poller, events, MANY, 0) == 0);
        for (int i = 0; i < MANY; i += 2) CHECK(send((SOCKET)ends[i][0], "x", 1, 0) == 1);
        bool seen[MANY] = {false};
        for (int found = 0, tries = 0; found < MANY / 2; tries++) {
            int count = poll_wait(poller, events, MANY, 10000);
            CHECK(count > 0 && tries < 100000);
            for (int i = 0; i < count; i++) {
                CHECK(events[i].key % 2 == 0 && events[i].key < MANY && events[i].ready == POLL_READ);
                found += !seen[events[i].key];
                seen[events[i].key] = true;
            }
        }
        for (int i = 0; i < MANY; i++) {
            CHECK(poll_set(poller, ends[i][1], (uint64_t)i, POLL_READ, 0) == BQ_OK);
            socket_close(ends[i][1]);
            socket_close(ends[i][0]);
        }
        CHECK(poll_wait(poller, events, MANY, 0) == 0);
    }
    closesocket(listener);
    poll_close(poller);
}

static void test_sockets_send_parts_and_say_when_they_cannot(void) {
    char bytes[16] = {0};
    int ends[2], tries = 0;
    tcp_pair(ends);
    socket_options(ends[1], true, 0, 0);
    poll_keepalive(ends[1], 60000);
    CHECK(socket_receive(ends[1], bytes, sizeof bytes) == -1 && errno == EAGAIN && !socket_input_waits(ends[1]));
    struct iovec parts[2] = {{.iov_base = "one ", .iov_len = 4}, {.iov_base = "two", .iov_len = 3}};
    CHECK(socket_send(ends[1], parts, 2) == 7);
    CHECK(recv((SOCKET)ends[0], bytes, 7, MSG_WAITALL) == 7 && memcmp(bytes, "one two", 7) == 0);
    CHECK(send((SOCKET)ends[0], "x", 1, 0) == 1);
    while (!socket_input_waits(ends[1]) && tries++ < 10000) poll_sleep_ms(1);
    CHECK(socket_receive(ends[1], bytes, sizeof bytes) == 1 && bytes[0] == 'x');
    socket_output_end(ends[1]);
    CHECK(recv((SOCKET)ends[0], bytes, 1, 0) == 0);
    reset(ends[0]);
    for (tries = 0; tries < 10000 && socket_receive(ends[1], bytes, 1) < 0 && errno == EAGAIN; tries++) poll_sleep_ms(1);
    CHECK(socket_receive(ends[1], bytes, 1) <= 0);
    socket_close(ends[1]);
    CHECK(socket_receive(ends[1], bytes, 1) == -1 && errno == EBADF);
}

static void *store_one(void *argument) {
    *(int *)argument = 1;
    return NULL;
}

static void test_a_thread_runs_and_is_joined_once(void) {
    int done = 0;
    poll_thread_t thread;
    CHECK(poll_thread_start(&thread, "a name longer than the limit", store_one, &done) == BQ_OK);
    CHECK(poll_thread_join(&thread) == BQ_OK && poll_thread_join(&thread) == BQ_OK && done == 1);
    CHECK(poll_thread_pin(-1) == BQ_E_ARGUMENT && poll_thread_pin(1000) == BQ_E_ARGUMENT);
}

static void test_clocks_do_not_go_back(void) {
    uint64_t mono_ms = poll_clock_mono_ms(), mono_us = poll_clock_mono_us();
    poll_sleep_ms(20);
    CHECK(poll_clock_mono_ms() > mono_ms && poll_clock_mono_us() - mono_us >= 10000);
    CHECK(poll_clock_wall_ms() > 1700000000000u); /* after 2023: milliseconds since 1970 */
}

int main(void) {
    poller_t winsock = poll_open(); /* the sockets of the tests need Winsock too */
    test_readiness_follows_interest();
    test_a_wider_interest_takes_effect_while_a_poll_is_pending();
    test_one_or_more_signals_wake_until_they_are_cleared();
    test_with_interest_in_errors_only_a_reset_is_the_only_event();
    test_many_sockets_come_and_go();
    test_sockets_send_parts_and_say_when_they_cannot();
    test_a_thread_runs_and_is_joined_once();
    test_clocks_do_not_go_back();
    poll_close(winsock);
    return 0;
}
