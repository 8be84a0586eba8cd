/* core_check.c: checks the invariants named in the headers after a turn. Compiled only into sanitizer and fuzz builds
 * (BQ_CHECK).
 *
 * The check visits all connections, pending commits and consumers. A core with many of them is checked every 64th turn only.
 */
#include "broker/session.h"
#include "core.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/websocket.h"

#ifdef BQ_CHECK

#define SMALL 256u /* connections + consumers + pending commits */
#define SELDOM 64u

static void check_queue(const queue_t *queue) {
    uint64_t messages = 0, control_bytes = 0;
    const queue_entry_t *last = NULL;
    for (const queue_entry_t *entry = queue->head; entry; last = entry, entry = entry->next) {
        core_assert(entry->previous == last && entry->buffer && entry->size);
        core_assert(entry->offset + (uint64_t)entry->size <= entry->buffer->used);
        core_assert(!entry->kept || !entry->count);
        messages += entry->count;
        if (!entry->count && !entry->kept) control_bytes += entry->size;
    }
    core_assert(queue->tail == last && queue->messages == messages && queue->control_bytes <= control_bytes);
}

/* What the counters must be. */
typedef struct sums {
    uint64_t inputs, credit, secure_open, secure_pending;
    uint32_t count, unadmitted, silent, websockets;
} sums_t;

/* A client stands in the admission until its request has come, and nothing reaches a protocol before. Behind a Close follows
 * nothing, and a connection does not linger before its Close has left. */
static void check_websocket(const connection_t *connection) {
    const websocket_t *websocket = connection->websocket;
    core_assert(websocket->rest_start + (uint64_t)websocket->rest_size <= websocket->rest_capacity);
    core_assert(!websocket->rest == !websocket->rest_capacity && websocket->pong_size <= WEBSOCKET_CONTROL_MAX);
    core_assert(!websocket->close_sent || (connection->state >= CONNECTION_CLOSING && !websocket->pong_due));
    if (websocket->state == WEBSOCKET_HANDSHAKE) {
        core_assert(!connection->client.queue.head && !connection->client.subscriptions && !connection->hello);
        core_assert(connection->in_size < WEBSOCKET_HEAD_MAX);
        core_assert(connection->state != CONNECTION_OPEN || connection->unadmitted || connection->refused);
    } else if (connection->state == CONNECTION_LINGERING) {
        core_assert(websocket->close_sent);
    }
    if (websocket->state == WEBSOCKET_OPEN) core_assert(!websocket->decoder.reason);
    if (connection->state == CONNECTION_OPEN && websocket->decoder.reason) core_assert(connection->input_ended);
}

/* Nothing reaches a protocol before the handshake is done, and a client stands in the admission until then. Ciphertext that
 * waits is waited for. A connection without usable TLS ends. */
static void check_secure(const connection_t *connection) {
    const secure_t *secure = connection->secure;
    const bool open = secure && secure->open, is_open = connection->state == CONNECTION_OPEN;
    core_assert(!connection->away || (secure && !open));
    if (!open) {
        core_assert(!connection->in_size && !connection->client.subscriptions && !connection->hello);
        core_assert(!is_open || connection->unadmitted || connection->refused);
    }
    if (!secure) return;
    core_assert(secure->ops && secure->state && (open || (!secure->certified && !secure->begun && !secure->ended)));
    core_assert(secure->unsent_at + (uint64_t)secure->unsent_size <= secure->unsent_capacity);
    core_assert(!secure->unsent == !secure->unsent_capacity && secure->unsent_size < UNSENT_BYTES_MAX + SECURE_IN_BYTES);
    core_assert(!secure->failed || !is_open || connection->send_error);
    core_assert(!secure->untold || !is_open || (connection->client.pause & PAUSE_EVENTS));
    if (connection->state == CONNECTION_DEAD || connection->away || connection->send_error) return;
    core_assert(!secure->unsent_size || (connection->interest & POLL_WRITE) || connection->client.dirty);
}

static void check_connection(const connection_t *connection, sums_t *sums) {
    const bool secure = connection->transport == &transport_secure && connection->fd >= 0;
    sums->count++;
    sums->inputs += connection->in_capacity;
    sums->credit += connection->credit_used;
    sums->unadmitted += connection->unadmitted;
    sums->silent += connection->silent;
    sums->websockets += connection->websocket != NULL;
    sums->secure_open += secure && connection->secure && connection->secure->open;
    sums->secure_pending += secure && !(connection->secure && connection->secure->open);
    core_assert(connection->unadmitted || !connection->silent);
    core_assert(secure || (!connection->secure && !connection->away));
    if (connection->websocket) check_websocket(connection);
    if (secure) check_secure(connection);
    core_assert(connection->transport && connection->client.protocol);
    core_assert(connection->client.live == (connection->state == CONNECTION_OPEN));
    core_assert(connection->in_start + (uint64_t)connection->in_size <= connection->in_capacity);
    core_assert(connection->state == CONNECTION_OPEN || connection->state == CONNECTION_DEAD ||
                !connection->client.subscriptions);
    check_queue(&connection->client.queue);
}

