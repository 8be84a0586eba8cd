/* broker/trie.c: see broker/trie.h for the picture and the invariant. */
#include "broker/trie.h"
#include "base/topic_name.h"

#define TABLE_SIZE_MIN 64u

void trie_init(trie_t *trie, pool_t *pool, const hash_key_t *key, uint8_t separator, uint8_t wildcard_one,
               uint8_t wildcard_rest) {
    *trie =
        (trie_t){.pool = pool, .key = *key, .separator = separator, .wildcard_one = wildcard_one, .wildcard_rest = wildcard_rest};
}

static void node_free(trie_t *trie, trie_node_t *node) {
    trie->bytes -= pool_good_size(sizeof *node + node->level_size);
    pool_free(trie->pool, node, sizeof *node + node->level_size);
}

void trie_release(trie_t *trie) {
    if (trie->root) node_free(trie, trie->root);
    pool_free(trie->pool, trie->table, trie->table_size * sizeof *trie->table);
    trie->root = NULL;
    trie->table = NULL;
}

static uint64_t child_hash(const trie_t *trie, const trie_node_t *parent, const uint8_t *level, uint32_t size) {
    return hash_bytes(&trie->key, level, size, (uint64_t)(uintptr_t)parent);
}

static trie_node_t *child_find(const trie_t *trie, const trie_node_t *parent, const uint8_t *level, uint32_t size) {
    if (!parent->children) return NULL;
    uint64_t hash = child_hash(trie, parent, level, size);
    trie_node_t *node = trie->table[hash & (trie->table_size - 1)];
    for (; node; node = node->chain) {
        if (node->hash == hash && node->parent == parent && node->level_size == size && !memcmp(node->level, level, size))
            return node;
    }
    return NULL;
}

static bool table_grow(trie_t *trie) {
    uint32_t size = trie->table_size ? trie->table_size * 2 : TABLE_SIZE_MIN;
    trie_node_t **table = pool_alloc(trie->pool, size * sizeof *table);
    if (!table) return false;
    memset(table, 0, size * sizeof *table);
    for (uint32_t i = 0; i < trie->table_size; i++) {
        for (trie_node_t *node = trie->table[i], *next; node; node = next) {
            next = node->chain;
            trie_node_t **slot = &table[node->hash & (size - 1)];
            node->chain = *slot;
            *slot = node;
        }
    }
    pool_free(trie->pool, trie->table, trie->table_size * sizeof *table);
    trie->table = table;
    trie->table_size = size;
    return true;
}

static trie_node_t *node_new(trie_t *trie, trie_node_t *parent, const uint8_t *level, uint32_t size) {
    trie_node_t *node = pool_alloc(trie->pool, sizeof *node + size);
    if (!node) return NULL;
    trie->bytes += pool_good_size(sizeof *node + size);
    *node = (trie_node_t){.parent = parent, .level_size = size};
    if (size) memcpy(node->level, level, size);
    return node;
}

static trie_node_t *child_add(trie_t *trie, trie_node_t *parent, const uint8_t *level, uint32_t size) {
    if (trie->node_count >= trie->table_size && !table_grow(trie)) return NULL;
    trie_node_t *node = node_new(trie, parent, level, size);
    if (!node) return NULL;
    node->hash = child_hash(trie, parent, level, size);
    trie_node_t **slot = &trie->table[node->hash & (trie->table_size - 1)];
    node->chain = *slot;
    *slot = node;
    parent->children++;
    trie->node_count++;
    return node;
}

static void child_unlink(trie_t *trie, trie_node_t *node) {
    trie_node_t **at = &trie->table[node->hash & (trie->table_size - 1)];
    while (*at != node) at = &(*at)->chain;
    *at = node->chain;
    node->parent->children--;
    trie->node_count--;
}

/* Frees this node and its parents while they are unused. The root stays. */
static uint32_t prune(trie_t *trie, trie_node_t *node) {
    uint32_t count = 0;
    while (node->parent && !node->here && !node->rest && !node->single && !node->children) {
        trie_node_t *parent = node->parent;
        if (parent->single == node)
            parent->single = NULL;
        else
            child_unlink(trie, node);
        node_free(trie, node);
        node = parent;
        count++;
    }
    return count;
}

static uint32_t level_end(const uint8_t *text, uint32_t from, uint32_t size, uint8_t separator) {
    const uint8_t *at = from < size ? memchr(text + from, separator, size - from) : NULL;
    return at ? (uint32_t)(at - text) : size;
}

