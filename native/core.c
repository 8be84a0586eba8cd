/* core.c: the main loop. One I/O thread owns all state of the core and runs these steps in every turn:
 *
 *      timers      remove expired messages before any delivery
 *      commands    apply Python's decisions: a route exists before the messages it is for
 *      commits     answer confirmed records and offer them to their consumers (broker/commit.c, broker/consumer.c)
 *      secure      connections whose handshake made a step (net/secure.h)
 *      resume      connections whose wait has ended continue with their buffered input
 *      ready       sockets: send pending output; read, parse, route and queue input (broker/publish.c)
 *      line        serve heavy connections in line, as many as this turn has room for (net/fair_share.c)
 *      consumers   fill QoS 1 windows and send from them; write acks and this turn's publishes to the WAL as one batch
 *      flush       send once to each subscriber that has new data (net/output.c)
 *      compact     copy entries out of buffers that slow queues keep alive for a few bytes
 *      retry       repeat events that found no room in the event ring
 *      reap        free dead connections; nothing from this turn refers to them any more
 *      accept      last, so that the slots and descriptors just freed are available (net/admission.c)
 *
 * Invariant: at the end of a turn no run is open. Every queue that can be sent from is empty or on the dirty list.
 */
#include "core.h"
#include "proto/protocol.h"
#include "net/secure.h"
#include "net/transport.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- timers ------------------------------------------------------------------------------------------------------ */

static uint64_t tick_of(const bq_t *bq, uint64_t ms) { return ms / bq->config.tick_ms; }

void core_timer_set(bq_t *bq, core_timer_t *timer, uint64_t after_ms) {
    wheel_remove(&bq->wheel, &timer->wheel);
    wheel_insert(&bq->wheel, &timer->wheel, tick_of(bq, bq->now_ms + after_ms + bq->config.tick_ms - 1));
}

void core_timer_cut(bq_t *bq, core_timer_t *timer, uint64_t after_ms) {
    if (!wheel_armed(&timer->wheel) || timer->wheel.tick > tick_of(bq, bq->now_ms + after_ms + bq->config.tick_ms - 1))
        core_timer_set(bq, timer, after_ms);
}

static void connection_timeout(bq_t *bq, connection_t *connection) {
    if (connection->refused) {
        connection_close(bq, connection, BQ_CLOSE_REFUSED, "too many connections: server.max_connections is reached");
        return;
    }
    if (connection->state != CONNECTION_OPEN) {
        connection_end_late(bq, connection);
        return;
    }
    if (connection->hello) {
        keepalive_due(bq, connection);
        return;
    }
    bq->stats.hello_timeouts++;
    if (connection->transport->shakes && secure_late(bq, connection)) return;
    connection_close(bq, connection, BQ_CLOSE_UNAUTH, "no HELLO in time");
}

static void entry_timeout(bq_t *bq, queue_entry_t *entry) {
    connection_t *connection = connection_of_queue(entry->queue);
    queue_expire(entry, &bq->queues);
    connection_wake_waiters(bq, connection);
}

static void fire(bq_t *bq, core_timer_t *timer) {
    switch (timer->kind) {
    case TIMER_ENTRY: entry_timeout(bq, (queue_entry_t *)(void *)timer); break;
    case TIMER_CONNECTION: connection_timeout(bq, (connection_t *)(void *)((char *)timer - offsetof(connection_t, timer))); break;
    case TIMER_DELIVERY: consumer_timeout(bq, (delivery_t *)(void *)timer); break;
    case TIMER_KEEPALIVE: keepalive_look(bq); break;
    default: admission_timeout(bq); break;
    }
}

/* Timers beyond the batch stay in the wheel for the next turn. */
static bool run_timers(bq_t *bq) {
    uint64_t target = tick_of(bq, bq->now_ms);
    uint32_t count = 0;
    wheel_timer_t *due;
    while ((due = wheel_take(&bq->wheel, target))) {
        fire(bq, (core_timer_t *)(void *)due);
        if (++count >= TIMERS_MAX || count >= bq->config.expire_batch) break;
    }
    return count > 0;
}

/* ---- one turn ---------------------------------------------------------------------------------------------------- */

/* Flush within a turn after this many bytes, so that the data is still in the processor's cache when it is sent. */
#define TURN_BYTES_MAX (1u << 20)

/* Large reads cost least: each read wakes a publisher, and its messages wake a subscriber. But the turn must be short enough that
 * connections with little traffic are not delayed by those with much. */
