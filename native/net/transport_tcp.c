/* net/transport_tcp.c: a connection over a socket. See transport.h. */
#include "net/net.h"
#include "net/transport.h"
#include "net/transport_io.h"

#include <errno.h>

static bool tcp_begin(net_t *net, connection_t *connection) {
    if (poll_set(net->poller, connection->fd, connection->client.handle, 0, POLL_READ) < 0) return false;
    connection->interest = POLL_READ;
    return true;
}

/* The caller may be iterating over a list with this connection, so the next flush closes it. */
NOINLINE void transport_tcp_failed(net_t *net, connection_t *connection, int error) {
    connection->send_error = error;
    connection->client.blocked = false;
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
}

void transport_tcp_watch(net_t *net, connection_t *connection, uint8_t want) {
    if (want == connection->interest) return;
    if (poll_set(net->poller, connection->fd, connection->client.handle, connection->interest, want) < 0) {
        transport_tcp_failed(net, connection, errno);
        return;
    }
    connection->interest = want;
}

static void tcp_interest(net_t *net, connection_t *connection) {
    if (connection->state == CONNECTION_DEAD) return;
    uint8_t want = 0;
    if (connection->state == CONNECTION_LINGERING || (connection->state == CONNECTION_OPEN && !connection->client.pause))
        want |= POLL_READ;
    if (connection->client.blocked) want |= POLL_WRITE;
    if (!want && !connection->broken) want = POLL_ERROR;
    transport_tcp_watch(net, connection, want);
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

static void tcp_flush(net_t *net, connection_t *connection) {
    struct iovec parts[OUTPUT_PARTS_MAX];
    uint64_t bytes;
    int count = output_gather(net, connection, parts, &bytes);
    ssize_t done = count ? socket_send(connection->fd, parts, count) : 0;
    net->broker.stats.work += WORK_SEND;
    if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS) {
        transport_tcp_failed(net, connection, errno);
        return;
    }
    if (done > 0) output_sent(net, connection, (uint64_t)done);
    bool blocked = done < 0 || (uint64_t)done < bytes;
    if (blocked != connection->client.blocked) {
        connection->client.blocked = blocked;
        connection_update_interest(net, connection);
    }
    if (!blocked && output_left(connection))
        client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW); /* more than one batch: continue next turn */
}

/* ---- input ----------------------------------------------------------------------------------------------------------- */

static void tcp_readable(net_t *net, connection_t *connection) {
    uint32_t limit = input_limit(net, connection);
    bool gather_own = connection->in_size >= GATHER_BYTES;
    if (gather_own && limit > READ_BYTES_OWN) limit = READ_BYTES_OWN;
    if (gather_own && !input_reserve(net, connection, limit)) return;
    uint8_t *buffer = gather_own ? connection->in : net->read_buffer;
    uint32_t kept = connection->in_size;
    if (!gather_own && kept) memcpy(buffer, connection->in + connection->in_start, kept);
    ssize_t got = socket_receive(connection->fd, buffer + kept, limit);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
        input_end(net, connection, got == 0 ? 0 : errno);
        return;
    }
    net->turn_bytes += (uint64_t)got;
    connection->heard_ms = net->broker.now_ms;
    input_received(net, connection, buffer, kept, (uint32_t)got);
}

/* Discard the input of a lingering client until it closes too. */
static void tcp_drain(net_t *net, connection_t *connection) {
    ssize_t got = socket_receive(connection->fd, net->read_buffer, READ_BYTES);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK))
        connection_close(net, connection, connection->close_code, connection->close_detail);
}

static bool tcp_input_waits(const connection_t *connection) { return socket_input_waits(connection->fd); }

/* ---- the end --------------------------------------------------------------------------------------------------------- */

/* A client that has not ended its side gets time to read the last Reply. Closing a socket with unread input resets the
 * connection, and the Reply would be lost. */
static bool tcp_goodbye(net_t *net, connection_t *connection) {
    (void)net;
    if (connection->close_code == BQ_CLOSE_EOF) return false;
    socket_output_end(connection->fd);
    return true;
}

static void tcp_silence(net_t *net, connection_t *connection) {
    if (connection->interest) poll_set(net->poller, connection->fd, connection->client.handle, connection->interest, 0);
    connection->interest = 0;
}

static void tcp_end(net_t *net, connection_t *connection) {
    if (connection->fd < 0) return;
    socket_close(connection->fd);
    net->broker.stats.work += WORK_SEND;
    connection->fd = -1;
    admission_descriptor_freed(&net->admission);
}

const transport_ops_t transport_tcp = {.begin = tcp_begin,
                                       .readable = tcp_readable,
                                       .drain = tcp_drain,
                                       .interest = tcp_interest,
                                       .flush = tcp_flush,
                                       .goodbye = tcp_goodbye,
                                       .silence = tcp_silence,
                                       .end = tcp_end,
                                       .input_waits = tcp_input_waits,
                                       .acknowledged = true};
