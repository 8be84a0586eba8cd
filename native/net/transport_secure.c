/* net/transport_secure.c: a connection over a socket that speaks TLS. See net/secure.h for the picture and the invariants.
 *
 * One recv takes all that has come, one send gives all records of a batch. close_notify is sent when a connection finishes, and
 * tried at every other end except a reset. The peer's close_notify is its end of file.
 */
#include "net/net.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/transport_io.h"

#include <errno.h>
#include <stdlib.h>

/* What one recv gave. */
typedef struct ciphertext {
    const uint8_t *bytes;
    uint32_t size;
} ciphertext_t;

static bool secure_is_open(const connection_t *connection) { return connection->secure && connection->secure->open; }

static uint32_t unsent_bytes(const connection_t *connection) { return connection->secure ? connection->secure->unsent_size : 0; }

static void count_work(net_t *net, uint32_t bytes) { net->broker.stats.work += WORK_RECORD + bytes / 64; }

static void secure_interest(net_t *net, connection_t *connection) {
    uint8_t want = 0;
    if (connection->state == CONNECTION_DEAD) return;
    if (!connection->away) {
        bool reads = connection->state == CONNECTION_OPEN && !connection->client.pause && !connection->input_ended &&
                     unsent_bytes(connection) < UNSENT_BYTES_MAX;
        if (reads || connection->state == CONNECTION_LINGERING) want |= POLL_READ;
        if (unsent_bytes(connection)) want |= POLL_WRITE;
        if (!want && !connection->broken) want = POLL_ERROR;
    }
    transport_tcp_watch(net, connection, want);
}

/* ---- events ---------------------------------------------------------------------------------------------------------- */

/* false: there were enough in this second, and it is only counted. */
static bool may_tell(net_t *net) {
    secure_core_t *core = net->secure;
    if (core->told_s != net->broker.now_ms / 1000) core->told = 0;
    core->told_s = net->broker.now_ms / 1000;
    return core->told++ < SECURE_EVENTS_PER_SECOND;
}

static void tell(net_t *net, bq_event_t *event, const uint8_t peer[16], uint16_t port) {
    if (!may_tell(net)) return;
    event->type = BQ_EV_SECURE;
    memcpy(event->peer, peer, sizeof event->peer);
    event->peer_port = port;
    event_push(&net->broker, event);
}

static void tell_of(net_t *net, const connection_t *connection, bq_event_t event) {
    event.conn = connection->client.handle;
    tell(net, &event, connection->peer, connection->peer_port);
}

void secure_refused(net_t *net, const uint8_t peer[16], uint16_t port, bool address) {
    bq_event_t event = {.code = address ? BQ_HANDSHAKE_REFUSED_ADDRESS : BQ_HANDSHAKE_REFUSED};
    net->broker.stats.secure_refused++;
    if (net->secure) tell(net, &event, peer, port);
}

/* Python must know the certificate before the first request of the connection. While the event ring is full, no request is
 * parsed. */
static void tell_opened(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    bq_secure_facts_t facts = {0};
    secure->ops->opened(secure->state, &facts);
    secure->certified = facts.has_certificate;
    if (!facts.has_certificate && !(net->secure->tell && may_tell(net))) return;
    bq_event_t event = {.type = BQ_EV_SECURE,
                        .code = BQ_HANDSHAKE_DONE,
                        .flags = facts.has_certificate ? BQ_EV_CERTIFICATE : 0,
                        .conn = connection->client.handle,
                        .peer_port = connection->peer_port,
                        .text = (const uint8_t *)facts.subject,
                        .text_size = (uint32_t)strnlen(facts.subject, sizeof facts.subject),
                        .data = (const uint8_t *)facts.version,
                        .data_size = (uint32_t)strnlen(facts.version, sizeof facts.version)};
    memcpy(event.peer, connection->peer, sizeof event.peer);
    bool told = event_push(&net->broker, &event);
    secure->untold = !told && facts.has_certificate;
    if (facts.has_certificate && told) connection->known = true;
    if (!secure->untold) return;
    connection->client.pause |= PAUSE_EVENTS;
    net_retry_later(net, connection);
}

