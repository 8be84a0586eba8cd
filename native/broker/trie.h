/* broker/trie.h: the wildcard filters of one syntax, level by level, so that a topic finds all that match it in one walk.
 *
 *      site/+/temp   site/#          root -site-> n1 -+-> n2 -temp-> n3 (here: "site/+/temp")
 *                                                 n1.rest: "site/#"
 *
 * Invariant: a node exists while it has a filter or a child. A match visits each node at most once and keeps its own stack,
 * at most one entry a level: no recursion, whatever the topic. A match that stops early remembers the branches it took and no
 * node, so the filters may change before it goes on.
 */
#ifndef BQ_TRIE_H
#define BQ_TRIE_H

#include "base/hash.h"
#include "base/pool.h"

struct filter;

typedef struct trie_node {
    struct trie_node *parent;
    struct trie_node *chain;  /* in the table of (parent, level) */
    struct trie_node *single; /* the child for `*` or `+` */
    struct filter *here;      /* a filter that ends at this node */
    struct filter *rest;      /* a filter that goes on with `>` or `#` */
    uint64_t hash;
    uint32_t children; /* literal ones */
    uint32_t level_size;
    uint8_t level[];
} trie_node_t;

typedef struct trie {
    pool_t *pool;
    hash_key_t key;
    trie_node_t *root;     /* made with the first filter */
    trie_node_t **table;   /* literal children by (parent, level) */
    uint32_t table_size;   /* a power of two */
    uint32_t node_count;   /* in the table */
    uint64_t bytes;        /* taken from the pool */
    uint8_t separator;     /* '.' or '/' */
    uint8_t wildcard_one;  /* '*' or '+' */
    uint8_t wildcard_rest; /* '>' or '#' */
} trie_t;

void trie_init(trie_t *trie, pool_t *pool, const hash_key_t *key, uint8_t separator, uint8_t wildcard_one, uint8_t wildcard_rest);
void trie_release(trie_t *trie); /* after every filter has been removed */

/* Put a checked filter in; the node it ends at (or NULL: no memory) is what trie_remove wants back. */
trie_node_t *trie_insert(trie_t *trie, const uint8_t *text, uint32_t size, struct filter *filter);
uint32_t trie_remove(trie_t *trie, trie_node_t *node, struct filter *filter); /* the nodes that went with it */

/* A match that may stop and go on. It visits a topic's literal levels before wildcards, so the branches taken to the next node
 * tell all that is left. Zero: it has not begun. */
#define TRIE_LEVELS_MAX 320u /* more than a topic can have */
typedef struct trie_walk {
    uint64_t singles[TRIE_LEVELS_MAX / 64]; /* a bit for each level: 1: by the wildcard, 0: by its text */
    uint32_t levels;
    bool begun;
} trie_walk_t;

enum trie_outcome { TRIE_FAILED, TRIE_DONE, TRIE_MORE };

/* Call found(context, filter) for each filter that matches. FAILED: one call returned false. MORE: *units ran out, each node
 * takes one; call again with the same walk. */
typedef bool (*trie_found)(void *context, struct filter *filter);
enum trie_outcome trie_match(const trie_t *trie, trie_walk_t *walk, const uint8_t *topic, uint32_t size, uint32_t *units,
                             trie_found found, void *context);

#endif
