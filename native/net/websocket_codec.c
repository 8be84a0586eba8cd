/* net/websocket_codec.c: see net/websocket_codec.h. */
#include "net/websocket_codec.h"

/* ---- the mask -------------------------------------------------------------------------------------------------------- */

/* A store covers only bytes that have been loaded before, because `to` is not behind `from`. */
uint32_t websocket_unmask(uint8_t *to, const uint8_t *from, uint64_t size, uint32_t key) {
    const uint64_t wide = (uint64_t)key << 32 | key;
    uint64_t at = 0;
    for (; size - at >= 16; at += 16) {
        uint64_t first = load_u64(from + at), second = load_u64(from + at + 8);
        store_u64(to + at, first ^ wide);
        store_u64(to + at + 8, second ^ wide);
    }
    if (size - at >= 8) {
        store_u64(to + at, load_u64(from + at) ^ wide);
        at += 8;
    }
    for (uint32_t i = 0; at < size; i += 8, at++) to[at] = (uint8_t)(from[at] ^ wide >> i);
    const uint32_t bits = (uint32_t)(size & 3) * 8;
    return bits ? key >> bits | key << (32 - bits) : key;
}

/* ---- headers --------------------------------------------------------------------------------------------------------- */

static enum websocket_event bad(websocket_decoder_t *decoder, uint16_t code, const char *reason) {
    decoder->code = code;
    decoder->reason = reason;
    return WEBSOCKET_BAD;
}

static const char *wrong_data(const websocket_decoder_t *decoder, uint8_t opcode) {
    if (opcode == WEBSOCKET_CONTINUATION)
        return decoder->fragmented ? NULL : "WebSocket: a continuation frame, but no message has begun";
    return decoder->fragmented ? "WebSocket: a new message before the end of a fragmented one" : NULL;
}

static const char *wrong_control(uint8_t first, uint8_t second) {
    if (!(first & 0x80)) return "WebSocket: a fragmented control frame";
    return (second & 0x7f) > WEBSOCKET_CONTROL_MAX ? "WebSocket: a control frame of more than 125 bytes" : NULL;
}

/* Checks the first two bytes. false: the decoder has the error. */
static bool begin_valid(websocket_decoder_t *decoder, uint8_t first, uint8_t second) {
    const uint8_t opcode = first & 0x0f;
    const char *wrong = NULL;
    if (first & 0x70)
        wrong = "WebSocket: a reserved bit is set, but no extension was agreed on";
    else if (!(second & 0x80))
        wrong = "WebSocket: a frame of a client without a mask";
    else if (opcode >= WEBSOCKET_CLOSE)
        wrong = opcode > WEBSOCKET_PONG ? "WebSocket: a reserved opcode" : wrong_control(first, second);
    else if (opcode > WEBSOCKET_BINARY)
        wrong = "WebSocket: a reserved opcode";
    else
        wrong = wrong_data(decoder, opcode);
    if (wrong) {
        bad(decoder, WEBSOCKET_CODE_PROTOCOL, wrong);
    } else if (opcode == WEBSOCKET_TEXT) {
        wrong = "WebSocket: a text message; BlipMQ frames are binary";
        bad(decoder, WEBSOCKET_CODE_TEXT, wrong);
    }
    return !wrong;
}

static uint32_t header_size(uint8_t second) {
    const uint8_t length = second & 0x7f;
    return 6u + (length == 126 ? 2u : length == 127 ? 8u : 0u);
}

static uint64_t load_be64(const uint8_t *bytes) { return (uint64_t)load_be32(bytes) << 32 | load_be32(bytes + 4); }

/* A complete header whose first two bytes are valid. false: the decoder has the error. */
static bool header_read(websocket_decoder_t *decoder, const uint8_t *header) {
    const uint8_t length = header[1] & 0x7f, opcode = header[0] & 0x0f;
    const uint32_t size = header_size(header[1]);
    uint64_t left = length == 126 ? (uint64_t)header[2] << 8 | header[3] : length == 127 ? load_be64(header + 2) : length;
    if ((length == 126 && left < 126) || (length == 127 && (left < 1u << 16 || left >> 63))) {
        bad(decoder, WEBSOCKET_CODE_PROTOCOL, "WebSocket: a length that is not written in the shortest form");
        return false;
    }
    if (left > decoder->frame_max) {
        bad(decoder, WEBSOCKET_CODE_TOO_LARGE, "WebSocket: a frame longer than server.max_message_size_bytes allows");
        return false;
    }
    if (opcode < WEBSOCKET_CLOSE) decoder->fragmented = !(header[0] & 0x80);
    decoder->opcode = opcode;
    decoder->left = left;
    decoder->key = load_u32(header + size - 4);
    decoder->payload = true;
    decoder->control_size = decoder->header_size = 0;
    decoder->frames++;
    return true;
}

/* Takes header bytes. true: go on (the header may still be incomplete); false: the decoder has the error. */
static bool header_take(websocket_decoder_t *decoder, uint8_t **from, const uint8_t *end) {
    if (!decoder->header_size && end - *from >= (ptrdiff_t)WEBSOCKET_HEADER_MAX) { /* usual: all of it is there */
        const uint8_t *header = *from;
        *from += header_size(header[1]);
        return begin_valid(decoder, header[0], header[1]) && header_read(decoder, header);
    }
    while (*from < end) {
        decoder->header[decoder->header_size++] = *(*from)++;
        if (decoder->header_size < 2) continue;
        if (decoder->header_size == 2 && !begin_valid(decoder, decoder->header[0], decoder->header[1])) return false;
        if (decoder->header_size == header_size(decoder->header[1])) return header_read(decoder, decoder->header);
    }
    return true;
}

