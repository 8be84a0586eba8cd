/* proto/mqtt_publish.c: PUBLISH of a client. See proto/mqtt.h.
 *
 * Invariant: an alias is stored only for a topic with valid syntax.
 */
#include "proto/mqtt.h"
#include "proto/mqtt_bytes.h"
#include "proto/mqtt_properties_codec.h"

#define SECOND_MS 1000ull
#define NO_MEMORY "the broker is out of memory: try again later"
#define PROPERTIES_BYTES_MAX UINT16_MAX /* passed on with one message */

/* Properties that stay with the broker; all others are passed on to subscribers. */
#define OWN_PROPERTIES (1ull << MQTT_MESSAGE_EXPIRY | 1ull << MQTT_TOPIC_ALIAS)

/* ---- answers --------------------------------------------------------------------------------------------------------- */

/* Reason code of PUBACK for each outcome. */
static const uint8_t REASONS[] = {
    [BQ_OUTCOME_DONE] = MQTT_SUCCESS,
    [BQ_OUTCOME_INVALID] = MQTT_IMPLEMENTATION_SPECIFIC_ERROR,
    [BQ_OUTCOME_UNAUTHENTICATED] = MQTT_NOT_AUTHORIZED,
    [BQ_OUTCOME_NOT_ALLOWED] = MQTT_NOT_AUTHORIZED,
    [BQ_OUTCOME_NOT_FOUND] = MQTT_UNSPECIFIED_ERROR,
    [BQ_OUTCOME_ENDED] = MQTT_UNSPECIFIED_ERROR,
    [BQ_OUTCOME_TOO_LARGE] = MQTT_QUOTA_EXCEEDED,
    [BQ_OUTCOME_LIMIT] = MQTT_QUOTA_EXCEEDED,
    [BQ_OUTCOME_UNAVAILABLE] = MQTT_QUOTA_EXCEEDED,
};

static void puback_write(net_t *net, connection_t *connection, uint16_t packet_id, uint8_t reason, const char *why) {
    mqtt_t *mqtt = connection->mqtt;
    mqtt_properties_t properties = {0};
    core_assert(mqtt->unanswered);
    mqtt->unanswered--;
    if (mqtt->gone) return;
    if (why && mqtt->problem_told) {
        properties.reason_string = (mqtt_text_t){(const uint8_t *)why, (uint32_t)strlen(why)};
        properties.present = 1ull << MQTT_REASON_STRING;
        if (mqtt_ack_write(NULL, mqtt->version, MQTT_PUBACK, packet_id, reason, &properties) > mqtt->packet_bytes_max)
            properties.present = 0;
    }
    uint8_t *out =
        output_reserve(net, connection, mqtt_ack_write(NULL, mqtt->version, MQTT_PUBACK, packet_id, reason, &properties));
    if (out) output_push(net, connection, mqtt_ack_write(out, mqtt->version, MQTT_PUBACK, packet_id, reason, &properties));
}

void mqtt_published(broker_t *broker, client_t *client, uint64_t packet_id, uint64_t id, uint64_t subscriptions, bool matched) {
    (void)id, (void)subscriptions;
    puback_write(net_of(broker), connection_of(client), (uint16_t)packet_id,
                 matched ? MQTT_SUCCESS : MQTT_NO_MATCHING_SUBSCRIBERS, NULL);
}

/* Before MQTT 5 there is no refusal, and a PUBACK would be false: only the end of the connection makes the client send the message
 * again. With QoS 0 the message is lost, as the client must expect. */
void mqtt_not_published(broker_t *broker, client_t *client, uint64_t packet_id, enum bq_outcome outcome, const char *why) {
    connection_t *connection = connection_of(client);
    if (!packet_id) return;
    if (connection->mqtt->version >= MQTT_5)
        puback_write(net_of(broker), connection, (uint16_t)packet_id, REASONS[outcome], why);
    else
        connection_finish(net_of(broker), connection, BQ_CLOSE_FRAME, why);
}

/* ---- acknowledgements ------------------------------------------------------------------------------------------------- */

void mqtt_packets_free(broker_t *broker, client_t *client) {
    if (!client->packets) return;
    flights_release(&client->packets->ids, &broker->pool);
    pool_free(&broker->pool, client->packets, sizeof *client->packets);
    client->packets = NULL;
}

