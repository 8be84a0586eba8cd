/* base/poll_windows.c: base/poll.h on Windows.
 *
 * Windows has no call that waits for many sockets in time independent of their number, except completion ports, which report
 * completed operations. The driver of Winsock (AFD) has such an operation: "complete when one of these events is there". A poll
 * of one socket is reported once. poll_wait starts it again, if the socket is still watched: thus level-triggered.
 *
 *      poll_set: a watch is due ──► poll_wait: poll started, the watch is pending ──► completed: reported, due again
 *
 * Invariant: AFD writes into a pending watch, so only its completion frees it. Only the thread of the poller uses watches.
 */
#if defined(_WIN32)

#include <winsock2.h>
#include <ws2tcpip.h>
#include <mswsock.h>
#include <windows.h>
#include <winternl.h>
#include <errno.h>
#include <limits.h>
#include <process.h>
#include <stdlib.h>

#include "base/poll.h"
#include "base/socket.h"

#define EVENTS_MAX 256 /* taken per call; the rest stays ready for the next call */
#define BUCKETS_MIN 64u
#define CANCEL_WAIT_MS 1000

/* The interface of AFD, which no header of the system declares. */
#define IOCTL_AFD_POLL 0x12024u
enum afd_event {
    AFD_RECEIVE = 1,
    AFD_SEND = 4,
    AFD_DISCONNECT = 8, /* the end of the peer's input */
    AFD_ABORT = 16,
    AFD_LOCAL_CLOSE = 32,
    AFD_ACCEPT = 128,
    AFD_CONNECT_FAIL = 256
};
typedef struct afd_poll {
    LARGE_INTEGER timeout;
    ULONG count, exclusive;
    HANDLE socket;
    ULONG events;
    NTSTATUS status;
} afd_poll_t;

NTSTATUS NTAPI NtCancelIoFileEx(HANDLE file, IO_STATUS_BLOCK *request, IO_STATUS_BLOCK *result);

typedef struct watch watch_t;
struct watch {
    IO_STATUS_BLOCK request;
    afd_poll_t poll;
    HANDLE socket; /* below the layers that other programs may have put into Winsock */
    uint64_t key;
    watch_t *next; /* in its bucket */
    watch_t *next_due;
    int fd;
    uint32_t interest;
    bool due, pending, gone; /* gone: not in a bucket; freed when it is neither due nor pending */
};

typedef struct poller {
    HANDLE port, afd;
    watch_t **buckets, *due;
    uint32_t mask, count, pending;
} poller_state_t;

static poller_state_t *state_of(poller_t poller) { return (poller_state_t *)poller; }
static SOCKET socket_of(int fd) { return (SOCKET)(uint32_t)fd; }

static int failed(int error) {
    errno = error;
    return BQ_E_SYSTEM;
}

static bool winsock_begin(void) {
    WSADATA data;
    return WSAStartup(MAKEWORD(2, 2), &data) == 0; /* counted by the system, so every begin needs an end */
}

/* ---- the table of watches ---------------------------------------------------------------------------------------------- */

/* Handles are multiples of four. */
static watch_t **bucket_of(const poller_state_t *state, int fd) { return &state->buckets[(uint32_t)fd >> 2 & state->mask]; }

static watch_t **watch_find(const poller_state_t *state, int fd) {
    watch_t **link = bucket_of(state, fd);
    while (*link && (*link)->fd != fd) link = &(*link)->next;
    return link;
}

/* Without memory the table stays as it is: slower, but correct. */
static void table_grow(poller_state_t *state) {
    uint32_t size = state->mask + 1;
    watch_t **old = state->buckets, **buckets = calloc((size_t)size * 2, sizeof *buckets);
    if (!buckets) return;
    state->buckets = buckets;
    state->mask = size * 2 - 1;
    for (uint32_t i = 0; i < size; i++) {
        for (watch_t *watch = old[i], *next; watch; watch = next) {
            next = watch->next;
            watch_t **bucket = bucket_of(state, watch->fd);
            watch->next = *bucket;
            *bucket = watch;
        }
    }
    free(old);
}

static void watch_due(poller_state_t *state, watch_t *watch) {
    if (watch->due) return;
    watch->due = true;
    watch->next_due = state->due;
    state->due = watch;
}

