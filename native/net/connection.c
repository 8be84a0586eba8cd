/* net/connection.c: see net/connection.h for the states and the invariants. */
#include "broker/budget.h"
#include "core.h"
#include "broker/commit.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static bool chunk_add(bq_t *bq) {
    connection_t *chunk = pool_take(&bq->pool, CONNECTION_CHUNK * sizeof *chunk);
    if (!chunk) return false;
    memset(chunk, 0, CONNECTION_CHUNK * sizeof *chunk);
    uint32_t first = bq->chunk_count * CONNECTION_CHUNK;
    bq->chunks[bq->chunk_count++] = chunk;
    for (uint32_t i = CONNECTION_CHUNK; i-- > 0;) {
        chunk[i].handle = first + i; /* generation 0: never used */
        bq->free_slots[bq->free_count++] = first + i;
    }
    return true;
}

connection_t *connection_open(bq_t *bq, int fd, const uint8_t peer[16], uint16_t port, bool trusted) {
    if (!bq->free_count && (bq->chunk_count * CONNECTION_CHUNK >= bq->slots_max || !chunk_add(bq))) return NULL;
    connection_t *connection = core_slot(bq, bq->free_slots[bq->free_count - 1]);
    uint64_t handle = connection->handle + (1ull << 32);
    if (handle >> 32 == 0) handle += 1ull << 32; /* generations wrap past 0, which no live handle has */
    if (fd >= 0 && poll_set(bq->poller, fd, handle, 0, POLL_READ) < 0) return NULL;
    bq->free_count--;
    memset(connection, 0, sizeof *connection);
    connection->handle = handle;
    connection->fd = fd;
    connection->state = CONNECTION_OPEN;
    connection->interest = fd >= 0 ? POLL_READ : 0;
    connection->admitted = trusted || !bq->config.require_hello;
    connection->timer.kind = TIMER_CONNECTION;
    memcpy(connection->peer, peer, sizeof connection->peer);
    connection->peer_port = port;
    if (!connection->admitted) {
        core_timer_set(bq, &connection->timer, bq->config.hello_timeout_ms);
        door_enter(bq, connection);
    }
    return connection;
}

void connection_hurry(bq_t *bq, connection_t *connection, uint64_t passed_ms) {
    uint64_t all_ms = bq->config.hello_timeout_ms;
    if (!connection->admitted && passed_ms) core_timer_set(bq, &connection->timer, passed_ms < all_ms ? all_ms - passed_ms : 0);
}

connection_t *connection_find(bq_t *bq, bq_conn_t handle) {
    uint32_t slot = (uint32_t)handle;
    if (slot >= bq->chunk_count * CONNECTION_CHUNK) return NULL;
    connection_t *connection = core_slot(bq, slot);
    return connection->handle == handle && connection->state != CONNECTION_FREE ? connection : NULL;
}

static void input_replace(bq_t *bq, connection_t *connection, uint8_t *in, uint32_t capacity, uint32_t size) {
    pool_give(&bq->pool, connection->in, connection->in_capacity);
    bq->input_bytes += capacity;
    bq->input_bytes -= connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    connection->in_start = 0;
    connection->in_size = size;
}

void connection_update_interest(bq_t *bq, connection_t *connection) {
    if (connection->fd < 0 || connection->state == CONNECTION_DEAD) return;
    uint8_t want = 0;
    if (connection->state == CONNECTION_LINGERING || (connection->state == CONNECTION_OPEN && !connection->pause))
        want |= POLL_READ;
    if (connection->blocked) want |= POLL_WRITE;
    if (!want && !connection->broken) want = POLL_ERROR;
    if (want == connection->interest) return;
    if (poll_set(bq->poller, connection->fd, connection->handle, connection->interest, want) < 0) {
        connection_close(bq, connection, BQ_CLOSE_RESET, "the poller refused the socket");
        return;
    }
    connection->interest = want;
}

/* ---- output -------------------------------------------------------------------------------------------------------- */

