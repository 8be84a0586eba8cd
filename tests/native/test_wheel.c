/* test_wheel.c: the timer wheel compared with an array that is searched completely.
 *
 * Invariant checked: wheel_take(to), called until it returns NULL, returns exactly the armed timers with tick <= to, in tick
 * order. Timers that are not returned stay armed.
 */
#include "check.h"
#include "base/wheel.h"

#define TIMERS 200

static wheel_t wheel;
static wheel_timer_t timers[TIMERS];
static bool armed[TIMERS];

static uint64_t earliest(void) {
    uint64_t tick = UINT64_MAX;
    for (int i = 0; i < TIMERS; i++)
        if (armed[i] && timers[i].tick < tick) tick = timers[i].tick;
    return tick;
}

/* Every list matches its bit, every back link is correct, and every armed timer is in one list. */
static void check_structure(void) {
    uint64_t found = 0;
    for (uint32_t level = 0; level < WHEEL_LEVELS; level++) {
        for (uint32_t slot = 0; slot < WHEEL_SLOTS; slot++) {
            wheel_timer_t **link = &wheel.slots[level][slot];
            CHECK((*link != NULL) == (wheel.occupied[level][slot / 64] >> slot % 64 & 1));
            for (; *link; link = &(*link)->next, found++) CHECK((*link)->link == link);
        }
    }
    uint64_t expected = 0;
    for (int i = 0; i < TIMERS; i++) {
        CHECK(armed[i] == wheel_armed(&timers[i]));
        expected += armed[i];
    }
    CHECK(found == expected && wheel.armed == expected);
}

static void check_advance(uint64_t to) {
    uint64_t last = 0, expirations = wheel.expirations, returned = 0;
    for (wheel_timer_t *timer; (timer = wheel_take(&wheel, to)); returned++) {
        int i = (int)(timer - timers);
        CHECK(armed[i] && !wheel_armed(timer));
        CHECK(timer->tick >= last && timer->tick <= to);
        last = timer->tick;
        armed[i] = false;
    }
    CHECK(wheel.now == to && wheel.expirations - expirations == returned);
    CHECK(earliest() > to);
}

static void check_next(void) {
    uint64_t next = wheel_next(&wheel), first = earliest();
    CHECK((next == UINT64_MAX) == (first == UINT64_MAX));
    CHECK(next <= first && next >= wheel.now);
    if (first - wheel.now < WHEEL_SLOTS) CHECK(next == first || next % WHEEL_SLOTS == 0); /* exact, or a cascade is earlier */
}

static void random_operation(uint64_t *seed) {
    static const uint64_t reaches[] = {2, 100, 300, 70000, 1ull << 25, 1ull << 33, 1ull << 36};
    uint64_t reach = reaches[random_below(seed, sizeof reaches / sizeof *reaches)];
    int i = (int)random_below(seed, TIMERS);
    switch (random_below(seed, 8)) {
    case 0: check_advance(wheel.now + random_below(seed, reach)); break;
    case 1: {
        uint64_t next = wheel_next(&wheel);
        if (next != UINT64_MAX) check_advance(next);
        break;
    }
    case 2:
        wheel_remove(&wheel, &timers[i]);
        armed[i] = false;
        break;
    default:
        if (armed[i]) break;
        uint64_t back = random_below(seed, 10) == 0 ? random_below(seed, wheel.now + 1) : 0;
        uint64_t tick = wheel.now - back + (back ? 0 : random_below(seed, reach));
        wheel_insert(&wheel, &timers[i], tick);
        armed[i] = true;
    }
}

static void test_random_operations_agree_with_the_array(uint64_t seed) {
    memset(timers, 0, sizeof timers);
    memset(armed, 0, sizeof armed);
    wheel_init(&wheel, random_below(&seed, 1ull << 40));
    for (int round = 0; round < 60000; round++) {
        random_operation(&seed);
        check_next();
        if (round % 64 == 0) check_structure();
    }
    check_advance(wheel.now + (1ull << 37));
    CHECK(wheel.armed == 0 && wheel_next(&wheel) == UINT64_MAX);
    CHECK(wheel.insertions > 10000 && wheel.cascades > 10000);
}

/* Each tick around the borders of the levels, one timer at a time, reached in one step and tick by tick. */
static void test_timers_at_the_borders_of_wheel_levels_fire_at_their_tick(void) {
    static const uint64_t borders[] = {1,
                                       255,
                                       256,
                                       257,
                                       511,
                                       65535,
                                       65536,
                                       65537,
                                       (1ull << 24) - 1,
                                       1ull << 24,
                                       (1ull << 32) - 1,
                                       1ull << 32,
                                       (1ull << 32) + 1,
                                       (1ull << 34) + 77};
    static const uint64_t starts[] = {0, 1, 254, 255, 256, 65535, (1ull << 24) - 1, (1ull << 32) - 1};
    for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
        for (size_t b = 0; b < sizeof borders / sizeof *borders; b++) {
            wheel_timer_t timer = {0};
            wheel_init(&wheel, starts[s]);
            wheel_insert(&wheel, &timer, starts[s] + borders[b]);
            CHECK(wheel_take(&wheel, starts[s] + borders[b] - 1) == NULL);
            CHECK(wheel_take(&wheel, starts[s] + borders[b]) == &timer && !wheel_armed(&timer));
            CHECK(wheel.cascades <= 2 * WHEEL_LEVELS + 4); /* a step of billions of ticks needs only a few moves */
        }
    }
}

static void test_a_tick_in_the_past_is_due_at_the_next_advance(void) {
    wheel_timer_t timer = {0};
    wheel_init(&wheel, 1000);
    wheel_insert(&wheel, &timer, 3);
    CHECK(wheel_next(&wheel) == 1000);
    CHECK(wheel_take(&wheel, 1000) == &timer && !wheel_armed(&timer));
    CHECK(wheel_take(&wheel, 5000) == NULL);
}

static void test_removing_a_timer_twice_has_no_effect(void) {
    wheel_timer_t timer = {0};
    wheel_init(&wheel, 7);
    wheel_remove(&wheel, &timer);
    wheel_insert(&wheel, &timer, 300);
    wheel_remove(&wheel, &timer);
    wheel_remove(&wheel, &timer);
    CHECK(wheel.armed == 0 && wheel_next(&wheel) == UINT64_MAX && wheel_take(&wheel, 400) == NULL);
}

int main(void) {
    for (uint64_t seed = 1; seed <= 8; seed++) test_random_operations_agree_with_the_array(seed);
    test_timers_at_the_borders_of_wheel_levels_fire_at_their_tick();
    test_a_tick_in_the_past_is_due_at_the_next_advance();
    test_removing_a_timer_twice_has_no_effect();
    return 0;
}
