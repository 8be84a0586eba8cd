/* broker/publish.h: from a publish to the queues of its subscribers. */
#ifndef BQ_PUBLISH_H
#define BQ_PUBLISH_H

#include "broker/client.h"
#include "broker/router.h"

struct broker;
struct pending_commit;

/* The open run: consecutive publishes to one topic with the same expiry, not yet in the subscribers' queues. */
typedef struct publish_run {
    queue_run_t run; /* buffer NULL: no run is open */
    topic_t *topic;
    uint32_t count_max, size_max; /* limits: under the block policy the room in every target's queue, otherwise one flush */
} publish_run_t;

enum publish_outcome { PUBLISH_DONE, PUBLISH_BLOCKED, PUBLISH_NO_MEMORY, PUBLISH_LATER };
enum publish_outcome publish(struct broker *broker, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker);
uint64_t publish_ttl_ms(const struct broker *broker, uint64_t ttl_ms); /* applies the default and the maximum */
uint64_t publish_expiry_tick(const struct broker *broker, uint64_t from_ms, uint64_t ttl_ms); /* 0: never */
bool publish_full(struct broker *broker, const topic_t *topic, uint32_t size); /* block policy: a subscriber has no room */
/* to QoS 0 subscribers, after the commit */
void publish_pending(struct broker *broker, topic_t *topic, const struct pending_commit *pending);
topic_t *publish_topic_find(struct broker *broker, topic_t *last, const uint8_t *name, uint32_t size, int *error);
void publish_run_give(struct broker *broker); /* appends the open run to the queues */

#endif