/* An unknown packet identifier is passed over: the message may have ended meanwhile. */
enum frame_outcome mqtt_acknowledged(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_result_t result;
    flight_t flight;
    client_t *client = &connection->client;
    const int error = mqtt_result_read(frame, body, connection->mqtt->version, &result);
    if (error) return mqtt_violation(net, connection, error);
    enum flight_step step = FLIGHT_UNKNOWN;
    if (client->packets) step = flight_on(&client->packets->ids, result.packet_id, FLIGHT_ON_PUBACK, &flight);
    if (step == FLIGHT_SETTLE)
        consumer_packet_acked(&net->broker, client, flight.id, flight.message, result.reason >= MQTT_UNSPECIFIED_ERROR);
    return FRAME_TAKEN;
}

/* ---- topic aliases --------------------------------------------------------------------------------------------------- */

void mqtt_aliases_free(broker_t *broker, mqtt_t *mqtt) {
    if (!mqtt->aliases) return;
    for (uint32_t i = 0; i < MQTT_ALIASES_MAX; i++)
        pool_free(&broker->pool, (uint8_t *)(uintptr_t)mqtt->aliases[i].bytes, mqtt->aliases[i].size);
    pool_free(&broker->pool, mqtt->aliases, MQTT_ALIASES_MAX * sizeof *mqtt->aliases);
    mqtt->aliases = NULL;
}

/* False: no memory. */
static bool alias_set(broker_t *broker, mqtt_t *mqtt, uint32_t alias, mqtt_text_t topic) {
    if (!mqtt->aliases) {
        mqtt->aliases = pool_alloc(&broker->pool, MQTT_ALIASES_MAX * sizeof *mqtt->aliases);
        if (!mqtt->aliases) return false;
        memset(mqtt->aliases, 0, MQTT_ALIASES_MAX * sizeof *mqtt->aliases);
    }
    mqtt_text_t *at = &mqtt->aliases[alias - 1];
    if (at->size == topic.size && memcmp(at->bytes, topic.bytes, topic.size) == 0) return true;
    uint8_t *copy = pool_alloc(&broker->pool, topic.size);
    if (!copy) return false;
    memcpy(copy, topic.bytes, topic.size);
    pool_free(&broker->pool, (uint8_t *)(uintptr_t)at->bytes, at->size);
    *at = (mqtt_text_t){copy, topic.size};
    return true;
}

/* MQTT 5: finds the topic of an alias, or stores it. Returns false if the connection has ended. */
static NOINLINE bool alias_use(net_t *net, connection_t *connection, mqtt_publish_t *publish) {
    mqtt_t *mqtt = connection->mqtt;
    const uint32_t alias = publish->properties.topic_alias;
    if (alias > MQTT_ALIASES_MAX) {
        mqtt_end(net, connection, MQTT_TOPIC_ALIAS_INVALID, BQ_CLOSE_FRAME, "a topic alias above the topic alias maximum");
        return false;
    }
    if (publish->topic.size) {
        const int error = mqtt_topic_check(publish->topic.bytes, publish->topic.size, MQTT_TOPIC_BYTES_MAX);
        if (error)
            mqtt_violation(net, connection, error);
        else if (!alias_set(&net->broker, mqtt, alias, publish->topic))
            mqtt_end(net, connection, MQTT_QUOTA_EXCEEDED, BQ_CLOSE_MEMORY, "no memory for a topic alias");
        else
            return true;
        return false;
    }
    if (mqtt->aliases) publish->topic = mqtt->aliases[alias - 1];
    if (!publish->topic.size)
        mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME, "a topic alias that no PUBLISH has given a topic");
    return publish->topic.size != 0;
}

/* ---- properties ------------------------------------------------------------------------------------------------------ */

/* An expiry of 0 s: for receivers that take it now. */
static uint64_t ttl_of(const mqtt_publish_t *publish) {
    if (BQ_LIKELY(!mqtt_has(&publish->properties, MQTT_MESSAGE_EXPIRY))) return 0;
    return publish->properties.message_expiry_s ? publish->properties.message_expiry_s * SECOND_MS : 1;
}

/* ---- the packet ------------------------------------------------------------------------------------------------------ */

