/* net/admission.c: see net/admission.h for the picture and the invariants.
 *
 * When no token or descriptor is free, accepting pauses ("rests"). Pending connections then wait in the kernel's backlog. The
 * rest ends by a timer, when the token bucket is refilled, or as soon as a connection closes its descriptor.
 */
#include "base/socket.h"
#include "net/net.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/websocket.h"
#include "proto/protocol.h"

#include <errno.h>
#include <stdlib.h>

#define ACCEPTS_MAX 256u       /* per listener and turn */
#define EXHAUSTED_REST_MS 100u /* when no connection frees a descriptor earlier */
#define RATE_REST_MS 10u       /* minimum: accepting several at once costs less than one wakeup for each */
#define DESCRIPTORS_SPARE 32u  /* reserved for the WAL's files, a reload, the metrics */
#define TOKEN 1000u

/* ---- addresses ------------------------------------------------------------------------------------------------------- */

static bool address_counts(const uint8_t peer[16]) {
    static const uint8_t none[16], loopback[16] = {[15] = 1}, loopback_mapped[13] = {[10] = 0xff, 0xff, 127};
    return memcmp(peer, none, 16) && memcmp(peer, loopback, 16) && memcmp(peer, loopback_mapped, 13);
}

static void address_of(const uint8_t peer[16], uint8_t address[16]) {
    static const uint8_t mapped[12] = {[10] = 0xff, 0xff};
    memcpy(address, peer, 16);
    if (memcmp(peer, mapped, sizeof mapped)) memset(address + 8, 0, 8);
}

static uint32_t place_home(const admission_t *admission, const uint8_t address[16]) {
    return (uint32_t)hash_bytes(&admission->key, address, 16, 0) & admission->places_mask;
}

/* The slot of an address, or the free slot where it belongs. There is always one: the table is at most half full. */
static uint32_t place_find(const admission_t *admission, const uint8_t address[16]) {
    uint32_t at = place_home(admission, address);
    while (admission->places[at].count && memcmp(admission->places[at].address, address, 16))
        at = (at + 1) & admission->places_mask;
    return at;
}

static void place_add(admission_t *admission, const uint8_t peer[16]) {
    uint8_t address[16];
    address_of(peer, address);
    admission_place_t *place = &admission->places[place_find(admission, address)];
    memcpy(place->address, address, 16);
    place->count++;
}

/* Free a slot without a hole in a probe sequence: later entries move up, but never before their home slot. */
static void place_free(admission_t *admission, uint32_t hole) {
    uint32_t mask = admission->places_mask;
    for (uint32_t at = (hole + 1) & mask; admission->places[at].count; at = (at + 1) & mask) {
        uint32_t home = place_home(admission, admission->places[at].address);
        if (((at - home) & mask) < ((at - hole) & mask)) continue;
        admission->places[hole] = admission->places[at];
        hole = at;
    }
    admission->places[hole].count = 0;
}

static void place_remove(admission_t *admission, const uint8_t peer[16]) {
    uint8_t address[16];
    address_of(peer, address);
    uint32_t at = place_find(admission, address);
    if (--admission->places[at].count == 0) place_free(admission, at);
}

static uint32_t place_count(const admission_t *admission, const uint8_t peer[16]) {
    uint8_t address[16];
    address_of(peer, address);
    return admission->places[place_find(admission, address)].count;
}

/* ---- not admitted yet -------------------------------------------------------------------------------------------------- */

static void silent_remove(admission_t *admission, connection_t *connection) {
    if (!connection->silent) return;
    connection->silent = false;
    *(connection->silent_prev ? &connection->silent_prev->silent_next : &admission->silent_first) = connection->silent_next;
    *(connection->silent_next ? &connection->silent_next->silent_prev : &admission->silent_last) = connection->silent_prev;
}

static void silent_append(admission_t *admission, connection_t *connection) {
    connection->silent = true;
    connection->silent_prev = admission->silent_last;
    connection->silent_next = NULL;
    *(admission->silent_last ? &admission->silent_last->silent_next : &admission->silent_first) = connection;
    admission->silent_last = connection;
}

static void silent_prepend(admission_t *admission, connection_t *connection) {
    connection->silent = true;
    connection->silent_prev = NULL;
    connection->silent_next = admission->silent_first;
    *(admission->silent_first ? &admission->silent_first->silent_prev : &admission->silent_last) = connection;
    admission->silent_first = connection;
}

static connection_t *longest_silent(const admission_t *admission) {
    connection_t *connection = admission->silent_first;
    while (connection && connection->away) connection = connection->silent_next;
    return connection;
}

/* Such a connection is unadmitted at first. */
static bool needs_place(const net_t *net, const endpoint_t *endpoint) {
    return net->broker.config.require_hello || endpoint->transport->shakes || endpoint->websocket || endpoint->protocol->greets;
}

