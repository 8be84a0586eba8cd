/* core_check.c: checks the invariants named in the headers after a turn. Compiled only into sanitizer and fuzz builds
 * (BQ_CHECK).
 *
 * The check visits all connections, pending commits and consumers. A core with many of them is checked every 64th turn only.
 */
#include "core.h"

#ifdef BQ_CHECK

#include <assert.h>

#define SMALL 256u /* connections + consumers + pending commits */
#define SELDOM 64u

static void check_queue(const queue_t *queue) {
    uint64_t messages = 0, control_bytes = 0;
    const queue_entry_t *last = NULL;
    for (const queue_entry_t *entry = queue->head; entry; last = entry, entry = entry->next) {
        assert(entry->previous == last && entry->buffer && entry->size);
        assert(entry->offset + (uint64_t)entry->size <= entry->buffer->used);
        assert(!entry->kept || !entry->count);
        messages += entry->count;
        if (!entry->count && !entry->kept) control_bytes += entry->size;
    }
    assert(queue->tail == last && queue->messages == messages && queue->control_bytes <= control_bytes);
}

static void check_connection(const connection_t *connection, uint64_t *inputs, uint64_t *fed, uint32_t *unadmitted) {
    *inputs += connection->in_capacity;
    *fed += connection->credit_used;
    *unadmitted += connection->unadmitted;
    assert(connection->transport && connection->protocol);
    assert(connection->in_start + (uint64_t)connection->in_size <= connection->in_capacity);
    assert(connection->state == CONNECTION_OPEN || connection->state == CONNECTION_DEAD || !connection->subscriptions);
    check_queue(&connection->queue);
}

static void check_connections(bq_t *bq) {
    uint64_t inputs = 0, fed = 0;
    uint32_t count = 0, unadmitted = 0;
    for (uint32_t slot = 0; slot < bq->chunk_count * CONNECTION_CHUNK; slot++) {
        const connection_t *connection = core_slot(bq, slot);
        if (connection->state == CONNECTION_FREE) continue;
        count++;
        check_connection(connection, &inputs, &fed, &unadmitted);
    }
    assert(count == bq->open_count + bq->refused_count && count + bq->free_count == bq->chunk_count * CONNECTION_CHUNK);
    assert(inputs == bq->input_bytes && fed == bq->credit_bytes && unadmitted == bq->admission.unadmitted);
    for (uint32_t order = 0; order < FLUSH_LISTS; order++)
        for (uint32_t i = 0; i < bq->dirty[order].count; i++) assert(bq->dirty[order].items[i]->dirty & 1u << order);
}

/* Pending commits are in LSN order. */
static void check_pending(const bq_t *bq) {
    uint64_t count = 0, bytes = 0, lsn = 0;
    for (const pending_commit_t *pending = bq->pending; pending; pending = pending->next) {
        assert(pending->lsn >= lsn && pending->hold.buffer);
        lsn = pending->lsn;
        count++;
        bytes += sizeof *pending + pending->hold.size;
    }
    assert(count == bq->pending_commits && bytes == bq->pending_bytes);
}

static void check_consumer(const consumer_t *consumer) {
    uint64_t bytes = 0, lsn = 0;
    uint32_t count = 0, members = 0;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next) {
        assert(delivery->consumer == consumer && delivery->lsn > lsn && delivery->hold.buffer);
        lsn = delivery->lsn;
        bytes += delivery->hold.size;
        count++;
    }
    for (const member_t *member = consumer->members; member; member = member->next) {
        assert(member->consumer == consumer && member->connection->state != CONNECTION_FREE);
        members++;
    }
    assert(count == consumer->window_count && bytes == consumer->window_bytes && members == consumer->member_count);
    assert(!consumer->head || consumer->floor_lsn < consumer->head->lsn);
}

static void check_consumers(const bq_t *bq) {
    uint32_t count = 0;
    for (const consumer_t *consumer = bq->consumers.all; consumer; consumer = consumer->next, count++) check_consumer(consumer);
    assert(count == bq->consumers.count);
}

void core_check(bq_t *bq) {
    bool small = bq->open_count + bq->consumers.count + bq->pending_commits < SMALL;
    if (!small && bq->stats.turns % SELDOM) return;
    assert(!bq->open.run.buffer); /* no run is open between two turns */
    check_connections(bq);
    check_pending(bq);
    check_consumers(bq);
}

#endif
