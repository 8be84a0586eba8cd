/* broker/acl.h: the access control list of a key: to which topics a key may publish, kept once however many connections use the key.
 *
 *      key "sensor-7"  --admit-->  connection, connection, ...  all hold the same acl_t
 *      allowed[serial % ACL_MEMO] == serial                  topics found to be allowed, by the topic cache's serial number
 *
 * Invariants: what Python has ended, or what memory was not there for, allows nothing; it stays until the last connection that
 * holds it is gone. A serial number belongs to one name for ever, so what the memo says cannot be said of another topic.
 */
#ifndef BQ_ACL_H
#define BQ_ACL_H

#include "base/bytes.h"
#include "base/pool.h"
#include "broker/router.h"

#define ACL_MEMO 32u           /* a power of two */
#define ACL_IDS_MAX (1u << 20) /* ids are small numbers that Python uses again */

typedef struct acl {
    uint32_t holders; /* connections, and the table while Python has not ended it */
    bool everything;
    uint32_t size;    /* of filters */
    uint8_t *filters; /* [u16 size][syntax][text] ..., checked; NULL: none */
    uint64_t allowed[ACL_MEMO];
} acl_t;

typedef struct acl_table {
    acl_t **by_id;
    uint32_t capacity;
} acl_table_t;

/* Make the ACL of `id`, or change it for all who hold it. `data`: [u16 size][filter] ...; what cannot be read, or does
 * not fit memory, allows nothing. */
void acl_set(acl_table_t *table, pool_t *pool, uint64_t id, bool everything, const uint8_t *data, uint32_t size);
void acl_end(acl_table_t *table, pool_t *pool, uint64_t id); /* nobody is admitted with it any more, and it allows nothing */
acl_t *acl_ref(acl_table_t *table, uint64_t id);             /* NULL: there is none of that id */
void acl_unref(pool_t *pool, acl_t *acl);                    /* NULL is fine */
void acl_table_release(acl_table_t *table, pool_t *pool);    /* at the end of life */

bool acl_match(acl_t *acl, const topic_t *topic); /* the long way: look through the filters, and remember */

static inline bool acl_allow(acl_t *acl, const topic_t *topic) {
    return acl->everything || acl->allowed[topic->serial % ACL_MEMO] == topic->serial || acl_match(acl, topic);
}

#endif