static trie_node_t *child_for(trie_t *trie, trie_node_t *node, const uint8_t *level, uint32_t size) {
    if (size == 1 && level[0] == trie->wildcard_one) {
        if (!node->single) node->single = node_new(trie, node, NULL, 0);
        return node->single;
    }
    trie_node_t *child = child_find(trie, node, level, size);
    return child ? child : child_add(trie, node, level, size);
}

trie_node_t *trie_insert(trie_t *trie, const uint8_t *text, uint32_t size, struct filter *filter) {
    if (!trie->root && !(trie->root = node_new(trie, NULL, NULL, 0))) return NULL;
    trie_node_t *node = trie->root;
    for (uint32_t at = 0; at <= size;) {
        uint32_t end = level_end(text, at, size, trie->separator);
        if (end - at == 1 && text[at] == trie->wildcard_rest) {
            node->rest = filter;
            return node;
        }
        trie_node_t *child = child_for(trie, node, text + at, end - at);
        if (!child) {
            prune(trie, node);
            return NULL;
        }
        node = child;
        at = end + 1;
    }
    node->here = filter;
    return node;
}

uint32_t trie_remove(trie_t *trie, trie_node_t *node, struct filter *filter) {
    if (node->here == filter) node->here = NULL;
    if (node->rest == filter) node->rest = NULL;
    return prune(trie, node);
}

typedef struct trie_step {
    const trie_node_t *node;
    uint32_t at; /* offset of the node's next level in the topic; beyond its end: no level is left */
} trie_step_t;

/* Stores the branches that lead to a node. */
static NOINLINE void walk_remember(trie_walk_t *walk, const trie_node_t *node) {
    *walk = (trie_walk_t){.begun = true};
    for (const trie_node_t *at = node; at->parent; at = at->parent) walk->levels++;
    uint32_t level = walk->levels;
    for (; node->parent; node = node->parent) {
        level--;
        if (node->parent->single == node) walk->singles[level / 64] |= 1ull << level % 64;
    }
}

/* Follows the stored branches as far as they still exist. The last node is visited next, and for each literal level on the path
 * the wildcard branch remains to be visited. Returns the depth of the stack. */
static NOINLINE uint32_t walk_resume(const trie_t *trie, const trie_walk_t *walk, const uint8_t *topic, uint32_t size,
                                     trie_step_t *stack) {
    uint32_t depth = 0, at = 0;
    const trie_node_t *node = trie->root;
    for (uint32_t level = 0; level < walk->levels && node; level++) {
        uint32_t end = level_end(topic, at, size, trie->separator);
        bool own = at == 0 && topic[0] == '$';
        if (walk->singles[level / 64] >> level % 64 & 1) {
            node = node->single;
        } else {
            if (node->single && !own) stack[depth++] = (trie_step_t){node->single, end + 1};
            node = child_find(trie, node, topic + at, end - at);
        }
        at = end + 1;
    }
    if (node) stack[depth++] = (trie_step_t){node, at};
    return depth;
}

enum trie_outcome trie_match(const trie_t *trie, trie_walk_t *walk, const uint8_t *topic, uint32_t size, uint32_t *units,
                             trie_found found, void *context) {
    trie_step_t stack[TOPIC_BYTES_MAX + 2];
    uint32_t depth = 0;
    if (!trie->root || size > TOPIC_BYTES_MAX) return TRIE_DONE;
    bool slash = trie->wildcard_rest == '#';
    if (BQ_UNLIKELY(walk->begun))
        depth = walk_resume(trie, walk, topic, size, stack);
    else
        stack[depth++] = (trie_step_t){trie->root, 0};
    while (depth) {
        const trie_node_t *node = stack[--depth].node;
        uint32_t at = stack[depth].at;
        if (BQ_UNLIKELY(!*units)) {
            walk_remember(walk, node);
            return TRIE_MORE;
        }
        (*units)--;
        if (at > size) { /* no level is left; `site/#` matches `site` itself, `logs.>` does not match `logs` */
            if (node->here && !found(context, node->here)) return TRIE_FAILED;
            if (slash && node->rest && !found(context, node->rest)) return TRIE_FAILED;
            continue;
        }
        bool own = at == 0 && topic[0] == '$'; /* a topic of the broker: the filter must name its first level */
        if (node->rest && !own && !found(context, node->rest)) return TRIE_FAILED;
        uint32_t end = level_end(topic, at, size, trie->separator);
        if (node->single && !own) stack[depth++] = (trie_step_t){node->single, end + 1};
        const trie_node_t *child = child_find(trie, node, topic + at, end - at);
        if (child) stack[depth++] = (trie_step_t){child, end + 1};
    }
    return TRIE_DONE;
}
