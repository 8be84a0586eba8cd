/* broker/consumer_owner.c: see broker/consumer_owner.h. */
#include "broker/consumer_owner.h"
#include "broker/broker.h"

static uint32_t name_size(const uint8_t *identity, uint32_t size) {
    for (uint32_t i = 0; i < size; i++)
        if (identity[i] == KEY_ENDS) return i;
    return 0;
}

static consumer_owner_t **find(const broker_t *broker, const uint8_t *name, uint32_t size, uint64_t hash) {
    consumer_owner_t **at = (consumer_owner_t **)&broker->consumers.owners[hash % OWNER_CHAINS];
    while (*at && ((*at)->hash != hash || (*at)->size != size || (size && memcmp((*at)->name, name, size) != 0)))
        at = &(*at)->next;
    return at;
}

consumer_owner_t *consumer_owner_enter(broker_t *broker, const uint8_t *identity, uint32_t size) {
    size = name_size(identity, size);
    uint64_t hash = hash_bytes(&broker->hash_key, identity, size, 0);
    consumer_owner_t **at = find(broker, identity, size, hash);
    if (!*at) {
        *at = pool_alloc(&broker->pool, sizeof **at + size);
        if (!*at) return NULL;
        **at = (consumer_owner_t){.hash = hash, .size = size};
        if (size) memcpy((*at)->name, identity, size);
    }
    (*at)->count++;
    return *at;
}

void consumer_owner_leave(broker_t *broker, consumer_owner_t *owner) {
    if (!owner || --owner->count) return;
    consumer_owner_t **at = find(broker, owner->name, owner->size, owner->hash);
    *at = owner->next;
    pool_free(&broker->pool, owner, sizeof *owner + owner->size);
}

uint32_t consumer_owner_count(const broker_t *broker, const uint8_t *identity, uint32_t size) {
    size = name_size(identity, size);
    consumer_owner_t *const *at = find(broker, identity, size, hash_bytes(&broker->hash_key, identity, size, 0));
    return *at ? (*at)->count : 0;
}
