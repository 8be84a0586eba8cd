/* loadgen.c: one load generator for all brokers: publishes, counts received messages, measures the broker's resources, prints
 * one JSON object.
 *
 * One thread, one epoll. Publishes are encoded in advance into a ring per publisher and written in pieces of up to 64 KiB.
 * Receivers count frames and read the content of one message per read (with --rate: of every message). So the load generator
 * does the same work for each broker.
 *
 * Invariant: a message counts as sent when its last byte is written. For each subscriber
 *     received <= expected = messages sent on the topics it has subscribed to.
 * Messages still missing when no more arrive are reported as lost, surplus messages as extra. With a rate, messages that were
 * due and could not be written are reported as unsent.
 *
 *      ring of one publisher        sent_bytes            issued_messages * message_bytes
 *      | m0 | m1 | m2 | m3 | m4 | ..... ^ written from here ...... ^ to here, then around
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "measure.h"
#include "wire.h"

enum {
    RING_BYTES = 64 * 1024,
    WINDOW_BYTES = 4 << 20,     /* outstanding messages per subscriber, without --window */
    RECEIVE_BYTES = 256 * 1024, /* per read, shared by all connections */
    PAYLOAD_BYTES_MAX = 1 << 20,
    CONNECTIONS_MAX = 60000,
    TOPICS_MAX = 10000,
    READS_PER_EVENT = 4,
    EVENTS_PER_WAIT = 512,
    WRITES_PER_PASS = 8,         /* writes of up to 64 KiB */
    SINGLE_WRITES_PER_PASS = 64, /* writes of one message */
    ACK_WINDOW = 64,             /* outstanding publishes per publisher, without --window */
    ACK_WINDOW_MAX = 65536,
    JOIN_TIMEOUT_S = 10,
    EXIT_TROUBLE = 1,
    EXIT_USAGE = 2,
};
static const uint64_t second_ns = 1000000000u, stall_ns = 1000000000u, drain_ns = 2000000000u, overtime_ns = 10000000000u,
                      settle_us = 20000;

typedef struct {
    const wire_t *wire;
    const char *host;
    int port;
    unsigned publishers, subscribers, wildcards, stalled, idle, topics;
    uint32_t payload_bytes;
    uint64_t ttl_ms, window;
    double duration_s, warmup_s, rate;
    bool single_writes, idle_subscribe;
    pid_t pid;
} options_t;

typedef struct {
    int fd; /* -1 once closed */
    role_t role;
    bool blocked;   /* the last write was incomplete; EPOLLOUT clears it */
    unsigned topic; /* subscriber: index, or TOPIC_ALL; publisher: its first topic, then every publishers-th */
    uint8_t *ring;  /* publisher; without a rate, publishers of the same topics share one, which is never rewritten */
    uint64_t sent_bytes, issued_messages;
    uint64_t received; /* subscriber: messages; publisher: acknowledgements */
    uint64_t forgiven; /* subscriber: counted as lost, so that the window opens again */
    uint32_t carry_bytes;
    uint8_t *carry; /* the start of a partial frame */
    wire_reader_t *reader;
} connection_t;

enum { TOPIC_ALL = ~0u, UNSET = ~0u };

/* Counters at the end of the warm-up, subtracted from the final ones. */
typedef struct {
    uint64_t at_ns, sent, delivered;
    double own_cpu_s, machine_cpu_s;
    process_t broker;
} mark_t;

typedef struct {
    options_t options;
    connection_t *connections, *publishers, *subscribers;
    unsigned connection_count, reading_subscribers, publishers_open, subscribers_open, publisher_next;
    uint32_t message_bytes, ring_messages;
    wire_places_t places;
    uint8_t *payload;
    uint64_t *topic_sent, sent, delivered, disconnected, stalls, corrupt;
    uint64_t start_ns, measure_ns, stop_ns, last_delivery_ns, next_due_ns, now_ns;
    uint8_t *receive_buffer;
    size_t carry_bytes_max;
    int epoll_fd;
    histogram_t latency;
    mark_t mark;
    process_t before, joined;
} run_t;

static __attribute__((noreturn, format(printf, 2, 3))) void stop_with(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) stop_with(EXIT_TROUBLE, "out of memory for %zu times %zu bytes", count, size);
    return memory;
}

/* ---- options ---- */

static const char usage[] =
    "usage: loadgen --protocol blipmq|nats|mqtt|mqtt5|redis|raw --port N [options]\n"
    "       loadgen --protocol blipmq1|jetstream|xadd|mqtt1 --port N [options]  publishes that are acknowledged, and no "
    "subscribers\n"
    "  --host ADDRESS        IPv4 address (127.0.0.1)\n"
    "  --pid N               the broker's process: its CPU time and memory are reported\n"
    "  --publishers N        (1)      --topics N     (1) publisher and subscriber k use topic k modulo N\n"
    "  --subscribers N       (1)      --wildcards N  (0) subscribers to all topics at once\n"
    "  --stalled N           (0) subscribers that never read; nothing is expected of them\n"
    "  --idle N              (0) connections that join and stay silent\n"
    "  --idle-subscribe      each of them subscribed to a topic of its own\n"
    "  --payload BYTES       (64)     --ttl-ms MS    (0) BlipMQ only\n"
    "  --duration S          (1) measured, after --warmup S (0.2)\n"
    "  --window MESSAGES     outstanding for one subscriber at most (4 MiB worth; two a publisher with --single-writes);\n"
    "                        of publishes that are acknowledged, for one publisher (64)\n"
    "  --rate N              messages a second in all; latency is then measured from the time each message was due,\n"
    "                        and no window holds them back\n"
    "  --single-writes       one message a write\n";