static bool secure_retry(net_t *net, connection_t *connection) {
    if (connection->secure && connection->secure->untold) tell_opened(net, connection);
    return !(connection->secure && connection->secure->untold);
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

static void keep_unsent(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    secure_t *secure = connection->secure;
    if (secure->unsent_at) memmove(secure->unsent, secure->unsent + secure->unsent_at, secure->unsent_size);
    secure->unsent_at = 0;
    if (secure->unsent_capacity - secure->unsent_size < size) {
        uint32_t capacity = (uint32_t)pool_good_size(secure->unsent_size + size);
        uint8_t *unsent = pool_resize(&net->broker.pool, secure->unsent, secure->unsent_capacity, capacity);
        if (!unsent) {
            transport_tcp_failed(net, connection, ENOMEM);
            return;
        }
        secure->unsent = unsent;
        secure->unsent_capacity = capacity;
    }
    memcpy(secure->unsent + secure->unsent_size, bytes, size);
    secure->unsent_size += size;
}

/* Bytes that the socket took. After a failure the next flush closes the connection. */
static uint32_t send_some(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    ssize_t sent = socket_send(connection->fd, &part, 1);
    net->broker.stats.work += WORK_SEND;
    if (sent >= 0) return (uint32_t)sent;
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS) transport_tcp_failed(net, connection, errno);
    return 0;
}

/* Send ciphertext behind that which waits already. */
static void put(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->send_error || !size) return;
    uint32_t sent = connection->secure->unsent_size ? 0 : send_some(net, connection, bytes, size);
    if (sent < size && !connection->send_error) keep_unsent(net, connection, bytes + sent, size - sent);
}

static void send_unsent(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    if (!secure->unsent_size) return;
    uint32_t sent = send_some(net, connection, secure->unsent + secure->unsent_at, secure->unsent_size);
    secure->unsent_at += sent;
    secure->unsent_size -= sent;
    if (secure->unsent_size) return;
    pool_free(&net->broker.pool, secure->unsent, secure->unsent_capacity);
    secure->unsent = NULL;
    secure->unsent_at = secure->unsent_capacity = 0;
}

/* Encrypts one part. false: the socket or the module takes no more, or the module failed. *taken counts plaintext. */
static bool encrypt_part(net_t *net, connection_t *connection, bq_secure_io_t *io, const struct iovec *part, uint64_t *taken) {
    secure_t *secure = connection->secure;
    for (size_t at = 0; at < part->iov_len;) {
        const size_t left = part->iov_len - at;
        uint32_t did = 0, size = left < SECURE_PLAIN_BYTES ? (uint32_t)left : SECURE_PLAIN_BYTES;
        int result = secure->ops->write(secure->state, io, (const uint8_t *)part->iov_base + at, size, &did);
        at += did;
        *taken += did;
        count_work(net, did);
        if (result == BQ_SECURE_FULL && io->out_used) {
            put(net, connection, io->out, io->out_used);
            io->out_used = 0;
            if (secure->unsent_size || connection->send_error) return false;
        } else if (result == BQ_SECURE_WANT) {
            secure->stalled = true;
            return false;
        } else if (result != BQ_SECURE_DONE) {
            secure->failed = true;
            transport_tcp_failed(net, connection, ECONNRESET);
            return false;
        }
    }
    return true;
}

/* Encrypts and sends one batch, or as much of it as the socket takes. So an entry of the queue is partly sent only if ciphertext
 * waits. */
static void encrypt_batch(net_t *net, connection_t *connection) {
    struct iovec parts[OUTPUT_PARTS_MAX];
    uint64_t bytes, taken = 0;
    bq_secure_io_t io = {.out = net->secure->out, .out_size = SECURE_OUT_BYTES};
    int count = output_gather(net, connection, parts, &bytes);
    for (int i = 0; i < count; i++)
        if (!encrypt_part(net, connection, &io, &parts[i], &taken)) break;
    put(net, connection, io.out, io.out_used);
    if (taken) output_sent(net, connection, taken);
}

static void end_output(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    bq_secure_io_t io = {.out = net->secure->out, .out_size = SECURE_OUT_BYTES};
    secure->ended = true;
    if (secure->ops->goodbye(secure->state, &io) == BQ_SECURE_DONE) put(net, connection, io.out, io.out_used);
}

