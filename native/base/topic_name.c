/* base/topic_name.c: see base/topic_name.h. */
#include "base/topic_name.h"
#include "base/utf8.h"

#define ERROR_PHRASE(name, phrase) [TOPIC_E_BASE - TOPIC_E_##name] = phrase,
static const char *const phrases[] = {TOPIC_ERRORS(ERROR_PHRASE)};

const char *topic_error(int code) {
    if (code <= TOPIC_E_BASE && code > TOPIC_E_BASE - (int)(sizeof phrases / sizeof *phrases))
        return phrases[TOPIC_E_BASE - code];
    return code < 0 ? "unknown error" : "no error";
}

/* Not 0 if a byte is not ASCII, a control character or a wildcard. Plain topics contain none of these. */
static inline uint64_t word_special(uint64_t word) {
    uint64_t below_space = (word - BYTE_ONES * ' ') & ~word;
    uint64_t star_or_plus = word_has(word | BYTE_ONES, '+'); /* '*' with its lowest bit set */
    return ((word | below_space) & BYTE_HIGHS) | star_or_plus | word_has(word, '>') | word_has(word, '#') | word_has(word, 0x7f);
}

int utf8_check(const uint8_t *text, uint64_t size) {
    uint64_t i = 0;
    while (i < size) {
        if (size - i >= 8 && !(load_u64(text + i) & BYTE_HIGHS)) {
            i += 8;
        } else if (text[i] < 0x80) {
            i++;
        } else {
            uint32_t bytes = utf8_character_bytes(text + i, size - i);
            if (!bytes) return TOPIC_E_UTF8;
            i += bytes;
        }
    }
    return 0;
}

static inline bool is_wildcard(uint8_t c) { return c == '*' || c == '>' || c == '+' || c == '#'; }

/* The rules that topics and filters share. 0; 1 if there are wildcards; or a negative code. */
static int name_check(const uint8_t *name, uint32_t size) {
    if (BQ_UNLIKELY(size == 0)) return TOPIC_E_EMPTY;
    if (BQ_UNLIKELY(size > TOPIC_BYTES_MAX)) return TOPIC_E_LONG;
    enum name_characters characters = name_examine(name, size, word_special, is_wildcard);
    if (BQ_LIKELY(characters >= 0)) return characters;
    return characters == NAME_NOT_UTF8 ? TOPIC_E_UTF8 : TOPIC_E_CONTROL;
}

int topic_check(const uint8_t *topic, uint32_t size) {
    int wildcards = name_check(topic, size);
    return wildcards > 0 ? TOPIC_E_WILDCARD : wildcards;
}

int filter_check(const uint8_t *filter, uint32_t size) {
    int wildcards = name_check(filter, size);
    if (wildcards <= 0) return wildcards;
    int syntax = SYNTAX_LITERAL;
    for (uint32_t i = 0; i < size; i++) {
        if (!is_wildcard(filter[i])) continue;
        int own = filter[i] == '*' || filter[i] == '>' ? SYNTAX_DOTS : SYNTAX_SLASHES;
        if (syntax != SYNTAX_LITERAL && syntax != own) return TOPIC_E_MIXED;
        syntax = own;
    }
    const uint8_t separator = syntax == SYNTAX_DOTS ? '.' : '/';
    for (uint32_t i = 0; i < size; i++) {
        if (!is_wildcard(filter[i])) continue;
        bool last = i + 1 == size;
        if ((i > 0 && filter[i - 1] != separator) || (!last && filter[i + 1] != separator)) return TOPIC_E_NOT_ALONE;
        if ((filter[i] == '>' || filter[i] == '#') && !last) return TOPIC_E_NOT_LAST;
    }
    return syntax;
}

int levels_check(const uint8_t *name, uint32_t size, uint32_t levels_max) {
    uint32_t dots = 0, slashes = 0;
    for (uint32_t i = 0; i < size; i++) {
        dots += name[i] == '.';
        slashes += name[i] == '/';
    }
    uint32_t levels = (dots > slashes ? dots : slashes) + 1, own = size && name[0] == '$';
    return levels - own > levels_max ? TOPIC_E_LEVELS : 0;
}

int filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size) {
    int syntax = filter_check(filter, filter_size);
    return syntax < 0 ? syntax : filter_matches(syntax, filter, filter_size, topic, topic_size);
}

/* Compares both names byte by byte. In a valid filter a wildcard is a whole level. Levels may be empty. The wildcards of the
 * other syntax are ordinary characters, as MQTT has them. */
int filter_matches(int syntax, const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size) {
    if (topic_size == 0 || (topic[0] == '$' && filter[0] != '$')) return 0;
    const bool dots = syntax == SYNTAX_DOTS;
    const uint8_t separator = dots ? '.' : '/', one = dots ? '*' : '+', rest = dots ? '>' : '#';
    uint32_t t = 0;
    for (uint32_t f = 0; f < filter_size; f++) {
        if (syntax != SYNTAX_LITERAL && filter[f] == rest) return 1;
        if (syntax != SYNTAX_LITERAL && filter[f] == one) {
            while (t < topic_size && topic[t] != separator) t++;
        } else if (t < topic_size && topic[t] == filter[f]) {
            t++;
        } else {
            /* site/# also matches site. */
            return syntax == SYNTAX_SLASHES && t == topic_size && filter_size - f == 2 && filter[f + 1] == '#';
        }
    }
    return t == topic_size;
}
