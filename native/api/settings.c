/* settings.c: defaults, checks and reload of the settings.
 *
 * Made from blipmq/config/core_settings.py by `make settings`. Change the declaration there or in blipmq/config/settings.py.
 */
/* clang-format off */

#include <stdint.h>

#include "api/settings.h"

void bq_config_default(bq_config_t *config) {
    *config = (bq_config_t){
        .subscriber_bytes = 67108864,
        .default_ttl_ms = 0,
        .session_log_bytes = 0,
        .session_expiry_ms = 0,
        .max_ttl_ms = 604800000,
        .memory_bytes = 536870912,
        .max_connections = 10000,
        .keepalive_ms = 60000,
        .subscriber_messages = 262144,
        .overflow_policy = 0,
        .max_batch_bytes = 1048576,
        .ack_timeout_ms = 30000,
        .max_in_flight = 256,
        .max_deliveries = 16,
        .session_overflow = 0,
        .tick_ms = 10,
        .expire_batch = 65536,
        .flush_subscribers = 1024,
        .tcp_nodelay = 1,
        .send_buffer_bytes = 0,
        .recv_buffer_bytes = 0,
        .max_topic_levels = 64,
        .hello_timeout_ms = 5000,
        .max_pending = 1024,
        .max_pending_per_address = 64,
        .accept_rate = 1000,
        .accept_burst = 1000,
        .max_sessions = 10000,
        .route_cache_entries = 4096,
        .max_frame_bytes = 1049600,
        .max_frame_bytes_unauth = 1024,
        .require_hello = 0,
        .max_batch = 65536,
        .flush_interval_ms = 0,
        .buffer_bytes = 262144,
        .pool_small_count = 1024,
        .pool_medium_count = 256,
        .pool_large_count = 32,
        .ring_bytes = 1048576,
        .lazy_expiry = 0,
        .warm_entries = 0,
        .warm_buffers = 0,
        .max_sessions_per_key = 7500,
        .run_messages = 65536,
        .io_cpu = -1,
        .work_share = 1024,
    };
}

void bq_wal_config_default(bq_wal_config_t *config) {
    *config = (bq_wal_config_t){
        .max_bytes = 1073741824,
        .reserve_bytes = 67108864,
        .segment_bytes = 33554432,
        .flush_interval_ms = 0,
        .block_bytes = 0,
        .batch_bytes = 2109440,
        .no_sync = 0,
    };
}

int bq_config_valid(const bq_config_t *config) {
    return config->subscriber_bytes >= 1 &&
        config->max_ttl_ms >= 1 &&
        config->max_connections >= 1 &&
        config->subscriber_messages >= 1 &&
        config->overflow_policy <= BQ_OVERFLOW_POLICY_BLOCK &&
        config->max_batch_bytes >= 1 &&
        config->ack_timeout_ms >= 1 &&
        config->max_in_flight >= 1 &&
        config->max_deliveries >= 1 &&
        config->session_overflow <= BQ_SESSION_OVERFLOW_DROP &&
        config->tick_ms >= 1 &&
        config->expire_batch >= 1 &&
        config->flush_subscribers >= 1 &&
        config->max_topic_levels >= 1 &&
        config->hello_timeout_ms >= 1 &&
        config->max_pending >= 1 &&
        config->max_pending_per_address >= 1 &&
        config->accept_burst >= 1 &&
        config->max_sessions >= 1 &&
        config->route_cache_entries >= 1 &&
        config->max_frame_bytes >= 64 &&
        config->max_frame_bytes_unauth >= 64 &&
        config->max_batch >= 1 &&
        config->buffer_bytes >= 4096 &&
        config->ring_bytes >= 65536 &&
        config->max_sessions_per_key >= 1 &&
        config->io_cpu >= -1;
}

void bq_config_reload(bq_config_t *config, const bq_config_t *changed) {
    config->subscriber_bytes = changed->subscriber_bytes;
    config->default_ttl_ms = changed->default_ttl_ms;
    config->session_log_bytes = changed->session_log_bytes;
    config->session_expiry_ms = changed->session_expiry_ms;
    config->max_ttl_ms = changed->max_ttl_ms;
    config->memory_bytes = changed->memory_bytes;
    config->keepalive_ms = changed->keepalive_ms;
    config->subscriber_messages = changed->subscriber_messages;
    config->overflow_policy = changed->overflow_policy;
    config->max_batch_bytes = changed->max_batch_bytes;
    config->ack_timeout_ms = changed->ack_timeout_ms;
    config->max_in_flight = changed->max_in_flight;
    config->max_deliveries = changed->max_deliveries;
    config->session_overflow = changed->session_overflow;
    config->expire_batch = changed->expire_batch;
    config->flush_subscribers = changed->flush_subscribers;
    config->hello_timeout_ms = changed->hello_timeout_ms;
    config->max_pending_per_address = changed->max_pending_per_address;
    config->accept_rate = changed->accept_rate;
    config->accept_burst = changed->accept_burst;
    config->max_sessions = changed->max_sessions;
    config->require_hello = changed->require_hello;
    config->max_batch = changed->max_batch;
    config->flush_interval_ms = changed->flush_interval_ms;
    config->max_sessions_per_key = changed->max_sessions_per_key;
    config->run_messages = changed->run_messages;
}
