/* event.c: events from the core to Python.
 *
 * Invariant: an event is complete in the ring, or its cause is kept until there is room: the connection stays on the retry list,
 * or the command stays at the head of its ring. No event that Python must receive is dropped.
 */
#include "core.h"

bool event_push(bq_t *bq, const bq_event_t *event) {
    uint32_t size = (uint32_t)sizeof *event + event->text_size + event->data_size;
    uint8_t *to = ring_reserve(&bq->events, size);
    if (!to) return false;
    memcpy(to, event, sizeof *event);
    if (event->text_size) memcpy(to + sizeof *event, event->text, event->text_size);
    if (event->data_size) memcpy(to + sizeof *event + event->text_size, event->data, event->data_size);
    if (ring_commit(&bq->events)) poll_wake_signal(&bq->event_wake);
    return true;
}

bool event_room(bq_t *bq) { return ring_reserve(&bq->events, (uint32_t)sizeof(bq_event_t) + MEMORY_CHUNK_BYTES) != NULL; }

void event_unsubscribed(bq_t *bq, const connection_t *connection, const uint8_t *filter, uint32_t filter_size,
                        const uint8_t *group, uint32_t group_size, enum bq_outcome outcome) {
    event_push(bq, &(bq_event_t){.type = BQ_EV_UNSUBSCRIBED,
                                 .code = (uint16_t)outcome,
                                 .conn = connection->handle,
                                 .text = filter,
                                 .text_size = filter_size,
                                 .data = group,
                                 .data_size = group_size});
}

void event_retry(bq_t *bq, connection_t *connection) {
    if (connection->retrying) return;
    connection->retrying = true;
    connection->retry_next = bq->retry;
    bq->retry = connection;
}

int bq_event_fd(bq_t *bq) { return bq->event_wake.read_fd; }

int bq_event(bq_t *bq, bq_event_t *event) {
    uint32_t size;
    if (bq->event_out) ring_pop(&bq->events); /* Python has read the previous event */
    bq->event_out = false;
    const uint8_t *record = ring_peek(&bq->events, &size);
    if (!record) {
        poll_wake_clear(&bq->event_wake);
        if (ring_wait_begin(&bq->events)) return 0;
        ring_wait_end(&bq->events);
        record = ring_peek(&bq->events, &size);
        if (!record) return 0;
    }
    bq->event_out = true;
    memcpy(event, record, sizeof *event);
    event->text = record + sizeof *event;
    event->data = event->text + event->text_size;
    return 1;
}

static void stats_of_wal(bq_t *bq, bq_stats_t *stats) {
    wal_stats_t wal;
    wal_stats(bq->wal, &wal);
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
    consumer_counts(bq, &counts);
    stats->sessions_behind = counts.behind;
    stats->sessions_absent = counts.absent;
    stats->subscriptions = route_counts(bq->routes)->subscriptions + counts.members + counts.absent;
}

void core_stats(bq_t *bq, bq_stats_t *stats) {
    const route_counts_t *routes = route_counts(bq->routes);
    *stats = bq->stats;
    stats->wheel_insertions = bq->wheel.insertions;
    stats->wheel_expirations = bq->wheel.expirations;
    stats->wheel_cascades = bq->wheel.cascades;
    stats->pool_hits = bq->pool.hits;
    stats->pool_misses = bq->pool.misses;
    stats->pool_free_bytes = bq->pool.free_bytes;
    stats->memory_used_bytes = bq->pool.used_bytes;
    stats->memory_peak_bytes = bq->pool.peak_bytes;
    stats->route_hits = routes->hits;
    stats->route_misses = routes->misses;
    stats->filters = routes->filters;
    stats->cached_topics = routes->topics;
    stats->compacted_bytes = bq->buffers.compacted_bytes;
    stats->segments = bq->buffers.count;
    stats->last_message_id = bq->next_message_id - 1;
    stats->connections = bq->open_count;
    stats->sessions = bq->consumers.count;
    stats_of_consumers(bq, stats);
    stats->sessions_unread = bq->consumers.read_failing;
    stats->in_flight = bq->consumers.flight_count;
    stats->held = bq->pending_commits;
    stats->pending = bq->admission.unadmitted;
    if (bq->wal) stats_of_wal(bq, stats);
}

bool event_stats(bq_t *bq, uint64_t seq) {
    bq_stats_t stats;
    core_stats(bq, &stats);
    return event_push(bq,
                      &(bq_event_t){.type = BQ_EV_STATS, .seq = seq, .data = (const uint8_t *)&stats, .data_size = sizeof stats});
}

#define LIST_ROWS 32u
#define LIST_SLOTS 1024u /* slots visited per page: bounds the walk through a nearly empty table */

static void list_row(const connection_t *connection, bq_subscriber_t *row) {
    const queue_t *queue = &connection->queue;
    *row = (bq_subscriber_t){.conn = connection->handle,
                             .enqueued = queue->enqueued,
                             .delivered = queue->delivered,
                             .dropped_ttl = queue->dropped_ttl,
                             .dropped_queue_full = queue->dropped_queue_full,
                             .queued_messages = queue->messages,
                             .queued_bytes = queue->bytes,
                             .subscriptions = connection->subscription_count + connection->group_count,
                             .flags = connection->blocked,
                             .peer_port = connection->peer_port};
    memcpy(row->peer, connection->peer, sizeof row->peer);
}

bool event_list(bq_t *bq, uint64_t seq, uint64_t first_slot) {
    bq_subscriber_t rows[LIST_ROWS];
    uint32_t count = 0;
    uint64_t slots = (uint64_t)bq->chunk_count * CONNECTION_CHUNK;
    uint64_t slot = first_slot, stop = first_slot + LIST_SLOTS < slots ? first_slot + LIST_SLOTS : slots;
    for (; slot < stop && count < LIST_ROWS; slot++) {
        const connection_t *connection = core_slot(bq, (uint32_t)slot);
        if (connection->state == CONNECTION_OPEN && (connection->subscription_count || connection->group_count))
            list_row(connection, &rows[count++]);
    }
    return event_push(bq, &(bq_event_t){.type = BQ_EV_LIST,
                                        .seq = seq,
                                        .value = slot < slots ? slot : 0,
                                        .data = (const uint8_t *)rows,
                                        .data_size = count * (uint32_t)sizeof *rows});
}
