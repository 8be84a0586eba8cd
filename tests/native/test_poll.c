/* test_poll.c: readiness, wake-ups, accepting and threads, on real descriptors of this process.
 *
 * Invariant checked: a descriptor reports only events of its interest, except errors. With interest 0 it reports nothing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_getname_np */
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "base/poll.h"

#define KEY 0x123456789abcdef0ull

/* The ready bits of the only descriptor, or 0. */
static uint32_t ready_now(int poller) {
    poll_event_t events[4];
    int count = poll_wait(poller, events, 4, 0);
    CHECK(count >= 0);
    uint32_t ready = 0;
    for (int i = 0; i < count; i++) {
        CHECK(events[i].key == KEY);
        ready |= events[i].ready;
    }
    return ready;
}

static void test_readiness_follows_interest(void) {
    int ends[2], poller = poll_open();
    CHECK(poller >= 0 && (fcntl(poller, F_GETFD) & FD_CLOEXEC));
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(poll_set(poller, ends[0], KEY, 0, POLL_READ) == BQ_OK && ready_now(poller) == 0);
    CHECK(write(ends[1], "x", 1) == 1 && ready_now(poller) == POLL_READ);
    CHECK(ready_now(poller) == POLL_READ); /* level-triggered: still there */
    CHECK(poll_set(poller, ends[0], KEY, POLL_READ, POLL_READ | POLL_WRITE) == BQ_OK);
    CHECK(ready_now(poller) == (POLL_READ | POLL_WRITE));
    CHECK(poll_set(poller, ends[0], KEY, POLL_READ | POLL_WRITE, POLL_WRITE) == BQ_OK && ready_now(poller) == POLL_WRITE);
    CHECK(poll_set(poller, ends[0], KEY, POLL_WRITE, 0) == BQ_OK && ready_now(poller) == 0);
    close(ends[1]);
    CHECK(ready_now(poller) == 0); /* with interest 0 a hang-up is not reported */
    CHECK(poll_set(poller, ends[0], KEY, 0, POLL_READ) == BQ_OK && (ready_now(poller) & POLL_READ));
    close(ends[0]);
    CHECK(poll_set(poller, ends[0], KEY, 0, POLL_READ) == BQ_E_SYSTEM && errno == EBADF);
    poll_close(poller);
}

static void test_one_or_more_signals_wake_until_they_are_cleared(void) {
    poll_wake_t wake;
    int poller = poll_open();
    CHECK(poll_wake_open(&wake) == BQ_OK);
    CHECK((fcntl(wake.read_fd, F_GETFL) & O_NONBLOCK) && (fcntl(wake.write_fd, F_GETFD) & FD_CLOEXEC));
    CHECK(poll_set(poller, wake.read_fd, KEY, 0, POLL_READ) == BQ_OK && ready_now(poller) == 0);
    poll_wake_clear(&wake); /* clearing must not block if there was no signal */
    for (int i = 0; i < 100000; i++) poll_wake_signal(&wake);
    CHECK(ready_now(poller) == POLL_READ);
    poll_wake_clear(&wake);
    CHECK(ready_now(poller) == 0);
    poll_wake_close(&wake);
    poll_wake_close(&wake);
    poll_close(poller);
}

static void test_accept_returns_the_address_of_the_peer(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, own;
    socklen_t size = sizeof address;
    uint8_t peer[16];
    uint16_t port;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0 && poll_accept(listener, peer, &port) == BQ_E_AGAIN);

    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int accepted = poll_accept(listener, peer, &port);
    CHECK(accepted >= 0 && (fcntl(accepted, F_GETFL) & O_NONBLOCK) && (fcntl(accepted, F_GETFD) & FD_CLOEXEC));
    static const uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    CHECK(getsockname(client, (struct sockaddr *)&own, &size) == 0);
    CHECK(memcmp(peer, mapped, 16) == 0 && port == ntohs(own.sin_port));
    close(accepted);
    close(client);
    close(listener);
    CHECK(poll_accept(listener, peer, &port) == BQ_E_SYSTEM && errno == EBADF);
}