/* One flush takes whole entries up to the batch limits, at least one. Small ones with others beside them are copied together. */
static int gather(const bq_t *bq, const queue_t *queue, struct iovec *parts, uint64_t *bytes) {
    uint64_t messages = 0;
    uint32_t copied = 0, part_end = UINT32_MAX; /* where in the buffer the last part ends, if it lies there */
    int count = 0;
    *bytes = 0;
    for (const queue_entry_t *entry = queue->head; entry; entry = entry->next) {
        if (count && (messages + entry->count > bq->config.max_batch || *bytes + entry->size > bq->config.max_batch_bytes)) break;
        uint8_t *from = entry->segment->bytes + entry->offset;
        bool copy = entry->size <= SEND_COPY_MAX && entry->size <= SEND_BUFFER_BYTES - copied && (count || entry->next);
        if (copy) from = memcpy(bq->send_buffer + copied, from, entry->size);
        if (copy && part_end == copied) {
            parts[count - 1].iov_len += entry->size;
        } else {
            if (count == SEND_PARTS_MAX) break;
            parts[count++] = (struct iovec){from, entry->size};
        }
        copied += copy ? entry->size : 0;
        part_end = copy ? copied : UINT32_MAX;
        messages += entry->count;
        *bytes += entry->size;
    }
    return count;
}

static ssize_t send_parts(int fd, struct iovec *parts, int count) {
    ssize_t sent;
    do {
        if (count == 1) {
            sent = send(fd, parts->iov_base, parts->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
            struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
            sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    } while (sent < 0 && errno == EINTR);
    return sent;
}

/* A fed connection's output goes to Python as events, as far as its window and the ring allow. */
static uint64_t feed_out(bq_t *bq, connection_t *connection) {
    const uint64_t window = budget_part(bq, bq->fed_bytes) ? FED_WINDOW_BYTES : FED_CHUNK_BYTES;
    uint64_t total = 0;
    for (const queue_entry_t *entry = connection->queue.head; entry; entry = entry->next) {
        for (uint32_t at = 0; at < entry->size;) {
            uint32_t size = entry->size - at < FED_CHUNK_BYTES ? entry->size - at : FED_CHUNK_BYTES;
            if (connection->fed_in_flight + size > window) return total;
            bq_event_t event = {.type = BQ_EV_OUT,
                                .conn = connection->handle,
                                .data = entry->segment->bytes + entry->offset + at,
                                .data_size = size};
            if (!event_push(bq, &event)) {
                event_retry(bq, connection);
                return total;
            }
            connection->fed_in_flight += size;
            bq->fed_bytes += size;
            total += size;
            at += size;
        }
    }
    return total;
}

static void sent(bq_t *bq, connection_t *connection, uint64_t bytes) {
    uint64_t delivered = bq->stats.delivered;
    queue_sent(&connection->queue, &bq->queues, bytes);
    bq->stats.delivered_bytes += bytes;
    bq->stats.flush_bytes += bytes;
    bq->stats.flushes += bq->stats.delivered != delivered;
    if (BQ_UNLIKELY(!connection->watched)) keepalive_watch(bq, connection);
    if ((connection->pause & PAUSE_OUTPUT) && connection->queue.control_bytes <= CONTROL_BYTES_MAX / 2)
        connection_resume(bq, connection, PAUSE_OUTPUT);
    connection_wake_waiters(bq, connection);
}

static void flush_fed(bq_t *bq, connection_t *connection) {
    uint64_t bytes = feed_out(bq, connection);
    connection->blocked = false;
    if (bytes) sent(bq, connection, bytes);
    connection->blocked = connection->queue.head != NULL;
}

static void flush_socket(bq_t *bq, connection_t *connection) {
    struct iovec parts[SEND_PARTS_MAX];
    uint64_t bytes;
    int count = gather(bq, &connection->queue, parts, &bytes);
    ssize_t done = count ? send_parts(connection->fd, parts, count) : 0;
    bq->stats.work += WORK_SEND;
    if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS) {
        connection_broken(bq, connection, errno);
        return;
    }
    if (done > 0) sent(bq, connection, (uint64_t)done);
    bool blocked = done < 0 || (uint64_t)done < bytes;
    if (blocked != connection->blocked) {
        connection->blocked = blocked;
        connection_update_interest(bq, connection);
    }
    if (!blocked && connection->queue.head)
        connection_mark_dirty(bq, connection, FLUSH_NARROW); /* more than a batch: next turn */
}

/* It does not read its replies. Past the budget whoever holds a large one in the queue is closed: nothing else gives it back. */
static BQ_APART void replies_grow(bq_t *bq, connection_t *connection) {
    bool large = connection->queue.control_bytes > CONTROL_BYTES_MAX, over = connection->blocked && budget_over(bq);
    if (large || over) connection->pause |= PAUSE_OUTPUT;
    if (large && over)
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "it does not read its replies, and limits.memory_bytes is used up");
}

