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
 *      flush       send once to each client that has new output (net/net.c)
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

static void connection_timeout(net_t *net, connection_t *connection) {
    if (connection->refused) {
        connection_close(net, connection, BQ_CLOSE_REFUSED, "too many connections: server.max_connections is reached");
        return;
    }
    if (connection->state != CONNECTION_OPEN) {
        connection_end_late(net, connection);
        return;
    }
    if (connection->hello) {
        keepalive_due(net, connection);
        return;
    }
    net->broker.stats.hello_timeouts++;
    if (connection->transport->shakes && secure_late(net, connection)) return;
    connection_close(net, connection, BQ_CLOSE_UNAUTH, connection->client.protocol->late);
}

static void entry_timeout(broker_t *broker, queue_entry_t *entry) {
    client_t *client = client_of_queue(entry->queue);
    queue_expire(entry, &broker->queues);
    client_wake_waiters(broker, client);
}

static void fire(bq_t *bq, core_timer_t *timer) {
    switch (timer->kind) {
    case TIMER_ENTRY: entry_timeout(&bq->broker, (queue_entry_t *)(void *)timer); break;
    case TIMER_CONNECTION:
        connection_timeout(&bq->net, (connection_t *)(void *)((char *)timer - offsetof(connection_t, timer)));
        break;
    case TIMER_DELIVERY: consumer_timeout(&bq->broker, (delivery_t *)(void *)timer); break;
    case TIMER_KEEPALIVE: keepalive_look(&bq->net); break;
    default: admission_timeout(&bq->net); break;
    }
}

/* Timers beyond the batch stay in the wheel for the next turn. */
static bool run_timers(bq_t *bq) {
    uint64_t target = tick_of(&bq->broker, bq->broker.now_ms);
    uint32_t count = 0;
    wheel_timer_t *due;
    while ((due = wheel_take(&bq->broker.wheel, target))) {
        fire(bq, (core_timer_t *)(void *)due);
        if (++count >= TIMERS_MAX || count >= bq->broker.config.expire_batch) break;
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
        admission_look(&bq->net.admission);
        return;
    }
    connection_t *connection = connection_find(&bq->net, event->key);
    if (!connection || connection->state == CONNECTION_DEAD) return;
    if ((event->ready & connection->interest & POLL_WRITE) && *writes_left) { /* otherwise the poller reports it again */
        (*writes_left)--;
        connection_flush(&bq->net, connection);
    }
    if (event->ready & connection->interest & POLL_READ) {
        if (BQ_LIKELY(!connection->ready && !connection->heavy)) {
            uint64_t begun = share_begin(&bq->net);
            connection_readable(&bq->net, connection);
            share_done(&bq->net, connection, begun);
        } else {
            share_wait(&bq->net, connection);
        }
    }
    /* The poller reports an error even to a connection with only write interest, and repeats it until it is handled. */
    if (BQ_UNLIKELY(event->ready & POLL_ERROR) && !(connection->interest & POLL_READ) && connection->state != CONNECTION_DEAD)
        connection_error(&bq->net, connection);
    if (bq->net.turn_bytes > TURN_BYTES_MAX) net_flush(&bq->net);
}

/* Hundreds of light connections together may be much work. The poller reports the remaining ones again, and the next turn starts
 * with them. */