static uint32_t read_share(const poll_event_t *events, int count) {
    uint32_t readable = 0;
    if (BQ_LIKELY(count <= (int)(READ_BYTES_ALL / READ_BYTES))) return READ_BYTES;
    for (int i = 0; i < count; i++) readable += (events[i].ready & POLL_READ) != 0;
    if (readable <= READ_BYTES_ALL / READ_BYTES) return READ_BYTES;
    return readable < READ_BYTES_ALL / READ_BYTES_SHARE ? READ_BYTES_ALL / readable : READ_BYTES_SHARE;
}

static inline void on_ready(bq_t *bq, const poll_event_t *event, uint32_t *writes_left) {
    if (event->key == KEY_WAKE) return; /* cleared in bq_wait */
    if (event->key >= KEY_LISTENER && event->key < KEY_LISTENER + LISTENERS_MAX) {
        admission_look(&bq->admission);
        return;
    }
    connection_t *connection = connection_find(bq, event->key);
    if (!connection || connection->state == CONNECTION_DEAD) return;
    if ((event->ready & connection->interest & POLL_WRITE) && *writes_left) { /* otherwise the poller reports it again */
        (*writes_left)--;
        connection_flush(bq, connection);
    }
    if (event->ready & connection->interest & POLL_READ) {
        if (BQ_LIKELY(!connection->ready && !connection->heavy)) {
            uint64_t begun = share_begin(bq);
            connection_readable(bq, connection);
            share_done(bq, connection, begun);
        } else {
            share_wait(bq, connection);
        }
    }
    /* The poller reports an error even to a connection with only write interest, and repeats it until it is handled. */
    if (BQ_UNLIKELY(event->ready & POLL_ERROR) && !(connection->interest & POLL_READ) && connection->state != CONNECTION_DEAD)
        connection_error(bq, connection);
    if (bq->turn_bytes > TURN_BYTES_MAX) core_flush(bq);
}

/* Hundreds of light connections together may be much work. The poller reports the remaining ones again, and the next turn starts
 * with them. */
static NOINLINE void run_many_events(bq_t *bq, uint32_t *writes_left) {
    const uint64_t stop = work_done(bq) + WORK_LIGHT * (uint64_t)bq->config.work_share;
    const int count = bq->poll_count;
    int i = bq->poll_from < count ? bq->poll_from : 0;
    for (int left = count; left && work_done(bq) < stop; left--) {
        on_ready(bq, &bq->poll_events[i++], writes_left);
        if (i == count) i = 0;
    }
    bq->poll_from = i;
}

static inline void run_events(bq_t *bq) {
    uint32_t writes_left = WRITES_MAX;
    if (BQ_LIKELY(bq->poll_count <= (int)WORK_LIGHT))
        for (int i = 0; i < bq->poll_count; i++) on_ready(bq, &bq->poll_events[i], &writes_left);
    else
        run_many_events(bq, &writes_left);
    bq->poll_count = 0;
}

/* The next turn handles the rest, and connections that exceeded one batch and marked themselves again. */
static inline void flush_list(bq_t *bq, enum flush_order order, uint32_t count_max, uint64_t bytes_max) {
    flush_list_t *list = &bq->dirty[order];
    uint32_t count = list->count < count_max ? list->count : count_max;
    const uint64_t stop = bytes_max == UINT64_MAX ? UINT64_MAX : bq->stats.delivered_bytes + bytes_max;
    for (uint32_t i = 0; i < count; i++) {
        connection_t *connection = list->items[i];
        connection->dirty &= (uint8_t) ~(1u << order);
        if (!connection->blocked) connection_flush(bq, connection);
        if (BQ_UNLIKELY(connection->waiters_left)) connection_wake_waiters(bq, connection);
        if (bytes_max != UINT64_MAX && bq->stats.delivered_bytes >= stop) count = i + 1;
    }
    list->count -= count;
    if (list->count) memmove(list->items, list->items + count, list->count * sizeof *list->items);
}

static NOINLINE void flush_wide(bq_t *bq) {
    uint32_t most = bq->config.flush_subscribers;
    flush_list(bq, FLUSH_WIDE, most < WIDE_SENDS_MAX ? most : WIDE_SENDS_MAX, WIDE_BYTES_MAX);
}

static inline bool anything_dirty(const bq_t *bq) { return bq->dirty[FLUSH_NARROW].count | bq->dirty[FLUSH_WIDE].count; }