static void check_silent(const admission_t *admission, uint32_t silent) {
    const connection_t *last = NULL;
    for (const connection_t *connection = admission->silent_first; connection; connection = connection->silent_next, silent--) {
        core_assert(silent && connection->silent && connection->silent_prev == last);
        last = connection;
    }
    core_assert(!silent && admission->silent_last == last);
}

static void check_connections(bq_t *bq) {
    const bq_stats_t *stats = &bq->broker.stats;
    sums_t sums = {0};
    for (uint32_t slot = 0; slot < bq->net.chunk_count * CONNECTION_CHUNK; slot++) {
        const connection_t *connection = connection_slot(&bq->net, slot);
        if (connection->state == CONNECTION_FREE) continue;
        check_connection(connection, &sums);
    }
    core_assert(sums.count == bq->net.open_count + bq->net.refused_count &&
                sums.count + bq->net.free_count == bq->net.chunk_count * CONNECTION_CHUNK);
    core_assert(sums.inputs == bq->net.input_bytes && sums.credit == bq->broker.credit_bytes);
    core_assert(sums.unadmitted == bq->net.admission.unadmitted && sums.websockets == bq->net.websocket_count);
    core_assert(sums.secure_open == stats->secure_open && sums.secure_pending == stats->secure_pending);
    check_silent(&bq->net.admission, sums.silent);
    for (uint32_t order = 0; order < FLUSH_LISTS; order++)
        for (uint32_t i = 0; i < bq->broker.dirty[order].count; i++)
            core_assert(bq->broker.dirty[order].items[i]->dirty & 1u << order);
}

/* Pending commits are in LSN order. */
static void check_pending(const bq_t *bq) {
    uint64_t count = 0, bytes = 0, lsn = 0;
    for (const pending_commit_t *pending = bq->broker.pending; pending; pending = pending->next) {
        core_assert(pending->lsn >= lsn && pending->hold.buffer);
        lsn = pending->lsn;
        count++;
        bytes += sizeof *pending + pending->hold.size;
    }
    core_assert(count == bq->broker.pending_commits && bytes == bq->broker.pending_bytes);
}

static void check_session(const consumer_t *consumer) {
    const session_t *session = consumer->session;
    uint32_t qos = 0;
    for (uint32_t i = 0; i < session->filter_count; i++) {
        const consumer_filter_t *filter = session->filters[i];
        core_assert(filter->consumer == consumer && filter->filter);
        if (filter->qos > qos) qos = filter->qos;
    }
    core_assert(consumer->qos == qos && !consumer->grouped);
}

static void check_consumer(const consumer_t *consumer) {
    uint64_t bytes = 0, lsn = 0;
    uint32_t count = 0, members = 0;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next) {
        core_assert(delivery->consumer == consumer && delivery->lsn > lsn && delivery->hold.buffer);
        lsn = delivery->lsn;
        bytes += delivery->hold.size;
        count++;
    }
    for (const member_t *member = consumer->members; member; member = member->next) {
        core_assert(member->consumer == consumer && connection_of(member->client)->state != CONNECTION_FREE);
        members++;
    }
    core_assert(count == consumer->window_count && bytes == consumer->window_bytes && members == consumer->member_count);
    core_assert(!consumer->head || consumer->floor_lsn < consumer->head->lsn);
    if (consumer->session) check_session(consumer);
}

static void check_consumers(const bq_t *bq) {
    uint32_t count = 0;
    for (const consumer_t *consumer = bq->broker.consumers.all; consumer; consumer = consumer->next, count++)
        check_consumer(consumer);
    core_assert(count == bq->broker.consumers.count);
}

void core_check(bq_t *bq) {
    bool small = bq->net.open_count + bq->broker.consumers.count + bq->broker.pending_commits < SMALL;
    if (!small && bq->broker.stats.turns % SELDOM) return;
    core_assert(!bq->broker.open.run.buffer); /* no run is open between two turns */
    check_connections(bq);
    check_pending(bq);
    check_consumers(bq);
}

#endif