bool admission_make_room(net_t *net, const endpoint_t *endpoint, const uint8_t peer[16], uint16_t port) {
    admission_t *admission = &net->admission;
    const bool shakes = endpoint->transport->shakes;
    if (!needs_place(net, endpoint)) return true;
    if (address_counts(peer) && place_count(admission, peer) >= net->broker.config.max_pending_per_address) {
        net->broker.stats.refused_pending_address++;
        if (shakes) secure_refused(net, peer, port, true);
        return false;
    }
    if (admission->unadmitted < net->broker.config.max_pending) return true;
    net->broker.stats.refused_pending++;
    connection_t *other = longest_silent(admission);
    if (other)
        connection_close(net, other, BQ_CLOSE_CROWDED, "closed to make room for a new connection: limits.max_pending is reached");
    else if (shakes)
        secure_refused(net, peer, port, false);
    return other != NULL;
}

void admission_enter(net_t *net, connection_t *connection) {
    admission_t *admission = &net->admission;
    connection->unadmitted = true;
    admission->unadmitted++;
    silent_append(admission, connection);
    if (address_counts(connection->peer)) place_add(admission, connection->peer);
}

void admission_heard(net_t *net, connection_t *connection) { silent_remove(&net->admission, connection); }

/* It has had an answer, so it is the first to be closed if others need the place. Until then it may try again. */
void admission_answered(net_t *net, connection_t *connection) {
    if (connection->unadmitted && !connection->silent) silent_prepend(&net->admission, connection);
}

void admission_leave(net_t *net, connection_t *connection) {
    if (!connection->unadmitted) return;
    core_assert(net->admission.unadmitted > 0);
    connection->unadmitted = false;
    net->admission.unadmitted--;
    silent_remove(&net->admission, connection);
    if (address_counts(connection->peer)) place_remove(&net->admission, connection->peer);
}

/* ---- the rate -------------------------------------------------------------------------------------------------------- */

static void tokens_fill(net_t *net) {
    admission_t *admission = &net->admission;
    uint64_t most = (uint64_t)net->broker.config.accept_burst * TOKEN, passed_ms = net->broker.now_ms - admission->filled_ms;
    admission->filled_ms = net->broker.now_ms;
    /* One connection per second is a thousandth of a connection per millisecond. */
    uint64_t room = admission->tokens < most ? most - admission->tokens : 0, rate = net->broker.config.accept_rate;
    if (!rate || passed_ms > room / rate)
        admission->tokens = most;
    else
        admission->tokens += passed_ms * rate;
}

static uint64_t tokens_wait_ms(const net_t *net) {
    uint64_t wait_ms = (TOKEN - net->admission.tokens + net->broker.config.accept_rate - 1) / net->broker.config.accept_rate;
    return wait_ms > RATE_REST_MS ? wait_ms : RATE_REST_MS;
}

static bool token_there(const net_t *net) { return !net->broker.config.accept_rate || net->admission.tokens >= TOKEN; }

static void token_take(net_t *net) {
    if (net->broker.config.accept_rate) net->admission.tokens -= TOKEN;
}

/* ---- accepting ------------------------------------------------------------------------------------------------------- */

static void listeners_watch(net_t *net, bool watch) {
    const admission_t *admission = &net->admission;
    for (uint32_t i = 0; i < admission->listener_count; i++)
        poll_set(net->poller, admission->listeners[i].fd, KEY_LISTENER + i, watch ? 0 : POLL_READ, watch ? POLL_READ : 0);
}

static void rest(net_t *net, uint64_t for_ms) {
    if (!net->admission.resting) listeners_watch(net, false);
    net->admission.resting = true;
    timer_set(&net->broker, &net->admission.timer, for_ms);
}

void admission_listen(net_t *net, int fd, const endpoint_t *endpoint) {
    admission_t *admission = &net->admission;
    if (net->broker.stopping || admission->listener_count == LISTENERS_MAX || (endpoint->transport->shakes && !net->secure) ||
        (!admission->resting && poll_set(net->poller, fd, KEY_LISTENER + admission->listener_count, 0, POLL_READ) < 0)) {
        socket_close(fd);
        return;
    }
    admission->listeners[admission->listener_count++] = (listener_t){fd, *endpoint};
}

void admission_unlisten(net_t *net) {
    admission_t *admission = &net->admission;
    if (!admission->resting) listeners_watch(net, false);
    for (uint32_t i = 0; i < admission->listener_count; i++) socket_close(admission->listeners[i].fd);
    admission->listener_count = 0;
    admission->look = admission->resting = admission->exhausted = false;
    wheel_remove(&net->broker.wheel, &admission->timer.wheel);
}

void admission_timeout(net_t *net) { net->admission.look = true; }

static void options_set(net_t *net, int fd) {
    const bq_config_t *config = &net->broker.config;
    socket_options(fd, config->tcp_nodelay, config->send_buffer_bytes, config->recv_buffer_bytes);
    keepalive_socket(net, fd);
}