/* Sending to a thousand subscribers of one topic takes milliseconds. The narrow list is flushed first, so messages with few
 * subscribers do not wait for that. */
void core_flush(bq_t *bq) {
    publish_run_close(bq);
    bq->turn_bytes = 0;
    bq->flush_due_ms = 0;
    flush_list(bq, FLUSH_NARROW, bq->config.flush_subscribers, UINT64_MAX);
    if (BQ_UNLIKELY(bq->dirty[FLUSH_WIDE].count)) flush_wide(bq);
    if (anything_dirty(bq)) bq->flush_due_ms = bq->now_ms; /* they have already waited once */
}

/* With a flush interval, deliveries are collected until the oldest has waited long enough or a batch is full. */
static void flush_when_due(bq_t *bq) {
    publish_run_close(bq);
    if (!anything_dirty(bq)) return;
    if (bq->config.flush_interval_ms && !bq->stopping && bq->turn_bytes < bq->config.max_batch_bytes) {
        if (!bq->flush_due_ms) bq->flush_due_ms = bq->now_ms + bq->config.flush_interval_ms;
        if (bq->now_ms < bq->flush_due_ms) return;
    }
    core_flush(bq);
}

/* A connection that waited for room in the event ring: transport events, requests. */
static void retry_one(bq_t *bq, connection_t *connection) {
    if (connection->transport->retry && !connection->transport->retry(bq, connection)) {
        event_retry(bq, connection);
        return;
    }
    connection_resume(bq, connection, PAUSE_EVENTS);
}

static void run_retry_list(bq_t *bq) {
    if (!event_room(bq)) return; /* retry after RETRY_MS; an immediate retry would spin until Python reads events */
    connection_t *connection = bq->retry;
    bq->retry = NULL;
    while (connection) {
        connection_t *next = connection->retry_next;
        connection->retrying = false;
        if (connection->state != CONNECTION_DEAD) retry_one(bq, connection);
        connection = next;
    }
}

/* Limited by work: closing a socket takes microseconds, freeing routes and queues takes time too, and many connections may end in
 * one turn. */
static void reap(bq_t *bq, uint64_t work) {
    connection_t *list = bq->dead, **at = &list;
    bq->dead = NULL;
    bq->ends_stop = work > UINT64_MAX - work_done(bq) ? UINT64_MAX : work_done(bq) + work;
    while (*at && work_done(bq) < bq->ends_stop) {
        connection_t *connection = *at, *next = connection->dead_next;
        if (connection_free(bq, connection))
            *at = next;
        else
            at = &connection->dead_next;
    }
    bq->ends_left = *at != NULL;
    for (at = &bq->dead; *at;) at = &(*at)->dead_next; /* connections that ended meanwhile */
    *at = list;
}

static void stop_when_flushed(bq_t *bq);

static inline bool anyone_ready(const bq_t *bq) { return bq->share.light.first || bq->share.line.first || bq->ends_left; }

/* Checked every turn: a QoS 0 broker usually has no consumers. */
static inline bool any_consumers(const bq_t *bq) { return bq->consumers.all || bq->dead_letters.first; }

int bq_turn(bq_t *bq, uint64_t mono_ms, uint64_t wall_ms) {
    if (mono_ms > bq->now_ms) bq->now_ms = mono_ms;
    bq->wall_ms = wall_ms;
    bq->stats.turns++;
    bool work = run_timers(bq);
    work |= command_run_all(bq);
    commit_turn(bq);
    if (BQ_UNLIKELY(bq->secure != NULL)) secure_turn(bq);
    if (bq->consumers.ending) consumer_end_turn(bq);
    if (bq->share.light.first) share_run_light(bq);
    bq->read_bytes = read_share(bq->poll_events, bq->poll_count);
    work |= bq->poll_count > 0;
    run_events(bq);
    if (bq->share.line.first) share_run_line(bq);
    if (any_consumers(bq)) {
        consumer_pump_all(bq);
        consumers_expire(bq);
        consumers_quota(bq);
    }
    commit_begin(bq);
    flush_when_due(bq);
    buffer_compact(&bq->buffers, COMPACT_BYTES);
    if (bq->config.memory_bytes && bq->pool.used_bytes > bq->config.memory_bytes) pool_release(&bq->pool); /* free blocks first */
    run_retry_list(bq);
    if (bq->dead) reap(bq, WORK_ENDS);
    admission_accept(bq);
    buffer_rewind(&bq->buffers);
    if (bq->stopping) stop_when_flushed(bq);
    core_check(bq);
    return work || anyone_ready(bq);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static uint64_t consumers_due_ms(const bq_t *bq, uint64_t due) {
    const uint64_t each[] = {consumer_reads_due_ms(bq), dead_letters_due_ms(bq), consumers_expire_due_ms(bq),
                             consumers_quota_due_ms(bq)};
    if (bq->consumers.pump && bq->now_ms + RETRY_MS < due) due = bq->now_ms + RETRY_MS;
    for (uint32_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i] < due) due = each[i];
    return due;
}

