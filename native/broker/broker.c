/* broker/broker.c: the life of the broker's state, its timers and its settings. See broker/broker.h for the invariant. */
#include "broker/broker.h"

#include <stdlib.h>

void timer_set(broker_t *broker, core_timer_t *timer, uint64_t after_ms) {
    wheel_remove(&broker->wheel, &timer->wheel);
    wheel_insert(&broker->wheel, &timer->wheel, tick_of(broker, broker->now_ms + after_ms + broker->config.tick_ms - 1));
}

void timer_cut(broker_t *broker, core_timer_t *timer, uint64_t after_ms) {
    if (!wheel_armed(&timer->wheel) ||
        timer->wheel.tick > tick_of(broker, broker->now_ms + after_ms + broker->config.tick_ms - 1))
        timer_set(broker, timer, after_ms);
}

void broker_limits(broker_t *broker, const bq_config_t *config) {
    bq_config_reload(&broker->config, config);
    broker->queues.bytes_max = config->subscriber_bytes;
    broker->queues.messages_max = config->subscriber_messages;
    broker->queues.entry_messages_max = config->max_batch;
    broker->queues.entry_bytes_max = config->max_batch_bytes;
}

static void routes_changing(void *broker) { publish_run_closed(broker); }

static void parts_init(broker_t *broker, const bq_config_t *config) {
    pool_init(&broker->pool, config->pool_small_count, config->pool_medium_count, config->pool_large_count);
    buffer_store_init(&broker->buffers, &broker->pool, config->buffer_bytes);
    broker->queues =
        (queue_env_t){.pool = &broker->pool, .wheel = &broker->wheel, .buffers = &broker->buffers, .stats = &broker->stats};
    broker->queues.handed = delivery_handed;
    broker->queues.handed_context = broker;
    broker->queues.lazy_expiry = config->lazy_expiry;
    broker_limits(broker, config);
    wheel_init(&broker->wheel, 0);
    pool_warm(&broker->pool, sizeof(queue_entry_t), config->warm_entries);
    pool_warm(&broker->pool, config->buffer_bytes, config->warm_buffers);
}

bool broker_init(broker_t *broker, const bq_config_t *config, uint64_t first_message_id, uint32_t clients_max,
                 const client_ops_t *client_ops) {
    broker->config = *config;
    if (!broker->config.work_share) broker->config.work_share = WORK_SHARE;
    broker->client_ops = client_ops;
    broker->drain_round = 1;
    broker->events.wake.read_fd = broker->events.wake.write_fd = -1;
    broker->next_message_id = first_message_id ? first_message_id : 1;
    broker->pending_tail = &broker->pending;
    parts_init(broker, config);
    if (!hash_key_random(&broker->hash_key)) return false;
    if (ring_init(&broker->events.ring, config->ring_bytes) < 0 || poll_wake_open(&broker->events.wake) < 0) return false;
    for (uint32_t i = 0; i < FLUSH_LISTS; i++) { /* during a flush a client may be in a list twice */
        broker->dirty[i].items = calloc((size_t)clients_max * 2, sizeof *broker->dirty[i].items);
        if (!broker->dirty[i].items) return false;
    }
    broker->routes =
        route_new(&broker->pool, config->route_cache_entries, &broker->hash_key, &broker->stats.work, routes_changing, broker);
    return broker->routes && consumers_init(broker);
}

void broker_release(broker_t *broker) {
    acl_table_release(&broker->acl, &broker->pool);
    if (broker->routes) consumers_release(broker);
    if (broker->routes) route_free(broker->routes);
    buffer_store_release(&broker->buffers);
    pool_release(&broker->pool);
    ring_free(&broker->events.ring);
    poll_wake_close(&broker->events.wake);
    for (uint32_t i = 0; i < FLUSH_LISTS; i++) free(broker->dirty[i].items);
}