/* What was queued for a connection that has failed can reach nobody. */
static void secure_flush(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    if (connection->away || connection->send_error) return;
    if (secure && secure->unsent_size) send_unsent(net, connection);
    if (secure && secure->failed) {
        net->broker.stats.dropped_disconnect += queue_clear(&connection->client.queue, &net->broker.queues, UINT32_MAX);
        if (connection->websocket) websocket_output_drop(net, connection);
    } else if (secure_is_open(connection) && !secure->unsent_size && !secure->stalled && !connection->send_error) {
        if (output_left(connection)) encrypt_batch(net, connection);
        if (connection->state == CONNECTION_CLOSING && !output_left(connection) && !secure->unsent_size && !secure->ended)
            end_output(net, connection);
    }
    if (connection->send_error) return;
    bool waits = !secure_is_open(connection) || secure->stalled;
    connection->client.blocked = unsent_bytes(connection) || (waits && output_left(connection));
    connection_update_interest(net, connection);
    if (!connection->client.blocked && output_left(connection))
        client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
}

/* ---- failures -------------------------------------------------------------------------------------------------------- */

/* Its alert is sent, and the client gets time to read it. */
static void secure_fail(net_t *net, connection_t *connection, const bq_secure_error_t *error) {
    secure_t *secure = connection->secure;
    net->broker.stats.secure_failed += !secure->open;
    secure->failed = true;
    tell_of(net, connection,
            (bq_event_t){.code = BQ_HANDSHAKE_FAILED,
                         .text = (const uint8_t *)error->reason,
                         .text_size = (uint32_t)strnlen(error->reason, sizeof error->reason),
                         .data = (const uint8_t *)error->detail,
                         .data_size = (uint32_t)strnlen(error->detail, sizeof error->detail)});
    connection_input_drop(net, connection);
    connection_discard(net, connection);
    connection_finish(net, connection, BQ_CLOSE_RESET, "TLS failed");
}

bool secure_late(net_t *net, connection_t *connection) {
    if (secure_is_open(connection)) return false;
    tell_of(net, connection, (bq_event_t){.code = BQ_HANDSHAKE_LATE, .value = net->broker.config.hello_timeout_ms});
    connection_close(net, connection, BQ_CLOSE_RESET, "no handshake in time");
    return true;
}

/* ---- input ----------------------------------------------------------------------------------------------------------- */

/* Decrypts all of `in`. Answers of TLS itself are sent. Returns the last result of the module; *got counts plaintext. */
static int decrypt(net_t *net, connection_t *connection, ciphertext_t in, uint8_t *into, uint32_t room, uint32_t *got) {
    secure_t *secure = connection->secure;
    bq_secure_io_t io = {.in = in.bytes, .in_size = in.size, .out = net->secure->out, .out_size = SECURE_OUT_BYTES};
    int result;
    for (;;) {
        uint32_t more = 0;
        result = secure->ops->read(secure->state, &io, into + *got, room - *got, &more);
        *got += more;
        if (result == BQ_SECURE_DONE && more && *got < room) continue;
        if (result != BQ_SECURE_FULL || !io.out_used) break;
        put(net, connection, io.out, io.out_used);
        io.out_used = 0;
    }
    put(net, connection, io.out, io.out_used);
    count_work(net, in.size);
    return result;
}

static void end_of_file(net_t *net, connection_t *connection) {
    connection->input_ended = true;
    if (connection->client.pause)
        connection_update_interest(net, connection); /* its end follows when the kept input is parsed */
    else
        input_end(net, connection, 0);
}

/* A browser can reach only this listener over TLS. No frame of BlipMQ begins like a request: its length would be over 1 GiB. */
static void look_for_request(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->secure->begun || size < 4) return;
    connection->secure->begun = true;
    if (!connection->websocket && !memcmp(bytes, "GET ", 4)) websocket_begin(net, connection);
}

