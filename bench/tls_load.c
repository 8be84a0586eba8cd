/* tls_load.c: TLS clients for measuring a broker, and a bare TLS server as the yardstick.
 *
 *      tls_load tunnel PORT                 prints a port of its own; each plain connection there becomes one over TLS to PORT
 *      tls_load sink CERT KEY               prints a port of its own; reads and discards what comes over TLS
 *      tls_load source PORT FIRST FILE SECONDS    writes FIRST, then FILE again and again in records of 16 KiB; prints the bytes
 *      tls_load handshakes PORT RATE SECONDS    prints "begun"; full handshakes, each on a new connection; prints how many
 *      tls_load idle PORT COUNT FILE        opens connections, writes FILE on each, prints "ready", waits for the end of its input
 *
 * Certificates are not checked: what the clients cost is not measured. Invariant: what is read from a plain connection at once becomes one
 * record, so a write of one message stays one record.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

enum { CHUNK_BYTES = 64 << 10, RECORD_BYTES = 16 << 10, FILE_BYTES_MAX = 16 << 20, PAIRS_MAX = 4096 };

static __attribute__((noreturn)) void stop_with(const char *what) {
    fprintf(stderr, "tls_load: %s: %s\n", what, errno ? strerror(errno) : "TLS");
    ERR_print_errors_fp(stderr);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct sockaddr_in local(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Listen at a free port, and print it. */
static int listen_here(void) {
    struct sockaddr_in address = local(0);
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        stop_with("cannot listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static int at_once(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int dial(int port) {
    struct sockaddr_in address = local(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) stop_with("cannot connect");
    return at_once(fd);
}

static SSL_CTX *client_context(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (!context) stop_with("no context");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_AUTO_RETRY);
    return context;
}

static SSL *dial_tls(SSL_CTX *context, int port) {
    SSL *ssl = SSL_new(context);
    if (!ssl || !SSL_set_fd(ssl, dial(port)) || SSL_connect(ssl) != 1) stop_with("no handshake");
    return ssl;
}

static void hang_up(SSL *ssl) {
    int fd = SSL_get_fd(ssl);
    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(fd);
}

static uint8_t *read_file(const char *path, size_t *size) {
    uint8_t *bytes = malloc(FILE_BYTES_MAX);
    FILE *file = fopen(path, "rb");
    if (!bytes || !file) stop_with(path);
    *size = fread(bytes, 1, FILE_BYTES_MAX, file);
    fclose(file);
    return bytes;
}

/* ---- tunnel ---------------------------------------------------------------------------------------------------------- */

typedef struct pair {
    int plain;
    SSL *tls;
} pair_t;

static void wait_for(int fd, short events) {
    struct pollfd one = {.fd = fd, .events = events};
    poll(&one, 1, -1);
}

static void set_waiting(int fd, bool waits) {
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, waits ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

static bool to_plain(const pair_t *pair, const uint8_t *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(pair->plain, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            wait_for(pair->plain, POLLOUT);
            continue;
        }
        if (sent <= 0) return false;
        bytes += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool to_tls(const pair_t *pair, const uint8_t *bytes, size_t size) {
    while (size) {
        size_t sent = 0;
        int code = SSL_write_ex(pair->tls, bytes, size, &sent);
        if (code == 1) {
            bytes += sent;
            size -= sent;
            continue;
        }
        if (SSL_get_error(pair->tls, code) != SSL_ERROR_WANT_WRITE) return false;
        wait_for(SSL_get_fd(pair->tls), POLLOUT);
    }
    return true;
}

/* False: the connection has ended. */
static bool carry(const pair_t *pair, bool from_tls, uint8_t *chunk) {
    if (!from_tls) {
        ssize_t size = recv(pair->plain, chunk, CHUNK_BYTES, 0);
        if (size < 0 && errno == EAGAIN) return true;
        return size > 0 && to_tls(pair, chunk, (size_t)size);
    }
    size_t size = 0;
    int code;
    while ((code = SSL_read_ex(pair->tls, chunk, CHUNK_BYTES, &size)) == 1)
        if (!to_plain(pair, chunk, size)) return false;
    return SSL_get_error(pair->tls, code) == SSL_ERROR_WANT_READ;
}

static void pair_open(int epoll_fd, pair_t *pairs, uint32_t number, int plain, SSL_CTX *context, int port) {
    if (plain < 0 || number >= PAIRS_MAX) stop_with("too many connections");
    pairs[number] = (pair_t){.plain = at_once(plain), .tls = dial_tls(context, port)};
    set_waiting(plain, false);
    set_waiting(SSL_get_fd(pairs[number].tls), false);
    for (uint32_t side = 0; side < 2; side++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = 2 * number + side};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, side ? SSL_get_fd(pairs[number].tls) : plain, &event);
    }
}

