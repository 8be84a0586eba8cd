/* base/wheel.h: a hierarchical timer wheel. Insert and remove are O(1). A timer needs four words of memory.
 *
 * Invariant: a timer due at tick T is in the slot that wheel_take reaches at T, or in a coarser slot that is cascaded before T.
 * Ticks are monotonic; the wheel never uses a wall clock.
 */
#ifndef BQ_WHEEL_H
#define BQ_WHEEL_H

#include "base/bytes.h"

#define WHEEL_LEVELS 4
#define WHEEL_SLOTS                                                                                                              \
    256 /* per level: 2^32 ticks in total, 497 days at 10 ms; later timers are parked in the last slot and placed again */

typedef struct wheel_timer {
    struct wheel_timer *next;
    struct wheel_timer **link; /* the pointer that points to this timer; NULL: not armed */
    uint64_t tick;             /* due tick */
} wheel_timer_t;

typedef struct wheel {
    wheel_timer_t *slots[WHEEL_LEVELS][WHEEL_SLOTS];
    uint64_t occupied[WHEEL_LEVELS][WHEEL_SLOTS / 64];
    uint64_t now;     /* the last tick reached */
    uint64_t soonest; /* wheel_take has no work before this tick, so most turns need only this comparison */
    bool stale;       /* after a removal `soonest` may be too early */
    uint64_t armed;
    uint64_t insertions, expirations, cascades;
} wheel_t;

void wheel_init(wheel_t *wheel, uint64_t now_tick);
/* Timer must not be armed; a tick <= now is due at once */
void wheel_insert(wheel_t *wheel, wheel_timer_t *timer, uint64_t tick);
void wheel_remove(wheel_t *wheel, wheel_timer_t *timer); /* no effect if not armed */
static inline bool wheel_armed(const wheel_timer_t *timer) { return timer->link != NULL; }

/* Returns one timer that is due by tick `to`, in tick order, no longer armed. NULL: none is due, and the wheel has advanced
 * to `to` (never backwards). The cost of a large step depends on the armed timers, not on the ticks. Timers stay armed until
 * they are returned, so the caller may remove others. */
wheel_timer_t *wheel_take(wheel_t *wheel, uint64_t to);

/* The earliest tick at which wheel_take may have work (due timers or a cascade), or UINT64_MAX if no timer is armed. */
uint64_t wheel_next(wheel_t *wheel);

#endif
