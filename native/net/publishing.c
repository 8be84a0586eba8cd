/* net/publishing.c: see net/publishing.h. */
#include "net/publishing.h"
#include "proto/protocol.h"

#define NO_MEMORY "the broker is out of memory: try again later"

static enum frame_outcome refuse(net_t *net, connection_t *connection, uint64_t seq, enum bq_outcome outcome, const char *why) {
    connection->client.protocol->refuse(&net->broker, &connection->client, seq, outcome, why);
    return FRAME_TAKEN;
}

/* Block policy: whether all subscribers have room, some of them after their queues were drained. */
static NOINLINE bool all_have_room(net_t *net, const topic_t *topic, uint32_t payload_size) {
    enum publish_outcome outcome;
    while ((outcome = publish_room(&net->broker, topic, payload_size)) == PUBLISH_FULL) net_drain(net);
    drain_end(&net->broker);
    return outcome == PUBLISH_DONE;
}

/* A publish of a legacy client is stored the same way, without an answer. The cost of its later dispatch counts for its
 * publisher's share now; counted later, it would delay all other commits. */
enum frame_outcome publishing_durably(net_t *net, connection_t *connection, topic_t *topic, uint64_t seq,
                                      const message_t *message) {
    const char *why;
    net_run_close(net);
    if (route_ready(net->broker.routes, topic, share_units(&net->broker)) == ROUTE_LATER) {
        connection->client.pause |= PAUSE_SHARE;
        return FRAME_KEPT;
    }
    net->broker.stats.work += WORK_QOS1 + topic->target_count + (uint64_t)topic->consumer_count * WORK_DELIVERY;
    if (net->broker.config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK && !all_have_room(net, topic, message->payload_size))
        return refuse(net, connection, seq, BQ_OUTCOME_UNAVAILABLE,
                      "a subscriber's queue is full and the policy is block: try again later");
    switch (commit_publish(&net->broker, &connection->client, seq, message, &why)) {
    case COMMIT_PENDING: return FRAME_TAKEN;
    case COMMIT_LATER: commit_wait(&net->broker, &connection->client); return FRAME_KEPT;
    default: return refuse(net, connection, seq, BQ_OUTCOME_UNAVAILABLE, why);
    }
}

enum frame_outcome publishing_behind(net_t *net, connection_t *connection, uint64_t seq, bool answered,
                                     const message_t *message) {
    if (!commit_follow_room(&net->broker, &connection->client)) {
        connection->client.pause |= PAUSE_UNCOMMITTED;
        return FRAME_KEPT;
    }
    net_run_close(net);
    if (commit_follow(&net->broker, &connection->client, answered ? seq : 0, message)) return FRAME_TAKEN;
    return refuse(net, connection, seq, BQ_OUTCOME_UNAVAILABLE, NO_MEMORY);
}

/* Full queues that take output are drained first, so that nothing is dropped and nobody waits without need. */
static enum publish_outcome publish_draining(net_t *net, topic_t *topic, const message_t *message, wait_list_t **blocker) {
    enum publish_outcome outcome;
    do {
        net_drain(net);
        outcome = publish_message(&net->broker, topic, message, blocker);
    } while (outcome == PUBLISH_FULL);
    drain_end(&net->broker);
    return outcome;
}

NOINLINE enum frame_outcome publishing_otherwise(net_t *net, connection_t *connection, topic_t *topic, uint64_t seq,
                                                 const message_t *message, enum publish_outcome outcome, wait_list_t *blocker) {
    if (outcome == PUBLISH_FULL) outcome = publish_draining(net, topic, message, &blocker);
    if (outcome == PUBLISH_DONE) return FRAME_PUBLISHED;
    if (outcome == PUBLISH_NO_MEMORY) return refuse(net, connection, seq, BQ_OUTCOME_UNAVAILABLE, NO_MEMORY);
    if (outcome == PUBLISH_LATER)
        connection->client.pause |= PAUSE_SHARE;
    else
        wait_begin(&net->broker, blocker, &connection->client);
    return FRAME_KEPT;
}

NOINLINE void publishing_share_used_up(net_t *net, connection_t *connection) {
    connection->client.pause |= PAUSE_SHARE;
    net->broker.stats.share_stops++;
}
