/* broker/acl.h: the access control list (ACL) of an API key: the topics to which the key may publish. All connections of a key
 * share one.
 *
 *      key "sensor-7"  --admit-->  connection, connection, ...  all hold the same acl_t
 *      allowed[serial % ACL_MEMO] == serial                  cache of allowed topics, by the serial number of the topic cache
 *
 * Invariants: an ACL that Python has ended, or that did not fit memory, allows nothing. It is freed with the last connection
 * that holds it. A serial number is never used for a second name, so a cached answer cannot apply to another topic.
 */
#ifndef BQ_ACL_H
#define BQ_ACL_H

#include "base/bytes.h"
#include "base/pool.h"
#include "broker/router.h"

#define ACL_MEMO 32u           /* a power of two */
#define ACL_IDS_MAX (1u << 20) /* Python reuses ids, so they stay small */

typedef struct acl {
    uint32_t holders; /* connections, plus one for the table until Python ends it */
    bool everything;
    uint32_t size;    /* bytes of filters */
    uint8_t *filters; /* [u16 size][syntax][text] ..., validated; NULL: none */
    uint64_t allowed[ACL_MEMO];
} acl_t;

typedef struct acl_table {
    acl_t **by_id;
    uint32_t capacity;
} acl_table_t;

/* Creates the ACL of `id`, or changes it for all its holders. `data`: [u16 size][filter] ... If `data` is invalid or does not fit
 * memory, the ACL allows nothing. */
void acl_set(acl_table_t *table, pool_t *pool, uint64_t id, bool everything, const uint8_t *data, uint32_t size);
void acl_end(acl_table_t *table, pool_t *pool, uint64_t id); /* no connection is admitted with it any more; it allows nothing */
acl_t *acl_ref(acl_table_t *table, uint64_t id);             /* NULL: no ACL with that id */
void acl_unref(pool_t *pool, acl_t *acl);                    /* NULL is allowed */
void acl_table_release(acl_table_t *table, pool_t *pool);    /* before the core is freed */

bool acl_match(acl_t *acl, const topic_t *topic); /* slow path: searches the filters and caches the answer */

static inline bool acl_allow(acl_t *acl, const topic_t *topic) {
    return acl->everything || acl->allowed[topic->serial % ACL_MEMO] == topic->serial || acl_match(acl, topic);
}

#endif