static void test_a_reset_connection_reports_an_error(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    socklen_t size = sizeof address;
    uint8_t peer[16];
    uint16_t port;
    int poller = poll_open(), listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int accepted = poll_accept(listener, peer, &port);
    CHECK(poll_set(poller, accepted, KEY, 0, POLL_READ) == BQ_OK);
    CHECK(setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    close(client);
    poll_event_t event;
    CHECK(poll_wait(poller, &event, 1, -1) == 1 && (event.ready & POLL_ERROR) && (event.ready & POLL_READ));
    close(accepted);
    close(listener);
    poll_close(poller);
}

/* A TCP connection over loopback: ends[0] connected, ends[1] was accepted. */
static void tcp_pair(int ends[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    uint8_t peer[16];
    uint16_t port;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(connect(ends[0], (struct sockaddr *)&address, sizeof address) == 0);
    ends[1] = poll_accept(listener, peer, &port);
    CHECK(ends[1] >= 0);
    close(listener);
}

static void test_with_interest_in_errors_only_a_reset_is_the_only_event(void) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int ends[2], poller = poll_open();
    tcp_pair(ends);
    CHECK(poll_set(poller, ends[1], KEY, 0, POLL_ERROR) == BQ_OK && ready_now(poller) == 0);
    CHECK(write(ends[0], "x", 1) == 1 && shutdown(ends[0], SHUT_WR) == 0);
    poll_event_t event;
    CHECK(poll_wait(poller, &event, 1, 100) == 0); /* neither the byte nor the end of the peer's input is reported */
    CHECK(poll_set(poller, ends[1], KEY, POLL_ERROR, POLL_READ) == BQ_OK && ready_now(poller) == POLL_READ);
    CHECK(poll_set(poller, ends[1], KEY, POLL_READ, POLL_ERROR) == BQ_OK && ready_now(poller) == 0);
    CHECK(poll_socket_error(ends[1]) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    close(ends[0]);
    CHECK(poll_wait(poller, &event, 1, -1) == 1 && (event.ready & POLL_ERROR));
    CHECK(poll_socket_error(ends[1]) != 0 && poll_socket_error(ends[1]) == 0);
    CHECK(poll_set(poller, ends[1], KEY, POLL_ERROR, 0) == BQ_OK && ready_now(poller) == 0);
    close(ends[1]);
    poll_close(poller);
}

static void test_a_peer_with_a_closed_receive_window_still_acknowledges(void) {
    uint32_t quiet_ms, sent_ms;
    int ends[2], small = 4096, other[2];
    char bytes[4096] = {0};
    tcp_pair(ends);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
    poll_keepalive(ends[1], 60000);
    CHECK(poll_unacknowledged(ends[1], &quiet_ms, &sent_ms) == POLL_ALL_ACKNOWLEDGED);
    while (write(ends[1], bytes, sizeof bytes) > 0) {}
    CHECK(errno == EAGAIN);
    int tries = 0; /* the last transmission is acknowledged soon */
    while (tries++ < 10000 && poll_unacknowledged(ends[1], &quiet_ms, &sent_ms) != POLL_ANSWERING) poll_sleep_ms(1);
    CHECK(tries < 10000);
    close(ends[0]);
    close(ends[1]);
    CHECK(poll_unacknowledged(ends[1], &quiet_ms, &sent_ms) == BQ_E_SYSTEM);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, other) == 0);
    poll_keepalive(other[0], 60000); /* no effect on other sockets than TCP */
    CHECK(poll_unacknowledged(other[0], &quiet_ms, &sent_ms) != POLL_OWED);
    close(other[0]);
    close(other[1]);
}

static void *report_thread(void *argument) {
    sigset_t mask;
    char *name = argument;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0 && sigismember(&mask, SIGTERM) && sigismember(&mask, SIGUSR1));
    CHECK(pthread_getname_np(pthread_self(), name, 16) == 0);
    return NULL;
}

static void test_the_thread_has_its_name_and_blocks_signals(void) {
    char name[16];
    sigset_t mask;
    poll_thread_t thread;
    CHECK(poll_thread_start(&thread, "a name longer than the limit", report_thread, name) == BQ_OK);
    CHECK(poll_thread_join(&thread) == BQ_OK && poll_thread_join(&thread) == BQ_OK);
    CHECK(strcmp(name, "a name longer t") == 0);
    /* The starting thread's mask is restored */
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0 && !sigismember(&mask, SIGTERM));
}

static void test_clocks_do_not_go_back(void) {
    uint64_t mono_ms = poll_clock_mono_ms();
    CHECK(poll_clock_mono_ms() >= mono_ms);
    CHECK(poll_clock_wall_ms() > 1700000000000u); /* after 2023: milliseconds since 1970 */
}

int main(void) {
    test_readiness_follows_interest();
    test_one_or_more_signals_wake_until_they_are_cleared();
    test_accept_returns_the_address_of_the_peer();
    test_a_reset_connection_reports_an_error();
    test_with_interest_in_errors_only_a_reset_is_the_only_event();
    test_a_peer_with_a_closed_receive_window_still_acknowledges();
    test_the_thread_has_its_name_and_blocks_signals();
    test_clocks_do_not_go_back();
    return 0;
}
