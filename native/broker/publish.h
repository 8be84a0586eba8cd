/* broker/publish.h: from a publish to the queues of its subscribers. */
#ifndef BQ_PUBLISH_H
#define BQ_PUBLISH_H

#include "broker/client.h"
#include "broker/router.h"

struct broker;
struct pending_commit;

/* The messages of a run, encoded again for receivers with other encodings. Each form is made when first needed, from the run. */
typedef struct run_forms {
    queue_run_t runs[ENCODINGS];
    buffer_t *source; /* of the run */
    uint8_t made;     /* bits of the encodings that are made, and of the hold of `source`; 0: the others are not set */
} run_forms_t;

/* The open run: consecutive publishes to one topic with the same time to live, not yet in the subscribers' queues. It has the
 * encoding of its topic. */
typedef struct publish_run {
    queue_run_t run; /* buffer NULL: no run is open */
    topic_t *topic;
    uint64_t ttl_ms;
    uint32_t given;               /* so many targets have it, and then queue groups: it is being closed */
    uint32_t count_max, size_max; /* limits: under the block policy the room in every target's queue, otherwise one flush */
    run_forms_t forms;
} publish_run_t;

/* FULL: the queue of broker->full must be drained (net_drain), then the same call follows again. */
enum publish_outcome { PUBLISH_DONE, PUBLISH_BLOCKED, PUBLISH_NO_MEMORY, PUBLISH_LATER, PUBLISH_FULL };
enum publish_outcome publish(struct broker *broker, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker);
/* The same for a message that may have properties. Its id and timestamp are not used: it gets new ones. */
enum publish_outcome publish_message(struct broker *broker, topic_t *topic, const message_t *message, wait_list_t **blocker);
uint64_t publish_ttl_ms(const struct broker *broker, uint64_t ttl_ms); /* applies the default and the maximum */
uint64_t publish_expiry_tick(const struct broker *broker, uint64_t from_ms, uint64_t ttl_ms); /* 0: never */
/* Block policy, for a QoS 1 publish: DONE: all subscribers have room; BLOCKED: one has none; FULL */
enum publish_outcome publish_room(struct broker *broker, const topic_t *topic, uint32_t size);
/* to QoS 0 subscribers, after the commit; false: as PUBLISH_FULL */
bool publish_pending(struct broker *broker, topic_t *topic, const struct pending_commit *pending);
#define PUBLISH_RUN_OPEN 1 /* an error of publish_topic; the others are negative */
/* see publish_topic in broker/broker.h */
topic_t *publish_topic_find(struct broker *broker, topic_t *last, const uint8_t *name, uint32_t size, int *error);
bool publish_run_give(struct broker *broker);   /* appends the open run to the queues; false: as PUBLISH_FULL */
void publish_run_finish(struct broker *broker); /* the same, without draining full queues */

#endif
