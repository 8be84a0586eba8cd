/* relay.c: the lower bound: the cost to receive bytes and send them to N subscribers, without parsing or copying.
 *
 * A connection begins with three bytes: 'P' publisher, 'S' subscriber or 'I' idle, and a channel (u16 big-endian). The answer
 * is 'A'. Bytes from the publishers of a channel are sent to each of its subscribers. A subscriber whose socket is full keeps
 * an offset into the channel's buffer, and the channel's publishers are not read until it has caught up. Nothing is dropped.
 *
 *      channel buffer   | received in this turn ............ size |    capacity
 *      subscriber                  ^ offset, while it lags
 *
 * Invariant: while a subscriber lags, the buffer neither grows nor is emptied, and no publisher of the channel is watched. It
 * relays bytes, so if a channel has two publishers, each must write whole messages that are small enough for one read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    CHANNELS_MAX = 1024,
    BUFFER_BYTES = 256 * 1024,
    ROOM_BYTES_MIN = 4096,
    EVENTS_PER_TURN = 512,
    BACKLOG = 1024,
    JOIN_BYTES = 3
};

typedef struct connection connection_t;
typedef struct channel channel_t;

struct connection {
    int fd;
    uint32_t watched; /* the events registered with epoll */
    uint8_t join[JOIN_BYTES], join_size;
    size_t offset; /* subscriber: how much of the channel's buffer has been sent */
    channel_t *channel;
    connection_t *next, **link; /* neighbours in the channel's list for its role */
};

struct channel {
    uint8_t *buffer;
    size_t size;
    unsigned lagging;
    bool dirty;
    connection_t *subscribers, *publishers;
};

typedef struct {
    int epoll_fd, listen_fd;
    channel_t channels[CHANNELS_MAX];
    channel_t *dirty[CHANNELS_MAX];
    unsigned dirty_count;
    connection_t *closed; /* freed at the end of the turn, because later events of the turn may still refer to them */
} relay_t;

