/* broker/flight.c: see broker/flight.h. */
#include "broker/flight.h"

#define PLACES_MIN 8u

/* ---- the table --------------------------------------------------------------------------------------------------- */

void flights_init(flights_t *flights, uint32_t limit, bool logs) { *flights = (flights_t){.limit = limit, .logs = logs}; }

static void again_end(flights_t *flights, pool_t *pool) {
    if (flights->again) pool_free(pool, flights->again, flights->again_count * sizeof *flights->again);
    flights->again = NULL;
    flights->again_count = flights->again_at = 0;
}

void flights_release(flights_t *flights, pool_t *pool) {
    again_end(flights, pool);
    if (flights->places) pool_free(pool, flights->places, flights->capacity * sizeof(flight_t));
    *flights = (flights_t){.limit = flights->limit, .logs = flights->logs, .last_id = flights->last_id};
}

/* The place of the id, or the free one where its search ends. */
static flight_t *place_of(const flights_t *flights, uint16_t id) {
    uint32_t at = id & (flights->capacity - 1);
    while (flights->places[at].id && flights->places[at].id != id) at = (at + 1) & (flights->capacity - 1);
    return &flights->places[at];
}

flight_t *flight_find(const flights_t *flights, uint16_t id) {
    if (!id || !flights->count) return NULL;
    flight_t *place = place_of(flights, id);
    return place->id ? place : NULL;
}

static bool places_move(flights_t *flights, pool_t *pool, uint32_t capacity) {
    flight_t *places = pool_alloc(pool, capacity * sizeof *places), *old = flights->places;
    if (!places) return false;
    uint32_t old_capacity = flights->capacity;
    memset(places, 0, capacity * sizeof *places);
    flights->places = places;
    flights->capacity = capacity;
    for (uint32_t i = 0; i < old_capacity; i++)
        if (old[i].id) *place_of(flights, old[i].id) = old[i];
    if (old) pool_free(pool, old, old_capacity * sizeof *old);
    return true;
}

/* A place stays free in any case, so that a search ends. */
static bool places_reserve(flights_t *flights, pool_t *pool) {
    if (flights->count + 1 <= flights->capacity / 4 * 3) return true;
    return places_move(flights, pool, flights->capacity ? flights->capacity * 2 : PLACES_MIN) ||
           flights->count + 1 < flights->capacity;
}

/* Moves later flights of the same search into the gap. */
static void place_free(flights_t *flights, flight_t *place) {
    const uint32_t mask = flights->capacity - 1;
    uint32_t gap = (uint32_t)(place - flights->places), at = gap;
    flights->open -= !place->away;
    flights->count--;
    while (flights->places[at = (at + 1) & mask].id) {
        uint32_t home = flights->places[at].id & mask;
        if (((at - home) & mask) < ((at - gap) & mask)) continue; /* its search begins behind the gap */
        flights->places[gap] = flights->places[at];
        gap = at;
    }
    flights->places[gap].id = 0;
}

static uint16_t id_next(flights_t *flights) {
    do flights->last_id = flights->last_id < FLIGHTS_MAX ? flights->last_id + 1 : 1;
    while (flight_find(flights, flights->last_id));
    return flights->last_id;
}

flight_t *flight_add(flights_t *flights, pool_t *pool, uint64_t message, uint8_t qos) {
    if (!flight_room(flights) || flights->count >= FLIGHTS_MAX || !places_reserve(flights, pool)) return NULL;
    uint16_t id = id_next(flights);
    bool logs = qos == 2 && flights->logs;
    flight_t *place = place_of(flights, id);
    *place = (flight_t){.message = message,
                        .order = ++flights->order,
                        .id = id,
                        .state = logs ? FLIGHT_LOGGING : FLIGHT_SENT,
                        .qos = qos & 3u,
                        .told = !logs};
    flights->count++;
    flights->open++;
    return place;
}

void flight_cancel(flights_t *flights, uint16_t id) {
    flight_t *place = flight_find(flights, id);
    if (!place) return;
    if (flights->last_id == id) flights->last_id--;
    place_free(flights, place);
}