/* NULL: it is served. Otherwise the reason why not. */
static const char *not_served(const net_t *net, const connection_t *connection, const mqtt_publish_t *publish, uint8_t *reason) {
    if (publish->qos > (net->broker.wal ? 1 : 0)) {
        *reason = MQTT_QOS_NOT_SUPPORTED;
        return publish->qos == 1 ? "QoS 1 needs the WAL: set wal.enabled = true, or publish with QoS 0"
                                 : "QoS 2 is not served yet: publish with a lower QoS";
    }
    if (publish->qos && connection->mqtt->version >= MQTT_5 && connection->mqtt->unanswered >= MQTT_UNANSWERED_MAX) {
        *reason = MQTT_RECEIVE_MAXIMUM_EXCEEDED;
        return "more publishes with QoS 1 than the receive maximum were not answered yet";
    }
    if (publish->retain && connection->mqtt->version >= MQTT_5) {
        *reason = MQTT_RETAIN_NOT_SUPPORTED;
        return "retained messages are not served yet: publish without the flag";
    }
    if (publish->properties.raw.size > PROPERTIES_BYTES_MAX) {
        *reason = MQTT_PACKET_TOO_LARGE;
        return "the properties of a message may have at most 64 KiB";
    }
    return NULL;
}

/* A refusal that overtook the answers to earlier publishes would break their order [MQTT-4.6.0-2]. */
static enum frame_outcome refuse(net_t *net, connection_t *connection, const mqtt_publish_t *publish, enum bq_outcome outcome,
                                 const char *why) {
    if (publish->qos && connection->client.pending_commits) {
        connection->client.pause |= PAUSE_UNCOMMITTED;
        return FRAME_KEPT;
    }
    if (publish->qos) connection->mqtt->unanswered++;
    mqtt_not_published(&net->broker, &connection->client, publish->packet_id, outcome, why);
    return FRAME_TAKEN;
}

/* `packet_id` 0: QoS 0. */
static enum frame_outcome publish_undurably(net_t *net, connection_t *connection, topic_t *topic, uint16_t packet_id,
                                            const message_t *message) {
    wait_list_t *blocker = NULL;
    if (BQ_UNLIKELY(connection->client.pending_commits))
        return publishing_behind(net, connection, packet_id, packet_id != 0, message);
    const enum publish_outcome outcome = publish_message(&net->broker, topic, message, &blocker);
    return BQ_LIKELY(outcome == PUBLISH_DONE)
               ? FRAME_PUBLISHED
               : publishing_otherwise(net, connection, topic, packet_id, message, outcome, blocker);
}

/* A message with QoS 1 needs the WAL only if a subscription with QoS 1 matches: nothing else survives a crash. */
static bool needs_wal(const topic_t *topic) {
    for (uint32_t i = 0; i < topic->consumer_count; i++)
        if (topic->consumers[i]->consumer->qos) return true;
    return false;
}

static NOINLINE enum frame_outcome publish_qos1(net_t *net, connection_t *connection, topic_t *topic, uint16_t packet_id,
                                                const message_t *message) {
    broker_t *broker = &net->broker;
    enum frame_outcome outcome = FRAME_KEPT;
    if (!route_is_current(broker->routes, topic)) net_run_close(net);
    if (route_ready(broker->routes, topic, share_units(broker)) == ROUTE_LATER) {
        connection->client.pause |= PAUSE_SHARE;
        return FRAME_KEPT;
    }
    connection->mqtt->unanswered++;
    if (needs_wal(topic))
        outcome = publishing_durably(net, connection, topic, packet_id, message);
    else
        outcome = publish_undurably(net, connection, topic, packet_id, message);
    if (outcome == FRAME_PUBLISHED)
        mqtt_published(broker, &connection->client, packet_id, 0, 0, topic->target_count || topic->consumer_count);
    if (outcome == FRAME_KEPT) connection->mqtt->unanswered--; /* it is parsed again */
    return outcome;
}

static enum frame_outcome publish_now(net_t *net, connection_t *connection, topic_t *topic, uint16_t packet_id,
                                      const message_t *message) {
    if (BQ_UNLIKELY(packet_id)) return publish_qos1(net, connection, topic, packet_id, message);
    return publish_undurably(net, connection, topic, 0, message);
}

