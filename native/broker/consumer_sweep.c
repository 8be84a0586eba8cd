/* broker/consumer_sweep.c: absent consumers let go of what has expired, so that it does not hold the WAL.
 *
 *      WAL    [expired][other topics][expired][first that is wanted] ...       an absent consumer's next_lsn moves up to there
 *
 * Nobody reads for an absent client, so nobody would notice that its messages have expired. While the WAL is more than half full,
 * those whose client is away are read forward to the first message that is still wanted. That takes the readers of everyone else, in
 * their line (broker/consumer_read.c), and is done again only when that first message has expired too.
 */
#include "core.h"
#include "broker/consumer_internal.h"

void consumers_sweep(bq_t *bq) {
    uint64_t now_ms = timeline_now_ms(bq);
    for (consumer_t *consumer = bq->consumers.all; consumer; consumer = consumer->next) {
        if (!consumer->durable || !consumer->behind || consumer->members || consumer->sweep || now_ms < consumer->sweep_due_ms)
            continue;
        consumer->sweep = true;
        consumer_pump_later(bq, consumer);
    }
}

void consumer_swept(const bq_t *bq, consumer_t *consumer, uint64_t left_ms) {
    consumer->sweep = false;
    consumer->sweep_due_ms = left_ms ? timeline_now_ms(bq) + left_ms : UINT64_MAX;
}
