/* tls/handshake_size.c: see handshake_size.h. */
#include "tls/handshake_size.h"

#include <string.h>

#define RECORD_HEAD 5u
#define MESSAGE_HEAD 4u
enum { ALERT = 21, HANDSHAKE = 22 };

static uint32_t smaller(uint32_t a, size_t b) { return a < b ? a : (uint32_t)b; }

/* Take bytes of a head until it has `whole`. Returns the number taken. */
static size_t take_head(uint8_t *head, uint8_t *head_size, uint32_t whole, const uint8_t *bytes, size_t size) {
    uint32_t part = smaller(whole - *head_size, size);
    memcpy(head + *head_size, bytes, part);
    *head_size += (uint8_t)part;
    return part;
}

/* Bytes inside of a record. A message may begin and end in any of them, its head too. */
static bool add_messages(handshake_size_t *seen, const uint8_t *bytes, size_t size) {
    for (size_t at = 0; at < size;) {
        if (seen->message_left) {
            uint32_t part = smaller(seen->message_left, size - at);
            seen->message_left -= part;
            at += part;
            continue;
        }
        at += take_head(seen->message.bytes, &seen->message.size, MESSAGE_HEAD, bytes + at, size - at);
        if (seen->message.size < MESSAGE_HEAD) continue;
        const uint8_t *head = seen->message.bytes;
        seen->message_left = (uint32_t)head[1] << 16 | (uint32_t)head[2] << 8 | head[3];
        seen->message.size = 0;
        if (seen->message_left > HANDSHAKE_BYTES_MAX) return false;
    }
    return true;
}

bool handshake_size_add(handshake_size_t *seen, const uint8_t *bytes, size_t size) {
    for (size_t at = 0; at < size && !seen->over;) {
        if (seen->record_left) {
            uint32_t part = smaller(seen->record_left, size - at);
            if (seen->record.bytes[0] == HANDSHAKE && !add_messages(seen, bytes + at, part)) return false;
            seen->record_left -= part;
            at += part;
            continue;
        }
        at += take_head(seen->record.bytes, &seen->record.size, RECORD_HEAD, bytes + at, size - at);
        if (seen->record.size < RECORD_HEAD) continue;
        seen->record_left = (uint32_t)seen->record.bytes[3] << 8 | seen->record.bytes[4];
        seen->record.size = 0;
        seen->over = seen->record.bytes[0] != HANDSHAKE && seen->record.bytes[0] != ALERT;
    }
    return true;
}
