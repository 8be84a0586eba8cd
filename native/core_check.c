/* core_check.c: checks the invariants named in the headers after a turn. Compiled only into sanitizer and fuzz builds
 * (BQ_CHECK).
 *
 * The check visits all connections, pending commits and consumers. A core with many of them is checked every 64th turn only.
 */
#include "broker/session.h"
#include "core.h"

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

static void check_connection(const connection_t *connection, uint64_t *inputs, uint64_t *credit, uint32_t *unadmitted) {
    *inputs += connection->in_capacity;
    *credit += connection->credit_used;
    *unadmitted += connection->unadmitted;
    core_assert(connection->transport && connection->client.protocol);
    core_assert(connection->client.live == (connection->state == CONNECTION_OPEN));
    core_assert(connection->in_start + (uint64_t)connection->in_size <= connection->in_capacity);
    core_assert(connection->state == CONNECTION_OPEN || connection->state == CONNECTION_DEAD ||
                !connection->client.subscriptions);
    check_queue(&connection->client.queue);
}

static void check_connections(bq_t *bq) {
    uint64_t inputs = 0, credit = 0;
    uint32_t count = 0, unadmitted = 0;
    for (uint32_t slot = 0; slot < bq->net.chunk_count * CONNECTION_CHUNK; slot++) {
        const connection_t *connection = connection_slot(&bq->net, slot);
        if (connection->state == CONNECTION_FREE) continue;
        count++;
        check_connection(connection, &inputs, &credit, &unadmitted);
    }
    core_assert(count == bq->net.open_count + bq->net.refused_count &&
                count + bq->net.free_count == bq->net.chunk_count * CONNECTION_CHUNK);
    core_assert(inputs == bq->net.input_bytes && credit == bq->broker.credit_bytes && unadmitted == bq->net.admission.unadmitted);
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