int64_t bq_next_timer_ms(bq_t *bq) {
    if (anyone_ready(bq) || (anything_dirty(bq) && !bq->config.flush_interval_ms) || bq->buffers.compact_head) return 0;
    uint64_t due = UINT64_MAX;
    uint64_t tick = wheel_next(&bq->wheel);
    if (tick != UINT64_MAX) due = tick * bq->config.tick_ms;
    if (anything_dirty(bq) && bq->flush_due_ms < due) due = bq->flush_due_ms;
    if (bq->stopping && !bq->stop_closed && bq->stop_deadline_ms < due) due = bq->stop_deadline_ms;
    bool tries = bq->retry || (bq->consumers.ending && consumer_end_waits(bq)) || bq->dead || bq->command_waits ||
                 (bq->stop_closed && !bq->stopped);
    if (tries && bq->now_ms + RETRY_MS < due) due = bq->now_ms + RETRY_MS;
    int64_t commit = commit_due_ms(bq);
    if (commit >= 0 && bq->now_ms + (uint64_t)commit < due) due = bq->now_ms + (uint64_t)commit;
    if (any_consumers(bq)) due = consumers_due_ms(bq, due);
    if (due == UINT64_MAX) return -1;
    return due > bq->now_ms ? (int64_t)(due - bq->now_ms) : 0;
}

static int shorter(int timeout_ms, int64_t timer_ms) {
    if (timer_ms < 0) return timeout_ms;
    if (timer_ms > INT_MAX) timer_ms = INT_MAX;
    return timeout_ms < 0 || timer_ms < timeout_ms ? (int)timer_ms : timeout_ms;
}

int bq_wait(bq_t *bq, int timeout_ms) {
    timeout_ms = shorter(timeout_ms, bq_next_timer_ms(bq));
    if (!ring_wait_begin(&bq->commands) && !bq->command_waits) timeout_ms = 0;
    bq->poll_count = 0;
    int count = poll_wait(bq->poller, bq->poll_events, POLL_EVENTS_MAX, timeout_ms);
    ring_wait_end(&bq->commands);
    if (count < 0) return count;
    /* Clear the wake-up before the turn processes its cause: a later signal must wake the next turn. */
    for (int i = 0; i < count; i++)
        if (bq->poll_events[i].key == KEY_WAKE) poll_wake_clear(&bq->command_wake);
    bq->poll_count = count;
    return count;
}

int bq_poll_fd(bq_t *bq) { return bq->poller; }

/* ---- stopping ---------------------------------------------------------------------------------------------------- */

static void for_each_open(bq_t *bq, void (*visit)(bq_t *bq, connection_t *connection)) {
    for (uint32_t slot = 0; slot < bq->chunk_count * CONNECTION_CHUNK; slot++) {
        connection_t *connection = core_slot(bq, slot);
        if (connection->state != CONNECTION_FREE && connection->state != CONNECTION_DEAD) visit(bq, connection);
    }
}

static void say_goodbye(bq_t *bq, connection_t *connection) {
    connection->pause |= PAUSE_STOPPING;
    connection->protocol->answer(bq, connection, 0, BQ_OUTCOME_UNAVAILABLE, "shutting down");
    connection_update_interest(bq, connection);
}

static void close_for_good(bq_t *bq, connection_t *connection) {
    connection->known = false; /* Python is told once, by BQ_EV_STOPPED */
    connection_close(bq, connection, BQ_CLOSE_EOF, NULL);
}

void core_stop(bq_t *bq, uint64_t within_ms, uint64_t seq) {
    if (bq->stopping) { /* a second stop command: stop at once */
        bq->stop_deadline_ms = bq->now_ms;
        return;
    }
    bq->stopping = true;
    bq->stop_seq = seq;
    bq->stop_deadline_ms = bq->now_ms + (within_ms < INT_MAX ? within_ms : INT_MAX);
    admission_unlisten(bq);
    for_each_open(bq, say_goodbye);
}

