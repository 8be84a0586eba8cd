/* broker/trie.h: the wildcard filters of one syntax as a trie of levels, so that one walk finds all filters that match a topic.
 *
 *      site/+/temp   site/#          root -site-> n1 -+-> n2 -temp-> n3 (here: "site/+/temp")
 *                                                 n1.rest: "site/#"
 *
 * Invariant: a node exists while it has a filter or a child. A match visits each node at most once. It is not recursive and
 * keeps its own stack of one entry per level at most. A match that stops early remembers the branches taken, not a node, so
 * filters may change before it continues.
 */
#ifndef BQ_TRIE_H
#define BQ_TRIE_H

#include "base/hash.h"
#include "base/pool.h"

struct filter;

typedef struct trie_node {
    struct trie_node *parent;
    struct trie_node *chain;  /* hash table of (parent, level) */
    struct trie_node *single; /* the child for `*` or `+` */
    struct filter *here;      /* filter that ends at this node */
    struct filter *rest;      /* filter that continues with `>` or `#` */
    uint64_t hash;
    uint32_t children; /* literal ones */
    uint32_t level_size;
    uint8_t level[];
} trie_node_t;

typedef struct trie {
    pool_t *pool;
    hash_key_t key;
    trie_node_t *root;     /* created with the first filter */
    trie_node_t **table;   /* hash table of literal children by (parent, level) */
    uint32_t table_size;   /* a power of two */
    uint32_t node_count;   /* nodes in the table */
    uint64_t bytes;        /* allocated from the pool */
    uint8_t separator;     /* '.' or '/' */
    uint8_t wildcard_one;  /* '*' or '+' */
    uint8_t wildcard_rest; /* '>' or '#' */
} trie_t;

void trie_init(trie_t *trie, pool_t *pool, const hash_key_t *key, uint8_t separator, uint8_t wildcard_one, uint8_t wildcard_rest);
void trie_release(trie_t *trie); /* all filters must have been removed */

/* Inserts a validated filter. Returns its last node, which trie_remove needs. NULL: no memory. */
trie_node_t *trie_insert(trie_t *trie, const uint8_t *text, uint32_t size, struct filter *filter);
uint32_t trie_remove(trie_t *trie, trie_node_t *node, struct filter *filter); /* returns the number of nodes freed */

/* State of a match that can stop and continue. Literal levels are visited before wildcards, so the branches taken to the next
 * node describe all remaining work. Zero: not started. */
#define TRIE_LEVELS_MAX 320u /* more than a topic can have */
typedef struct trie_walk {
    uint64_t singles[TRIE_LEVELS_MAX / 64]; /* one bit per level: 1: wildcard, 0: literal */
    uint32_t levels;
    bool begun;
} trie_walk_t;

enum trie_outcome { TRIE_FAILED, TRIE_DONE, TRIE_MORE };

/* Calls found(context, filter) for each matching filter. FAILED: a call returned false. MORE: *units (one per node) are used up;
 * call again with the same walk. */
typedef bool (*trie_found)(void *context, struct filter *filter);
enum trie_outcome trie_match(const trie_t *trie, trie_walk_t *walk, const uint8_t *topic, uint32_t size, uint32_t *units,
                             trie_found found, void *context);

#endif
