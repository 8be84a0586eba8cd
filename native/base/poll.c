/* base/poll.c: services of POSIX systems: readiness, wake-ups, accepted sockets, clocks and threads.
 *
 * Invariant: the only file with the names of POSIX systems in an #if. Only poll_wait, poll_sleep_ms and poll_thread_join
 * block.
 */
#if !defined(_WIN32)

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4, pthread_setname_np */
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timex.h>
#elif defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || defined(__DragonFly__)
#include <sys/event.h>
#else
#error "BlipMQ needs epoll or kqueue"
#endif

#include "base/poll.h"

#define LINUX_TCP_RTO_MAX_MS 44
#define EVENTS_MAX 256 /* taken per call; the rest stays ready for the next call */

void poll_close(poller_t poller) { close((int)poller); }
int poll_fd(poller_t poller) { return (int)poller; }

#if defined(__linux__)

poller_t poll_open(void) {
    int poller = epoll_create1(EPOLL_CLOEXEC);
    return poller < 0 ? BQ_E_SYSTEM : poller;
}

int poll_set(poller_t poller, int fd, uint64_t key, uint32_t old_interest, uint32_t new_interest) {
    if (old_interest == new_interest) return BQ_OK;
    struct epoll_event event = {.data.u64 = key};
    if (new_interest & POLL_READ) event.events |= EPOLLIN;
    if (new_interest & POLL_WRITE) event.events |= EPOLLOUT;
    int operation = !old_interest ? EPOLL_CTL_ADD : !new_interest ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    return epoll_ctl((int)poller, operation, fd, &event) < 0 ? BQ_E_SYSTEM : BQ_OK;
}

/* The system does not return the interest, so an error or hang-up sets both directions: a superset of the interest. */
static uint32_t ready_of(uint32_t events) {
    uint32_t ready = 0;
    if (events & EPOLLIN) ready |= POLL_READ;
    if (events & EPOLLOUT) ready |= POLL_WRITE;
    if (events & (EPOLLERR | EPOLLHUP)) ready |= POLL_ERROR | POLL_READ | POLL_WRITE;
    return ready;
}

int poll_wait(poller_t poller, poll_event_t *events, int capacity, int timeout_ms) {
    struct epoll_event found[EVENTS_MAX];
    int count = epoll_wait((int)poller, found, capacity < EVENTS_MAX ? capacity : EVENTS_MAX, timeout_ms);
    if (count < 0) return errno == EINTR ? 0 : BQ_E_SYSTEM;
    for (int i = 0; i < count; i++) events[i] = (poll_event_t){.key = found[i].data.u64, .ready = ready_of(found[i].events)};
    return count;
}

int poll_wake_open(poll_wake_t *wake) {
    wake->read_fd = wake->write_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return wake->read_fd < 0 ? BQ_E_SYSTEM : BQ_OK;
}

void poll_wake_close(poll_wake_t *wake) {
    if (wake->read_fd >= 0) close(wake->read_fd);
    wake->read_fd = wake->write_fd = -1;
}