static bool all_sent(bq_t *bq) {
    for (uint32_t slot = 0; slot < bq->chunk_count * CONNECTION_CHUNK; slot++) {
        const connection_t *connection = core_slot(bq, slot);
        if (connection->state != CONNECTION_FREE && (connection->queue.head || connection->blocked)) return false;
    }
    return true;
}

static void stop_when_flushed(bq_t *bq) {
    if (bq->stopped) return;
    if (!bq->stop_closed) {
        if (bq->now_ms < bq->stop_deadline_ms && (bq->pending || !all_sent(bq))) return;
        commit_end(bq);
        bq->stop_unsent = bq->stats.queued_messages;
        for_each_open(bq, close_for_good);
        reap(bq, UINT64_MAX);
        bq->stop_closed = true;
    }
    bq->stopped = event_push(bq, &(bq_event_t){.type = BQ_EV_STOPPED, .seq = bq->stop_seq, .value = bq->stop_unsent});
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

/* Checks that no range covers: limits of tables, and settings that 0 turns off. */
static bool config_valid(const bq_config_t *config) {
    return bq_config_valid(config) && config->max_frame_bytes <= (1u << 30) && config->max_pending <= (1u << 24) &&
           (!config->keepalive_ms || config->keepalive_ms >= KEEPALIVE_MIN_MS);
}

/* The settings that may change at run time. */
static void limits_apply(bq_t *bq, const bq_config_t *config) {
    bq_config_reload(&bq->config, config);
    bq->queues.bytes_max = config->subscriber_bytes;
    bq->queues.messages_max = config->subscriber_messages;
    bq->queues.entry_messages_max = config->max_batch;
    bq->queues.entry_bytes_max = config->max_batch_bytes;
}

void core_limits(bq_t *bq, const uint8_t *bytes, uint32_t size) {
    bq_config_t config;
    if (size != sizeof config) return;
    memcpy(&config, bytes, sizeof config);
    if (!config_valid(&config)) return;
    bool strict = config.require_hello && !bq->config.require_hello;
    publish_run_close(bq);
    limits_apply(bq, &config);
    keepalive_changed(bq);
    if (strict) for_each_open(bq, connection_need_hello);
    for_each_open(bq, connection_release_waiters); /* publishers that still have no room wait again */
    wait_release(bq, &bq->group_waiters, UINT32_MAX);
}

static void routes_changing(void *bq) { publish_run_close(bq); }

static bool parts_open(bq_t *bq) {
    const bq_config_t *config = &bq->config;
    if (!hash_key_random(&bq->hash_key)) return false;
    if (ring_init(&bq->commands, config->ring_bytes) < 0 || ring_init(&bq->events, config->ring_bytes) < 0) return false;
    if (poll_wake_open(&bq->command_wake) < 0 || poll_wake_open(&bq->event_wake) < 0) return false;
    if ((bq->poller = poll_open()) < 0 || poll_set(bq->poller, bq->command_wake.read_fd, KEY_WAKE, 0, POLL_READ) < 0)
        return false;
    bq->slots_max = (config->max_connections + REFUSED_MAX + CONNECTION_CHUNK - 1) / CONNECTION_CHUNK * CONNECTION_CHUNK;
    bq->chunks = calloc(bq->slots_max / CONNECTION_CHUNK, sizeof *bq->chunks);
    bq->free_slots = calloc(bq->slots_max, sizeof *bq->free_slots);
    for (uint32_t i = 0; i < FLUSH_LISTS; i++) /* during a flush a connection may be in a list twice */
        bq->dirty[i].items = calloc((size_t)bq->slots_max * 2, sizeof *bq->dirty[i].items);
    bq->read_buffer = malloc(READ_BYTES + GATHER_BYTES);
    bq->send_buffer = malloc(SEND_BUFFER_BYTES);
    bq->routes = route_new(&bq->pool, config->route_cache_entries, &bq->hash_key, &bq->stats.work, routes_changing, bq);
    if (!consumers_init(bq) || !admission_init(bq)) return false;
    return bq->chunks && bq->free_slots && bq->dirty[0].items && bq->dirty[1].items && bq->read_buffer && bq->send_buffer &&
           bq->routes;
}

bq_t *bq_new(const bq_config_t *config, uint64_t first_message_id) {
    if (!config_valid(config)) return NULL;
    bq_t *bq = aligned_alloc(64, (sizeof *bq + 63) / 64 * 64);
    if (!bq) return NULL;
    memset(bq, 0, sizeof *bq);
    bq->config = *config;
    if (!bq->config.work_share) bq->config.work_share = WORK_SHARE;
    bq->poller = bq->command_wake.read_fd = bq->command_wake.write_fd = bq->event_wake.read_fd = bq->event_wake.write_fd = -1;
    bq->next_message_id = first_message_id ? first_message_id : 1;
    share_init(bq);
    bq->pending_tail = &bq->pending;
    pool_init(&bq->pool, config->pool_small_count, config->pool_medium_count, config->pool_large_count);
    buffer_store_init(&bq->buffers, &bq->pool, config->segment_bytes);
    bq->queues = (queue_env_t){.pool = &bq->pool, .wheel = &bq->wheel, .buffers = &bq->buffers, .stats = &bq->stats};
    bq->queues.handed = delivery_handed;
    bq->queues.handed_context = bq;
    bq->queues.lazy_expiry = config->lazy_expiry;
    limits_apply(bq, config);
    wheel_init(&bq->wheel, 0);
    bq->keepalive.timer.kind = TIMER_KEEPALIVE;
    pool_warm(&bq->pool, sizeof(queue_entry_t), config->warm_entries);
    pool_warm(&bq->pool, config->segment_bytes, config->warm_segments);
    if (parts_open(bq)) return bq;
    bq_free(bq);
    return NULL;
}

void bq_free(bq_t *bq) {
    if (!bq) return;
    admission_unlisten(bq);
    secure_release(bq);
    for_each_open(bq, close_for_good);
    bq->ends_stop = UINT64_MAX;
    for (uint32_t slot = 0; slot < bq->chunk_count * CONNECTION_CHUNK; slot++) {
        connection_t *connection = core_slot(bq, slot);
        if (connection->state != CONNECTION_FREE) connection_free(bq, connection);
    }
    commit_close(bq);
    acl_table_release(&bq->acl, &bq->pool);
    if (bq->routes) consumers_release(bq);
    if (bq->routes) route_free(bq->routes);
    buffer_store_release(&bq->buffers);
    for (uint32_t i = 0; i < bq->chunk_count; i++) pool_free(&bq->pool, bq->chunks[i], CONNECTION_CHUNK * sizeof(connection_t));
    pool_release(&bq->pool);
    if (bq->commands.buffer) command_discard_all(bq);
    ring_free(&bq->commands);
    ring_free(&bq->events);
    poll_wake_close(&bq->command_wake);
    poll_wake_close(&bq->event_wake);
    if (bq->poller >= 0) poll_close(bq->poller);
    admission_release(bq);
    secure_free(bq);
    free(bq->chunks);
    free(bq->free_slots);
    for (uint32_t i = 0; i < FLUSH_LISTS; i++) free(bq->dirty[i].items);
    free(bq->read_buffer);
    free(bq->send_buffer);
    free(bq);
}

int bq_wal_open(bq_t *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report) {
    if (bq->threaded || bq->wal) return BQ_E_ARGUMENT;
    bq->run = poll_clock_wall_ms() * 1000003u ^ (uint64_t)(uintptr_t)bq ^ (uint64_t)getpid() << 32;
    return commit_open(bq, directory, config, report);
}

uint32_t bq_wal_progress(bq_t *bq) { return atomic_load_explicit(&bq->wal_progress, memory_order_relaxed); }

static void *thread_main(void *argument) {
    bq_t *bq = argument;
    bq->in_thread = true;
    if (bq->config.io_cpu >= 0) poll_thread_pin(bq->config.io_cpu); /* optional: continue without that CPU */
    while (!bq->stopped) {
        if (bq_wait(bq, -1) < 0) break; /* the poller is broken: the thread cannot continue */
        bq_turn(bq, poll_clock_mono_ms(), poll_clock_wall_ms());
    }
    if (bq->secure) handshakes_stop(&bq->secure->handshakes);
    return NULL;
}

int bq_start(bq_t *bq) {
    if (bq->threaded) return BQ_E_ARGUMENT;
    int started = poll_thread_start(&bq->thread, "bq-io", thread_main, bq);
    bq->threaded = started == BQ_OK;
    return started;
}

int bq_join(bq_t *bq) {
    if (!bq->threaded) return BQ_E_ARGUMENT;
    bq->threaded = false;
    return poll_thread_join(&bq->thread);
}