static void watch_cancel(const poller_state_t *state, watch_t *watch) {
    IO_STATUS_BLOCK result;
    if (watch->pending) NtCancelIoFileEx(state->afd, &watch->request, &result); /* fails if it has just completed */
}

static void watch_remove(poller_state_t *state, watch_t **link) {
    watch_t *watch = *link;
    *link = watch->next;
    state->count--;
    watch->gone = true;
    watch_cancel(state, watch);
    if (!watch->pending && !watch->due) free(watch);
}

static int watch_add(poller_state_t *state, int fd, uint64_t key, uint32_t interest) {
    SOCKET base = INVALID_SOCKET;
    DWORD size;
    if (WSAIoctl(socket_of(fd), SIO_BASE_HANDLE, NULL, 0, &base, sizeof base, &size, NULL, NULL)) return failed(socket_errno());
    watch_t **link = watch_find(state, fd); /* the socket of an older watch was closed, and its number is used again */
    if (*link) watch_remove(state, link);
    watch_t *watch = calloc(1, sizeof *watch);
    if (!watch) return failed(ENOMEM);
    if (state->count++ > state->mask) table_grow(state);
    *watch = (watch_t){.socket = (HANDLE)base, .key = key, .fd = fd, .interest = interest};
    link = bucket_of(state, fd);
    watch->next = *link;
    *link = watch;
    watch_due(state, watch);
    return BQ_OK;
}

int poll_set(poller_t poller, int fd, uint64_t key, uint32_t old_interest, uint32_t new_interest) {
    poller_state_t *state = state_of(poller);
    if (old_interest == new_interest) return BQ_OK;
    if (!old_interest) return watch_add(state, fd, key, new_interest);
    watch_t **link = watch_find(state, fd), *watch = *link;
    if (!watch) return failed(ENOENT);
    if (!new_interest) {
        watch_remove(state, link);
        return BQ_OK;
    }
    watch->key = key;
    watch->interest = new_interest;
    if (!watch->pending) watch_due(state, watch);
    if (new_interest & ~old_interest) watch_cancel(state, watch); /* its completion makes it due, with the new interest */
    return BQ_OK;
}

/* ---- polls ------------------------------------------------------------------------------------------------------------- */

static ULONG events_of(uint32_t interest) {
    ULONG events = AFD_ABORT | AFD_CONNECT_FAIL | AFD_LOCAL_CLOSE;
    if (interest & POLL_READ) events |= AFD_RECEIVE | AFD_ACCEPT | AFD_DISCONNECT;
    if (interest & POLL_WRITE) events |= AFD_SEND;
    return events;
}

static uint32_t ready_of(ULONG events) {
    uint32_t ready = 0;
    if (events & (AFD_RECEIVE | AFD_ACCEPT | AFD_DISCONNECT)) ready |= POLL_READ;
    if (events & AFD_SEND) ready |= POLL_WRITE;
    if (events & (AFD_ABORT | AFD_CONNECT_FAIL)) ready |= POLL_ERROR | POLL_READ | POLL_WRITE;
    return ready;
}

static bool poll_begin(poller_state_t *state, watch_t *watch) {
    watch->poll = (afd_poll_t){.timeout.QuadPart = INT64_MAX, .count = 1, .socket = watch->socket};
    watch->poll.events = events_of(watch->interest);
    watch->request.Status = STATUS_PENDING;
    NTSTATUS status = NtDeviceIoControlFile(state->afd, NULL, NULL, watch, &watch->request, IOCTL_AFD_POLL, &watch->poll,
                                            sizeof watch->poll, &watch->poll, sizeof watch->poll);
    if (!NT_SUCCESS(status)) return false; /* the socket was closed; STATUS_PENDING is a success */
    watch->pending = true;
    state->pending++;
    return true;
}

static void polls_begin(poller_state_t *state) {
    while (state->due) {
        watch_t *watch = state->due;
        state->due = watch->next_due;
        watch->due = false;
        if (watch->gone && !watch->pending)
            free(watch);
        else if (!watch->pending)
            poll_begin(state, watch);
    }
}

/* The ready bits of a completed poll that somebody waits for, or 0. */
static uint32_t poll_end(poller_state_t *state, watch_t *watch) {
    watch->pending = false;
    state->pending--;
    if (watch->gone) {
        if (!watch->due) free(watch);
        return 0;
    }
    ULONG events = NT_SUCCESS(watch->request.Status) && watch->poll.count ? watch->poll.events : 0;
    if (events & AFD_LOCAL_CLOSE) return 0; /* not due: poll_set removes it, or a new socket with its number */
    watch_due(state, watch);
    uint32_t ready = ready_of(events);
    return ready & POLL_ERROR ? ready : ready & watch->interest;
}