static __attribute__((noreturn)) void stop_with(const char *what) {
    fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(relay_t *relay, connection_t *connection, uint32_t events) {
    if (connection->watched == events) return;
    connection->watched = events;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(relay->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

static void publishers_watch(relay_t *relay, channel_t *channel, uint32_t events) {
    for (connection_t *publisher = channel->publishers; publisher; publisher = publisher->next) watch(relay, publisher, events);
}

static void caught_up(relay_t *relay, channel_t *channel) {
    if (--channel->lagging) return;
    channel->size = 0;
    publishers_watch(relay, channel, EPOLLIN);
}

static void list_add(connection_t **list, connection_t *connection) {
    connection->next = *list;
    connection->link = list;
    if (*list) (*list)->link = &connection->next;
    *list = connection;
}

static void connection_close(relay_t *relay, connection_t *connection) {
    if (connection->link) {
        *connection->link = connection->next;
        if (connection->next) connection->next->link = connection->link;
    }
    close(connection->fd);
    connection->fd = -1;
    if (connection->watched & EPOLLOUT) caught_up(relay, connection->channel);
    connection->next = relay->closed;
    relay->closed = connection;
}

/* Returns true if everything was sent. A broken connection counts as sent; its EPOLLHUP closes it. */
static bool subscriber_send(connection_t *subscriber) {
    channel_t *channel = subscriber->channel;
    while (subscriber->offset < channel->size) {
        ssize_t n = send(subscriber->fd, channel->buffer + subscriber->offset, channel->size - subscriber->offset, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return false;
        if (n < 0) return true;
        subscriber->offset += (size_t)n;
    }
    return true;
}

static void channel_flush(relay_t *relay, channel_t *channel) {
    channel->dirty = false;
    for (connection_t *subscriber = channel->subscribers; subscriber; subscriber = subscriber->next) {
        subscriber->offset = 0;
        if (subscriber_send(subscriber)) continue;
        channel->lagging++;
        watch(relay, subscriber, EPOLLIN | EPOLLOUT);
    }
    if (channel->lagging)
        publishers_watch(relay, channel, 0);
    else
        channel->size = 0;
}

static void connection_join(relay_t *relay, connection_t *connection) {
    ssize_t n = recv(connection->fd, connection->join + connection->join_size, JOIN_BYTES - connection->join_size, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        connection_close(relay, connection);
        return;
    }
    connection->join_size += (uint8_t)n;
    if (connection->join_size < JOIN_BYTES) return;
    unsigned number = (unsigned)connection->join[1] << 8 | connection->join[2];
    if (number >= CHANNELS_MAX || !strchr("SPI", connection->join[0])) {
        fprintf(stderr, "relay: refused a connection of role %u, channel %u\n", connection->join[0], number);
        connection_close(relay, connection);
        return;
    }
    channel_t *channel = connection->channel = &relay->channels[number];
    if (!channel->buffer && !(channel->buffer = malloc(BUFFER_BYTES))) stop_with("no memory for a channel");
    if (connection->join[0] == 'S') list_add(&channel->subscribers, connection);
    if (connection->join[0] == 'P') list_add(&channel->publishers, connection);
    connection->offset = channel->size;
    if (send(connection->fd, "A", 1, MSG_NOSIGNAL) != 1) connection_close(relay, connection);
}

static void publisher_receive(relay_t *relay, connection_t *publisher) {
    channel_t *channel = publisher->channel;
    if (BUFFER_BYTES - channel->size < ROOM_BYTES_MIN && !channel->lagging) channel_flush(relay, channel);
    if (channel->lagging) return; /* watched again when the subscribers have caught up */
    ssize_t n = recv(publisher->fd, channel->buffer + channel->size, BUFFER_BYTES - channel->size, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        connection_close(relay, publisher);
        return;
    }
    channel->size += (size_t)n;
    if (channel->dirty) return;
    channel->dirty = true;
    relay->dirty[relay->dirty_count++] = channel;
}

static void other_receive(relay_t *relay, connection_t *connection) {
    uint8_t ignored[64];
    ssize_t n = recv(connection->fd, ignored, sizeof ignored, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) connection_close(relay, connection);
}

static void connection_event(relay_t *relay, connection_t *connection, uint32_t events) {
    if (connection->fd < 0) return;
    if ((events & connection->watched & EPOLLOUT) && subscriber_send(connection)) {
        watch(relay, connection, EPOLLIN);
        caught_up(relay, connection->channel);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    if (!connection->channel)
        connection_join(relay, connection);
    else if (connection->join[0] == 'P')
        publisher_receive(relay, connection);
    else
        other_receive(relay, connection);
}

static void accept_all(relay_t *relay) {
    int one = 1;
    for (int fd; (fd = accept4(relay->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        connection_t *connection = calloc(1, sizeof *connection);
        if (!connection) stop_with("no memory for a connection");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection->fd = fd;
        connection->watched = EPOLLIN;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        if (epoll_ctl(relay->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) stop_with("epoll refused a connection");
    }
    if (errno == EMFILE || errno == ENFILE) stop_with("cannot accept: raise the limit on open files (ulimit -n)");
}

static void turn(relay_t *relay) {
    struct epoll_event events[EVENTS_PER_TURN];
    int count = epoll_wait(relay->epoll_fd, events, EVENTS_PER_TURN, -1);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr)
            connection_event(relay, events[i].data.ptr, events[i].events);
        else
            accept_all(relay);
    }
    while (relay->dirty_count) {
        channel_t *channel = relay->dirty[--relay->dirty_count];
        if (channel->dirty && !channel->lagging) channel_flush(relay, channel);
        channel->dirty = false;
    }
    for (connection_t *next; relay->closed; relay->closed = next) {
        next = relay->closed->next;
        free(relay->closed);
    }
}

static void listen_on(relay_t *relay, int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN};
    int one = 1;
    relay->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(relay->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(relay->listen_fd, (struct sockaddr *)&address, sizeof address) < 0) stop_with("cannot bind");
    if (listen(relay->listen_fd, BACKLOG) < 0) stop_with("cannot listen");
    relay->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(relay->epoll_fd, EPOLL_CTL_ADD, relay->listen_fd, &event) < 0) stop_with("no epoll");
}

int main(int count, char **words) {
    static relay_t relay;
    struct rlimit limit;
    int port = count == 2 ? atoi(words[1]) : 0;
    if (port < 1 || port > 65535) {
        fputs("usage: relay PORT\n", stderr);
        return 2;
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) limit.rlim_cur = limit.rlim_max, setrlimit(RLIMIT_NOFILE, &limit);
    listen_on(&relay, port);
    for (;;) turn(&relay);
}
