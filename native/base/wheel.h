/* base/wheel.h: a hierarchical timer wheel. O(1) insert and remove; a timer costs its own four words and nothing else.
 *
 * Invariant: a timer due at tick T sits in the slot that wheel_take reaches at T, or in a coarser slot that is cascaded
 * down before T. Ticks are monotonic; the wheel never sees a wall clock.
 */
#ifndef BQ_WHEEL_H
#define BQ_WHEEL_H

#include "base/bytes.h"

#define WHEEL_LEVELS 4
#define WHEEL_SLOTS                                                                                                              \
    256 /* per level: 2^32 ticks in all, 497 days of 10 ms; later timers are parked in the last slot and re-sorted */

typedef struct wheel_timer {
    struct wheel_timer *next;
    struct wheel_timer **link; /* what points at this timer; NULL: not armed */
    uint64_t tick;             /* due */
} wheel_timer_t;

typedef struct wheel {
    wheel_timer_t *slots[WHEEL_LEVELS][WHEEL_SLOTS];
    uint64_t occupied[WHEEL_LEVELS][WHEEL_SLOTS / 64];
    uint64_t now;     /* last tick that has been advanced to */
    uint64_t soonest; /* before it wheel_take has no work: most turns of an idle wheel compare with this and are done */
    bool stale;       /* a removal may have made that a later tick */
    uint64_t armed;
    uint64_t insertions, expirations, cascades;
} wheel_t;

void wheel_init(wheel_t *wheel, uint64_t now_tick);
void wheel_insert(wheel_t *wheel, wheel_timer_t *timer, uint64_t tick); /* timer not armed; a tick <= now is due at once */
void wheel_remove(wheel_t *wheel, wheel_timer_t *timer);                /* no-op if not armed */
static inline bool wheel_armed(const wheel_timer_t *timer) { return timer->link != NULL; }

/* One timer that is due at tick `to`, no longer armed, in tick order; NULL: none is, and the wheel has moved to `to` (never
 * backwards). A large step costs what is armed, not the ticks between. Timers that nobody takes stay armed, so whoever takes one
 * may remove others. */
wheel_timer_t *wheel_take(wheel_t *wheel, uint64_t to);

/* The earliest tick at which wheel_take may have work (due timers or a cascade), or UINT64_MAX when nothing is armed. */
uint64_t wheel_next(wheel_t *wheel);

#endif