static void tunnel(int port) {
    static pair_t pairs[PAIRS_MAX];
    static uint8_t chunk[CHUNK_BYTES];
    SSL_CTX *context = client_context();
    int listener = listen_here(), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (uint32_t count = 0;;) {
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            uint32_t key = events[i].data.u32;
            if (key == UINT32_MAX) {
                pair_open(epoll_fd, pairs, count++, accept(listener, NULL, NULL), context, port);
                continue;
            }
            pair_t *pair = &pairs[key / 2];
            if (!pair->tls || carry(pair, key & 1, chunk)) continue;
            close(pair->plain);
            hang_up(pair->tls);
            pair->tls = NULL;
        }
    }
}

/* ---- the others ------------------------------------------------------------------------------------------------------- */

static void sink(const char *certificate, const char *key) {
    static uint8_t chunk[CHUNK_BYTES];
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context || !SSL_CTX_use_certificate_chain_file(context, certificate) ||
        !SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM))
        stop_with("no certificate");
    SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    for (int listener = listen_here();;) {
        SSL *ssl = SSL_new(context);
        int fd = accept(listener, NULL, NULL);
        size_t size;
        SSL_set_fd(ssl, fd);
        if (SSL_accept(ssl) == 1)
            while (SSL_read_ex(ssl, chunk, sizeof chunk, &size) == 1) {}
        SSL_free(ssl);
        close(fd);
    }
}

static void source(int port, const char *first_path, const char *path, double seconds) {
    size_t size, first_size, written = 0;
    uint8_t *bytes = read_file(path, &size), *first = read_file(first_path, &first_size);
    SSL *ssl = dial_tls(client_context(), port);
    if (first_size && SSL_write(ssl, first, (int)first_size) <= 0) stop_with("the server has closed");
    uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9);
    while (now_ns() < end)
        for (size_t at = 0, sent = 0; at < size; at += sent, written += sent)
            if (SSL_write_ex(ssl, bytes + at, size - at < RECORD_BYTES ? size - at : RECORD_BYTES, &sent) != 1)
                stop_with("the server has closed");
    printf("%zu %.3f\n", written, (double)(now_ns() - began) / 1e9);
    hang_up(ssl);
}

static void handshakes(int port, double rate, double seconds) {
    SSL_CTX *context = client_context();
    uint64_t began = now_ns(), count = 0;
    printf("begun\n");
    fflush(stdout);
    for (; (double)count < rate * seconds; count++) {
        uint64_t due = began + (uint64_t)((double)count / rate * 1e9), now = now_ns();
        if (now > began + (uint64_t)(seconds * 1.5e9)) break;
        if (due > now) {
            struct timespec left = {.tv_sec = (time_t)((due - now) / 1000000000u), .tv_nsec = (long)((due - now) % 1000000000u)};
            nanosleep(&left, NULL);
        }
        hang_up(dial_tls(context, port));
    }
    printf("%llu %.3f\n", (unsigned long long)count, (double)(now_ns() - began) / 1e9);
}

static void idle(int port, int count, const char *path) {
    size_t size, sent;
    uint8_t *bytes = read_file(path, &size);
    SSL_CTX *context = client_context();
    for (int i = 0; i < count; i++) {
        SSL *ssl = dial_tls(context, port);
        if (size && SSL_write_ex(ssl, bytes, size, &sent) != 1) stop_with("the server has closed");
    }
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF) {}
}

int main(int count, char **words) {
    struct rlimit limit;
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) limit.rlim_cur = limit.rlim_max, setrlimit(RLIMIT_NOFILE, &limit);
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "tunnel") && count == 3)
        tunnel(atoi(words[2]));
    else if (!strcmp(what, "sink") && count == 4)
        sink(words[2], words[3]);
    else if (!strcmp(what, "source") && count == 6)
        source(atoi(words[2]), words[3], words[4], atof(words[5]));
    else if (!strcmp(what, "handshakes") && count == 5)
        handshakes(atoi(words[2]), atof(words[3]), atof(words[4]));
    else if (!strcmp(what, "idle") && count == 5)
        idle(atoi(words[2]), atoi(words[3]), words[4]);
    else {
        fputs("usage: tls_load tunnel PORT | sink CERT KEY | source PORT FIRST FILE SECONDS | handshakes PORT RATE SECONDS | "
              "idle PORT "
              "COUNT FILE\n",
              stderr);
        return 2;
    }
    return 0;
}