/* `room` is more than the plaintext of `in` and of one record that began earlier. */
static void take(net_t *net, connection_t *connection, ciphertext_t in) {
    const uint32_t kept = connection->in_size, room = in.size + RECORD_BYTES_MAX;
    const bool gather_own = kept >= GATHER_BYTES;
    uint32_t got = 0;
    if (gather_own && !input_reserve(net, connection, room)) return;
    uint8_t *buffer = gather_own ? connection->in : net->read_buffer;
    if (!gather_own && kept) memcpy(buffer, connection->in + connection->in_start, kept);
    int result = decrypt(net, connection, in, buffer + kept, room, &got);
    net->turn_bytes += got;
    if (BQ_UNLIKELY(connection->secure->stalled)) {
        connection->secure->stalled = false;
        connection->client.blocked = unsent_bytes(connection) > 0;
        client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
    }
    bq_secure_error_t error = {.reason = "the TLS module is not usable"};
    if (result == BQ_SECURE_FAILED) connection->secure->ops->failed(connection->secure->state, &error);
    look_for_request(net, connection, buffer, kept + got);
    if (got) input_received(net, connection, buffer, kept, got);
    if (connection->state != CONNECTION_OPEN) return;
    if (result == BQ_SECURE_END)
        end_of_file(net, connection);
    else if (result != BQ_SECURE_WANT)
        secure_fail(net, connection, &error);
    else if (unsent_bytes(connection))
        connection_update_interest(net, connection);
}

static bool begin_handshake(net_t *net, connection_t *connection) {
    secure_t *secure = pool_alloc(&net->broker.pool, sizeof *secure);
    void *state = secure ? net->secure->ops->open(net->secure->context) : NULL;
    if (!state) {
        pool_free(&net->broker.pool, secure, sizeof *secure);
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for its TLS state");
        return false;
    }
    *secure = (secure_t){.ops = net->secure->ops, .state = state};
    connection->secure = secure;
    return true;
}

static void secure_stepped(net_t *net, handshake_step_t *step);

/* From now on only the worker uses the state. The poller is told when it reports the connection, which most steps do not see. */
static void make_step(net_t *net, connection_t *connection, ciphertext_t in) {
    handshake_step_t *step = handshake_step_new(in.bytes, in.size);
    if (!step) {
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for its handshake");
        return;
    }
    step->connection = connection;
    step->ops = connection->secure->ops;
    step->state = connection->secure->state;
    connection->away = true;
    if (net->secure->handshakes.running) {
        handshakes_give(&net->secure->handshakes, step);
    } else {
        handshake_step_run(step);
        secure_stepped(net, step);
        handshake_step_free(step);
    }
}

/* A connection that needs neither HELLO nor a WebSocket is admitted by its handshake. Bytes behind the last flight are with the
 * module already, or still in the step. */
static void opened(net_t *net, connection_t *connection, const handshake_step_t *step) {
    connection->secure->open = true;
    net->broker.stats.secure_done++;
    net->broker.stats.secure_open++;
    net->broker.stats.secure_pending--;
    if (connection->admitted && connection->unadmitted && !connection->websocket) {
        admission_leave(net, connection);
        wheel_remove(&net->broker.wheel, &connection->timer.wheel);
    }
    tell_opened(net, connection);
    if (output_left(connection)) client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
    connection->client.blocked = unsent_bytes(connection) > 0;
    take(net, connection, (ciphertext_t){step->in + step->in_used, step->in_size - step->in_used});
}

/* The connection is back. */
static void secure_stepped(net_t *net, handshake_step_t *step) {
    connection_t *connection = step->connection;
    connection->away = false;
    if (connection->state != CONNECTION_OPEN) return;
    put(net, connection, step->out, step->out_used);
    if (step->result == BQ_SECURE_DONE)
        opened(net, connection, step);
    else if (step->result == BQ_SECURE_END)
        input_end(net, connection, 0);
    else if (step->result != BQ_SECURE_WANT)
        secure_fail(net, connection, &step->error);
    connection_update_interest(net, connection);
}

void secure_turn(net_t *net) {
    handshake_step_t *steps = handshakes_take(&net->secure->handshakes), *next;
    for (; steps; steps = next) {
        connection_t *connection = steps->connection;
        uint64_t begun = share_begin(net);
        next = steps->next;
        secure_stepped(net, steps);
        if (connection->state == CONNECTION_OPEN) share_done(net, connection, begun);
        handshake_step_free(steps);
    }
}

static void secure_readable(net_t *net, connection_t *connection) {
    if (connection->away || unsent_bytes(connection) >= UNSENT_BYTES_MAX) {
        connection_update_interest(net, connection);
        return;
    }
    uint64_t limit = (uint64_t)input_limit(net, connection) + RECORD_BYTES_MAX;
    ssize_t got = socket_receive(connection->fd, net->secure->in, limit < SECURE_IN_BYTES ? limit : SECURE_IN_BYTES);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
        input_end(net, connection, got == 0 ? 0 : errno);
        return;
    }
    connection->heard_ms = net->broker.now_ms;
    ciphertext_t in = {net->secure->in, (uint32_t)got};
    if (!connection->secure && !begin_handshake(net, connection)) return;
    if (connection->secure->open)
        take(net, connection, in);
    else
        make_step(net, connection, in);
}