static uint64_t number(const char *name, const char *text, uint64_t low, uint64_t high) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || end == text || text[0] == '-' || value < low || value > high)
        stop_with(EXIT_USAGE, "--%s takes a whole number from %llu to %llu, not \"%s\"", name, (unsigned long long)low,
                  (unsigned long long)high, text);
    return value;
}

static double decimal(const char *name, const char *text, double low, double high) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= low && value <= high))
        stop_with(EXIT_USAGE, "--%s takes a number from %g to %g, not \"%s\"", name, low, high, text);
    return value;
}

enum option_key {
    HOST = 1,
    PROTOCOL,
    PORT,
    PID,
    PUBLISHERS,
    SUBSCRIBERS,
    WILDCARDS,
    STALLED,
    IDLE,
    IDLE_SUBSCRIBE,
    TOPICS,
    PAYLOAD,
    TTL,
    DURATION,
    WARMUP,
    WINDOW,
    RATE,
    SINGLE_WRITES,
    HELP
};

static const struct option option_table[] = {
    {"host", 1, 0, HOST},
    {"protocol", 1, 0, PROTOCOL},
    {"port", 1, 0, PORT},
    {"pid", 1, 0, PID},
    {"publishers", 1, 0, PUBLISHERS},
    {"subscribers", 1, 0, SUBSCRIBERS},
    {"wildcards", 1, 0, WILDCARDS},
    {"stalled", 1, 0, STALLED},
    {"idle", 1, 0, IDLE},
    {"idle-subscribe", 0, 0, IDLE_SUBSCRIBE},
    {"topics", 1, 0, TOPICS},
    {"payload", 1, 0, PAYLOAD},
    {"ttl-ms", 1, 0, TTL},
    {"duration", 1, 0, DURATION},
    {"warmup", 1, 0, WARMUP},
    {"window", 1, 0, WINDOW},
    {"rate", 1, 0, RATE},
    {"single-writes", 0, 0, SINGLE_WRITES},
    {"help", 0, 0, HELP},
    {0},
};

static void option_set(options_t *options, int which, const char *name) {
    switch (which) {
    case HOST: options->host = optarg; break;
    case PROTOCOL:
        if (!(options->wire = wire_named(optarg)))
            stop_with(EXIT_USAGE, "no protocol \"%s\", there are: %s", optarg, wire_names());
        break;
    case PORT: options->port = (int)number(name, optarg, 1, 65535); break;
    case PID: options->pid = (pid_t)number(name, optarg, 1, INT32_MAX); break;
    case PUBLISHERS: options->publishers = (unsigned)number(name, optarg, 0, CONNECTIONS_MAX); break;
    case SUBSCRIBERS: options->subscribers = (unsigned)number(name, optarg, 0, CONNECTIONS_MAX); break;
    case WILDCARDS: options->wildcards = (unsigned)number(name, optarg, 0, CONNECTIONS_MAX); break;
    case STALLED: options->stalled = (unsigned)number(name, optarg, 0, CONNECTIONS_MAX); break;
    case IDLE: options->idle = (unsigned)number(name, optarg, 0, CONNECTIONS_MAX); break;
    case IDLE_SUBSCRIBE: options->idle_subscribe = true; break;
    case TOPICS: options->topics = (unsigned)number(name, optarg, 1, TOPICS_MAX); break;
    case PAYLOAD: options->payload_bytes = (uint32_t)number(name, optarg, 8, PAYLOAD_BYTES_MAX); break;
    case TTL: options->ttl_ms = number(name, optarg, 0, UINT32_MAX); break;
    case DURATION: options->duration_s = decimal(name, optarg, 0.01, 3600); break;
    case WARMUP: options->warmup_s = decimal(name, optarg, 0, 3600); break;
    case WINDOW: options->window = number(name, optarg, 1, 1u << 30); break;
    case RATE: options->rate = decimal(name, optarg, 0.1, 1e8); break;
    case SINGLE_WRITES: options->single_writes = true; break;
    case HELP: fputs(usage, stdout); exit(0);
    default: fputs(usage, stderr); exit(EXIT_USAGE);
    }
}