static int accept_nonblocking(int listener, struct sockaddr *address, socklen_t *size) {
    return accept4(listener, address, size, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

static void thread_name_set(const char *name) { pthread_setname_np(pthread_self(), name); }

#else /* kqueue */

static int descriptor_prepare(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? BQ_E_SYSTEM : BQ_OK;
}

poller_t poll_open(void) {
    int poller = kqueue();
    if (poller < 0) return BQ_E_SYSTEM;
    fcntl(poller, F_SETFD, FD_CLOEXEC);
    return poller;
}

/* Mode of the read filter for an interest: none, level-triggered, or edge-triggered for errors only. With the edge a peer
 * that only stopped sending is reported once, as readable; a later socket error is reported too. */
static int read_flags(uint32_t interest) {
    if (interest & POLL_READ) return EV_ADD;
    return interest == POLL_ERROR ? EV_ADD | EV_CLEAR : EV_DELETE;
}

/* Reading and writing are two filters here. A filter that stays is added again, which only updates its key. */
int poll_set(poller_t poller, int fd, uint64_t key, uint32_t old_interest, uint32_t new_interest) {
    struct kevent changes[3];
    int count = 0, before = read_flags(old_interest), now = read_flags(new_interest);
    void *data = (void *)(uintptr_t)key;
    if (before != EV_DELETE && before != now) EV_SET(&changes[count++], fd, EVFILT_READ, EV_DELETE, 0, 0, data);
    if (now != EV_DELETE) EV_SET(&changes[count++], fd, EVFILT_READ, (unsigned short)now, 0, 0, data);
    if ((old_interest | new_interest) & POLL_WRITE)
        EV_SET(&changes[count++], fd, EVFILT_WRITE, new_interest & POLL_WRITE ? EV_ADD : EV_DELETE, 0, 0, data);
    return count && kevent((int)poller, changes, count, NULL, 0, NULL) < 0 ? BQ_E_SYSTEM : BQ_OK;
}

/* A peer that only stopped sending is EV_EOF without fflags: readable, no error. */
static uint32_t ready_of(const struct kevent *event) {
    if ((event->flags & EV_ERROR) || ((event->flags & EV_EOF) && event->fflags)) return POLL_ERROR | POLL_READ | POLL_WRITE;
    return event->filter == EVFILT_WRITE ? POLL_WRITE : POLL_READ;
}

int poll_wait(poller_t poller, poll_event_t *events, int capacity, int timeout_ms) {
    struct kevent found[EVENTS_MAX];
    struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
    int count =
        kevent((int)poller, NULL, 0, found, capacity < EVENTS_MAX ? capacity : EVENTS_MAX, timeout_ms < 0 ? NULL : &timeout);
    if (count < 0) return errno == EINTR ? 0 : BQ_E_SYSTEM;
    for (int i = 0; i < count; i++)
        events[i] = (poll_event_t){.key = (uint64_t)(uintptr_t)found[i].udata, .ready = ready_of(&found[i])};
    return count;
}

int poll_wake_open(poll_wake_t *wake) {
    int ends[2];
    wake->read_fd = wake->write_fd = -1;
    if (pipe(ends) < 0) return BQ_E_SYSTEM;
    wake->read_fd = ends[0];
    wake->write_fd = ends[1];
    if (descriptor_prepare(ends[0]) == BQ_OK && descriptor_prepare(ends[1]) == BQ_OK) return BQ_OK;
    poll_wake_close(wake);
    return BQ_E_SYSTEM;
}

void poll_wake_close(poll_wake_t *wake) {
    if (wake->read_fd >= 0) close(wake->read_fd);
    if (wake->write_fd >= 0) close(wake->write_fd);
    wake->read_fd = wake->write_fd = -1;
}

static int accept_nonblocking(int listener, struct sockaddr *address, socklen_t *size) {
    int fd = accept(listener, address, size);
    if (fd < 0 || descriptor_prepare(fd) == BQ_OK) return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

static void thread_name_set(const char *name) {
#if defined(__APPLE__)
    pthread_setname_np(name);
#else
    (void)name;
#endif
}

#endif

/* Eight bytes, because an eventfd requires them. If the pipe or counter is full, it has been signalled already. */
void poll_wake_signal(poll_wake_t *wake) {
    const uint64_t one = 1;
    while (write(wake->write_fd, &one, sizeof one) < 0 && errno == EINTR) {}
}

void poll_wake_clear(poll_wake_t *wake) {
    uint64_t taken[64];
    ssize_t size;
    do size = read(wake->read_fd, taken, sizeof taken);
    while (size == (ssize_t)sizeof taken || (size < 0 && errno == EINTR)); /* a pipe may hold more, an eventfd never */
}

static void peer_of(const struct sockaddr_storage *address, uint8_t peer[16], uint16_t *port) {
    memset(peer, 0, 16);
    *port = 0;
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *inet6 = (const struct sockaddr_in6 *)address;
        memcpy(peer, &inet6->sin6_addr, 16);
        *port = ntohs(inet6->sin6_port);
    } else if (address->ss_family == AF_INET) {
        const struct sockaddr_in *inet = (const struct sockaddr_in *)address;
        peer[10] = peer[11] = 0xff;
        memcpy(peer + 12, &inet->sin_addr, 4);
        *port = ntohs(inet->sin_port);
    }
}

int poll_accept(int listener, uint8_t peer[16], uint16_t *port) {
    for (;;) {
        struct sockaddr_storage address = {0};
        socklen_t size = sizeof address;
        int fd = accept_nonblocking(listener, (struct sockaddr *)&address, &size);
        if (fd >= 0) {
            peer_of(&address, peer, port);
            return fd;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) return BQ_E_AGAIN;
        /* A client that left before it was accepted is no error of the listener: take the next one. */
        if (errno != ECONNABORTED && errno != EPROTO && errno != EINTR) return BQ_E_SYSTEM;
    }
}

int poll_socket_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? 0 : error;
}

static void option_set(int fd, int option, uint32_t value) {
    int number = (int)value;
    setsockopt(fd, IPPROTO_TCP, option, &number, sizeof number);
}

/* A tenth of the time is left for the system's timers, which may be late by seconds. The first probe takes half of the rest,
 * and up to three unanswered probes the other half. Systems accept only whole seconds. */
void poll_keepalive(int fd, uint32_t within_ms) {
    int on = 1;
    uint32_t whole = within_ms < 2000 ? 2 : within_ms / 1000, seconds = whole - whole / 10, idle = seconds / 2;
    uint32_t interval = (seconds - idle) / 3 ? (seconds - idle) / 3 : 1;
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) < 0) return;
#if defined(TCP_KEEPIDLE)
    option_set(fd, TCP_KEEPIDLE, idle);
#elif defined(TCP_KEEPALIVE)
    option_set(fd, TCP_KEEPALIVE, idle); /* its name on macOS */
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
    option_set(fd, TCP_KEEPINTVL, interval);
    option_set(fd, TCP_KEEPCNT, (seconds - idle) / interval);