/* Above max_connections: keep it just long enough to answer its HELLO. If there are too many of these too, close it at once. */
static void turn_away(net_t *net, const listener_t *listener, int fd, const uint8_t peer[16], uint16_t port) {
    connection_t *connection =
        net->refused_count < REFUSED_MAX ? connection_open(net, &listener->endpoint, fd, peer, port, true) : NULL;
    net->broker.stats.refused++;
    if (!connection) {
        socket_close(fd);
        return;
    }
    options_set(net, fd);
    connection->refused = true;
    net->refused_count++;
    timer_set(&net->broker, &connection->timer, REFUSED_MS);
    if (listener->endpoint.websocket) websocket_begin(net, connection);
}

static void welcome(net_t *net, const listener_t *listener, int fd, const uint8_t peer[16], uint16_t port) {
    if (net->open_count >= net->broker.config.max_connections) {
        turn_away(net, listener, fd, peer, port);
        return;
    }
    bool room = admission_make_room(net, &listener->endpoint, peer, port);
    connection_t *connection = room ? connection_open(net, &listener->endpoint, fd, peer, port, false) : NULL;
    if (!connection) {
        net->broker.stats.refused += room; /* no memory for it */
        socket_close(fd);
        return;
    }
    token_take(net); /* refused connections take no token, so a full address does not delay others */
    options_set(net, fd);
    net->open_count++;
    net->broker.stats.accepted++;
    if (listener->endpoint.websocket) websocket_begin(net, connection);
}

/* After descriptors ran out, check that one is free before accepting, because an accepted connection could only be closed. */
static int accept_one(net_t *net, int listener, int64_t fd_end, uint8_t peer[16], uint16_t *port) {
    const admission_t *admission = &net->admission;
    if (admission->exhausted && admission->error == EMFILE && !poll_descriptor_free(net->poller, fd_end)) {
        errno = EMFILE;
        return BQ_E_SYSTEM;
    }
    int fd = poll_accept(listener, peer, port);
    if (fd < fd_end) return fd;
    socket_close(fd);
    net->broker.stats.refused_descriptors++;
    errno = EMFILE;
    return BQ_E_SYSTEM;
}

/* false: stop for now, the listeners rest. */
static bool accept_from(net_t *net, const listener_t *listener, int64_t fd_end) {
    for (uint32_t i = 0; i < ACCEPTS_MAX; i++) {
        uint8_t peer[16];
        uint16_t port;
        if (!token_there(net)) {
            net->broker.stats.accept_rests++;
            net->admission.exhausted = false;
            rest(net, tokens_wait_ms(net));
            return false;
        }
        int fd = accept_one(net, listener->fd, fd_end, peer, &port);
        if (fd >= 0) {
            welcome(net, listener, fd, peer, port);
            continue;
        }
        if (fd != BQ_E_SYSTEM || errno == EPERM) return true; /* EPERM: a firewall rejected this one */
        net->admission.exhausted = true;
        net->admission.error = errno;
        rest(net, EXHAUSTED_REST_MS);
        return false;
    }
    return true;
}

/* Try again while the event ring is full: the event that the listeners are open again must not be lost. */
static void tell(net_t *net) {
    admission_t *admission = &net->admission;
    if (admission->told == admission->exhausted || net->broker.stopping) return;
    bq_event_t event = {
        .type = BQ_EV_ACCEPT, .code = admission->exhausted, .value = admission->exhausted ? (uint64_t)admission->error : 0};
    if (event_push(&net->broker, &event)) admission->told = admission->exhausted;
}

static bool accept_all(net_t *net) {
    admission_t *admission = &net->admission;
    int64_t fd_end = poll_descriptors_end(DESCRIPTORS_SPARE);
    tokens_fill(net);
    uint32_t first = admission->first++;
    for (uint32_t i = 0; i < admission->listener_count; i++)
        if (!accept_from(net, &admission->listeners[(first + i) % admission->listener_count], fd_end)) return false;
    return true;
}

void admission_accept(net_t *net) {
    admission_t *admission = &net->admission;
    if (admission->look && admission->listener_count) {
        admission->look = false;
        if (accept_all(net)) {
            if (admission->resting) listeners_watch(net, true);
            admission->resting = admission->exhausted = false;
            wheel_remove(&net->broker.wheel, &admission->timer.wheel);
        }
    }
    tell(net);
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

bool admission_init(net_t *net) {
    admission_t *admission = &net->admission;
    uint32_t size = 2;
    while (size < 2ull * net->broker.config.max_pending) size *= 2;
    admission->places = calloc(size, sizeof *admission->places);
    admission->places_mask = size - 1;
    admission->key = net->broker.hash_key;
    admission->tokens = (uint64_t)net->broker.config.accept_burst * TOKEN;
    admission->timer.kind = TIMER_ACCEPT;
    return admission->places != NULL;
}

void admission_release(net_t *net) { free(net->admission.places); }