static NOINLINE void run_many_events(bq_t *bq, uint32_t *writes_left) {
    const uint64_t stop = work_done(&bq->broker) + WORK_LIGHT * (uint64_t)bq->broker.config.work_share;
    const int count = bq->poll_count;
    int i = bq->poll_from < count ? bq->poll_from : 0;
    for (int left = count; left && work_done(&bq->broker) < stop; left--) {
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

static void stop_when_flushed(bq_t *bq);

static inline bool anyone_ready(const bq_t *bq) {
    return bq->net.share.light.first || bq->net.share.line.first || bq->net.ends_left;
}

/* Checked every turn: a QoS 0 broker usually has no consumers. */
static inline bool any_consumers(const bq_t *bq) { return bq->broker.consumers.all || bq->broker.dead_letters.first; }

static NOINLINE void drain_commits(bq_t *bq) {
    do {
        net_drain(&bq->net);
        commit_turn(&bq->broker);
    } while (bq->broker.full);
}

int bq_turn(bq_t *bq, uint64_t mono_ms, uint64_t wall_ms) {
    if (mono_ms > bq->broker.now_ms) bq->broker.now_ms = mono_ms;
    bq->broker.wall_ms = wall_ms;
    bq->broker.stats.turns++;
    bool work = run_timers(bq);
    work |= command_run_all(bq);
    commit_turn(&bq->broker);
    if (BQ_UNLIKELY(bq->broker.full != NULL)) drain_commits(bq);
    if (BQ_UNLIKELY(bq->net.secure != NULL)) secure_turn(&bq->net);
    if (bq->broker.consumers.ending) consumer_end_turn(&bq->broker);
    if (bq->net.share.light.first) share_run_light(&bq->net);
    bq->net.read_bytes = read_share(bq->poll_events, bq->poll_count);
    work |= bq->poll_count > 0;
    run_events(bq);
    if (bq->net.share.line.first) share_run_line(&bq->net);
    if (any_consumers(bq)) {
        net_run_close(&bq->net);
        consumer_pump_all(&bq->broker);
        consumers_expire(&bq->broker);
        wal_quota_turn(&bq->broker);
    }
    commit_begin(&bq->broker);
    net_flush_when_due(&bq->net);
    buffer_compact(&bq->broker.buffers, COMPACT_BYTES);
    if (bq->broker.config.memory_bytes && bq->broker.pool.used_bytes > bq->broker.config.memory_bytes)
        pool_release(&bq->broker.pool); /* free blocks first */
    if (bq->net.retry) net_retry(&bq->net);
    if (bq->net.dead) net_reap(&bq->net, WORK_ENDS);
    admission_accept(&bq->net);
    buffer_rewind(&bq->broker.buffers);
    if (bq->broker.stopping) stop_when_flushed(bq);
    core_check(bq);
    return work || anyone_ready(bq);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static uint64_t consumers_due_ms(const bq_t *bq, uint64_t due) {
    const uint64_t each[] = {consumer_reads_due_ms(&bq->broker), dead_letters_due_ms(&bq->broker),
                             consumers_expire_due_ms(&bq->broker), wal_quota_due_ms(&bq->broker)};
    if (bq->broker.consumers.pump && bq->broker.now_ms + RETRY_MS < due) due = bq->broker.now_ms + RETRY_MS;
    for (uint32_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i] < due) due = each[i];
    return due;
}

int64_t bq_next_timer_ms(bq_t *bq) {
    if (anyone_ready(bq) || (net_has_output(&bq->net) && !bq->broker.config.flush_interval_ms) || bq->broker.buffers.compact_head)
        return 0;
    uint64_t due = UINT64_MAX;
    uint64_t tick = wheel_next(&bq->broker.wheel);
    if (tick != UINT64_MAX) due = tick * bq->broker.config.tick_ms;
    if (net_has_output(&bq->net) && bq->net.flush_due_ms < due) due = bq->net.flush_due_ms;
    if (bq->broker.stopping && !bq->stop_closed && bq->stop_deadline_ms < due) due = bq->stop_deadline_ms;
    bool tries = bq->net.retry || (bq->broker.consumers.ending && consumer_end_waits(&bq->broker)) || bq->net.dead ||
                 bq->command_waits || (bq->stop_closed && !bq->stopped);
    if (tries && bq->broker.now_ms + RETRY_MS < due) due = bq->broker.now_ms + RETRY_MS;
    int64_t commit = commit_due_ms(&bq->broker);
    if (commit >= 0 && bq->broker.now_ms + (uint64_t)commit < due) due = bq->broker.now_ms + (uint64_t)commit;
    if (any_consumers(bq)) due = consumers_due_ms(bq, due);
    if (due == UINT64_MAX) return -1;
    return due > bq->broker.now_ms ? (int64_t)(due - bq->broker.now_ms) : 0;
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
    int count = poll_wait(bq->net.poller, bq->poll_events, POLL_EVENTS_MAX, timeout_ms);
    ring_wait_end(&bq->commands);
    if (count < 0) return count;
    /* Clear the wake-up before the turn processes its cause: a later signal must wake the next turn. */
    for (int i = 0; i < count; i++)
        if (bq->poll_events[i].key == KEY_WAKE) poll_wake_clear(&bq->command_wake);
    bq->poll_count = count;
    return count;
}

int bq_poll_fd(bq_t *bq) { return poll_fd(bq->net.poller); }

/* ---- stopping ---------------------------------------------------------------------------------------------------- */

static void say_goodbye(net_t *net, connection_t *connection) {
    connection->client.pause |= PAUSE_STOPPING;
    connection->client.protocol->goodbye(&net->broker, &connection->client, BQ_CLOSE_SHUTDOWN, "shutting down");
    connection_update_interest(net, connection);
}

static void close_for_good(net_t *net, connection_t *connection) {
    connection->known = false; /* Python is told once, by BQ_EV_STOPPED */
    connection_close(net, connection, BQ_CLOSE_EOF, NULL);
}

void core_stop(bq_t *bq, uint64_t within_ms, uint64_t seq) {
    if (bq->broker.stopping) { /* a second stop command: stop at once */
        bq->stop_deadline_ms = bq->broker.now_ms;
        return;
    }
    bq->broker.stopping = true;
    bq->stop_seq = seq;
    bq->stop_deadline_ms = bq->broker.now_ms + (within_ms < INT_MAX ? within_ms : INT_MAX);
    admission_unlisten(&bq->net);
    net_each_open(&bq->net, say_goodbye);
}

static void stop_when_flushed(bq_t *bq) {
    if (bq->stopped) return;
    if (!bq->stop_closed) {
        if (bq->broker.now_ms < bq->stop_deadline_ms && (bq->broker.pending || !net_all_sent(&bq->net))) return;
        commit_end(&bq->broker);
        bq->stop_unsent = bq->broker.stats.queued_messages;
        net_each_open(&bq->net, close_for_good);
        net_reap(&bq->net, UINT64_MAX);
        bq->stop_closed = true;
    }
    bq->stopped = event_push(&bq->broker, &(bq_event_t){.type = BQ_EV_STOPPED, .seq = bq->stop_seq, .value = bq->stop_unsent});
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

/* Checks that no range covers: limits of tables, and settings that 0 turns off. */
static bool config_valid(const bq_config_t *config) {
    return bq_config_valid(config) && config->max_frame_bytes <= (1u << 30) && config->max_pending <= (1u << 24) &&
           (!config->keepalive_ms || config->keepalive_ms >= KEEPALIVE_MIN_MS);
}

static void release_waiters(net_t *net, connection_t *connection) { client_release_waiters(&net->broker, &connection->client); }

void core_limits(bq_t *bq, const uint8_t *bytes, uint32_t size) {
    bq_config_t config;
    if (size != sizeof config) return;
    memcpy(&config, bytes, sizeof config);
    if (!config_valid(&config)) return;
    bool strict = config.require_hello && !bq->broker.config.require_hello;
    net_run_close(&bq->net);
    broker_limits(&bq->broker, &config);
    keepalive_changed(&bq->net);
    if (strict) net_each_open(&bq->net, connection_need_hello);
    net_each_open(&bq->net, release_waiters); /* publishers that still have no room wait again */
    wait_release(&bq->broker, &bq->broker.group_waiters, UINT32_MAX);
}

static bool commands_open(bq_t *bq) {
    bq->broker.wake = &bq->command_wake;
    return ring_init(&bq->commands, bq->broker.config.ring_bytes) == BQ_OK && poll_wake_open(&bq->command_wake) == BQ_OK &&
           poll_set(bq->net.poller, bq->command_wake.read_fd, KEY_WAKE, 0, POLL_READ) >= 0;
}

bq_t *bq_new(const bq_config_t *config, uint64_t first_message_id) {
    if (!config_valid(config)) return NULL;
    const uintptr_t align = _Alignof(bq_t);
    void *memory = malloc(sizeof(bq_t) + align);
    if (!memory) return NULL;
    bq_t *bq = (bq_t *)(((uintptr_t)memory + align) / align * align);
    memset(bq, 0, sizeof *bq);
    bq->memory = memory;
    bq->command_wake.read_fd = bq->command_wake.write_fd = -1;
    if (net_init(&bq->net, config, first_message_id) && commands_open(bq)) return bq;
    bq_free(bq);
    return NULL;
}

void bq_free(bq_t *bq) {
    if (!bq) return;
    admission_unlisten(&bq->net);
    secure_release(&bq->net);
    net_each_open(&bq->net, close_for_good);
    bq->net.ends_stop = UINT64_MAX;
    for (uint32_t slot = 0; slot < bq->net.chunk_count * CONNECTION_CHUNK; slot++) {
        connection_t *connection = connection_slot(&bq->net, slot);
        if (connection->state != CONNECTION_FREE) connection_free(&bq->net, connection);
    }
    commit_close(&bq->broker);
    net_release(&bq->net);
    if (bq->commands.buffer) command_discard_all(bq);
    ring_free(&bq->commands);
    poll_wake_close(&bq->command_wake);
    free(bq->memory);
}

int bq_wal_open(bq_t *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report) {
    if (bq->threaded || bq->broker.wal) return BQ_E_ARGUMENT;
    bq->broker.run = poll_clock_wall_ms() * 1000003u ^ (uint64_t)(uintptr_t)bq ^ (uint64_t)getpid() << 32;
    return commit_open(&bq->broker, directory, config, report);
}

uint32_t bq_wal_progress(bq_t *bq) { return atomic_load_explicit(&bq->broker.wal_progress, memory_order_relaxed); }

static void *thread_main(void *argument) {
    bq_t *bq = argument;
    bq->net.in_thread = true;
    if (bq->broker.config.io_cpu >= 0) poll_thread_pin(bq->broker.config.io_cpu); /* optional: continue without that CPU */
    while (!bq->stopped) {
        if (bq_wait(bq, -1) < 0) break; /* the poller is broken: the thread cannot continue */
        bq_turn(bq, poll_clock_mono_ms(), poll_clock_wall_ms());
    }
    if (bq->net.secure) handshakes_stop(&bq->net.secure->handshakes);
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