/* ---- payloads -------------------------------------------------------------------------------------------------------- */

static uint64_t there(const websocket_decoder_t *decoder, const uint8_t *from, const uint8_t *end) {
    uint64_t size = (uint64_t)(end - from);
    return size < decoder->left ? size : decoder->left;
}

static void control_take(websocket_decoder_t *decoder, uint8_t **from, const uint8_t *end) {
    const uint64_t size = there(decoder, *from, end);
    decoder->key = websocket_unmask(decoder->control + decoder->control_size, *from, size, decoder->key);
    decoder->control_size = (uint8_t)(decoder->control_size + size);
    decoder->left -= size;
    *from += size;
}

static void data_take(websocket_decoder_t *decoder, uint8_t **to, uint8_t **from, const uint8_t *end) {
    const uint64_t size = there(decoder, *from, end);
    decoder->key = websocket_unmask(*to, *from, size, decoder->key);
    decoder->left -= size;
    *from += size;
    *to += size;
}

static enum websocket_event control_event(uint8_t opcode) {
    if (opcode == WEBSOCKET_PING) return WEBSOCKET_PINGED;
    return opcode == WEBSOCKET_PONG ? WEBSOCKET_PONGED : WEBSOCKET_CLOSED;
}

enum websocket_event websocket_decode(websocket_decoder_t *decoder, uint8_t **to, uint8_t **from, const uint8_t *end) {
    for (;;) {
        if (!decoder->payload) {
            if (!header_take(decoder, from, end)) return WEBSOCKET_BAD;
            if (!decoder->payload) return WEBSOCKET_MORE;
        }
        const bool control = decoder->opcode >= WEBSOCKET_CLOSE;
        if (control)
            control_take(decoder, from, end);
        else
            data_take(decoder, to, from, end);
        if (decoder->left) return WEBSOCKET_MORE;
        decoder->payload = false;
        if (control) return control_event(decoder->opcode);
    }
}

/* ---- Close ----------------------------------------------------------------------------------------------------------- */

static bool utf8_next(const uint8_t **at, const uint8_t *end) {
    const uint8_t first = *(*at)++;
    uint32_t more, point, least;
    if (first < 0x80) return true;
    if (first >= 0xc2 && first < 0xe0) {
        more = 1;
        least = 0x80;
    } else if (first >= 0xe0 && first < 0xf0) {
        more = 2;
        least = 0x800;
    } else if (first >= 0xf0 && first < 0xf5) {
        more = 3;
        least = 0x10000;
    } else {
        return false;
    }
    for (point = first & (0x3fu >> more); more; more--, (*at)++) {
        if (*at == end || (**at & 0xc0) != 0x80) return false;
        point = point << 6 | (**at & 0x3fu);
    }
    return point >= least && point <= 0x10ffff && (point < 0xd800 || point > 0xdfff);
}

static bool utf8_valid(const uint8_t *bytes, uint32_t size) {
    const uint8_t *end = bytes + size;
    while (bytes < end)
        if (!utf8_next(&bytes, end)) return false;
    return true;
}

/* Codes that an endpoint may send: those of the registry up to 1014, and those for libraries and applications. */
static bool code_valid(uint16_t code) {
    if (code >= 3000) return code < 5000;
    return code >= 1000 && code <= 1014 && (code < 1004 || code > 1006);
}

uint16_t websocket_check_close(const uint8_t *payload, uint32_t size, uint16_t *code) {
    *code = WEBSOCKET_CODE_NONE;
    if (!size) return 0;
    if (size == 1) return WEBSOCKET_CODE_PROTOCOL;
    *code = (uint16_t)(payload[0] << 8 | payload[1]);
    if (!code_valid(*code)) return WEBSOCKET_CODE_PROTOCOL;
    return utf8_valid(payload + 2, size - 2) ? 0 : WEBSOCKET_CODE_INVALID;
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

uint32_t websocket_write_header(uint8_t *out, enum websocket_opcode opcode, uint64_t payload_size) {
    out[0] = (uint8_t)(0x80 | opcode);
    if (payload_size < 126) {
        out[1] = (uint8_t)payload_size;
        return 2;
    }
    if (payload_size < 1u << 16) {
        out[1] = 126;
        out[2] = (uint8_t)(payload_size >> 8);
        out[3] = (uint8_t)payload_size;
        return 4;
    }
    out[1] = 127;
    store_be32(out + 2, (uint32_t)(payload_size >> 32));
    store_be32(out + 6, (uint32_t)payload_size);
    return 10;
}

uint32_t websocket_write_close(uint8_t *out, uint16_t code, const char *reason) {
    if (code == WEBSOCKET_CODE_NONE) return websocket_write_header(out, WEBSOCKET_CLOSE, 0);
    uint32_t size = reason ? (uint32_t)strlen(reason) : 0;
    if (size > WEBSOCKET_CONTROL_MAX - 2) {
        size = WEBSOCKET_CONTROL_MAX - 2;
        while (size && ((uint8_t)reason[size] & 0xc0) == 0x80) size--;
    }
    uint32_t at = websocket_write_header(out, WEBSOCKET_CLOSE, size + 2);
    out[at++] = (uint8_t)(code >> 8);
    out[at++] = (uint8_t)code;
    if (size) memcpy(out + at, reason, size);
    return at + size;
}
