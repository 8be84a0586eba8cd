/* base/wheel.c: the hierarchical timer wheel of base/wheel.h.
 *
 *      level 0   256 slots of 1 tick       a slot is a list of timers; one bit per slot: the list is not empty
 *      level 1   256 slots of 2^8 ticks
 *      level 2   256 slots of 2^16 ticks   when a slot above level 0 is reached, its timers move to lower levels
 *      level 3   256 slots of 2^24 ticks
 *
 * Invariant: a used slot above level 0 begins between 1 and 256 slots after `now`, so its index alone determines its time. On
 * level 0 the slot of `now` holds timers that were already due when they were inserted.
 */
#include <assert.h>

#include "base/wheel.h"

#define SLOT_BITS 8
#define SLOT_MASK (WHEEL_SLOTS - 1u)
#define REACH_TICKS ((1ull << (SLOT_BITS * WHEEL_LEVELS)) - 1)

static inline uint32_t slot_of(uint64_t tick, uint32_t level) { return (uint32_t)(tick >> (SLOT_BITS * level)) & SLOT_MASK; }

static inline bool slot_occupied(const wheel_t *wheel, uint32_t level, uint32_t slot) {
    return wheel->occupied[level][slot / 64] >> slot % 64 & 1;
}

/* Number of slots from `slot` to the next occupied one, `slot` itself last: 1 to WHEEL_SLOTS; 0: the level is empty. */
static inline uint32_t slots_ahead(const uint64_t occupied[WHEEL_SLOTS / 64], uint32_t slot) {
    uint32_t first = (slot + 1) & SLOT_MASK;
    uint32_t word = first / 64;
    uint64_t bits = occupied[word] & ~0ull << first % 64;
    for (uint32_t words = 0;; words++) {
        if (bits) return ((word * 64 + (uint32_t)__builtin_ctzll(bits) - first) & SLOT_MASK) + 1;
        if (words == WHEEL_SLOTS / 64) return 0;
        word = (word + 1) % (WHEEL_SLOTS / 64);
        bits = occupied[word];
    }
}

/* Tick at which the next occupied slot of a level begins, or UINT64_MAX. */
static inline uint64_t level_next(const wheel_t *wheel, uint32_t level) {
    uint32_t ahead = slots_ahead(wheel->occupied[level], slot_of(wheel->now, level));
    return ahead ? ((wheel->now >> (SLOT_BITS * level)) + ahead) << (SLOT_BITS * level) : UINT64_MAX;
}

static inline void place(wheel_t *wheel, wheel_timer_t *timer) {
    uint64_t ahead = timer->tick - wheel->now;
    if (BQ_UNLIKELY(ahead > REACH_TICKS)) ahead = REACH_TICKS; /* too far: parked in the last slot; the cascade places it again */
    uint32_t level = ahead < WHEEL_SLOTS ? 0 : (63 - (uint32_t)__builtin_clzll(ahead)) / SLOT_BITS;
    uint32_t slot = slot_of(wheel->now + ahead, level);

    wheel_timer_t **head = &wheel->slots[level][slot];
    timer->next = *head;
    timer->link = head;
    if (*head) (*head)->link = &timer->next;
    *head = timer;
    wheel->occupied[level][slot / 64] |= 1ull << slot % 64;
    uint64_t begins = (wheel->now + ahead) >> (SLOT_BITS * level) << (SLOT_BITS * level);
    if (begins < wheel->soonest) wheel->soonest = begins;
}

void wheel_init(wheel_t *wheel, uint64_t now_tick) {
    memset(wheel, 0, sizeof *wheel);
    wheel->now = now_tick;
    wheel->soonest = UINT64_MAX;
}

void wheel_insert(wheel_t *wheel, wheel_timer_t *timer, uint64_t tick) {
    assert(!wheel_armed(timer));
    timer->tick = tick > wheel->now ? tick : wheel->now;
    place(wheel, timer);
    wheel->armed++;
    wheel->insertions++;
}

void wheel_remove(wheel_t *wheel, wheel_timer_t *timer) {
    if (!wheel_armed(timer)) return;
    *timer->link = timer->next;
    if (timer->next) {
        timer->next->link = timer->link;
    } else {
        /* It was the last timer of its list. If a slot pointed to it, the slot is empty now. A link inside another timer
         * gives an offset outside the slots, also through unsigned wrap. */
        uintptr_t offset = (uintptr_t)timer->link - (uintptr_t)&wheel->slots[0][0];
        if (offset < sizeof wheel->slots) {
            uintptr_t index = offset / sizeof(wheel_timer_t *);
            wheel->occupied[index / WHEEL_SLOTS][index % WHEEL_SLOTS / 64] &= ~(1ull << index % 64);
            wheel->stale = true;
        }
    }
    timer->link = NULL;
    wheel->armed--;
}

/* `now` is at the start of this slot. Its timers move to lower levels, or to the level 0 slot of `now`, which is processed
 * next. */
static void cascade(wheel_t *wheel, uint32_t level) {
    uint32_t slot = slot_of(wheel->now, level);
    wheel_timer_t *timer = wheel->slots[level][slot];
    wheel->slots[level][slot] = NULL;
    wheel->occupied[level][slot / 64] &= ~(1ull << slot % 64);
    while (timer) {
        wheel_timer_t *next = timer->next;
        place(wheel, timer);
        wheel->cascades++;
        timer = next;
    }
}

/* Advance to the next occupied slot on any level. false: none begins by `to`. */
static bool step(wheel_t *wheel, uint64_t to) {
    uint64_t next[WHEEL_LEVELS], soonest = UINT64_MAX;
    for (uint32_t level = 0; level < WHEEL_LEVELS; level++) {
        next[level] = level_next(wheel, level);
        if (next[level] < soonest) soonest = next[level];
    }
    if (soonest > to) return false;
    wheel->now = soonest;
    for (uint32_t level = WHEEL_LEVELS - 1; level > 0; level--)
        if (next[level] == soonest) cascade(wheel, level);
    return true;
}

static uint64_t find_soonest(const wheel_t *wheel) {
    if (!wheel->armed) return UINT64_MAX;
    if (slot_occupied(wheel, 0, slot_of(wheel->now, 0))) return wheel->now;
    uint64_t soonest = UINT64_MAX;
    for (uint32_t level = 0; level < WHEEL_LEVELS; level++) {
        uint64_t next = level_next(wheel, level);
        if (next < soonest) soonest = next;
    }
    return soonest;
}

wheel_timer_t *wheel_take(wheel_t *wheel, uint64_t to) {
    assert(to >= wheel->now);
    if (BQ_LIKELY(to < wheel->soonest)) {
        wheel->now = to;
        return NULL;
    }
    do {
        wheel_timer_t *timer = wheel->slots[0][slot_of(wheel->now, 0)];
        if (!timer) continue;
        wheel_remove(wheel, timer);
        wheel->expirations++;
        return timer;
    } while (wheel->armed && step(wheel, to));
    wheel->now = to;
    wheel->soonest = find_soonest(wheel);
    wheel->stale = false;
    return NULL;
}

uint64_t wheel_next(wheel_t *wheel) {
    if (BQ_UNLIKELY(wheel->stale)) {
        wheel->soonest = find_soonest(wheel);
        wheel->stale = false;
    }
    return wheel->soonest;
}