void connection_flush(bq_t *bq, connection_t *connection) {
    if (connection->state < CONNECTION_OPEN || connection->state > CONNECTION_CLOSING) return;
    if (bq->config.lazy_expiry) {
        queue_expire_head(&connection->queue, &bq->queues, bq->now_ms / bq->config.tick_ms);
        connection_wake_waiters(bq, connection); /* nothing may be left whose sending would */
    }
    if (connection->fd < 0)
        flush_fed(bq, connection);
    else
        flush_socket(bq, connection);
    if (BQ_UNLIKELY(connection->blocked) && connection->queue.control_bytes > CONTROL_BYTES_MAX) replies_grow(bq, connection);
    if (connection->state == CONNECTION_CLOSING && !connection->queue.head) connection_all_sent(bq, connection);
}

/* Put a written control frame into the queue, in order with what is there. */
static void push_control(bq_t *bq, connection_t *connection, uint32_t size) {
    segment_t *segment = bq->segments.open;
    queue_run_t run = {.segment = segment, .offset = segment->used, .size = size};
    segment_commit(&bq->segments, size);
    if (!queue_push(&connection->queue, &bq->queues, &run)) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
        return;
    }
    if (connection->queue.control_bytes > CONTROL_BYTES_SHORT) replies_grow(bq, connection);
    connection_mark_dirty(bq, connection, FLUSH_NARROW);
}

static uint8_t *reserve_control(bq_t *bq, connection_t *connection, uint32_t size) {
    if (!connection_takes_answers(connection)) return NULL;
    publish_run_close(bq);
    uint8_t *out = segment_reserve(&bq->segments, size);
    if (!out) connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
    return connection_takes_answers(connection) ? out : NULL; /* giving the run out may have closed it */
}

void connection_published(bq_t *bq, connection_t *connection, uint64_t seq, uint64_t id, uint64_t subscriptions) {
    uint8_t *out = reserve_control(bq, connection, FRAME_REPLY_BYTES_MAX(0, 0));
    if (out) push_control(bq, connection, frame_write_published(out, seq, id, subscriptions));
}

void connection_reply_full(bq_t *bq, connection_t *connection, uint64_t seq, uint16_t code, const uint8_t *text,
                           uint32_t text_size, uint64_t id, const uint8_t *payload, uint32_t payload_size) {
    uint8_t *out = reserve_control(bq, connection, FRAME_REPLY_BYTES_MAX(text_size, payload_size));
    if (out) push_control(bq, connection, frame_write_reply(out, seq, code, text, text_size, id, payload, payload_size));
}

void connection_reply(bq_t *bq, connection_t *connection, uint64_t seq, uint16_t code, const char *text) {
    connection_reply_full(bq, connection, seq, code, (const uint8_t *)text, (uint32_t)strlen(text), 0, NULL, 0);
}

void connection_welcome(bq_t *bq, connection_t *connection, uint64_t seq, const uint8_t *text, uint32_t text_size) {
    uint8_t *out = reserve_control(bq, connection, FRAME_REPLY_BYTES_MAX(text_size, 0));
    if (out) push_control(bq, connection, frame_write_welcome(out, seq, text, text_size, connection->keepalive_ms));
}

void connection_suback(bq_t *bq, connection_t *connection, uint64_t seq, const uint8_t *filter, uint32_t size) {
    uint8_t *out = reserve_control(bq, connection, FRAME_REPLY_BYTES_MAX(size, sizeof "subscribed"));
    if (out) push_control(bq, connection, frame_write_suback(out, seq, 0, filter, size, "subscribed"));
}

