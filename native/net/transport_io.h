/* net/transport_io.h: bytes between a transport and a connection.
 *
 *      input_limit, then the transport reads, then input_received
 *      output_gather, then the transport sends, then output_sent
 *
 * Invariant: nothing else uses the connection between output_gather and output_sent, because the parts point into its queue.
 */
#ifndef BQ_TRANSPORT_IO_H
#define BQ_TRANSPORT_IO_H

#include "base/socket.h"
#include "net/net.h"
#include "net/websocket.h"

uint32_t input_limit_rare(const net_t *net, const connection_t *connection); /* of an unadmitted client, or over WebSocket */

/* Bytes to read at once. From an unadmitted client only its one frame is read; further input stays in the kernel until the
 * answer. Input for several subscribers is read in pieces that stay in the processor cache until they are sent to all of
 * them. */
static inline uint32_t input_limit(const net_t *net, const connection_t *connection) {
    if (BQ_UNLIKELY(connection->unadmitted || connection->websocket)) return input_limit_rare(net, connection);
    if (connection->heavy || connection->client.pending_commits) return READ_BYTES_HEAVY; /* unparsed input may have to wait */
    if (net->broker.config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK) return READ_BYTES_BLOCKING;
    if (!connection->last_topic || connection->last_topic->target_count <= 1) return net->read_bytes;
    return net->read_bytes < READ_BYTES_FAN ? net->read_bytes : READ_BYTES_FAN;
}

/* `got` new bytes follow `kept` earlier ones at `bytes`, which may be inside the connection's own buffer. */
static inline void input_received(net_t *net, connection_t *connection, uint8_t *bytes, uint32_t kept, uint32_t got) {
    if (BQ_UNLIKELY(connection->websocket != NULL))
        websocket_received(net, connection, bytes, kept, got);
    else
        input_process(net, connection, bytes, kept + got);
}

#define OUTPUT_PARTS_MAX (SEND_PARTS_MAX + 2) /* a layer adds two */

int output_gather_several(const net_t *net, const queue_t *queue, struct iovec *parts, uint64_t *bytes);

/* The next part of the queue, at most one batch. */
static inline int output_gather_queue(const net_t *net, const connection_t *connection, struct iovec *parts, uint64_t *bytes) {
    const queue_entry_t *head = connection->client.queue.head;
    if (!head || head->next) return output_gather_several(net, &connection->client.queue, parts, bytes);
    parts[0] = (struct iovec){.iov_base = head->buffer->bytes + head->offset, .iov_len = head->size};
    *bytes = head->size;
    return 1;
}

/* The next output: fills up to OUTPUT_PARTS_MAX parts and *bytes, their sum. Returns the number of parts. */
static inline int output_gather(net_t *net, connection_t *connection, struct iovec *parts, uint64_t *bytes) {
    if (BQ_UNLIKELY(connection->websocket != NULL)) return websocket_gather(net, connection, parts, bytes);
    return output_gather_queue(net, connection, parts, bytes);
}

/* The first `bytes` of the gathered output have left. */
void output_sent(net_t *net, connection_t *connection, uint64_t bytes);

/* There is more to send. */
static inline bool output_left(const connection_t *connection) {
    if (BQ_UNLIKELY(connection->websocket != NULL)) return websocket_output_left(connection);
    return connection->client.queue.head != NULL;
}

#endif