#endif
#if defined(__linux__)
    /* Linux 6.15: by default, retransmissions and window probes back off to two minutes, which is too rare to detect a lost
     * peer. */
    option_set(fd, LINUX_TCP_RTO_MAX_MS, within_ms / 6 < 1000 ? 1000 : within_ms / 6 > 120000 ? 120000 : within_ms / 6);
#elif defined(TCP_RXT_CONNDROPTIME)
    option_set(fd, TCP_RXT_CONNDROPTIME, seconds);
#endif
}

#if defined(__linux__)

/* A reader with a closed window answers every transmission and probe, and nothing is sent in between. A single unanswered
 * one may have been lost on the way. */
int poll_unacknowledged(int fd, uint32_t *quiet_ms, uint32_t *sent_ms) {
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    int waiting = 0;
    if (ioctl(fd, TIOCOUTQ, &waiting) < 0) return BQ_E_SYSTEM;
    if (waiting == 0) return POLL_ALL_ACKNOWLEDGED;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0) return BQ_E_SYSTEM;
    *quiet_ms = info.tcpi_last_ack_recv;
    *sent_ms = info.tcpi_unacked ? info.tcpi_last_data_sent : 0; /* the system does not report the time of probes */
    bool unanswered = info.tcpi_unacked && info.tcpi_last_ack_recv > info.tcpi_last_data_sent;
    return unanswered || info.tcpi_probes >= 2 ? POLL_OWED : POLL_ANSWERING;
}

#else

int poll_unacknowledged(int fd, uint32_t *quiet_ms, uint32_t *sent_ms) {
    (void)fd;
    (void)quiet_ms;
    (void)sent_ms;
    return BQ_E_SYSTEM;
}

#endif

int64_t poll_descriptors_end(uint32_t spare) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > INT_MAX) return INT_MAX;
    int64_t all = (int64_t)limit.rlim_cur;
    return all - (all / 4 < spare ? all / 4 : spare);
}

bool poll_descriptor_free(poller_t poller, int64_t end) {
    int lowest = fcntl((int)poller, F_DUPFD_CLOEXEC, 0);
    if (lowest >= 0) close(lowest);
    return lowest >= 0 && lowest < end;
}

uint64_t poll_clock_mono_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static uint64_t clock_ms(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t poll_clock_mono_ms(void) { return clock_ms(CLOCK_MONOTONIC); }
uint64_t poll_clock_wall_ms(void) { return clock_ms(CLOCK_REALTIME); }

#if defined(__linux__)
static uint64_t boot_id_read(void) {
    char text[40];
    int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = file >= 0 ? read(file, text, sizeof text) : -1;
    if (file >= 0) close(file);
    uint64_t id = 14695981039346656037ull; /* FNV-1a; only equality matters */
    for (ssize_t i = 0; i < got; i++) id = (id ^ (uint8_t)text[i]) * 1099511628211ull;
    return got > 0 ? id | 1 : 0;
}

void poll_clock_boot(uint64_t *boot_id, uint64_t *boot_ms, bool *synchronized) {
    struct timex state = {0};
    *boot_id = boot_id_read();
    *boot_ms = clock_ms(CLOCK_BOOTTIME);
    *synchronized = adjtimex(&state) >= 0 && !(state.status & STA_UNSYNC);
}
#else
void poll_clock_boot(uint64_t *boot_id, uint64_t *boot_ms, bool *synchronized) {
    *boot_id = 0;
    *boot_ms = poll_clock_mono_ms();
    *synchronized = false;
}
#endif

struct thread {
    pthread_t id;
    void *(*run)(void *);
    void *argument;
    char name[16]; /* the size that Linux shows, with NUL */
};

static void *thread_begin(void *handle) {
    struct thread *thread = handle;
    thread_name_set(thread->name);
    return thread->run(thread->argument);
}

int poll_thread_start(poll_thread_t *handle, const char *name, void *(*run)(void *), void *argument) {
    struct thread *thread = calloc(1, sizeof *thread);
    handle->handle = NULL;
    if (!thread) return BQ_E_MEMORY;
    thread->run = run;
    thread->argument = argument;
    strncpy(thread->name, name, sizeof thread->name - 1);

    /* The new thread inherits the signal mask. Block all signals first, so that it never receives one. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&thread->id, NULL, thread_begin, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure) {
        free(thread);
        errno = failure;
        return BQ_E_SYSTEM;
    }
    handle->handle = thread;
    return BQ_OK;
}

int poll_thread_join(poll_thread_t *handle) {
    struct thread *thread = handle->handle;
    if (!thread) return BQ_OK;
    int failure = pthread_join(thread->id, NULL);
    if (failure) {
        errno = failure;
        return BQ_E_SYSTEM;
    }
    free(thread);
    handle->handle = NULL;
    return BQ_OK;
}

int poll_thread_pin(int cpu) {
#if defined(__linux__)
    cpu_set_t set;
    if (cpu < 0 || cpu >= CPU_SETSIZE) return BQ_E_ARGUMENT;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0 ? BQ_OK : BQ_E_SYSTEM;
#else
    (void)cpu;
    return BQ_E_SYSTEM;
#endif
}

void poll_sleep_ms(uint32_t ms) {
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

#endif
