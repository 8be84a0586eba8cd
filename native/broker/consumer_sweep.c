/* broker/consumer_sweep.c: lets absent consumers pass expired messages, so that these do not keep WAL segments.
 *
 *      WAL    [expired][other topics][expired][first valid message] ...       an absent consumer's next_lsn moves up to there
 *
 * An absent client reads no messages, so its expired messages are not noticed. While the WAL is more than half full, absent
 * consumers are read forward to their first message that is not expired. They use the same readers and the same line as all
 * others (broker/consumer_read.c), and are read again only when that first message has expired too.
 */
#include "broker/broker.h"
#include "broker/consumer_internal.h"

void consumers_sweep(broker_t *broker) {
    uint64_t now_ms = timeline_now_ms(broker);
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (!consumer->durable || !consumer->behind || consumer->members || consumer->sweep || now_ms < consumer->sweep_due_ms)
            continue;
        consumer->sweep = true;
        consumer_pump_later(broker, consumer);
    }
}

void consumer_swept(const broker_t *broker, consumer_t *consumer, uint64_t left_ms) {
    consumer->sweep = false;
    consumer->sweep_due_ms = left_ms ? timeline_now_ms(broker) + left_ms : UINT64_MAX;
}
