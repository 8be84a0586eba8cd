/* event.c: Python's side of the event ring, and the events that answer STATS and LIST. broker/event_ring.h has the core's side.
 *
 * Invariant: a record is read complete, and stays in the ring until the next one is asked for.
 */
#include "core.h"

int bq_event_fd(bq_t *bq) { return bq->broker.events.wake.read_fd; }

int bq_event(bq_t *bq, bq_event_t *event) {
    uint32_t size;
    if (bq->broker.events.out) ring_pop(&bq->broker.events.ring); /* Python has read the previous event */
    bq->broker.events.out = false;
    const uint8_t *record = ring_peek(&bq->broker.events.ring, &size);
    if (!record) {
        poll_wake_clear(&bq->broker.events.wake);
        if (ring_wait_begin(&bq->broker.events.ring)) return 0;
        ring_wait_end(&bq->broker.events.ring);
        record = ring_peek(&bq->broker.events.ring, &size);
        if (!record) return 0;
    }
    bq->broker.events.out = true;
    memcpy(event, record, sizeof *event);
    event->text = record + sizeof *event;
    event->data = event->text + event->text_size;
    return 1;
}

static void stats_of_wal(bq_t *bq, bq_stats_t *stats) {
    wal_stats_t wal;
    wal_stats(bq->broker.wal, &wal);
    stats->log_written_bytes = wal.written_bytes;
    stats->log_records = wal.records;
    stats->log_sync_us_total = wal.sync_us_total;
    stats->log_sync_us_max = wal.sync_us_max;
    stats->log_sync_us_last = wal.sync_us_last;
    memcpy(&stats->log_syncs_100us, wal.sync_us_buckets, sizeof wal.sync_us_buckets);
    stats->log_reclaimed_segments = wal.reclaimed_segments;
    stats->log_read_bytes = wal.read_bytes;
    stats->log_bytes = wal.bytes;
    stats->log_segments = wal.segments;
    stats->log_durable_lsn = wal.durable_lsn;
    stats->log_next_lsn = wal.next_lsn;
    stats->log_checkpoint_lsn = wal.checkpoint_lsn;
    stats->log_free_bytes = wal.free_bytes > 0 ? (uint64_t)wal.free_bytes : 0;
    stats->log_state = wal.failed ? 3 : wal.full ? 2 : 1;
    stats->log_errno = (uint64_t)wal.error;
}

/* Counts subscriptions of connections (QoS 0 and 1), members of queue groups, and durable subscriptions without a connection. */
static void stats_of_consumers(const bq_t *bq, bq_stats_t *stats) {
    consumer_counts_t counts;
    consumer_counts(&bq->broker, &counts);
    stats->sessions_behind = counts.behind;
    stats->sessions_absent = counts.absent;
    stats->subscriptions = route_counts(bq->broker.routes)->subscriptions + counts.members + counts.absent;
}

void core_stats(bq_t *bq, bq_stats_t *stats) {
    const route_counts_t *routes = route_counts(bq->broker.routes);
    *stats = bq->broker.stats;
    stats->wheel_insertions = bq->broker.wheel.insertions;
    stats->wheel_expirations = bq->broker.wheel.expirations;
    stats->wheel_cascades = bq->broker.wheel.cascades;
    stats->pool_hits = bq->broker.pool.hits;
    stats->pool_misses = bq->broker.pool.misses;
    stats->pool_free_bytes = bq->broker.pool.free_bytes;
    stats->memory_used_bytes = bq->broker.pool.used_bytes;
    stats->memory_peak_bytes = bq->broker.pool.peak_bytes;
    stats->route_hits = routes->hits;
    stats->route_misses = routes->misses;
    stats->filters = routes->filters;
    stats->cached_topics = routes->topics;
    stats->compacted_bytes = bq->broker.buffers.compacted_bytes;
    stats->segments = bq->broker.buffers.count;
    stats->last_message_id = bq->broker.next_message_id - 1;
    stats->connections = bq->net.open_count;
    stats->websockets = bq->net.websocket_count;
    stats->sessions = bq->broker.consumers.count;
    stats_of_consumers(bq, stats);
    stats->sessions_unread = bq->broker.consumers.read_failing;
    stats->in_flight = bq->broker.consumers.flight_count;
    stats->held = bq->broker.pending_commits;
    stats->pending = bq->net.admission.unadmitted;
    if (bq->broker.wal) stats_of_wal(bq, stats);
}

bool event_stats(bq_t *bq, uint64_t seq) {
    bq_stats_t stats;
    core_stats(bq, &stats);
    return event_push(&bq->broker,
                      &(bq_event_t){.type = BQ_EV_STATS, .seq = seq, .data = (const uint8_t *)&stats, .data_size = sizeof stats});
}

#define LIST_ROWS 32u
#define LIST_SLOTS 1024u /* slots visited per page: bounds the walk through a nearly empty table */

static void list_row(const connection_t *connection, bq_subscriber_t *row) {
    const queue_t *queue = &connection->client.queue;
    *row = (bq_subscriber_t){.conn = connection->client.handle,
                             .enqueued = queue->enqueued,
                             .delivered = queue->delivered,
                             .dropped_ttl = queue->dropped_ttl,
                             .dropped_queue_full = queue->dropped_queue_full,
                             .queued_messages = queue->messages,
                             .queued_bytes = queue->bytes,
                             .subscriptions = connection->client.subscription_count + connection->client.group_count,
                             .flags = (connection->websocket ? 2u : 0u) | connection->client.blocked,
                             .peer_port = connection->peer_port};
    memcpy(row->peer, connection->peer, sizeof row->peer);
}

bool event_list(bq_t *bq, uint64_t seq, uint64_t first_slot) {
    bq_subscriber_t rows[LIST_ROWS];
    uint32_t count = 0;
    uint64_t slots = (uint64_t)bq->net.chunk_count * CONNECTION_CHUNK;
    uint64_t slot = first_slot, stop = first_slot + LIST_SLOTS < slots ? first_slot + LIST_SLOTS : slots;
    for (; slot < stop && count < LIST_ROWS; slot++) {
        const connection_t *connection = connection_slot(&bq->net, (uint32_t)slot);
        if (connection->state == CONNECTION_OPEN && (connection->client.subscription_count || connection->client.group_count))
            list_row(connection, &rows[count++]);
    }
    return event_push(&bq->broker, &(bq_event_t){.type = BQ_EV_LIST,
                                                 .seq = seq,
                                                 .value = slot < slots ? slot : 0,
                                                 .data = (const uint8_t *)rows,
                                                 .data_size = count * (uint32_t)sizeof *rows});
}