static void options_check(const options_t *options) {
    bool raw = options->wire && strcmp(options->wire->name, "raw") == 0;
    if (!options->wire || !options->port) stop_with(EXIT_USAGE, "--protocol and --port are needed; --help shows the options");
    if (options->publishers + options->subscribers + options->wildcards + options->stalled + options->idle > CONNECTIONS_MAX)
        stop_with(EXIT_USAGE, "over %d connections in all", CONNECTIONS_MAX);
    if (options->wire->acknowledged) {
        if (options->subscribers + options->wildcards + options->stalled + options->idle || !options->publishers)
            stop_with(EXIT_USAGE, "%s measures acknowledged publishes: it takes publishers and no other connections",
                      options->wire->name);
        if (options->topics != 1 || options->rate > 0 || options->ttl_ms || options->single_writes ||
            options->window > ACK_WINDOW_MAX)
            stop_with(EXIT_USAGE, "%s takes one topic, a window of at most %d, and no rate, time to live or single writes",
                      options->wire->name, ACK_WINDOW_MAX);
        return;
    }
    if (options->publishers && !options->wildcards && options->subscribers < options->topics)
        stop_with(EXIT_USAGE,
                  "%u topics need at least as many subscribers, or --wildcards: what nobody receives cannot be measured",
                  options->topics);
    if (options->publishers && options->topics > options->publishers && options->topics % options->publishers)
        stop_with(EXIT_USAGE, "%u topics do not divide among %u publishers: take a multiple", options->topics,
                  options->publishers);
    if (options->ttl_ms && strcmp(options->wire->name, "blipmq") != 0)
        stop_with(EXIT_USAGE, "--ttl-ms is for blipmq only: %s publishes carry no time to live", options->wire->name);
    if (raw && options->publishers && options->subscribers && options->topics > options->publishers)
        stop_with(EXIT_USAGE, "the relay does not read topics: raw needs at least one publisher a topic");
    if (raw && options->publishers > options->topics && !options->single_writes)
        stop_with(EXIT_USAGE,
                  "the relay passes on bytes, not messages: several raw publishers on one topic need --single-writes");
    if (raw && options->wildcards && options->publishers > 1)
        stop_with(EXIT_USAGE, "the relay passes on bytes, not messages: raw wildcards need a single publisher");
}

static options_t options_read(int count, char **words) {
    options_t options = {.host = "127.0.0.1",
                         .publishers = 1,
                         .subscribers = UNSET,
                         .topics = 1,
                         .payload_bytes = 64,
                         .duration_s = 1,
                         .warmup_s = 0.2};
    for (int which, index; (which = getopt_long(count, words, "", option_table, &index)) != -1;)
        option_set(&options, which, which == '?' ? "" : option_table[index].name);
    if (optind < count) stop_with(EXIT_USAGE, "\"%s\" is not an option; --help shows them", words[optind]);
    bool acknowledged = options.wire && options.wire->acknowledged;
    if (options.subscribers == UNSET) options.subscribers = !acknowledged;
    options_check(&options);
    return options;
}

/* ---- joining ---- */

static void topic_name(const run_t *run, unsigned topic, unsigned number, char *name) {
    snprintf(name, WIRE_TOPIC_BYTES_MAX, run->options.wire->topic_format, topic, number);
}

