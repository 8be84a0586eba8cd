/* broker/acl.h: to which topics a key may publish, kept once however many connections use the key.
 *
 *      key "sensor-7"  --admit-->  connection, connection, ...  all hold the same rights_t
 *      allowed[serial % RIGHTS_MEMO] == serial                  topics found to be allowed, by the topic cache's serial number
 *
 * Invariants: what Python has ended, or what memory was not there for, allows nothing; it stays until the last connection that
 * holds it is gone. A serial number belongs to one name for ever, so what the memo says cannot be said of another topic.
 */
#ifndef BQ_RIGHTS_H
#define BQ_RIGHTS_H

#include "base/bytes.h"
#include "base/pool.h"
#include "broker/router.h"

#define RIGHTS_MEMO 32u           /* a power of two */
#define RIGHTS_IDS_MAX (1u << 20) /* ids are small numbers that Python uses again */

typedef struct rights {
    uint32_t holders; /* connections, and the table while Python has not ended it */
    bool everything;
    uint32_t size;    /* of filters */
    uint8_t *filters; /* [u16 size][dialect][text] ..., checked; NULL: none */
    uint64_t allowed[RIGHTS_MEMO];
} rights_t;

typedef struct rights_table {
    rights_t **by_id;
    uint32_t capacity;
} rights_table_t;

/* Make the rights of `id`, or change them for all who hold them. `data`: [u16 size][filter] ...; what cannot be read, or does
 * not fit memory, allows nothing. */
void rights_set(rights_table_t *table, pool_t *pool, uint64_t id, bool everything, const uint8_t *data, uint32_t size);
void rights_end(rights_table_t *table, pool_t *pool,
                uint64_t id);                              /* nobody is admitted with it any more, and it allows nothing */
rights_t *rights_hold(rights_table_t *table, uint64_t id); /* NULL: there is none of that id */
void rights_drop(pool_t *pool, rights_t *rights);          /* NULL is fine */
void rights_release(rights_table_t *table, pool_t *pool);  /* at the end of life */

bool rights_match(rights_t *rights, const topic_t *topic); /* the long way: look through the filters, and remember */

static inline bool rights_allow(rights_t *rights, const topic_t *topic) {
    return rights->everything || rights->allowed[topic->serial % RIGHTS_MEMO] == topic->serial || rights_match(rights, topic);
}

#endif