static int take(poller_state_t *state, const OVERLAPPED_ENTRY *entries, ULONG count, poll_event_t *events) {
    int found = 0;
    for (ULONG i = 0; i < count; i++) {
        watch_t *watch = (watch_t *)entries[i].lpOverlapped;
        uint64_t key = watch->key;
        uint32_t ready = poll_end(state, watch);
        if (ready) events[found++] = (poll_event_t){.key = key, .ready = ready};
    }
    return found;
}

/* Cancelled polls complete too. They are no events, so the wait goes on. */
int poll_wait(poller_t poller, poll_event_t *events, int capacity, int timeout_ms) {
    poller_state_t *state = state_of(poller);
    OVERLAPPED_ENTRY entries[EVENTS_MAX];
    uint64_t begin_ms = timeout_ms > 0 ? poll_clock_mono_ms() : 0;
    DWORD left_ms = timeout_ms < 0 ? INFINITE : (DWORD)timeout_ms;
    for (;;) {
        ULONG count = 0, most = (ULONG)(capacity < EVENTS_MAX ? capacity : EVENTS_MAX);
        polls_begin(state);
        if (!GetQueuedCompletionStatusEx(state->port, entries, most, &count, left_ms, FALSE))
            return GetLastError() == WAIT_TIMEOUT ? 0 : failed(EIO);
        int found = take(state, entries, count, events);
        if (found) return found;
        if (timeout_ms <= 0) continue;
        uint64_t passed_ms = poll_clock_mono_ms() - begin_ms;
        left_ms = passed_ms < (uint64_t)timeout_ms ? (DWORD)((uint64_t)timeout_ms - passed_ms) : 0;
    }
}

static HANDLE afd_open(void) {
    static const wchar_t name[] = L"\\Device\\Afd\\BlipMQ";
    UNICODE_STRING path = {sizeof name - sizeof *name, sizeof name, (PWSTR)(uintptr_t)name};
    OBJECT_ATTRIBUTES attributes = {.Length = sizeof attributes, .ObjectName = &path};
    IO_STATUS_BLOCK status;
    HANDLE afd = NULL;
    NTSTATUS result =
        NtCreateFile(&afd, SYNCHRONIZE, &attributes, &status, NULL, 0, FILE_SHARE_READ | FILE_SHARE_WRITE, FILE_OPEN, 0, NULL, 0);
    return NT_SUCCESS(result) ? afd : NULL;
}

poller_t poll_open(void) {
    if (!winsock_begin()) return failed(ENETDOWN);
    poller_state_t *state = calloc(1, sizeof *state);
    watch_t **buckets = calloc(BUCKETS_MIN, sizeof *buckets);
    HANDLE port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 1), afd = afd_open();
    if (state && buckets && port && afd && CreateIoCompletionPort(afd, port, 0, 0)) {
        *state = (poller_state_t){.port = port, .afd = afd, .buckets = buckets, .mask = BUCKETS_MIN - 1};
        return (poller_t)state;
    }
    if (afd) CloseHandle(afd);
    if (port) CloseHandle(port);
    free(buckets);
    free(state);
    WSACleanup();
    return failed(ENOMEM);
}

int poll_fd(poller_t poller) {
    (void)poller;
    return -1;
}

void poll_close(poller_t poller) {
    poller_state_t *state = state_of(poller);
    OVERLAPPED_ENTRY entries[EVENTS_MAX];
    poll_event_t events[EVENTS_MAX];
    ULONG count;
    for (uint32_t i = 0; i <= state->mask; i++)
        while (state->buckets[i]) watch_remove(state, &state->buckets[i]);
    /* AFD still writes into the pending ones: wait for their completion. */
    while (state->pending && GetQueuedCompletionStatusEx(state->port, entries, EVENTS_MAX, &count, CANCEL_WAIT_MS, FALSE))
        take(state, entries, count, events);
    while (state->due) {
        watch_t *watch = state->due;
        state->due = watch->next_due;
        watch->due = false;
        if (!watch->pending) free(watch);
    }
    CloseHandle(state->afd);
    CloseHandle(state->port);
    free(state->buckets);
    free(state);
    WSACleanup();
}

