/* base/topic_name.h: the grammar of topics and filters, and the matching of filters with topics. docs/PROTOCOL.md has the
 * rules.
 *
 * Invariant: these functions read no byte outside their arguments.
 */
#ifndef BQ_TOPIC_NAME_H
#define BQ_TOPIC_NAME_H

#include "base/bytes.h"

#define TOPIC_BYTES_MAX 256u

#define TOPIC_ERRORS(X)                                                                                                          \
    X(EMPTY, "this action needs a topic of at least 1 byte")                                                                     \
    X(LONG, "the topic or filter is longer than 256 bytes")                                                                      \
    X(UTF8, "a string is not valid UTF-8")                                                                                       \
    X(CONTROL, "the topic or filter contains a control character")                                                               \
    X(WILDCARD, "the topic contains one of * > + #, which are for filters only")                                                 \
    X(NOT_ALONE, "a wildcard must be a whole level of the filter")                                                               \
    X(NOT_LAST, "> and # may only be the last level of a filter")                                                                \
    X(MIXED, "the filter mixes wildcards for dots (* >) with wildcards for slashes (+ #)")                                       \
    X(LEVELS, "the topic or filter has more levels than limits.max_topic_levels")

#define TOPIC_E_BASE (-130) /* distinct from enum bq_error and the codes of protocols */
#define TOPIC_E_PLACE(name, phrase) TOPIC_E_AT_##name,
#define TOPIC_E_CODE(name, phrase) TOPIC_E_##name = TOPIC_E_BASE - TOPIC_E_AT_##name,
enum { TOPIC_ERRORS(TOPIC_E_PLACE) TOPIC_E_COUNT };
enum topic_error { TOPIC_ERRORS(TOPIC_E_CODE) };
const char *topic_error(int code); /* one phrase, never NULL */

enum wildcard_syntax { SYNTAX_LITERAL, SYNTAX_DOTS, SYNTAX_SLASHES };

int utf8_check(const uint8_t *text, uint64_t size);     /* 0 or TOPIC_E_UTF8 */
int topic_check(const uint8_t *topic, uint32_t size);   /* 0 or a negative code */
int filter_check(const uint8_t *filter, uint32_t size); /* enum wildcard_syntax, or a negative code */
/* 0 or a code. The first level of the broker's own topics ($dlq) is not counted. */
int levels_check(const uint8_t *name, uint32_t size, uint32_t levels_max);
int filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size); /* 1, 0 or a code */
/* The same for a checked filter: 1 or 0. */
int filter_matches(int syntax, const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size);

#endif
