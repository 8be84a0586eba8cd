/* broker/flight.h: the packet ids of one MQTT session: which message each stands for, and what was last sent for it.
 *
 *      QoS 1    SENT -PUBACK-> .
 *      QoS 2    (LOGGING -on disk->) SENT -PUBREC-> (RECEIVED -on disk->) RELEASED -PUBCOMP-> .        ( ) durable sessions only
 *
 * Ids are given out from 1 in order, again from 1 after 65535, without those in use. When the client is away, the table stays. When
 * it returns, what was not settled is sent again with the same ids in the same order: messages in the order of their first
 * sending, PUBRELs in the order of their PUBRECs. New messages wait for the end of that.
 *
 * The module knows neither packets nor consumers. It says what to do, and its caller does it.
 *
 * Invariant: an id is in the table from flight_add until flight_on returns FLIGHT_SETTLE for it, or until the session ends. At
 * most `limit` messages are open, and at most 65,535 flights exist.
 */
#ifndef BQ_FLIGHT_H
#define BQ_FLIGHT_H

#include "base/pool.h"

#define FLIGHTS_MAX 65535u

enum flight_state {
    FLIGHT_LOGGING = 1, /* QoS 2: its id is not on disk yet, and it was not sent */
    FLIGHT_SENT,
    FLIGHT_RECEIVED, /* PUBREC has come and is not on disk yet */
    FLIGHT_RELEASED  /* PUBREL was sent */
};

typedef struct flight {
    uint64_t message; /* its id */
    uint32_t order;
    uint16_t id; /* 0: a free place of the table */
    uint8_t state;
    uint8_t qos : 2;
    uint8_t told : 1; /* the client may have the message: it is sent with DUP */
    uint8_t away : 1; /* nothing was sent for it over this connection */
} flight_t;

typedef struct flights {
    flight_t *places;  /* hash table by id; ids follow each other, so they seldom meet */
    uint32_t capacity; /* a power of two, or 0 */
    uint32_t count;    /* all flights */
    uint32_t open;     /* those that are not away */
    uint32_t limit;    /* most open flights */
    uint32_t order;    /* of the newest */
    uint16_t last_id;
    bool logs;       /* the session is durable: QoS 2 waits for the disk */
    uint16_t *again; /* ids to be sent again, in order */
    uint32_t again_count, again_at;
} flights_t;

/* What has happened. */
enum flight_event {
    FLIGHT_ON_DURABLE, /* the record of LOGGING or RECEIVED is on disk */
    FLIGHT_ON_PUBACK,
    FLIGHT_ON_PUBREC,
    FLIGHT_ON_REFUSED, /* PUBREC with an error */
    FLIGHT_ON_PUBCOMP,
    FLIGHT_EVENTS
};

/* What to do then. */
enum flight_step {
    FLIGHT_NOTHING,
    FLIGHT_SEND_PUBLISH,
    FLIGHT_LOG_RECEIVED, /* append the record; FLIGHT_ON_DURABLE follows */
    FLIGHT_SEND_PUBREL,
    FLIGHT_SETTLE,  /* the id is free again */
    FLIGHT_UNKNOWN, /* no such id */
    FLIGHT_WRONG    /* the client answers a message with a packet of the other QoS, or too early */
};

static inline uint32_t flight_limit(uint32_t receive_maximum, uint32_t max_in_flight) {
    uint32_t limit = receive_maximum < max_in_flight ? receive_maximum : max_in_flight;
    return limit < FLIGHTS_MAX ? limit : FLIGHTS_MAX;
}

void flights_init(flights_t *flights, uint32_t limit, bool logs);
void flights_release(flights_t *flights, pool_t *pool);

/* Whether a message may be sent now. */
static inline bool flight_room(const flights_t *flights) { return flights->open < flights->limit && !flights->again; }
/* A message gets an id. With `logs` and QoS 2 it is LOGGING, else SENT. NULL: no room, or no memory. The pointer is valid until
 * the next call of this module. */
flight_t *flight_add(flights_t *flights, pool_t *pool, uint64_t message, uint8_t qos);
/* The message was not sent after all. */
void flight_cancel(flights_t *flights, uint16_t id);
flight_t *flight_find(const flights_t *flights, uint16_t id); /* NULL: none */
/* *flight: as it is after the event, or as it was, if it is settled. Not changed for UNKNOWN. */
enum flight_step flight_on(flights_t *flights, uint16_t id, enum flight_event event, flight_t *flight);

/* The connection ends: all flights are away. */
void flights_leave(flights_t *flights, pool_t *pool);
/* The client is back. False: no memory; nothing has changed. */
bool flights_return(flights_t *flights, pool_t *pool, uint32_t limit);
/* The next one to be sent again: PUBLISH if it is SENT, with DUP if `dup`; PUBREL if RELEASED. NULL: none now. Call it again when
 * a flight was settled, until flight_room. */
flight_t *flight_again(flights_t *flights, pool_t *pool, bool *dup);

/* A flight found in the WAL. False: no memory, the id is in use, or the state is not valid. */
bool flight_restore(flights_t *flights, pool_t *pool, const flight_t *found);

#endif
