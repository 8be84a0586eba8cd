/* test_flight.c: the packet ids of an MQTT session: the table of steps row by row, and random flights against an array by id.
 *
 * Invariants checked: flights that are sent again come in the order of their first sending; an id is in use once; no memory is
 * left when all flights are settled.
 */
#include <string.h>

#include "check.h"
#include "broker/flight.h"

enum { STEPS = 300000, LIMIT = 200 };

typedef struct row {
    uint8_t state, qos, event, step, then; /* then: the state after it; 0: settled */
} row_t;

/* Of a durable session; for another one, PUBREC leads to RELEASED at once. */
static const row_t rows[] = {
    {FLIGHT_LOGGING, 2, FLIGHT_ON_DURABLE, FLIGHT_SEND_PUBLISH, FLIGHT_SENT},
    {FLIGHT_LOGGING, 2, FLIGHT_ON_PUBREC, FLIGHT_UNKNOWN, FLIGHT_LOGGING},
    {FLIGHT_SENT, 1, FLIGHT_ON_PUBACK, FLIGHT_SETTLE, 0},
    {FLIGHT_SENT, 1, FLIGHT_ON_PUBREC, FLIGHT_WRONG, FLIGHT_SENT},
    {FLIGHT_SENT, 1, FLIGHT_ON_PUBCOMP, FLIGHT_WRONG, FLIGHT_SENT},
    {FLIGHT_SENT, 2, FLIGHT_ON_PUBACK, FLIGHT_WRONG, FLIGHT_SENT},
    {FLIGHT_SENT, 2, FLIGHT_ON_PUBREC, FLIGHT_LOG_RECEIVED, FLIGHT_RECEIVED},
    {FLIGHT_SENT, 2, FLIGHT_ON_REFUSED, FLIGHT_SETTLE, 0},
    {FLIGHT_SENT, 2, FLIGHT_ON_PUBCOMP, FLIGHT_WRONG, FLIGHT_SENT},
    {FLIGHT_RECEIVED, 2, FLIGHT_ON_PUBREC, FLIGHT_NOTHING, FLIGHT_RECEIVED},
    {FLIGHT_RECEIVED, 2, FLIGHT_ON_DURABLE, FLIGHT_SEND_PUBREL, FLIGHT_RELEASED},
    {FLIGHT_RELEASED, 2, FLIGHT_ON_PUBREC, FLIGHT_SEND_PUBREL, FLIGHT_RELEASED},
    {FLIGHT_RELEASED, 2, FLIGHT_ON_PUBCOMP, FLIGHT_SETTLE, 0},
};

static void check_rows(pool_t *pool) {
    for (const row_t *row = rows; row < rows + sizeof rows / sizeof *rows; row++) {
        flights_t flights;
        flights_init(&flights, LIMIT, true);
        bool dup;
        flight_t flight = {.message = 7, .id = 9, .state = row->state, .qos = row->qos & 3u};
        CHECK(flight_restore(&flights, pool, &flight) && flights_return(&flights, pool, LIMIT));
        flight_again(&flights, pool, &dup);
        CHECK(flight_on(&flights, 9, row->event, &flight) == row->step);
        CHECK(row->then ? flight_find(&flights, 9)->state == row->then : !flight_find(&flights, 9));
        flights_release(&flights, pool);
    }
    flights_t plain;
    flight_t flight;
    flights_init(&plain, LIMIT, false);
    CHECK(flight_add(&plain, pool, 7, 2)->state == FLIGHT_SENT);
    CHECK(flight_on(&plain, 1, FLIGHT_ON_PUBREC, &flight) == FLIGHT_SEND_PUBREL && flight.state == FLIGHT_RELEASED);
    CHECK(flight_on(&plain, 0, FLIGHT_ON_PUBACK, &flight) == FLIGHT_UNKNOWN);
    flights_release(&plain, pool);
}

static uint64_t lsns[FLIGHTS_MAX + 1]; /* by id; 0: not in use */

static void check_again(flights_t *flights, pool_t *pool) {
    uint64_t last = 0;
    bool dup;
    flights_leave(flights, pool);
    CHECK(flights_return(flights, pool, LIMIT));
    for (flight_t *flight; (flight = flight_again(flights, pool, &dup)); last = flight->message)
        CHECK(dup && flight->message == lsns[flight->id] && flight->message > last);
    CHECK(flights->open == flights->count);
}

static void check_random(pool_t *pool) {
    uint64_t state = 1;
    uint32_t count = 0;
    flights_t flights;
    flights_init(&flights, LIMIT, false);
    for (uint64_t lsn = 1; lsn <= STEPS; lsn++) {
        uint16_t id = (uint16_t)(flights.last_id - random_below(&state, 2 * LIMIT));
        flight_t flight, *added;
        if (random_below(&state, 1000) == 0) check_again(&flights, pool);
        if (random_below(&state, 2)) {
            added = flight_add(&flights, pool, lsn, 1);
            CHECK(!added == (count == LIMIT));
            if (added) CHECK(!lsns[added->id]);
            if (added) lsns[added->id] = lsn, count++;
            continue;
        }
        CHECK(flight_on(&flights, id, FLIGHT_ON_PUBACK, &flight) == (lsns[id] ? FLIGHT_SETTLE : FLIGHT_UNKNOWN));
        if (!lsns[id]) continue;
        CHECK(flight.message == lsns[id]);
        lsns[id] = 0;
        count--;
    }
    CHECK(flights.count == count);
    flights_release(&flights, pool);
}

int main(void) {
    pool_t pool;
    pool_init(&pool, 4, 4, 4);
    check_rows(&pool);
    check_random(&pool);
    CHECK(pool.used_bytes == pool.free_bytes);
    pool_release(&pool);
    return 0;
}