static int connect_to(const options_t *options) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    struct timeval timeout = {.tv_sec = JOIN_TIMEOUT_S};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (inet_pton(AF_INET, options->host, &address.sin_addr) != 1)
        stop_with(EXIT_USAGE, "\"%s\" is not an IPv4 address", options->host);
    if (fd < 0) stop_with(EXIT_TROUBLE, "no socket: %s; is the limit on open files (ulimit -n) large enough?", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        stop_with(EXIT_TROUBLE, "cannot connect to %s:%d: %s; is the broker running?", options->host, options->port,
                  strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void connection_open(run_t *run, unsigned index, role_t role, unsigned topic, const char *topic_text, bool watched) {
    connection_t *connection = &run->connections[index];
    wire_join_t join = {.role = role,
                        .number = index,
                        .topic = topic_text,
                        .wildcard = topic == TOPIC_ALL,
                        .channel = topic == TOPIC_ALL ? 0 : topic};
    *connection = (connection_t){.role = role, .topic = topic, .fd = connect_to(&run->options)};
    const char *error = run->options.wire->join(connection->fd, &join);
    if (error) stop_with(EXIT_TROUBLE, "connection %u of %u did not join: %s", index + 1, run->connection_count, error);
    fcntl(connection->fd, F_SETFL, fcntl(connection->fd, F_GETFL) | O_NONBLOCK);
    if (role == ROLE_SUBSCRIBER || run->options.wire->acknowledged) connection->reader = zeroed(1, sizeof *connection->reader);
    if (!watched) return;
    struct epoll_event event = {.events = role == ROLE_PUBLISHER ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN, .data.u32 = index};
    if (epoll_ctl(run->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        stop_with(EXIT_TROUBLE, "epoll refused a connection: %s", strerror(errno));
}

static void keeper_visit(const run_t *run) {
    char topic[WIRE_TOPIC_BYTES_MAX];
    topic_name(run, 0, 0, topic);
    const wire_join_t join = {.role = ROLE_KEEPER, .topic = topic};
    int fd = connect_to(&run->options);
    const char *error = run->options.wire->join(fd, &join);
    if (error) stop_with(EXIT_TROUBLE, "the broker was not made to keep messages: %s", error);
    close(fd);
}

/* Order in connections: subscribers (of one topic, then wildcards), stalled, idle, publishers. */
static void connections_open(run_t *run) {
    const options_t *options = &run->options;
    char name[WIRE_TOPIC_BYTES_MAX];
    unsigned index = 0;
    run->reading_subscribers = options->subscribers + options->wildcards;
    run->connection_count = run->reading_subscribers + options->stalled + options->idle + options->publishers;
    run->connections = zeroed(run->connection_count, sizeof *run->connections);
    run->subscribers = run->connections;
    for (unsigned i = 0; i < options->subscribers; i++) {
        topic_name(run, i % options->topics, index, name);
        connection_open(run, index++, ROLE_SUBSCRIBER, i % options->topics, name, true);
    }
    for (unsigned i = 0; i < options->wildcards; i++)
        connection_open(run, index++, ROLE_SUBSCRIBER, TOPIC_ALL, options->wire->filter, true);
    for (unsigned i = 0; i < options->stalled; i++) {
        topic_name(run, i % options->topics, index, name);
        connection_open(run, index++, ROLE_SUBSCRIBER, i % options->topics, name, false);
    }
    for (unsigned i = 0; i < options->idle; i++) {
        if (options->idle_subscribe) snprintf(name, sizeof name, "idle%u", i);
        connection_open(run, index++, ROLE_IDLE, 0, options->idle_subscribe ? name : NULL, true);
    }
    if (options->wire->acknowledged) keeper_visit(run);
    run->publishers = run->connections + index;
    for (unsigned i = 0; i < options->publishers; i++)
        connection_open(run, index++, ROLE_PUBLISHER, i % options->topics, NULL, true);
    run->publishers_open = options->publishers;
    run->subscribers_open = run->reading_subscribers;
}

/* ---- publishing ---- */

/* Publisher k sends on topics k, k + publishers, ... in turn. With more publishers than topics it sends only on topic k
 * modulo topics. */
static unsigned publisher_topics(const run_t *run) { /* equally many for all, as options_check ensures */
    return run->options.publishers >= run->options.topics ? 1 : run->options.topics / run->options.publishers;
}

static unsigned message_topic(const run_t *run, const connection_t *publisher, uint64_t message) {
    unsigned topics = publisher_topics(run);
    return topics == 1 ? publisher->topic
                       : publisher->topic + (unsigned)(message % run->ring_messages % topics) * run->options.publishers;
}

static void ring_encode(run_t *run, connection_t *publisher) {
    char name[WIRE_TOPIC_BYTES_MAX];
    publisher->ring = zeroed((size_t)run->ring_messages * run->message_bytes + WIRE_OVERHEAD_BYTES_MAX, 1);
    for (uint32_t i = 0; i < run->ring_messages; i++) {
        wire_places_t places;
        topic_name(run, message_topic(run, publisher, i), (unsigned)(publisher - run->connections), name);
        size_t size = run->options.wire->publish(publisher->ring + (size_t)i * run->message_bytes, name, run->payload,
                                                 run->options.payload_bytes, run->options.ttl_ms, &places);
        if (size != run->message_bytes)
            stop_with(EXIT_TROUBLE, "messages differ in size: %zu and %u bytes", size, run->message_bytes);
    }
}

/* A ring holds a whole number of rounds over its publisher's topics, at least one. */
static void rings_encode(run_t *run) {
    const options_t *options = &run->options;
    char name[WIRE_TOPIC_BYTES_MAX];
    uint8_t *sample = zeroed(options->payload_bytes + WIRE_OVERHEAD_BYTES_MAX, 1);
    run->payload = zeroed(options->payload_bytes, 1);
    for (uint32_t i = 0; i < options->payload_bytes; i++) run->payload[i] = (uint8_t)('a' + i % 26);
    topic_name(run, 0, 0, name);
    run->message_bytes =
        (uint32_t)options->wire->publish(sample, name, run->payload, options->payload_bytes, options->ttl_ms, &run->places);
    free(sample);
    run->carry_bytes_max = options->payload_bytes + 4096;
    unsigned shared = options->publishers < options->topics ? options->publishers : options->topics;
    unsigned turn = options->publishers ? publisher_topics(run) : 1;
    run->ring_messages = RING_BYTES / run->message_bytes / turn * turn;
    if (options->wire->acknowledged && run->ring_messages < options->window) run->ring_messages = (uint32_t)options->window;
    if (options->single_writes) run->ring_messages = (options->rate > 0 ? 16 : 1) * turn;
    if (run->ring_messages < turn) run->ring_messages = turn;
    for (unsigned i = 0; i < options->publishers; i++) {
        connection_t *publisher = &run->publishers[i];
        if (i < shared || options->rate > 0 || options->wire->acknowledged)
            ring_encode(run, publisher); /* messages with a time stamp or number need their own ring */
        else
            publisher->ring = run->publishers[i % shared].ring;
    }
}

static uint64_t subscriber_expected(const run_t *run, const connection_t *subscriber) {
    return subscriber->topic == TOPIC_ALL ? run->sent : run->topic_sent[subscriber->topic];
}

static uint64_t subscriber_outstanding(const run_t *run, const connection_t *subscriber) {
    uint64_t expected = subscriber_expected(run, subscriber), seen = subscriber->received + subscriber->forgiven;
    return subscriber->fd < 0 || seen >= expected ? 0 : expected - seen;
}

static uint64_t window_room(const run_t *run, const connection_t *subscriber) {
    uint64_t outstanding = subscriber_outstanding(run, subscriber);
    return outstanding < run->options.window ? run->options.window - outstanding : 0;
}

/* Number of messages that this publisher may issue so that no subscriber has more than the window outstanding. */
static uint64_t publisher_room(const run_t *run, const connection_t *publisher) {
    const options_t *options = &run->options;
    unsigned topics = publisher_topics(run);
    uint64_t room = options->window, all = options->window;
    for (unsigned t = 0; t < topics; t++)
        for (unsigned s = publisher->topic + t * options->publishers; s < options->subscribers; s += options->topics) {
            uint64_t one = window_room(run, &run->subscribers[s]);
            if (one < room) room = one;
        }
    for (unsigned s = options->subscribers; s < run->reading_subscribers; s++) {
        uint64_t one = window_room(run, &run->subscribers[s]);
        if (one < all) all = one;
    }
    return room * topics < all ? room * topics : all; /* a wildcard's window is for all topics together */
}

static uint64_t due_ns(const run_t *run, const connection_t *publisher, uint64_t message) {
    double position = (double)message * run->options.publishers + (double)(publisher - run->publishers);
    return run->start_ns + (uint64_t)(position * 1e9 / run->options.rate);
}

/* Stamps due messages with the time when they were due, however late they are written. So delays caused by the broker count
 * as its latency. */
static void publisher_issue_due(run_t *run, connection_t *publisher) {
    uint64_t ring_bytes = (uint64_t)run->ring_messages * run->message_bytes;
    for (;;) {
        uint64_t due = due_ns(run, publisher, publisher->issued_messages);
        bool room = (publisher->issued_messages + 1) * run->message_bytes - publisher->sent_bytes <= ring_bytes;
        if (due > run->now_ns || due >= run->stop_ns || !room) {
            if (due < run->next_due_ns) run->next_due_ns = due; /* without space this is in the past: the next pass tries again */
            return;
        }
        uint64_t slot = publisher->issued_messages % run->ring_messages;
        memcpy(publisher->ring + slot * run->message_bytes + run->places.payload, &due, sizeof due);
        publisher->issued_messages++;
    }
}

static uint64_t messages_written(const run_t *run, const connection_t *publisher) {
    return publisher->sent_bytes / run->message_bytes;
}

/* As many as the window allows. A ring holds at least a window, so only acknowledged messages are renumbered. */
static void publisher_issue_numbered(run_t *run, connection_t *publisher) {
    if (run->now_ns >= run->stop_ns) return;
    while (publisher->issued_messages - publisher->received < run->options.window) {
        uint8_t *message = publisher->ring + publisher->issued_messages % run->ring_messages * run->message_bytes;
        unsigned packet_id = (unsigned)(publisher->issued_messages % PACKET_IDS) + 1;
        uint64_t number = ++publisher->issued_messages;
        for (unsigned i = 0; run->places.number && i < 8; i++) message[run->places.number + i] = (uint8_t)(number >> 8 * i);
        if (run->places.packet_id) {
            message[run->places.packet_id] = (uint8_t)(packet_id >> 8);
            message[run->places.packet_id + 1] = (uint8_t)packet_id;
        }
    }
}

static void publisher_issue(run_t *run, connection_t *publisher) {
    if (run->options.wire->acknowledged) {
        publisher_issue_numbered(run, publisher);
        return;
    }
    if (run->options.rate > 0) {
        publisher_issue_due(run, publisher);
        return;
    }
    if (publisher->issued_messages * run->message_bytes != publisher->sent_bytes || run->now_ns >= run->stop_ns) return;
    uint64_t wanted = run->options.single_writes ? 1 : run->ring_messages, room = publisher_room(run, publisher);
    if (wanted > run->options.window) wanted = run->options.window;
    if (room >= wanted) publisher->issued_messages += wanted; /* all or none: many small writes would be another shape of load */
}

static void connection_close(run_t *run, connection_t *connection) {
    close(connection->fd);
    connection->fd = -1;
    run->disconnected++;
    if (connection->role == ROLE_PUBLISHER) run->publishers_open--;
    if (connection->role == ROLE_SUBSCRIBER) run->subscribers_open--;
}

static void publisher_account(run_t *run, connection_t *publisher, size_t written) {
    uint64_t before = publisher->sent_bytes / run->message_bytes;
    publisher->sent_bytes += written;
    uint64_t after = publisher->sent_bytes / run->message_bytes;
    run->sent += after - before;
    if (publisher_topics(run) == 1)
        run->topic_sent[publisher->topic] += after - before;
    else
        for (uint64_t message = before; message < after; message++) run->topic_sent[message_topic(run, publisher, message)]++;
}

/* One write of issued messages: up to the ring's end, or of one message. Returns true if anything was written. */
static bool publisher_write(run_t *run, connection_t *publisher) {
    uint64_t ring_bytes = (uint64_t)run->ring_messages * run->message_bytes;
    uint64_t from = publisher->sent_bytes % ring_bytes;
    uint64_t size = publisher->issued_messages * run->message_bytes - publisher->sent_bytes;
    if (size > ring_bytes - from) size = ring_bytes - from;
    if (run->options.single_writes && size > run->message_bytes - from % run->message_bytes)
        size = run->message_bytes - from % run->message_bytes;
    if (!size) return false;
    ssize_t written = send(publisher->fd, publisher->ring + from, size, MSG_NOSIGNAL);
    if (written > 0) {
        publisher_account(run, publisher, (size_t)written);
        return true;
    }
    if (errno == EAGAIN)
        publisher->blocked = true;
    else if (errno != EINTR)
        connection_close(run, publisher);
    return false;
}

/* One round over the publishers, starting after the last one served. Returns the number of writes. */
static unsigned publish_pass(run_t *run) {
    const options_t *options = &run->options;
    unsigned writes = 0, limit = options->single_writes ? SINGLE_WRITES_PER_PASS : WRITES_PER_PASS;
    if (options->rate > 0) {
        if (run->now_ns < run->next_due_ns) return 0;
        run->next_due_ns = UINT64_MAX, limit = options->publishers; /* all of them, so that none is late because of another */
    }
    for (unsigned i = 0; i < options->publishers && writes < limit; i++) {
        connection_t *publisher = &run->publishers[run->publisher_next];
        if (++run->publisher_next == options->publishers) run->publisher_next = 0;
        if (publisher->fd < 0) continue;
        publisher_issue(run, publisher);
        if (!publisher->blocked && publisher_write(run, publisher)) writes++;
        if (options->rate > 0 && publisher->fd >= 0 && publisher->issued_messages * run->message_bytes != publisher->sent_bytes)
            run->next_due_ns = 0;
    }
    return writes;
}

/* At the end, partly written messages are completed, and with a rate all due messages are written. Returns true if nothing
 * is left to write. */
static bool publishers_finish(run_t *run) {
    bool all = true;
    run->next_due_ns = UINT64_MAX;
    for (unsigned i = 0; i < run->options.publishers; i++) {
        connection_t *publisher = &run->publishers[i];
        if (publisher->fd < 0) continue;
        if (run->options.rate > 0)
            publisher_issue_due(run, publisher);
        else
            publisher->issued_messages = (publisher->sent_bytes + run->message_bytes - 1) / run->message_bytes;
        if (!publisher->blocked) publisher_write(run, publisher);
        if (publisher->fd < 0) continue;
        bool written = publisher->issued_messages * run->message_bytes == publisher->sent_bytes;
        if (!written || (run->options.rate > 0 && due_ns(run, publisher, publisher->issued_messages) < run->stop_ns)) all = false;
    }
    return all;
}

/* Messages that were due in the run and never written, because the broker accepted them too slowly. */
static uint64_t unsent_in_all(const run_t *run) {
    uint64_t due = (uint64_t)((double)(run->stop_ns - run->start_ns) * run->options.rate / 1e9); /* 0 without a rate */
    return due > run->sent ? due - run->sent : 0;
}

/* ---- receiving ---- */

typedef struct {
    wire_sink_t sink;
    run_t *run;
} run_sink_t;

static void message_take(wire_sink_t *sink, const uint8_t *payload, size_t size) {
    run_t *run = ((run_sink_t *)sink)->run;
    uint64_t stamp;
    bool stamped = run->options.rate > 0;
    size_t compared = stamped ? sizeof stamp : 0; /* stamped payloads differ in their first bytes */
    if (size != run->options.payload_bytes || memcmp(payload + compared, run->payload + compared, size - compared) != 0) {
        run->corrupt++;
        return;
    }
    if (!stamped) return;
    memcpy(&stamp, payload, sizeof stamp);
    if (stamp >= run->measure_ns && stamp <= run->now_ns) histogram_add(&run->latency, run->now_ns - stamp);
}

/* Prepends the kept bytes, scans, and keeps the rest. Returns true if the read filled the buffer. */
static bool connection_read(run_t *run, connection_t *connection) {
    run_sink_t sink = {.sink = {.every = run->options.rate > 0, .take = message_take}, .run = run};
    wire_reader_t none = {0};
    uint8_t *bytes = run->receive_buffer;
    size_t carried = connection->carry_bytes;
    if (carried) memcpy(bytes, connection->carry, carried);
    ssize_t received = recv(connection->fd, bytes + carried, RECEIVE_BYTES, 0);
    if (received <= 0) {
        if (received == 0 || (errno != EAGAIN && errno != EINTR)) connection_close(run, connection);
        return false;
    }
    if (sink.sink.every) run->now_ns = clock_ns();
    size_t size = carried + (size_t)received;
    ssize_t used = run->options.wire->scan(connection->reader ? connection->reader : &none, bytes, size, &sink.sink);
    if (used < 0) stop_with(EXIT_TROUBLE, "the run is void: %s", sink.sink.error);
    if (sink.sink.messages && connection->role != (run->options.wire->acknowledged ? ROLE_PUBLISHER : ROLE_SUBSCRIBER))
        stop_with(EXIT_TROUBLE, "the run is void: a message came to a connection that has not subscribed");
    connection->received += sink.sink.messages;
    if (run->options.wire->acknowledged && connection->received > messages_written(run, connection))
        stop_with(EXIT_TROUBLE, "the run is void: more acknowledgements than publishes");
    run->delivered += sink.sink.messages;
    connection->carry_bytes = (uint32_t)(size - (size_t)used);
    if (connection->carry_bytes > run->carry_bytes_max)
        stop_with(EXIT_TROUBLE, "the run is void: a frame of over %zu bytes", run->carry_bytes_max);
    if (connection->carry_bytes) {
        if (!connection->carry) connection->carry = zeroed(run->carry_bytes_max, 1);
        memcpy(connection->carry, bytes + used, connection->carry_bytes);
    }
    const char *pong = run->options.wire->pong;
    bool between = connection->sent_bytes % run->message_bytes ==
                   0; /* in the middle of a message it waits for the next ping; two may be missed */
    for (unsigned i = 0; i < sink.sink.pings && between; i++)
        if (send(connection->fd, pong, strlen(pong), MSG_NOSIGNAL) < 0) break;
    return received == RECEIVE_BYTES;
}

static void receive(run_t *run, int timeout_ms) {
    struct epoll_event events[EVENTS_PER_WAIT];
    int count = epoll_wait(run->epoll_fd, events, EVENTS_PER_WAIT, timeout_ms);
    for (int i = 0; i < count; i++) {
        connection_t *connection = &run->connections[events[i].data.u32];
        if (events[i].events & EPOLLOUT) connection->blocked = false;
        if (!(events[i].events & ~(uint32_t)EPOLLOUT)) continue;
        for (int reads = 0; reads < READS_PER_EVENT && connection->fd >= 0 && connection_read(run, connection);) reads++;
    }
}

/* ---- the run ---- */

static uint64_t expected_in_all(const run_t *run) {
    if (run->options.wire->acknowledged) return run->sent;
    uint64_t sum = 0;
    for (unsigned i = 0; i < run->reading_subscribers; i++) sum += subscriber_expected(run, &run->subscribers[i]);
    return sum;
}

static mark_t mark_now(const run_t *run) {
    mark_t mark = {.at_ns = clock_ns(),
                   .sent = run->sent,
                   .delivered = run->delivered,
                   .own_cpu_s = own_cpu_s(),
                   .machine_cpu_s = machine_cpu_s()};
    if (run->options.pid) process_read(run->options.pid, &mark.broker);
    return mark;
}

/* No message for a second while windows are closed: count the outstanding ones as lost, so that the run continues and
 * reports them. */
static void forgive_lost(run_t *run) {
    bool any = false;
    for (unsigned i = 0; i < run->reading_subscribers; i++) {
        uint64_t outstanding = subscriber_outstanding(run, &run->subscribers[i]);
        run->subscribers[i].forgiven += outstanding;
        any |= outstanding > 0;
    }
    any |= run->options.wire->acknowledged; /* a slow disk; nothing is counted as lost */
    run->stalls += any;
    run->last_delivery_ns = run->now_ns;
}

static int wait_ms(const run_t *run, unsigned writes) {
    if (writes) return 0;
    if (!(run->options.rate > 0)) return 2;
    uint64_t wake_ns = run->next_due_ns < run->stop_ns ? run->next_due_ns : run->stop_ns;
    return wake_ns > run->now_ns + 3 * second_ns / 1000 ? 1 : 0; /* busy-wait if a message is due within 3 ms */
}

static void run_load(run_t *run) {
    const options_t *options = &run->options;
    run->start_ns = run->last_delivery_ns = run->now_ns = clock_ns();
    run->measure_ns = run->start_ns + (uint64_t)(options->warmup_s * 1e9);
    run->stop_ns = run->measure_ns + (uint64_t)(options->duration_s * 1e9);
    run->mark = mark_now(run);
    bool marked = options->warmup_s == 0, finished = false;
    uint64_t delivered_before = 0, patience_ns = options->wire->acknowledged ? overtime_ns : drain_ns;
    while (run->publishers_open && (run->subscribers_open || !run->reading_subscribers)) {
        run->now_ns = clock_ns();
        if (!marked && run->now_ns >= run->measure_ns) run->mark = mark_now(run), marked = true;
        bool sending = run->now_ns < run->stop_ns;
        unsigned writes = sending ? publish_pass(run) : 0;
        if (!sending && !finished) finished = publishers_finish(run);
        receive(run, sending ? wait_ms(run, writes) : 2);
        run->now_ns = clock_ns();
        if (run->delivered != delivered_before) delivered_before = run->delivered, run->last_delivery_ns = run->now_ns;
        uint64_t silent_ns = run->now_ns - run->last_delivery_ns;
        if (sending && silent_ns > stall_ns) forgive_lost(run);
        if (!sending && ((finished && run->delivered >= expected_in_all(run)) || silent_ns > patience_ns ||
                         run->now_ns > run->stop_ns + overtime_ns))
            break;
    }
}

/* Idle connections only: keep them open for the duration, and answer the broker's pings. */
static void run_idle(run_t *run) {
    run->start_ns = run->now_ns = clock_ns();
    run->stop_ns = run->start_ns + (uint64_t)(run->options.duration_s * 1e9);
    run->mark = mark_now(run);
    while ((run->now_ns = clock_ns()) < run->stop_ns) receive(run, 10);
    run->last_delivery_ns = run->now_ns;
}

static void print_count(const char *name, uint64_t value) { printf(", \"%s\": %llu", name, (unsigned long long)value); }
static void print_decimal(const char *name, double value) { printf(", \"%s\": %.5f", name, value); }

static void print_latency(const histogram_t *latency) {
    const struct {
        const char *name;
        double quantile;
    } rows[] = {{"p50_us", .5}, {"p90_us", .9}, {"p95_us", .95}, {"p99_us", .99}, {"p999_us", .999}};
    print_count("latency_count", latency->count);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        print_decimal(rows[i].name, (double)histogram_quantile_ns(latency, rows[i].quantile) / 1e3);
    print_decimal("max_us", (double)latency->max_ns / 1e3);
}

static void print_broker(const run_t *run, const mark_t *start, const mark_t *end, uint64_t sent, uint64_t delivered) {
    bool gone = end->broker.cpu_ns < start->broker.cpu_ns || !end->broker.rss_bytes;
    print_count("broker_gone", gone);
    if (gone) return; /* the broker ended during the run: the figures are meaningless */
    double cpu_s = (double)(end->broker.cpu_ns - start->broker.cpu_ns) / 1e9;
    double others_s = end->machine_cpu_s - start->machine_cpu_s - cpu_s - (end->own_cpu_s - start->own_cpu_s);
    print_decimal("other_cpus", others_s > 0 ? others_s * 1e9 / (double)(end->at_ns - start->at_ns) : 0);
    print_decimal("broker_cpu_s", cpu_s);
    print_decimal("broker_user_s", end->broker.user_s - start->broker.user_s);
    print_decimal("broker_system_s", end->broker.system_s - start->broker.system_s);
    if (delivered) print_decimal("cpu_us_per_delivered", cpu_s * 1e6 / (double)delivered);
    if (sent) print_decimal("cpu_us_per_sent", cpu_s * 1e6 / (double)sent);
    print_count("rss_before_bytes", run->before.rss_bytes);
    print_count("rss_joined_bytes", run->joined.rss_bytes);
    print_count("rss_after_bytes", end->broker.rss_bytes);
    print_count("rss_peak_bytes", end->broker.peak_bytes);
}

/* Totals include the warm-up and the drain. Fields that begin with measured_, rates, CPU and latency exclude the warm-up. */
static void print_report(run_t *run) {
    usleep(settle_us); /* the broker's last loop iteration belongs to the run */
    mark_t end = mark_now(run), start = run->mark;
    uint64_t delivered = end.delivered - start.delivered, sent = end.sent - start.sent, lost = 0, extra = 0;
    for (unsigned i = 0; i < run->reading_subscribers; i++) {
        uint64_t wanted = subscriber_expected(run, &run->subscribers[i]), got = run->subscribers[i].received;
        lost += wanted > got ? wanted - got : 0;
        extra += got > wanted ? got - wanted : 0;
    }
    for (unsigned i = 0; run->options.wire->acknowledged && i < run->options.publishers; i++)
        lost += messages_written(run, &run->publishers[i]) - run->publishers[i].received;
    double seconds = run->last_delivery_ns > start.at_ns ? (double)(run->last_delivery_ns - start.at_ns) / 1e9 : 0;
    printf("{\"protocol\": \"%s\"", run->options.wire->name);
    print_count("message_bytes", run->message_bytes);
    print_count("sent", run->sent);
    print_count("delivered", run->delivered);
    print_count("expected", expected_in_all(run));
    print_count("lost", lost);
    print_count("extra", extra);
    print_count("corrupt", run->corrupt);
    print_count("unsent", unsent_in_all(run));
    print_count("disconnected", run->disconnected);
    print_count("stalls", run->stalls);
    print_count("connections", run->connection_count);
    print_decimal("seconds", seconds);
    print_count("measured_sent", sent);
    print_count("measured_delivered", delivered);
    print_decimal("own_cpu_s", end.own_cpu_s - start.own_cpu_s);
    if (seconds > 0) {
        print_decimal("sent_per_s", (double)sent / seconds);
        print_decimal("delivered_per_s", (double)delivered / seconds);
        print_decimal("own_busy", (end.own_cpu_s - start.own_cpu_s) / seconds);
    }
    if (run->options.pid) print_broker(run, &start, &end, sent, delivered);
    if (run->latency.count) print_latency(&run->latency);
    printf("}\n");
}

static void open_files_raise(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) limit.rlim_cur = limit.rlim_max, setrlimit(RLIMIT_NOFILE, &limit);
}

static void give_up(int signal) {
    static const char text[] = "loadgen: gave up: the run took a minute longer than it was asked to\n";
    (void)signal;
    if (write(2, text, sizeof text - 1) < 0) _exit(EXIT_TROUBLE);
    _exit(EXIT_TROUBLE);
}

int main(int count, char **words) {
    static run_t run;
    run.options = options_read(count, words);
    open_files_raise();
    signal(SIGALRM, give_up);
    alarm((unsigned)(run.options.duration_s + run.options.warmup_s) + 60);
    if (run.options.pid && process_read(run.options.pid, &run.before) < 0)
        stop_with(EXIT_TROUBLE, "no process %d to measure", (int)run.options.pid);
    if ((run.epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) stop_with(EXIT_TROUBLE, "no epoll: %s", strerror(errno));
    connections_open(&run);
    if (run.options.wire->acknowledged && !run.options.window) run.options.window = ACK_WINDOW;
    rings_encode(&run);
    if (!run.options.window)
        run.options.window = run.options.single_writes ? 2 * run.options.publishers : WINDOW_BYTES / run.message_bytes;
    if (!run.options.window) run.options.window = 1;
    run.topic_sent = zeroed(run.options.topics, sizeof *run.topic_sent);
    run.receive_buffer = zeroed(run.carry_bytes_max + RECEIVE_BYTES, 1);
    if (run.options.pid) process_read(run.options.pid, &run.joined);
    if (run.options.publishers)
        run_load(&run);
    else
        run_idle(&run);
    print_report(&run);
    return 0;
}