/* ---- requests ------------------------------------------------------------------------------------------------------ */

/* What became of a frame: TAKEN, PUBLISHED (taken, as QoS 0), or KEPT because the connection is paused and the frame must be
 * looked at again later. A frame that closes its connection is TAKEN: the loop looks at the state. */
enum frame_outcome { FRAME_TAKEN, FRAME_PUBLISHED, FRAME_KEPT };

/* Refuse a request. Clients that said HELLO get a Reply; a plain client can only be closed, with one log line. */
static enum frame_outcome refuse(bq_t *bq, connection_t *connection, uint64_t seq, uint16_t code, const char *why) {
    if (connection->hello)
        connection_reply(bq, connection, seq, code, why);
    else
        connection_close(bq, connection, BQ_CLOSE_FRAME, why);
    return FRAME_TAKEN;
}

/* A frame after which the stream cannot be trusted, or that is against a limit: it ends the connection either way. */
static void refuse_and_close(bq_t *bq, connection_t *connection, uint64_t seq, uint16_t code, uint8_t close_code,
                             const char *why) {
    if (connection->hello) {
        connection_reply(bq, connection, seq, code, why);
        connection_finish(bq, connection, close_code, why);
    } else {
        connection_close(bq, connection, close_code, why);
    }
}

static enum frame_outcome bad_frame(bq_t *bq, connection_t *connection, uint64_t seq, int error) {
    bq->stats.frames_bad++;
    const char *why = frame_error(error);
    if (frame_error_is_fatal(error))
        refuse_and_close(bq, connection, 0, 400, BQ_CLOSE_FRAME, why);
    else
        refuse(bq, connection, seq, 400, why);
    return FRAME_TAKEN;
}

static void wait_for_log(bq_t *bq, connection_t *connection) {
    connection->pause |= PAUSE_LOG;
    if (connection->log_waiting) return;
    connection->log_waiting = true;
    connection->log_next = bq->log_waiters;
    bq->log_waiters = connection;
}

/* QoS 1: into the log; the Reply comes from broker/commit.c when it is on disk. A plain client's is taken the same way, unanswered. What
 * its subscribers will cost then is of its publisher's share now: later it would stand in the way of all that is durable. */
static enum frame_outcome publish_durably(bq_t *bq, connection_t *connection, topic_t *topic, const bq_view_t *view) {
    const char *why;
    if (route_ready(bq->routes, topic, share_units(bq)) == ROUTE_LATER) {
        connection->pause |= PAUSE_SHARE;
        return FRAME_KEPT;
    }
    bq->stats.work += WORK_QOS1 + topic->target_count + (uint64_t)topic->session_count * WORK_DELIVERY;
    if (bq->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK && publish_full(bq, topic, view->payload_size))
        return refuse(bq, connection, view->seq, 503, "a subscriber's queue is full and the policy is block: try again later");
    switch (commit_publish(bq, connection, view, &why)) {
    case COMMIT_HELD: return FRAME_TAKEN;
    case COMMIT_LATER: wait_for_log(bq, connection); return FRAME_KEPT;
    default: return refuse(bq, connection, view->seq, 503, why);
    }
}

static BQ_APART enum frame_outcome not_published(bq_t *bq, connection_t *connection, const bq_view_t *view,
                                                 enum publish_outcome outcome, wait_list_t *blocker) {
    if (outcome == PUBLISH_NO_MEMORY) return refuse(bq, connection, view->seq, 503, "the broker is out of memory");
    if (outcome == PUBLISH_LATER)
        connection->pause |= PAUSE_SHARE;
    else
        wait_begin(bq, blocker, connection);
    return FRAME_KEPT;
}