/* ---- wake-ups ---------------------------------------------------------------------------------------------------------- */

static bool socket_prepare(SOCKET socket) {
    u_long on = 1;
    int no_delay = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, (const char *)&no_delay, sizeof no_delay);
    SetHandleInformation((HANDLE)socket, HANDLE_FLAG_INHERIT, 0);
    return ioctlsocket(socket, FIONBIO, &on) == 0 && socket <= INT_MAX;
}

static SOCKET socket_new(void) { return WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_OVERLAPPED); }

/* Connect `write_end` to the listener. Another program may connect to it too, so the address of the peer is compared. */
static SOCKET pair_accept(SOCKET listener, SOCKET write_end) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, own, peer;
    int size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8) ||
        getsockname(listener, (struct sockaddr *)&address, &size) || connect(write_end, (struct sockaddr *)&address, size) ||
        getsockname(write_end, (struct sockaddr *)&own, &size))
        return INVALID_SOCKET;
    for (int tries = 0; tries < 8; tries++) {
        SOCKET read_end = accept(listener, (struct sockaddr *)&peer, &size);
        if (read_end == INVALID_SOCKET) return read_end;
        if (peer.sin_port == own.sin_port && peer.sin_addr.s_addr == own.sin_addr.s_addr) return read_end;
        closesocket(read_end);
    }
    return INVALID_SOCKET;
}

int poll_wake_open(poll_wake_t *wake) {
    wake->read_fd = wake->write_fd = -1;
    if (!winsock_begin()) return failed(ENETDOWN);
    SOCKET listener = socket_new(), write_end = socket_new(), read_end = INVALID_SOCKET;
    if (listener != INVALID_SOCKET && write_end != INVALID_SOCKET) read_end = pair_accept(listener, write_end);
    int error = socket_errno();
    if (listener != INVALID_SOCKET) closesocket(listener);
    if (read_end != INVALID_SOCKET && socket_prepare(read_end) && socket_prepare(write_end)) {
        wake->read_fd = (int)read_end;
        wake->write_fd = (int)write_end;
        return BQ_OK;
    }
    if (read_end != INVALID_SOCKET) closesocket(read_end);
    if (write_end != INVALID_SOCKET) closesocket(write_end);
    WSACleanup();
    return failed(error ? error : EMFILE);
}

void poll_wake_close(poll_wake_t *wake) {
    if (wake->read_fd < 0) return;
    socket_close(wake->read_fd);
    socket_close(wake->write_fd);
    wake->read_fd = wake->write_fd = -1;
    WSACleanup();
}

/* If the buffer is full, it has been signalled already. */
void poll_wake_signal(poll_wake_t *wake) { send(socket_of(wake->write_fd), "", 1, 0); }

void poll_wake_clear(poll_wake_t *wake) {
    char taken[4096];
    while (recv(socket_of(wake->read_fd), taken, sizeof taken, 0) == (int)sizeof taken) {}
}

/* ---- sockets ----------------------------------------------------------------------------------------------------------- */

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
        int size = sizeof address;
        SOCKET found = accept(socket_of(listener), (struct sockaddr *)&address, &size);
        if (found != INVALID_SOCKET) {
            u_long on = 1;
            SetHandleInformation((HANDLE)found, HANDLE_FLAG_INHERIT, 0);
            if (found > INT_MAX || ioctlsocket(found, FIONBIO, &on)) {
                closesocket(found);
                return failed(EMFILE);
            }
            peer_of(&address, peer, port);
            return (int)found;
        }
        int error = socket_errno();
        if (error == EAGAIN) return BQ_E_AGAIN;
        /* A client that left before it was accepted is no error of the listener: take the next one. */
        if (error != ECONNABORTED && error != ECONNRESET && error != EINTR) return failed(error);
    }
}

int poll_socket_error(int fd) {
    int error = 0, size = sizeof error;
    if (getsockopt(socket_of(fd), SOL_SOCKET, SO_ERROR, (char *)&error, &size) || !error) return 0;
    WSASetLastError(error);
    return socket_errno();
}

static void option_set(int fd, int option, uint32_t value) {
    setsockopt(socket_of(fd), IPPROTO_TCP, option, (const char *)&value, sizeof value);
}

/* As on other systems: a tenth of the time is left for the system's timers. The first probe takes half of the rest, and three
 * unanswered probes the other half. TCP_MAXRT limits retransmissions. */
