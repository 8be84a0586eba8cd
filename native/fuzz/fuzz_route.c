/* fuzz_route.c: subscriptions are added and removed, and topics are looked up in between: the trie and the topic cache compared
 * with filter_match over a list.
 *
 *      input      [step][whom][name] ...
 *
 * Invariant: a topic's targets are exactly the connections with a matching filter, each once, whatever happened before, also
 * when filters changed during an interrupted search. When all have left, the pool is empty.
 */
#include "broker/client.h"
#include "base/topic_name.h"
#include "fuzz.h"

#define CONNECTIONS 5u
#define PENDING_COMMITS_MAX 64u

static const char *const FILTERS[] = {"a",   "a.b", "a.*",   "*.b",  "a.>",   ">",   "a/+", "+/b",
                                      "a/#", "#",   "a/b/#", "$a.*", "*.*.*", "a..", "+/+"};
static const char *const TOPICS[] = {"a", "a.b", "a.b.c", "a/b", "a/b/c", "a/", "/", ".", "$a.b", "a..", "b", "a.b/c"};

typedef struct pending_commit {
    uint32_t connection, size;
    uint8_t filter[TOPIC_BYTES_MAX];
} pending_commit_t;

typedef struct model {
    routes_t *routes;
    client_t connections[CONNECTIONS];
    pending_commit_t pending[PENDING_COMMITS_MAX];
    uint32_t pending_commits;
} model_t;

static pending_commit_t *pending_find(model_t *model, uint32_t connection, text_t filter) {
    for (uint32_t i = 0; i < model->pending_commits; i++) {
        pending_commit_t *pending = &model->pending[i];
        if (pending->connection == connection && pending->size == filter.size &&
            !memcmp(pending->filter, filter.bytes, filter.size))
            return pending;
    }
    return NULL;
}

static void subscribe(model_t *model, uint32_t connection, text_t filter) {
    if (model->pending_commits == PENDING_COMMITS_MAX) return;
    bool known = filter.size && pending_find(model, connection, filter);
    client_t *to = &model->connections[connection];
    int added = route_subscribe(model->routes, to, &to->subscriptions, filter.bytes, filter.size);
    CHECK(added == (filter_check(filter.bytes, filter.size) < 0 ? BQ_E_ARGUMENT : known ? 0 : 1));
    if (added != 1) return;
    pending_commit_t *pending = &model->pending[model->pending_commits++];
    *pending = (pending_commit_t){.connection = connection, .size = filter.size};
    memcpy(pending->filter, filter.bytes, filter.size);
}

static void unsubscribe(model_t *model, uint32_t connection, text_t filter) {
    client_t *from = &model->connections[connection];
    pending_commit_t *pending = filter.size ? pending_find(model, connection, filter) : NULL;
    bool left = route_unsubscribe(model->routes, from, from->subscriptions, filter.bytes, filter.size);
    CHECK(left == (pending != NULL));
    if (left) *pending = model->pending[--model->pending_commits];
}

static void leave(model_t *model, uint32_t connection) {
    client_t *gone = &model->connections[connection];
    while (gone->subscriptions) route_leave(model->routes, gone->subscriptions);
    for (uint32_t i = model->pending_commits; i-- > 0;)
        if (model->pending[i].connection == connection) model->pending[i] = model->pending[--model->pending_commits];
}

static void look_up(model_t *model, text_t name, uint32_t units, bool stop) {
    bool wants[CONNECTIONS] = {false}, gets[CONNECTIONS] = {false};
    int error = 0;
    topic_t *topic = route_topic(model->routes, name.bytes, name.size, 256, &error);
    CHECK((topic != NULL) == (topic_check(name.bytes, name.size) == 0) && (topic || error < 0));
    if (!topic) return;
    enum route_outcome outcome = route_ready(model->routes, topic, units);
    while (outcome == ROUTE_LATER && !stop) outcome = route_ready(model->routes, topic, units);
    CHECK(outcome != ROUTE_NO_MEMORY);
    if (outcome == ROUTE_LATER) return; /* the next steps may change filters before the next look-up */
    CHECK(route_is_current(model->routes, topic));
    for (uint32_t i = 0; i < model->pending_commits; i++)
        wants[model->pending[i].connection] |=
            filter_match(model->pending[i].filter, model->pending[i].size, name.bytes, name.size) == 1;
    for (uint32_t i = 0; i < topic->target_count; i++) {
        uint64_t connection = (uint64_t)(topic->targets[i] - model->connections);
        CHECK(connection < CONNECTIONS && !gets[connection]);
        gets[connection] = true;
    }
    CHECK(memcmp(wants, gets, sizeof wants) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static model_t model;
    pool_t pool;
    uint64_t work = 0;
    input_t input = {data, data + size};
    memset(&model, 0, sizeof model);
    const hash_key_t key = hash_key_from(size); /* the same input gives the same run */
    pool_init(&pool, 8, 8, 8);
    CHECK((model.routes = route_new(&pool, 1 + input_byte(&input) % 100, &key, &work, NULL, NULL)));
    for (uint32_t steps = 0; steps < 500 && input.at < input.end; steps++) {
        uint8_t what = input_byte(&input);
        uint32_t connection = what / 8 % CONNECTIONS;
        if (what % 8 < 3)
            subscribe(&model, connection, input_text(&input, FILTERS, sizeof FILTERS / sizeof *FILTERS));
        else if (what % 8 == 3)
            unsubscribe(&model, connection, input_text(&input, FILTERS, sizeof FILTERS / sizeof *FILTERS));
        else if (what % 8 == 4)
            leave(&model, connection);
        else
            look_up(&model, input_text(&input, TOPICS, sizeof TOPICS / sizeof *TOPICS),
                    what % 8 == 5 ? 1 + connection : UINT32_MAX, what >= 128);
    }
    for (uint32_t i = 0; i < CONNECTIONS; i++) leave(&model, i);
    CHECK(route_counts(model.routes)->filters == 0 && route_counts(model.routes)->subscriptions == 0);
    route_free(model.routes);
    CHECK(pool.used_bytes == pool.free_bytes);
    pool_release(&pool);
    return 0;
}
