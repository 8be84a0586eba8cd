/* base/poll.h: readiness, wake-ups, clocks and threads. Only this module makes calls that differ between operating systems:
 * epoll and eventfd on Linux, kqueue and a pipe on other POSIX systems (base/poll.c); AFD, a completion port and a pair of sockets
 * on Windows (base/poll_windows.c). Level-triggered. base/socket.h, base/monitor.h, base/entropy.h and wal/storage.h are its
 * neighbours: nothing else depends on the system.
 *
 * Invariant: an interest of 0 removes the descriptor from the poller, so a hang-up of a paused connection is not reported again
 * and again.
 */
#ifndef BQ_POLL_H
#define BQ_POLL_H

#include "base/bytes.h"

/* POLL_ERROR is reported for every interest except 0. POLL_ERROR alone as interest means errors only; the end of the peer's
 * input is not an error. */
enum poll_interest { POLL_READ = 1, POLL_WRITE = 2, POLL_ERROR = 4 };

typedef struct poll_event {
    uint64_t key;
    uint32_t ready; /* poll_interest bits; an error or hang-up also sets the bits of the interest */
    uint32_t reserved;
} poll_event_t;

typedef intptr_t poller_t;    /* a descriptor, or on Windows a pointer */
poller_t poll_open(void);     /* close-on-exec, or BQ_E_SYSTEM */
int poll_fd(poller_t poller); /* readable when an event waits; -1: it is no descriptor */
void poll_close(poller_t poller);
/* Change from one interest mask to another (0: none). BQ_OK or BQ_E_SYSTEM. */
int poll_set(poller_t poller, int fd, uint64_t key, uint32_t old_interest, uint32_t new_interest);
int poll_wait(poller_t poller, poll_event_t *events, int capacity,
              int timeout_ms); /* count; 0 on timeout or signal; BQ_E_SYSTEM */

typedef struct poll_wake {
    int read_fd, write_fd;
} poll_wake_t; /* both are the same descriptor if eventfd exists */
int poll_wake_open(poll_wake_t *wake);
void poll_wake_close(poll_wake_t *wake);
void poll_wake_signal(poll_wake_t *wake);
void poll_wake_clear(poll_wake_t *wake);

/* Accept one connection: non-blocking, close-on-exec. fd >= 0, BQ_E_AGAIN, or BQ_E_SYSTEM with errno. peer: 16 bytes IPv6
 * (IPv4 mapped), port in host order; zero for other families. */
int poll_accept(int listener, uint8_t peer[16], uint16_t *port);

int poll_socket_error(int fd); /* get and clear the socket's pending errno; 0: none */

/* Let the system probe a quiet peer, so that a lost peer is detected within `within_ms`. No effect on other descriptors than
 * TCP sockets. */
void poll_keepalive(int fd, uint32_t within_ms);

/* Has the peer's system acknowledged all output? ANSWERING: it answered the last transmission, but may accept no more at the
 * moment. OWED: it has not answered; *quiet_ms is the time since its last acknowledgement, *sent_ms the time since the last
 * transmission or retransmission. BQ_E_SYSTEM: the system does not report this. */
enum poll_owed { POLL_ALL_ACKNOWLEDGED, POLL_ANSWERING, POLL_OWED };
int poll_unacknowledged(int fd, uint32_t *quiet_ms, uint32_t *sent_ms);

/* The system gives out the lowest free descriptor first. poll_descriptors_end returns the descriptor from which on only
 * `spare` more are left of the process limit (fewer if the limit is low). poll_descriptor_free: true if a descriptor below
 * `end` is free. */
int64_t poll_descriptors_end(uint32_t spare);
bool poll_descriptor_free(poller_t poller, int64_t end);

/* Clocks: monotonic and wall milliseconds. The wall clock is used only for time stamps of messages. */
uint64_t poll_clock_mono_ms(void);
uint64_t poll_clock_mono_us(void);
uint64_t poll_clock_wall_ms(void);
/* If the system reports it: the id of this boot (otherwise 0), milliseconds since then, and whether the wall clock is
 * synchronized. */
void poll_clock_boot(uint64_t *boot_id, uint64_t *boot_ms, bool *synchronized);
void poll_sleep_ms(uint32_t ms);

/* Start a thread that receives no signals. `name` is shown by top. */
typedef struct poll_thread {
    void *handle;
} poll_thread_t;
int poll_thread_start(poll_thread_t *thread, const char *name, void *(*run)(void *), void *argument);
int poll_thread_pin(int cpu); /* keep the calling thread on one processor; BQ_E_SYSTEM if not possible */
int poll_thread_join(poll_thread_t *thread);

#endif