void poll_keepalive(int fd, uint32_t within_ms) {
    DWORD on = 1;
    uint32_t whole = within_ms < 2000 ? 2 : within_ms / 1000, seconds = whole - whole / 10, idle = seconds / 2;
    uint32_t interval = (seconds - idle) / 3 ? (seconds - idle) / 3 : 1;
    if (setsockopt(socket_of(fd), SOL_SOCKET, SO_KEEPALIVE, (const char *)&on, sizeof on)) return;
    option_set(fd, TCP_KEEPIDLE, idle ? idle : 1);
    option_set(fd, TCP_KEEPINTVL, interval);
    option_set(fd, TCP_KEEPCNT, (seconds - idle) / interval);
    option_set(fd, TCP_MAXRT, seconds);
}

int poll_unacknowledged(int fd, uint32_t *quiet_ms, uint32_t *sent_ms) {
    (void)fd;
    (void)quiet_ms;
    (void)sent_ms;
    return BQ_E_SYSTEM;
}

/* The number of sockets has no limit. Each handle of a process fits an int. */
int64_t poll_descriptors_end(uint32_t spare) {
    (void)spare;
    return INT_MAX;
}

bool poll_descriptor_free(poller_t poller, int64_t end) {
    (void)poller;
    (void)end;
    return true;
}

/* ---- clocks ------------------------------------------------------------------------------------------------------------ */

static uint64_t mono_of(uint64_t per_second) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    uint64_t ticks = (uint64_t)now.QuadPart, rate = (uint64_t)frequency.QuadPart;
    return ticks / rate * per_second + ticks % rate * per_second / rate;
}

uint64_t poll_clock_mono_ms(void) { return mono_of(1000); }
uint64_t poll_clock_mono_us(void) { return mono_of(1000000); }

/* Windows counts steps of 100 ns since 1601. */
uint64_t poll_clock_wall_ms(void) {
    FILETIME now;
    GetSystemTimePreciseAsFileTime(&now);
    return ((uint64_t)now.dwHighDateTime << 32 | now.dwLowDateTime) / 10000 - 11644473600000u;
}

void poll_clock_boot(uint64_t *boot_id, uint64_t *boot_ms, bool *synchronized) {
    *boot_id = 0;
    *boot_ms = poll_clock_mono_ms();
    *synchronized = false;
}

void poll_sleep_ms(uint32_t ms) { Sleep(ms); }

/* ---- threads ----------------------------------------------------------------------------------------------------------- */

struct thread {
    HANDLE handle;
    void *(*run)(void *);
    void *argument;
    wchar_t name[16]; /* as long as on Linux */
};

static unsigned __stdcall thread_begin(void *handle) {
    struct thread *thread = handle;
    SetThreadDescription(GetCurrentThread(), thread->name);
    thread->run(thread->argument);
    return 0;
}

int poll_thread_start(poll_thread_t *handle, const char *name, void *(*run)(void *), void *argument) {
    struct thread *thread = calloc(1, sizeof *thread);
    handle->handle = NULL;
    if (!thread) return BQ_E_MEMORY;
    thread->run = run;
    thread->argument = argument;
    for (size_t i = 0; name[i] && i + 1 < sizeof thread->name / sizeof *thread->name; i++) thread->name[i] = (wchar_t)name[i];
    thread->handle = (HANDLE)_beginthreadex(NULL, 0, thread_begin, thread, 0, NULL);
    if (!thread->handle) {
        free(thread);
        return BQ_E_SYSTEM; /* with errno */
    }
    handle->handle = thread;
    return BQ_OK;
}

int poll_thread_join(poll_thread_t *handle) {
    struct thread *thread = handle->handle;
    if (!thread) return BQ_OK;
    if (WaitForSingleObject(thread->handle, INFINITE) != WAIT_OBJECT_0) return failed(EIO);
    CloseHandle(thread->handle);
    free(thread);
    handle->handle = NULL;
    return BQ_OK;
}

int poll_thread_pin(int cpu) {
    if (cpu < 0 || cpu >= (int)sizeof(DWORD_PTR) * 8) return BQ_E_ARGUMENT;
    return SetThreadAffinityMask(GetCurrentThread(), (DWORD_PTR)1 << cpu) ? BQ_OK : BQ_E_SYSTEM;
}

#endif