static enum frame_outcome request_publish(bq_t *bq, connection_t *connection, const bq_view_t *view) {
    int error = 0;
    topic_t *topic = publish_topic(bq, connection->last_topic, view->topic, view->topic_size, &error);
    if (BQ_UNLIKELY(!topic)) {
        if (error == BQ_E_MEMORY) return refuse(bq, connection, view->seq, 503, "the broker is out of memory");
        return bad_frame(bq, connection, view->seq, error);
    }
    connection->last_topic = topic;
    if (BQ_UNLIKELY(connection->rights != NULL) && !rights_allow(connection->rights, topic)) {
        bq->stats.publishes_not_allowed++;
        return refuse(bq, connection, view->seq, 403, "this key may not publish to this topic");
    }
    if (BQ_UNLIKELY(view->qos && (bq->log || connection->hello))) return publish_durably(bq, connection, topic, view);
    if (BQ_UNLIKELY(connection->held_count)) {
        if (!commit_follow_room(bq, connection)) {
            connection->pause |= PAUSE_HELD;
            return FRAME_KEPT;
        }
        if (commit_follow(bq, connection, view)) return FRAME_TAKEN;
        return refuse(bq, connection, view->seq, 503, "the broker is out of memory");
    }
    wait_list_t *blocker = NULL;
    enum publish_outcome outcome = publish(bq, topic, view->payload, view->payload_size, view->ttl_ms, &blocker);
    return BQ_LIKELY(outcome == PUBLISH_DONE) ? FRAME_PUBLISHED : not_published(bq, connection, view, outcome, blocker);
}

/* Hand a request to Python and stop this connection's input until the answer. */
static enum frame_outcome ask(bq_t *bq, connection_t *connection, bq_event_t *event) {
    /* An event that can never find room in the ring would be tried for ever. */
    if (event->text_size > REQUEST_BYTES_MAX || event->data_size > REQUEST_BYTES_MAX)
        return refuse(bq, connection, event->seq, 400,
                      "client_id, api_key, group and what INFO or ADMIN ask for are at most 4 KiB each");
    event->conn = connection->handle;
    event->flags |= (connection->hello ? 0 : BQ_EV_PLAIN) | (connection->trusted ? BQ_EV_TRUSTED : 0);
    memcpy(event->peer, connection->peer, sizeof event->peer);
    event->peer_port = connection->peer_port;
    if (!event_push(bq, event)) {
        connection->pause |= PAUSE_EVENTS;
        event_retry(bq, connection);
        return FRAME_KEPT;
    }
    connection->known = true;
    connection->pause |= PAUSE_ANSWER;
    return FRAME_TAKEN;
}

static enum frame_outcome request_hello(bq_t *bq, connection_t *connection, const bq_view_t *view) {
    if (connection->refused) {
        connection->hello = true;
        refuse_and_close(bq, connection, view->seq, 429, BQ_CLOSE_REFUSED,
                         "too many connections: server.max_connections is reached");
        return FRAME_TAKEN;
    }
    bq_event_t event = {.type = BQ_EV_HELLO,
                        .seq = view->seq,
                        .value = view->protocol,
                        .text = view->client_id,
                        .text_size = view->client_id_size,
                        .data = view->api_key,
                        .data_size = view->api_key_size};
    enum frame_outcome outcome = ask(bq, connection, &event);
    keepalive_promise(bq, connection, view->keepalive_ms);
    if (connection->pause & PAUSE_ANSWER) door_heard(bq, connection);
    return outcome;
}

static enum frame_outcome request_subscribe(bq_t *bq, connection_t *connection, const bq_view_t *view) {
    int error = levels_check(view->topic, view->topic_size, bq->config.max_topic_levels);
    if (error) return bad_frame(bq, connection, view->seq, error);
    return ask(bq, connection,
               &(bq_event_t){.type = BQ_EV_SUB,
                             .seq = view->seq,
                             .value = view->qos,
                             .flags = view->durable ? BQ_EV_DURABLE : 0,
                             .text = view->topic,
                             .text_size = view->topic_size,
                             .data = view->group,
                             .data_size = view->group_size});
}

static enum frame_outcome request_json(bq_t *bq, connection_t *connection, const bq_view_t *view, uint16_t type) {
    if (!connection->hello) return FRAME_TAKEN; /* a plain client cannot be answered */
    return ask(bq, connection,
               &(bq_event_t){.type = type, .seq = view->seq, .data = view->payload, .data_size = view->payload_size});
}

