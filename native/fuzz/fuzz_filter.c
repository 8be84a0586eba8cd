/* fuzz_filter.c: any bytes as a filter and a topic, split at the first 0x00 or in the middle.
 *
 * Invariant: the checks and the match agree with each other and with the rules of the protocol.
 */
#include "base/topic_name.h"
#include "fuzz.h"

struct name {
    uint8_t *bytes;
    uint32_t size;
};

static struct name name_of(const uint8_t *bytes, size_t size) {
    struct name name = {malloc(size), (uint32_t)size}; /* exact size, so that a read beyond it is detected */
    CHECK(name.bytes != NULL || size == 0);
    if (size) memcpy(name.bytes, bytes, size);
    return name;
}

static bool has_any(struct name name, const char *characters) {
    for (uint32_t i = 0; i < name.size; i++)
        if (name.bytes[i] && strchr(characters, name.bytes[i])) return true;
    return false;
}

static int match(struct name filter, struct name topic) {
    return filter_match(filter.bytes, filter.size, topic.bytes, topic.size);
}

static bool match_text(const char *filter, struct name topic) {
    return filter_match((const uint8_t *)filter, (uint32_t)strlen(filter), topic.bytes, topic.size) == 1;
}

static void check_topic(struct name topic) {
    if (topic_check(topic.bytes, topic.size) != 0) return;
    CHECK(!has_any(topic, "*>+#") && topic.size >= 1 && topic.size <= TOPIC_BYTES_MAX);
    CHECK(filter_check(topic.bytes, topic.size) == 0 && match(topic, topic) == 1); /* every topic is a literal filter */
    bool own = topic.bytes[0] == '$';
    CHECK(match_text(">", topic) == !own && match_text("#", topic) == !own);
    if (!has_any(topic, ".")) CHECK(match_text("*", topic) == !own);
    if (!has_any(topic, "/")) CHECK(match_text("+", topic) == !own);
}

static void check_pair(struct name filter, struct name topic) {
    int kind = filter_check(filter.bytes, filter.size), matched = match(filter, topic);
    CHECK(kind <= 2);
    if (kind < 0) {
        CHECK(matched == kind && strcmp(topic_error(kind), "unknown error") != 0);
        return;
    }
    CHECK(filter.size >= 1 && filter.size <= TOPIC_BYTES_MAX);
    CHECK(matched == 0 || matched == 1);
    CHECK(has_any(filter, "*>") == (kind == 1) && has_any(filter, "+#") == (kind == 2));
    CHECK(kind != 0 || topic_check(filter.bytes, filter.size) == 0);
    bool equal = filter.size == topic.size && memcmp(filter.bytes, topic.bytes, topic.size) == 0;
    if (kind == 0) CHECK(matched == equal);
    if (matched && topic.bytes[0] == '$') CHECK(filter.bytes[0] == '$');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    size_t filter_size = cut ? (size_t)(cut - data) : size / 2;
    size_t topic_at = cut ? filter_size + 1 : filter_size;
    struct name filter = name_of(data, filter_size), topic = name_of(data + topic_at, size - topic_at);
    check_pair(filter, topic);
    check_topic(topic);
    check_topic(filter);
    free(filter.bytes);
    free(topic.bytes);
    return 0;
}
