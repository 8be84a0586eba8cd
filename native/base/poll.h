/* base/poll.h: readiness and wake-ups; the only file with calls that one operating system has and another lacks.
 * epoll and eventfd on Linux, kqueue and a pipe elsewhere. Level-triggered.
 *
 * Invariant: an interest of 0 takes the descriptor out of the poller, so that a hang-up cannot spin on a paused connection.
 */
#ifndef BQ_POLL_H
#define BQ_POLL_H

#include "base/bytes.h"

/* POLL_ERROR is reported whatever the interest is. As an interest, alone, it stands for errors and nothing else: the end of
 * the peer's input is none. */
enum poll_interest { POLL_READ = 1, POLL_WRITE = 2, POLL_ERROR = 4 };

typedef struct poll_event {
    uint64_t key;
    uint32_t ready; /* poll_interest bits; an error or hang-up also sets what the caller was interested in */
    uint32_t reserved;
} poll_event_t;

int poll_open(void); /* a poller's descriptor, close-on-exec, or BQ_E_SYSTEM */
void poll_close(int poller);
/* Change from one interest mask to another (0: none). BQ_OK or BQ_E_SYSTEM. */
int poll_set(int poller, int fd, uint64_t key, uint32_t old_interest, uint32_t new_interest);
int poll_wait(int poller, poll_event_t *events, int capacity, int timeout_ms); /* count; 0 on timeout or signal; BQ_E_SYSTEM */

typedef struct poll_wake {
    int read_fd, write_fd;
} poll_wake_t; /* the same descriptor where an eventfd exists */
int poll_wake_open(poll_wake_t *wake);
void poll_wake_close(poll_wake_t *wake);
void poll_wake_signal(poll_wake_t *wake);
void poll_wake_clear(poll_wake_t *wake);

/* Accept one connection: non-blocking, close-on-exec. fd >= 0, BQ_E_AGAIN, or BQ_E_SYSTEM with errno. peer: 16 bytes IPv6
 * (IPv4 mapped), port in host order; zero for other families. */
int poll_accept(int listener, uint8_t peer[16], uint16_t *port);

int poll_socket_error(int fd); /* the errno that the socket has failed with, which is then forgotten; 0: none */

/* Have the system probe a quiet peer, so that one that is gone is noticed within `within_ms`. Nothing on what is no TCP socket. */
void poll_keepalive(int fd, uint32_t within_ms);

/* Whether the peer's system has acknowledged what was sent. ANSWERING: it has answered the last transmission, though it may take no
 * more at the moment. OWED: it has not; *quiet_ms is how long ago it acknowledged anything, *sent_ms how long ago something was
 * sent, or sent again. BQ_E_SYSTEM: this system does not say. */
enum poll_owed { POLL_ALL_ACKNOWLEDGED, POLL_ANSWERING, POLL_OWED };
int poll_unacknowledged(int fd, uint32_t *quiet_ms, uint32_t *sent_ms);

/* Descriptors are numbered from 0 up, the lowest free one first: from the one returned on, `spare` of those this process may
 * have are left (fewer if it may have few). And whether there is one below `end` still; any is a descriptor to try it with. */
int64_t poll_descriptors_end(uint32_t spare);
bool poll_descriptor_free(int any, int64_t end);

/* Clocks: monotonic and wall milliseconds; the wall clock only stamps messages. */
uint64_t poll_clock_mono_ms(void);
uint64_t poll_clock_wall_ms(void);
/* Where the system says so: a number of this boot of the machine (else 0), milliseconds since then, and whether the wall clock is
 * synchronized. */
void poll_clock_boot(uint64_t *boot_id, uint64_t *boot_ms, bool *synchronized);
void poll_sleep_ms(uint32_t ms);

/* Start a thread that takes no signals. `name` is what top shows. */
typedef struct poll_thread {
    void *handle;
} poll_thread_t;
int poll_thread_start(poll_thread_t *thread, const char *name, void *(*run)(void *), void *argument);
int poll_thread_pin(int cpu); /* keep the calling thread on one processor; BQ_E_SYSTEM where that cannot be done */
int poll_thread_join(poll_thread_t *thread);

#endif