/* The sender's properties without those of the broker, in the sender's order, in memory of their own. */
static NOINLINE enum frame_outcome publish_copied(net_t *net, connection_t *connection, topic_t *topic,
                                                  const mqtt_publish_t *publish, message_t *message) {
    const uint32_t size = mqtt_forward_write(NULL, &publish->properties);
    uint8_t *copy = pool_alloc(&net->broker.pool, size);
    if (!copy) return refuse(net, connection, publish, BQ_OUTCOME_UNAVAILABLE, NO_MEMORY);
    mqtt_forward_write(copy, &publish->properties);
    message->properties = copy;
    message->properties_size = size;
    const enum frame_outcome outcome = publish_now(net, connection, topic, publish->packet_id, message);
    pool_free(&net->broker.pool, copy, size);
    return outcome;
}

static enum frame_outcome publish_to(net_t *net, connection_t *connection, topic_t *topic, const mqtt_publish_t *publish) {
    message_t message = {.topic = topic->name,
                         .topic_size = topic->name_size,
                         .payload = publish->payload.bytes,
                         .payload_size = publish->payload.size,
                         .ttl_ms = ttl_of(publish)};
    const uint64_t present = publish->properties.present;
    if (BQ_UNLIKELY(present & OWN_PROPERTIES) && present & ~OWN_PROPERTIES)
        return publish_copied(net, connection, topic, publish, &message);
    if (BQ_UNLIKELY(present & ~OWN_PROPERTIES)) {
        message.properties = publish->properties.raw.bytes;
        message.properties_size = publish->properties.raw.size;
    }
    return publish_now(net, connection, topic, publish->packet_id, &message);
}

/* Topics of the broker, and names that only filters have. */
static bool is_reserved(mqtt_text_t topic) {
    static const char *const fronts[] = {"$SYS/", "$share/"};
    if (BQ_LIKELY(topic.bytes[0] != '$')) return false;
    for (uint32_t i = 0; i < sizeof fronts / sizeof *fronts; i++)
        if (topic.size >= strlen(fronts[i]) && memcmp(topic.bytes, fronts[i], strlen(fronts[i])) == 0) return true;
    return false;
}

/* NULL: *error is negative. */
static topic_t *topic_find(net_t *net, const connection_t *connection, mqtt_text_t name, int *error) {
    topic_t *topic = publish_topic(&net->broker, connection->last_topic, name.bytes, name.size, error);
    if (topic || *error != PUBLISH_RUN_OPEN) return topic;
    net_run_close(net);
    return publish_topic(&net->broker, connection->last_topic, name.bytes, name.size, error);
}

enum frame_outcome mqtt_publish(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_publish_t publish;
    uint8_t reason = 0;
    int error = mqtt_publish_read(frame, body, connection->mqtt->version, &publish);
    if (BQ_UNLIKELY(error)) return mqtt_violation(net, connection, error);
    const char *problem = not_served(net, connection, &publish, &reason);
    if (BQ_UNLIKELY(problem != NULL)) return mqtt_end(net, connection, reason, BQ_CLOSE_FRAME, problem);
    if (BQ_UNLIKELY(mqtt_has(&publish.properties, MQTT_TOPIC_ALIAS)) && !alias_use(net, connection, &publish)) return FRAME_TAKEN;
    topic_t *topic = connection->last_topic;
    if (BQ_UNLIKELY(!topic || !topic_is(topic, publish.topic.bytes, publish.topic.size))) {
        error = mqtt_topic_check(publish.topic.bytes, publish.topic.size, MQTT_TOPIC_BYTES_MAX);
        if (error) return mqtt_violation(net, connection, error);
        topic = topic_find(net, connection, publish.topic, &error);
        if (!topic && error == BQ_E_MEMORY) return refuse(net, connection, &publish, BQ_OUTCOME_UNAVAILABLE, NO_MEMORY);
        if (!topic) return mqtt_end(net, connection, MQTT_TOPIC_NAME_INVALID, BQ_CLOSE_FRAME, topic_error(error));
        connection->last_topic = topic;
    }
    const bool reserved = is_reserved(publish.topic);
    if (BQ_UNLIKELY(reserved || (connection->client.acl && !acl_allow(connection->client.acl, topic)))) {
        net->broker.stats.publishes_not_allowed++;
        return refuse(net, connection, &publish, BQ_OUTCOME_NOT_ALLOWED,
                      reserved ? "clients may not publish to $SYS/ and $share/" : "this key may not publish to this topic");
    }
    return publish_to(net, connection, topic, &publish);
}