static enum frame_outcome request(bq_t *bq, connection_t *connection, const bq_view_t *view) {
    if (!connection->admitted && view->action != FRAME_HELLO) {
        connection_close(bq, connection, BQ_CLOSE_UNAUTH, "a command before HELLO, while authentication is on");
        return FRAME_TAKEN;
    }
    if (connection->refused && view->action != FRAME_HELLO) {
        connection_close(bq, connection, BQ_CLOSE_REFUSED, "too many connections: server.max_connections is reached");
        return FRAME_TAKEN;
    }
    switch (view->action) {
    case FRAME_PUB: return request_publish(bq, connection, view);
    case FRAME_HELLO: return request_hello(bq, connection, view);
    case FRAME_SUB: return request_subscribe(bq, connection, view);
    case FRAME_UNSUB:
        return ask(bq, connection,
                   &(bq_event_t){.type = BQ_EV_UNSUB,
                                 .seq = view->seq,
                                 .text = view->topic,
                                 .text_size = view->topic_size,
                                 .data = view->group,
                                 .data_size = view->group_size});
    case FRAME_INFO: return request_json(bq, connection, view, BQ_EV_INFO);
    case FRAME_ADMIN: return request_json(bq, connection, view, BQ_EV_ADMIN);
    case FRAME_PING:
        if (connection->hello) connection_reply(bq, connection, view->seq, 0, "");
        return FRAME_TAKEN;
    case FRAME_ACK: session_ack(bq, connection, view->seq); return FRAME_TAKEN;
    default: connection_input_ended(bq, connection, BQ_CLOSE_QUIT); return FRAME_TAKEN;
    }
}

/* Whether what this connection has just published has joined the open run, and more of it may. */
static inline bool may_join_run(const bq_t *bq, const connection_t *connection) {
    return bq->open.run.count && bq->open.topic == connection->last_topic && connection->state == CONNECTION_OPEN &&
           !connection->pause;
}

/* Whether the frame behind a publish might be alike: at a glance, because it costs those that are not. A topic's end differs soonest. */
static inline bool followed_alike(const uint8_t *bytes, uint32_t size, uint32_t frame_size, const bq_view_t *view) {
    uint32_t topic_end = (uint32_t)(view->topic - bytes) + view->topic_size;
    return size - frame_size >= topic_end && load_u64(bytes + topic_end - 8) == load_u64(bytes + frame_size + topic_end - 8);
}

static BQ_APART void share_used_up(bq_t *bq, connection_t *connection) {
    connection->pause |= PAUSE_SHARE;
    bq->stats.share_stops++;
}

/* The frame at the front of `size` bytes, and others taken with it. Returns their bytes; 0: it must be looked at again later. */
static uint32_t frames(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size, uint32_t body_size) {
    bq_view_t view;
    int error = frame_verify(bytes + 4, body_size, &view);
    /* A publish's topic is checked once, when it enters the topic cache; all other requests are checked here. */
    if (BQ_LIKELY(!error) && view.action != FRAME_PUB) error = frame_check_fields(&view);
    if (BQ_UNLIKELY(error)) {
        bad_frame(bq, connection, view.seq, error);
        return 4 + body_size;
    }
    enum frame_outcome outcome = request(bq, connection, &view);
    if (outcome == FRAME_KEPT) return 0; /* it comes by again, and is counted then */
    bq->stats.frames_in++;
    if (outcome != FRAME_PUBLISHED || !followed_alike(bytes, size, 4 + body_size, &view) || !may_join_run(bq, connection))
        return 4 + body_size;
    return 4 + body_size + publish_alike(bq, bytes, size, bq->config.max_frame_bytes, &view);
}

/* ---- input --------------------------------------------------------------------------------------------------------- */

static void too_large(bq_t *bq, connection_t *connection, uint32_t size) {
    bq->stats.frames_bad++;
    const char *why =
        size == 0 ? "a frame of length 0" : "a frame longer than server.max_message_size_bytes allows (or not BlipMQ at all)";
    if (size == 0)
        refuse_and_close(bq, connection, 0, 400, BQ_CLOSE_FRAME, why);
    else
        refuse_and_close(bq, connection, 0, 413, BQ_CLOSE_TOO_LARGE, why);
}