bool flight_restore(flights_t *flights, pool_t *pool, const flight_t *found) {
    bool valid =
        found->id && (found->qos == 1 ? found->state == FLIGHT_SENT
                                      : found->qos == 2 && found->state >= FLIGHT_LOGGING && found->state <= FLIGHT_RELEASED);
    if (!valid || flight_find(flights, found->id) || !places_reserve(flights, pool)) return false;
    flight_t *place = place_of(flights, found->id);
    *place = *found;
    place->order = ++flights->order;
    place->away = true;
    flights->last_id = found->id;
    flights->count++;
    return true;
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

#define ROWS 5u

/* By state, SENT twice: for QoS 1 and for QoS 2. */
static const uint8_t STEPS[ROWS][FLIGHT_EVENTS] = {
    /*               on disk              PUBACK          PUBREC               PUBREC, error   PUBCOMP */
    /* LOGGING  */ {FLIGHT_SEND_PUBLISH, FLIGHT_UNKNOWN, FLIGHT_UNKNOWN, FLIGHT_UNKNOWN, FLIGHT_UNKNOWN},
    /* SENT, 1  */ {FLIGHT_NOTHING, FLIGHT_SETTLE, FLIGHT_WRONG, FLIGHT_WRONG, FLIGHT_WRONG},
    /* SENT, 2  */ {FLIGHT_NOTHING, FLIGHT_WRONG, FLIGHT_LOG_RECEIVED, FLIGHT_SETTLE, FLIGHT_WRONG},
    /* RECEIVED */ {FLIGHT_SEND_PUBREL, FLIGHT_WRONG, FLIGHT_NOTHING, FLIGHT_NOTHING, FLIGHT_WRONG},
    /* RELEASED */ {FLIGHT_NOTHING, FLIGHT_WRONG, FLIGHT_SEND_PUBREL, FLIGHT_SETTLE, FLIGHT_SETTLE}};

static uint32_t row_of(const flight_t *flight) {
    switch (flight->state) {
    case FLIGHT_LOGGING: return 0;
    case FLIGHT_SENT: return flight->qos == 2 ? 2 : 1;
    case FLIGHT_RECEIVED: return 3;
    default: return 4;
    }
}

static void took_part(flights_t *flights, flight_t *flight) {
    flights->open += flight->away;
    flight->away = false;
}

enum flight_step flight_on(flights_t *flights, uint16_t id, enum flight_event event, flight_t *flight) {
    flight_t *place = flight_find(flights, id);
    if (!place) return FLIGHT_UNKNOWN;
    enum flight_step step = STEPS[row_of(place)][event];
    if (step == FLIGHT_UNKNOWN) return step;
    if (step == FLIGHT_LOG_RECEIVED && !flights->logs) step = FLIGHT_SEND_PUBREL;
    if (step == FLIGHT_LOG_RECEIVED || step == FLIGHT_SEND_PUBREL) {
        if (place->state == FLIGHT_SENT) place->order = ++flights->order;
        place->state = step == FLIGHT_SEND_PUBREL ? FLIGHT_RELEASED : FLIGHT_RECEIVED;
    } else if (step == FLIGHT_SEND_PUBLISH) {
        place->state = FLIGHT_SENT;
        place->told |= !place->away;
    }
    bool waits = event == FLIGHT_ON_DURABLE && place->away; /* sent when the client is back */
    if (event != FLIGHT_ON_DURABLE && step != FLIGHT_WRONG) took_part(flights, place);
    *flight = *place;
    if (step == FLIGHT_SETTLE) place_free(flights, place);
    return waits ? FLIGHT_NOTHING : step;
}

/* ---- away and back ----------------------------------------------------------------------------------------------- */

void flights_leave(flights_t *flights, pool_t *pool) {
    again_end(flights, pool);
    flights->open = 0;
    if (!flights->count) {
        flights_release(flights, pool);
        return;
    }
    for (uint32_t i = 0; i < flights->capacity; i++) flights->places[i].away = true;
    uint32_t capacity = PLACES_MIN;
    while (flights->count > capacity / 4 * 3) capacity *= 2;
    if (capacity < flights->capacity) places_move(flights, pool, capacity); /* without memory it stays as large */
}

/* The age of its order number, which may have wrapped. */
static uint32_t rank(const flights_t *flights, uint16_t id) { return flight_find(flights, id)->order - (flights->order + 1); }

static void sift(const flights_t *flights, uint16_t *ids, uint32_t at, uint32_t count) {
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && rank(flights, ids[child + 1]) > rank(flights, ids[child])) child++;
        if (rank(flights, ids[at]) >= rank(flights, ids[child])) return;
        uint16_t id = ids[at];
        ids[at] = ids[child];
        ids[child] = id;
    }
}

/* Heapsort: no memory, and no worst case. */
static void sort(const flights_t *flights, uint16_t *ids, uint32_t count) {
    for (uint32_t at = count / 2; at-- > 0;) sift(flights, ids, at, count);
    while (count > 1) {
        uint16_t id = ids[0];
        ids[0] = ids[--count];
        ids[count] = id;
        sift(flights, ids, 0, count);
    }
}

bool flights_return(flights_t *flights, pool_t *pool, uint32_t limit) {
    core_assert(!flights->again && !flights->open);
    uint16_t *ids = flights->count ? pool_alloc(pool, flights->count * sizeof *ids) : NULL;
    if (flights->count && !ids) return false;
    flights->limit = limit;
    flights->again = ids;
    for (uint32_t i = 0; i < flights->capacity; i++)
        if (flights->places[i].id) ids[flights->again_count++] = flights->places[i].id;
    sort(flights, ids, flights->again_count);
    return true;
}

flight_t *flight_again(flights_t *flights, pool_t *pool, bool *dup) {
    while (flights->again_at < flights->again_count) {
        flight_t *flight = flight_find(flights, flights->again[flights->again_at]);
        bool waits = flight && (flight->state == FLIGHT_LOGGING || flight->state == FLIGHT_RECEIVED);
        if (flight && flight->away && !waits) {
            if (flight->state == FLIGHT_SENT && flights->open >= flights->limit) return NULL;
            if (++flights->again_at == flights->again_count) again_end(flights, pool);
            took_part(flights, flight);
            *dup = flight->told;
            flight->told = true;
            return flight;
        }
        if (waits) took_part(flights, flight); /* the disk's answer sends it */
        flights->again_at++;
    }
    again_end(flights, pool);
    return NULL;
}
