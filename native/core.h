/* core.h: the complete state of the core. Only the files of the top level include it. */
#ifndef BQ_CORE_H
#define BQ_CORE_H

#include "base/bytes.h"
#include "base/poll.h"
#include "base/ring.h"
#include "broker/broker.h"
#include "net/net.h"

#define POLL_EVENTS_MAX 512
#define RETRY_MS 2u              /* retry delay while the event ring is full */
#define TIMERS_MAX 2048u         /* fired per turn */
#define COMMANDS_MAX 1024u       /* per turn: a burst of SUBs must not delay the messages */
#define COMPACT_BYTES (1u << 20) /* copied per turn */

struct bq {
    union { /* net begins with its broker: two names for one structure */
        net_t net;
        broker_t broker;
    };

    ring_t commands;
    poll_wake_t command_wake;
    bool command_waits;          /* the event ring has no room for the answer to the oldest command */
    _Atomic uint64_t blob_bytes; /* command data too large for the ring and not yet processed by the core */

    poll_event_t poll_events[POLL_EVENTS_MAX];
    int poll_count;
    int poll_from; /* index of the first event to process; the last turn processed those before it */

    bool stop_closed, stopped; /* stop_closed: all connections are closed; stopped: Python has been told */
    uint64_t stop_deadline_ms, stop_seq, stop_unsent;
    bool threaded;
    poll_thread_t thread;
    void *memory; /* the block that contains this structure */
};

/* event.c */
void core_stats(bq_t *bq, bq_stats_t *stats);
bool event_stats(bq_t *bq, uint64_t seq);
bool event_list(bq_t *bq, uint64_t seq, uint64_t first_slot);

/* command.c */
bool command_run_all(bq_t *bq);     /* true if any ran */
void command_discard_all(bq_t *bq); /* before freeing the core: frees the data of pending commands */

/* core.c */
void core_stop(bq_t *bq, uint64_t within_ms, uint64_t seq);
void core_limits(bq_t *bq, const uint8_t *bytes, uint32_t size);

/* core_check.c: asserts the invariants of the parts in test builds. */
#ifdef BQ_CHECK
void core_check(bq_t *bq);
#else
static inline void core_check(bq_t *bq) { (void)bq; }
#endif

#endif