void connection_input_drop(bq_t *bq, connection_t *connection) { input_replace(bq, connection, NULL, 0, 0); }

/* Take whole frames off the front of the input; returns the bytes taken. */
static inline BQ_WITHIN uint32_t parse(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    uint32_t at = 0;
    bool welcome = connection->admitted && !connection->refused;
    uint32_t limit = welcome ? bq->config.max_frame_bytes : bq->config.max_frame_bytes_unauth;
    while (size - at >= 4 && !connection->pause && connection->state == CONNECTION_OPEN) {
        uint32_t body_size = load_be32(bytes + at);
        if (BQ_UNLIKELY(body_size == 0 || body_size > limit)) {
            too_large(bq, connection, body_size);
            break;
        }
        if (size - at - 4 < body_size) break;
        uint32_t taken = frames(bq, connection, bytes + at, size - at, body_size);
        if (!taken) break;
        at += taken;
        bq->stats.work += WORK_FRAME;
        if (BQ_UNLIKELY(work_done(bq) >= bq->share.stop)) share_used_up(bq, connection);
    }
    return at;
}

/* Frames that are not whole yet may hold at most a quarter of the budget: many slow senders of large frames are cut off
 * before they crowd out the queues. */
static bool input_over_budget(const bq_t *bq, uint64_t more) { return !budget_part(bq, bq->input_bytes + more); }

static void rest_without_memory(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);

/* Keep what was not parsed. `bytes` may lie in the connection's own buffer, which stays unless it is far too large by now. */
static void keep_rest(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || !size) {
        input_replace(bq, connection, NULL, 0, 0);
        return;
    }
    bool own = connection->in && bytes >= connection->in && bytes < connection->in + connection->in_capacity;
    if (own && connection->in_capacity / 8 <= size) {
        connection->in_start = (uint32_t)(bytes - connection->in);
        connection->in_size = size;
        return;
    }
    uint32_t capacity = (uint32_t)pool_good_size(size);
    uint8_t *in = input_over_budget(bq, capacity) ? NULL : pool_take(&bq->pool, capacity);
    if (!in) {
        rest_without_memory(bq, connection, bytes, size);
        return;
    }
    memcpy(in, bytes, size);
    input_replace(bq, connection, in, capacity, size);
}

static void consumed(bq_t *bq, connection_t *connection, uint32_t bytes) {
    if (connection->fd >= 0 || !bytes || connection->state == CONNECTION_DEAD) return;
    connection->fed_consumed += bytes;
    event_retry(bq, connection); /* reported with all else that waits for the event ring, at the end of the turn */
}

static void process(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    uint32_t used = parse(bq, connection, bytes, size);
    consumed(bq, connection, used);
    keep_rest(bq, connection, bytes + used, size - used);
}

/* There is no memory for the rest of its input. If it is only its share that is used up, it goes on now. */
static BQ_APART void rest_without_memory(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->pause != PAUSE_SHARE) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for its input");
        return;
    }
    connection->pause = 0;
    bq->share.stop = UINT64_MAX;
    process(bq, connection, bytes, size);
}

/* Make room for `more` bytes behind what is kept. Grows as bytes really come, never from an announced length alone. */
static bool reserve_in(bq_t *bq, connection_t *connection, uint32_t more) {
    if (connection->in_start) {
        memmove(connection->in, connection->in + connection->in_start, connection->in_size);
        connection->in_start = 0;
    }
    if (connection->in_capacity - connection->in_size >= more) return true;
    size_t doubled = (size_t)connection->in_capacity * 2, need = (size_t)connection->in_size + more;
    uint32_t capacity = (uint32_t)pool_good_size(need > doubled ? need : doubled);
    bool over = input_over_budget(bq, capacity - connection->in_capacity);
    uint8_t *in = over ? NULL : pool_resize(&bq->pool, connection->in, connection->in_capacity, capacity);
    if (!in) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for its input");
        return false;
    }
    bq->input_bytes += capacity - connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    return true;
}

