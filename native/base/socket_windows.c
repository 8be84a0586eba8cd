/* base/socket_windows.c: base/socket.h by Winsock.
 *
 * Invariant: every error of Winsock becomes an errno of C, so that no other file has to know its numbers.
 */
#if defined(_WIN32)

#include <winsock2.h>
#include <ws2tcpip.h>

#include "base/socket.h"

_Static_assert(sizeof(struct iovec) == sizeof(WSABUF) && offsetof(struct iovec, iov_len) == offsetof(WSABUF, len) &&
                   offsetof(struct iovec, iov_base) == offsetof(WSABUF, buf),
               "the parts of an output are passed to WSASend as they are");

static SOCKET socket_of(int fd) { return (SOCKET)(uint32_t)fd; }

int socket_errno(void) {
    switch (WSAGetLastError()) {
    case 0: return 0;
    case WSAEWOULDBLOCK: return EAGAIN;
    case WSAEINTR: return EINTR;
    case WSAEACCES: return EACCES;
    case WSAEINVAL: return EINVAL;
    case WSAEMFILE: return EMFILE;
    case WSAENOBUFS: return ENOBUFS;
    case WSA_NOT_ENOUGH_MEMORY: return ENOMEM;
    case WSAENOTSOCK:
    case WSAEBADF: return EBADF;
    case WSAEADDRINUSE: return EADDRINUSE;
    case WSAENETDOWN: return ENETDOWN;
    case WSAENETUNREACH: return ENETUNREACH;
    case WSAEHOSTUNREACH: return EHOSTUNREACH;
    case WSAENETRESET: return ENETRESET;
    case WSAECONNABORTED: return ECONNABORTED;
    case WSAECONNRESET: return ECONNRESET;
    case WSAECONNREFUSED: return ECONNREFUSED;
    case WSAENOTCONN: return ENOTCONN;
    case WSAESHUTDOWN:
    case WSAEDISCON: return EPIPE;
    case WSAETIMEDOUT: return ETIMEDOUT;
    default: return EIO;
    }
}

static ssize_t failed(void) {
    errno = socket_errno();
    return -1;
}

ssize_t socket_send(int fd, struct iovec *parts, int count) {
    DWORD sent = 0;
    return WSASend(socket_of(fd), (WSABUF *)parts, (DWORD)count, &sent, 0, NULL, NULL) ? failed() : (ssize_t)sent;
}

ssize_t socket_receive(int fd, void *bytes, size_t size) {
    int got = recv(socket_of(fd), bytes, size > INT32_MAX ? INT32_MAX : (int)size, 0);
    return got < 0 ? failed() : got;
}

bool socket_input_waits(int fd) {
    char byte;
    return recv(socket_of(fd), &byte, 1, MSG_PEEK) >= 0 || WSAGetLastError() != WSAEWOULDBLOCK;
}

void socket_output_end(int fd) { shutdown(socket_of(fd), SD_SEND); }
void socket_close(int fd) { closesocket(socket_of(fd)); }

static void option_set(int fd, int level, int option, int value) {
    setsockopt(socket_of(fd), level, option, (const char *)&value, sizeof value);
}

void socket_options(int fd, bool no_delay, uint32_t send_bytes, uint32_t receive_bytes) {
    if (no_delay) option_set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (send_bytes) option_set(fd, SOL_SOCKET, SO_SNDBUF, (int)send_bytes);
    if (receive_bytes) option_set(fd, SOL_SOCKET, SO_RCVBUF, (int)receive_bytes);
}

#endif