static void secure_drain(net_t *net, connection_t *connection) { transport_tcp.drain(net, connection); }

static bool secure_input_waits(const connection_t *connection) { return transport_tcp.input_waits(connection); }

/* ---- beginning and end ----------------------------------------------------------------------------------------------- */

static bool secure_begin(net_t *net, connection_t *connection) {
    if (!net->secure || !transport_tcp.begin(net, connection)) return false;
    net->broker.stats.secure_pending++;
    return true;
}

static bool secure_goodbye(net_t *net, connection_t *connection) { return transport_tcp.goodbye(net, connection); }

/* It is closed at once. close_notify is tried, so that a client that still reads knows that nothing is missing. */
static void secure_silence(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    const uint8_t code = connection->close_code;
    if (!secure_is_open(connection)) {
        bool displaced = code == BQ_CLOSE_CROWDED, failed = secure && secure->failed;
        net->broker.stats.secure_refused += displaced;
        net->broker.stats.secure_failed += !displaced && !failed;
        if (displaced) tell_of(net, connection, (bq_event_t){.code = BQ_HANDSHAKE_DISPLACED});
    } else if (code != BQ_CLOSE_RESET && code != BQ_CLOSE_VANISHED && !secure->failed && !secure->ended && !secure->unsent_size) {
        end_output(net, connection);
    }
    transport_tcp.silence(net, connection);
}

static void secure_end(net_t *net, connection_t *connection) {
    secure_t *secure = connection->secure;
    if (connection->fd < 0) return;
    if (secure_is_open(connection))
        net->broker.stats.secure_open--;
    else
        net->broker.stats.secure_pending--;
    if (secure) {
        secure->ops->close(secure->state);
        pool_free(&net->broker.pool, secure->unsent, secure->unsent_capacity);
        pool_free(&net->broker.pool, secure, sizeof *secure);
    }
    connection->secure = NULL;
    transport_tcp.end(net, connection);
}

int bq_secure_fits(uint64_t table) {
    const bq_secure_ops_t *ops = (const bq_secure_ops_t *)(uintptr_t)table;
    return ops && ops->size == sizeof *ops ? BQ_OK : BQ_E_ARGUMENT;
}

static secure_core_t *core_new(net_t *net) {
    secure_core_t *core = calloc(1, sizeof *core);
    if (!core) return NULL;
    core->in = malloc(SECURE_IN_BYTES);
    core->out = malloc(SECURE_OUT_BYTES);
    if (core->in && core->out && handshakes_init(&core->handshakes, net->broker.wake) == BQ_OK) return core;
    free(core->in);
    free(core->out);
    free(core);
    return NULL;
}

void secure_context(net_t *net, const bq_secure_ops_t *ops, void *context, bool tell) {
    if (bq_secure_fits((uint64_t)(uintptr_t)ops) != BQ_OK) return;
    if (!net->secure && !(net->secure = core_new(net))) {
        ops->context_free(context);
        return;
    }
    secure_core_t *core = net->secure;
    if (core->context) core->ops->context_free(core->context);
    core->ops = ops;
    core->context = context;
    core->tell = tell;
    if (net->in_thread && !core->handshakes.running) handshakes_start(&core->handshakes);
}

static void drop_step(handshake_step_t *step) {
    step->connection->away = false;
    handshake_step_free(step);
}

void secure_release(net_t *net) {
    if (net->secure) handshakes_free(&net->secure->handshakes, drop_step);
}

void secure_free(net_t *net) {
    secure_core_t *core = net->secure;
    if (!core) return;
    core->ops->context_free(core->context);
    free(core->in);
    free(core->out);
    free(core);
}

const transport_ops_t transport_secure = {.begin = secure_begin,
                                          .readable = secure_readable,
                                          .drain = secure_drain,
                                          .interest = secure_interest,
                                          .flush = secure_flush,
                                          .retry = secure_retry,
                                          .goodbye = secure_goodbye,
                                          .silence = secure_silence,
                                          .end = secure_end,
                                          .input_waits = secure_input_waits,
                                          .shakes = true,
                                          .acknowledged = true};