/* A stranger's one frame and no more: what follows its HELLO stays with the kernel until the answer. What goes to several
 * subscribers is taken in pieces that stay in the processor's cache until it has been sent to the last of them. */
static uint32_t read_limit(const bq_t *bq, const connection_t *connection) {
    if (BQ_UNLIKELY(connection->pending)) return bq->config.max_frame_bytes_unauth + 4 - connection->in_size;
    if (connection->heavy || connection->held_count) return READ_BYTES_HEAVY; /* it may have to wait with the rest */
    if (bq->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK) return READ_BYTES_BLOCKING;
    if (!connection->last_topic || connection->last_topic->target_count <= 1) return bq->read_bytes;
    return bq->read_bytes < READ_BYTES_FAN ? bq->read_bytes : READ_BYTES_FAN;
}

/* Nothing more comes, so a frame that is not whole never will be. */
static BQ_APART void input_end(bq_t *bq, connection_t *connection, int error) {
    connection_input_drop(bq, connection);
    if (error)
        connection_broken(bq, connection, error);
    else
        connection_input_ended(bq, connection, BQ_CLOSE_EOF);
}

static void read_more(bq_t *bq, connection_t *connection) {
    uint32_t limit = read_limit(bq, connection);
    bool gather_own = connection->in_size >= GATHER_BYTES;
    if (gather_own && limit > READ_BYTES_OWN) limit = READ_BYTES_OWN;
    if (gather_own && !reserve_in(bq, connection, limit)) return;
    uint8_t *buffer = gather_own ? connection->in : bq->read_buffer;
    uint32_t kept = connection->in_size;
    if (!gather_own && kept) memcpy(buffer, connection->in + connection->in_start, kept);
    ssize_t got;
    do got = recv(connection->fd, buffer + kept, limit, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
        input_end(bq, connection, got == 0 ? 0 : errno);
        return;
    }
    bq->turn_bytes += (uint64_t)got;
    connection->heard_ms = bq->now_ms;
    process(bq, connection, buffer, kept + (uint32_t)got);
}

/* A lingering client's input is thrown away until it closes too. */
static void discard(bq_t *bq, connection_t *connection) {
    ssize_t got = recv(connection->fd, bq->read_buffer, READ_BYTES, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        connection_close(bq, connection, connection->close_code, connection->close_detail);
}

void connection_readable(bq_t *bq, connection_t *connection) {
    if (connection->state == CONNECTION_LINGERING) {
        discard(bq, connection);
    } else if (connection->state == CONNECTION_OPEN && connection->pause) {
        connection_update_interest(bq, connection); /* told only now: most pauses end before more input comes */
    } else if (connection->state == CONNECTION_OPEN) {
        read_more(bq, connection);
    }
}

void connection_feed(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || connection->fed_ended || !size) return;
    if (connection->in_size + (uint64_t)size > bq->config.max_frame_bytes + 2ull * FED_WINDOW_BYTES) {
        connection_close(bq, connection, BQ_CLOSE_BROKER, "fed more than its window");
        return;
    }
    if (!reserve_in(bq, connection, size)) return;
    memcpy(connection->in + connection->in_size, bytes, size);
    connection->in_size += size;
    bq->turn_bytes += size;
    connection->heard_ms = bq->now_ms;
    share_go_on(bq, connection);
}

void connection_feed_end(bq_t *bq, connection_t *connection) {
    connection->fed_ended = true;
    share_go_on(bq, connection);
}

void connection_continue(bq_t *bq, connection_t *connection) {
    if (connection->state != CONNECTION_OPEN || connection->pause) return;
    if (connection->in_size) process(bq, connection, connection->in + connection->in_start, connection->in_size);
    if (connection->state != CONNECTION_OPEN || connection->pause) return;
    if (connection->fed_ended)
        input_end(bq, connection, 0);
    else
        connection_update_interest(bq, connection);
}

void connection_resume(bq_t *bq, connection_t *connection, uint8_t pause) {
    connection->pause &= (uint8_t)~pause;
    if (!connection->pause && connection->state == CONNECTION_OPEN) share_line_up(bq, connection);
}
