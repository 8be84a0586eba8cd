/* base/socket.h: bytes of a socket, its options and its end. No call blocks, and calls interrupted by a signal are repeated.
 *
 * Invariant: -1 comes with an errno of C on every system; EAGAIN or EWOULDBLOCK: not at the moment.
 */
#ifndef BQ_SOCKET_H
#define BQ_SOCKET_H

#include <errno.h>

#include "base/bytes.h"

#if defined(_WIN32)

#include <sys/types.h>

struct iovec { /* in the order of WSABUF */
    unsigned long iov_len;
    void *iov_base;
};

ssize_t socket_send(int fd, struct iovec *parts, int count); /* at most 1 GiB together */
ssize_t socket_receive(int fd, void *bytes, size_t size);
bool socket_input_waits(int fd); /* bytes, the end of input, or an error */
void socket_output_end(int fd);  /* the peer reads the end after all output */
void socket_close(int fd);
/* 0 bytes: the system's default. */
void socket_options(int fd, bool no_delay, uint32_t send_bytes, uint32_t receive_bytes);
int socket_errno(void); /* the error of the last call of Winsock, as an errno */

#else

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static inline ssize_t socket_send(int fd, struct iovec *parts, int count) {
    ssize_t sent;
    do {
        if (count == 1) {
            sent = send(fd, parts->iov_base, parts->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
            struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
            sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    } while (sent < 0 && errno == EINTR);
    return sent;
}

static inline ssize_t socket_receive(int fd, void *bytes, size_t size) {
    ssize_t got;
    do got = recv(fd, bytes, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

static inline bool socket_input_waits(int fd) {
    uint8_t byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

static inline void socket_output_end(int fd) { shutdown(fd, SHUT_WR); }
static inline void socket_close(int fd) { close(fd); }

static inline void socket_options(int fd, bool no_delay, uint32_t send_bytes, uint32_t receive_bytes) {
    int one = 1, to_send = (int)send_bytes, to_receive = (int)receive_bytes;
    if (no_delay) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (send_bytes) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &to_send, sizeof to_send);
    if (receive_bytes) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &to_receive, sizeof to_receive);
}

#endif

#endif
