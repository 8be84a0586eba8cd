/* proto/mqtt_topic.c: the syntax of topics and filters of MQTT. Their only separator is / and their only wildcards are + and #:
 * dots, * and > are ordinary characters here.
 *
 * Invariant: a filter that is accepted has a syntax with which filter_matches of base/topic_name.h follows the rules of MQTT.
 */
#include "base/utf8.h"
#include "proto/mqtt_bytes.h"
#include "proto/mqtt_codec.h"

#define SHARE "$share/"
#define SHARE_BYTES (sizeof SHARE - 1)

/* Not 0 if a byte is not ASCII, a control character or a wildcard. */
static inline uint64_t word_special(uint64_t word) {
    return (word & BYTE_HIGHS) | word_has_control(word) | word_has(word, '+') | word_has(word, '#') | word_has(word, 0x7f);
}

static inline bool is_wildcard(uint8_t c) { return c == '+' || c == '#'; }

/* 0; 1 if there are wildcards; or an error. */
static int name_check(const uint8_t *name, uint32_t size) {
    enum name_characters characters = name_examine(name, size, word_special, is_wildcard);
    if (BQ_LIKELY(characters >= 0)) return characters;
    return characters == NAME_NOT_UTF8 ? MQTT_E_UTF8 : characters == NAME_NUL ? MQTT_E_NUL : MQTT_E_CONTROL;
}

int mqtt_topic_check(const uint8_t *topic, uint32_t size, uint32_t bytes_max) {
    if (BQ_UNLIKELY(size == 0)) return MQTT_E_TOPIC_EMPTY; /* [MQTT-4.7.3-1] */
    int wildcards = name_check(topic, size);
    if (BQ_UNLIKELY(wildcards)) return wildcards < 0 ? wildcards : MQTT_E_TOPIC_WILDCARD; /* [MQTT-3.3.2-2] */
    return BQ_UNLIKELY(size > bytes_max) ? MQTT_E_TOPIC_LONG : 0;
}

/* + is a whole level; # is the whole last level [MQTT-4.7.1-1], [MQTT-4.7.1-2]. */
static int wildcards_check(const uint8_t *filter, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        if (!is_wildcard(filter[i])) continue;
        const bool last = i + 1 == size;
        if (i > 0 && filter[i - 1] != '/') return MQTT_E_FILTER_WILDCARD;
        if (!last && (filter[i] == '#' || filter[i + 1] != '/')) return MQTT_E_FILTER_WILDCARD;
    }
    return 0;
}

/* $share/NAME/FILTER: the name has at least one character, and no wildcard [MQTT-4.8.2-1], [MQTT-4.8.2-2]. */
static int share_split(mqtt_filter_t *filter) {
    const mqtt_text_t text = filter->text;
    if (text.size < SHARE_BYTES || memcmp(text.bytes, SHARE, SHARE_BYTES) != 0) return 0;
    const uint8_t *name = text.bytes + SHARE_BYTES, *end = text.bytes + text.size;
    const uint8_t *slash = name < end ? memchr(name, '/', (size_t)(end - name)) : NULL;
    if (!slash || slash == name || slash + 1 == end) return MQTT_E_FILTER_SHARE;
    filter->group = (mqtt_text_t){name, (uint32_t)(slash - name)};
    filter->filter = (mqtt_text_t){slash + 1, (uint32_t)(end - slash - 1)};
    for (const uint8_t *at = name; at < slash; at++)
        if (is_wildcard(*at)) return MQTT_E_FILTER_SHARE;
    return 0;
}

int mqtt_filter_check(const uint8_t *text, uint32_t size, uint32_t bytes_max, mqtt_filter_t *filter) {
    *filter = (mqtt_filter_t){.text = {text, size}, .filter = {text, size}};
    if (size == 0) return MQTT_E_FILTER_EMPTY;
    int wildcards = name_check(text, size), error = wildcards < 0 ? wildcards : share_split(filter);
    if (!error && wildcards) error = wildcards_check(filter->filter.bytes, filter->filter.size);
    if (error) return error;
    filter->syntax = wildcards ? SYNTAX_SLASHES : SYNTAX_LITERAL;
    return size > bytes_max ? MQTT_E_FILTER_LONG : 0;
}
