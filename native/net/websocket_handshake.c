/* net/websocket_handshake.c: see net/websocket_handshake.h. */
#include "net/websocket_handshake.h"
#include "base/sha1.h"

#include <stdio.h>

#define KEY_BYTES 24u /* base64 of 16 bytes */
#define GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

/* ---- texts ----------------------------------------------------------------------------------------------------------- */

static uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? (uint8_t)(c | 0x20) : c; }

static bool text_is(websocket_text_t text, const char *expected) {
    return text.size == strlen(expected) && !memcmp(text.bytes, expected, text.size);
}

static bool text_is_caseless(websocket_text_t text, const char *expected) {
    if (text.size != strlen(expected)) return false;
    for (uint32_t i = 0; i < text.size; i++)
        if (lower(text.bytes[i]) != lower((uint8_t)expected[i])) return false;
    return true;
}

static websocket_text_t trimmed(websocket_text_t text) {
    while (text.size && (*text.bytes == ' ' || *text.bytes == '\t')) text.bytes++, text.size--;
    while (text.size && (text.bytes[text.size - 1] == ' ' || text.bytes[text.size - 1] == '\t')) text.size--;
    return text;
}

/* Takes the part before `separator`, or all that is left. */
static websocket_text_t cut(websocket_text_t *rest, uint8_t separator) {
    const uint8_t *found = rest->size ? memchr(rest->bytes, separator, rest->size) : NULL;
    websocket_text_t part = {rest->bytes, found ? (uint32_t)(found - rest->bytes) : rest->size};
    const uint32_t gone = part.size + (found != NULL);
    rest->bytes += gone;
    rest->size -= gone;
    return part;
}

static bool list_has(websocket_text_t list, const char *expected) {
    while (list.size)
        if (text_is_caseless(trimmed(cut(&list, ',')), expected)) return true;
    return false;
}

/* A character of a method or of a header's name (RFC 9110, section 5.6.2). */
static bool is_token(uint8_t c) {
    if ((c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z')) return true;
    return c && strchr("!#$%&'*+-.^_`|~", c);
}

static bool all_tokens(websocket_text_t text) {
    for (uint32_t i = 0; i < text.size; i++)
        if (!is_token(text.bytes[i])) return false;
    return text.size > 0;
}

static bool any_control(websocket_text_t text) {
    for (uint32_t i = 0; i < text.size; i++)
        if ((text.bytes[i] < ' ' && text.bytes[i] != '\t') || text.bytes[i] == 0x7f) return true;
    return false;
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static void refuse(websocket_answer_t *answer, uint16_t status, const char *why) {
    if (answer->status) return; /* the first error stays */
    answer->status = status;
    answer->why = why;
}

static void once(websocket_text_t *field, websocket_text_t value, websocket_answer_t *answer) {
    if (field->bytes) refuse(answer, 400, "the request contains a header twice");
    *field = value;
}

static void subprotocols_add(websocket_request_t *request, websocket_text_t list, websocket_answer_t *answer) {
    while (list.size) {
        websocket_text_t one = trimmed(cut(&list, ','));
        if (!one.size) continue;
        if (request->subprotocol_count == WEBSOCKET_SUBPROTOCOLS_MAX) {
            refuse(answer, 400, "more than 16 subprotocols are offered: offer one, or none");
            return;
        }
        request->subprotocols[request->subprotocol_count++] = one;
    }
}

static void header_add(websocket_request_t *request, websocket_text_t name, websocket_text_t value, websocket_answer_t *answer) {
    if (text_is_caseless(name, "host")) {
        once(&request->host, value, answer);
    } else if (text_is_caseless(name, "origin")) {
        once(&request->origin, value, answer);
    } else if (text_is_caseless(name, "sec-websocket-key")) {
        once(&request->key, value, answer);
    } else if (text_is_caseless(name, "sec-websocket-version")) {
        once(&request->version, value, answer);
    } else if (text_is_caseless(name, "sec-websocket-protocol")) {
        subprotocols_add(request, value, answer);
    } else if (text_is_caseless(name, "upgrade")) {
        request->upgrade |= list_has(value, "websocket");
    } else if (text_is_caseless(name, "connection")) {
        request->connection_upgrade |= list_has(value, "upgrade");
    } else if (text_is_caseless(name, "transfer-encoding") ||
               (text_is_caseless(name, "content-length") && !text_is(value, "0"))) {
        request->has_body = true;
    }
}

static void request_line_read(websocket_request_t *request, websocket_text_t line, websocket_answer_t *answer) {
    request->method = cut(&line, ' ');
    websocket_text_t target = cut(&line, ' ');
    if (!all_tokens(request->method) || !target.size || any_control(target) || line.size != 8 || memcmp(line.bytes, "HTTP/", 5))
        refuse(answer, 400, "this is not an HTTP request");
    else if (!text_is(line, "HTTP/1.1"))
        refuse(answer, 400, "a WebSocket needs HTTP/1.1");
    request->path = cut(&target, '?');
}

static void header_line_read(websocket_request_t *request, websocket_text_t line, websocket_answer_t *answer) {
    if (!line.size || !memchr(line.bytes, ':', line.size)) {
        refuse(answer, 400, "a header line without a colon");
        return;
    }
    websocket_text_t name = cut(&line, ':'), value = trimmed(line);
    if (!all_tokens(name) || any_control(value))
        refuse(answer, 400, "a header has a character that HTTP does not allow");
    else
        header_add(request, name, value, answer);
}

/* The end of the head behind its empty line; 0: it has not come. Lines that end with LF alone are found too: they are refused
 * at once instead of at the end of the time for a request. */
static uint32_t head_size(const uint8_t *bytes, uint32_t size, uint32_t seen) {
    const uint8_t *at = bytes + (seen > 2 ? seen - 2 : 0), *end = bytes + size;
    while (at < end && (at = memchr(at, '\n', (size_t)(end - at)))) {
        at++;
        if (end - at >= 1 && at[0] == '\n') return (uint32_t)(at - bytes) + 1;
        if (end - at >= 2 && at[0] == '\r' && at[1] == '\n') return (uint32_t)(at - bytes) + 2;
    }
    return 0;
}

uint32_t websocket_request_read(const uint8_t *bytes, uint32_t size, uint32_t seen, websocket_request_t *request,
                                websocket_answer_t *answer) {
    memset(request, 0, sizeof *request);
    memset(answer, 0, sizeof *answer);
    if (size && !is_token(bytes[0])) { /* a BlipMQ frame, TLS: its end as a request would never come */
        refuse(answer, 400, "this port is for WebSocket: connect with ws://, or use another port");
        return size;
    }
    const uint32_t limited = size < WEBSOCKET_HEAD_MAX ? size : WEBSOCKET_HEAD_MAX, whole = head_size(bytes, limited, seen);
    if (!whole) {
        if (size < WEBSOCKET_HEAD_MAX) return 0;
        refuse(answer, 431, "the request is longer than 8 KiB");
        return size;
    }
    websocket_text_t rest = {bytes, bytes[whole - 2] == '\r' ? whole - 2 : whole}; /* without an empty line of CR LF */
    for (bool first = true; rest.size; first = false) {
        websocket_text_t line = cut(&rest, '\n');
        if (!line.size || line.bytes[line.size - 1] != '\r') {
            refuse(answer, 400, "a line does not end with CR LF");
            break;
        }
        line.size--;
        if (first)
            request_line_read(request, line, answer);
        else
            header_line_read(request, line, answer);
    }
    return whole;
}

/* ---- deciding -------------------------------------------------------------------------------------------------------- */

static bool key_valid(websocket_text_t key) {
    if (key.size != KEY_BYTES || memcmp(key.bytes + KEY_BYTES - 2, "==", 2)) return false;
    for (uint32_t i = 0; i < KEY_BYTES - 2; i++) {
        uint8_t c = key.bytes[i];
        if (!((c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') || c == '+' || c == '/')) return false;
    }
    return true;
}

static bool origin_allowed(websocket_text_t origin, const websocket_origins_t *origins, bool strict) {
    if (!origin.bytes || origins->any) return true; /* a program, not a browser */
    for (uint32_t at = 0; at < origins->size;) {
        const uint32_t size = load_u16(origins->list + at);
        if (size == origin.size && !memcmp(origins->list + at + 2, origin.bytes, size)) return true;
        at += 2 + size;
    }
    return !strict && !origins->size;
}

static bool offered(const websocket_request_t *request, const char *subprotocol) {
    for (uint32_t i = 0; i < request->subprotocol_count; i++)
        if (text_is(request->subprotocols[i], subprotocol)) return true;
    return false;
}

void websocket_decide(const websocket_request_t *request, const websocket_path_t *path, const websocket_origins_t *origins,
                      bool strict, websocket_answer_t *answer) {
    answer->path = path;
    answer->subprotocol = offered(request, path->subprotocol);
    if (!text_is(request->method, "GET"))
        refuse(answer, 405, "a WebSocket is opened with GET");
    else if (!text_is(request->path, path->path))
        refuse(answer, 404, path->elsewhere);
    else if (!request->upgrade || !request->connection_upgrade)
        refuse(answer, 426, "this port serves WebSockets only: the request needs Connection: Upgrade and Upgrade: websocket");
    else if (!text_is(request->version, "13"))
        refuse(answer, 426, "the version of WebSocket must be 13");
    else if (request->has_body)
        refuse(answer, 400, "the request must not have a body");
    else if (!request->host.bytes)
        refuse(answer, 400, "the header Host is missing");
    else if (!request->key.bytes || !key_valid(request->key))
        refuse(answer, 400, "Sec-WebSocket-Key must be 16 bytes in base64");
    else if (!origin_allowed(request->origin, origins, strict))
        refuse(answer, 403, "pages of this origin may not connect: add the origin to server.ws_origins");
    else if (request->subprotocol_count && !answer->subprotocol)
        refuse(answer, 400, path->otherwise);
    else
        refuse(answer, 101, "");
}

/* ---- answering ------------------------------------------------------------------------------------------------------- */

static void base64(const uint8_t *bytes, uint32_t size, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t at = 0;
    for (uint32_t i = 0; i < size; i += 3) {
        const uint32_t left = size - i;
        uint32_t three = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) | (left > 2 ? bytes[i + 2] : 0);
        out[at++] = digits[three >> 18];
        out[at++] = digits[three >> 12 & 63];
        out[at++] = left > 1 ? digits[three >> 6 & 63] : '=';
        out[at++] = left > 2 ? digits[three & 63] : '=';
    }
    out[at] = 0;
}

static uint32_t upgrade_write(uint8_t *out, const websocket_request_t *request, const websocket_answer_t *answer) {
    uint8_t keyed[KEY_BYTES + sizeof GUID - 1], digest[SHA1_BYTES];
    char accept[29];
    memcpy(keyed, request->key.bytes, KEY_BYTES);
    memcpy(keyed + KEY_BYTES, GUID, sizeof GUID - 1);
    sha1(keyed, sizeof keyed, digest);
    base64(digest, sizeof digest, accept);
    return (uint32_t)snprintf((char *)out, WEBSOCKET_ANSWER_MAX,
                              "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: %s\r\n%s%s%s\r\n",
                              accept, answer->subprotocol ? "Sec-WebSocket-Protocol: " : "",
                              answer->subprotocol ? answer->path->subprotocol : "", answer->subprotocol ? "\r\n" : "");
}

static const char *phrase_of(uint16_t status) {
    switch (status) {
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed\r\nAllow: GET";
    case 408: return "Request Timeout";
    case 426: return "Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
    case 431: return "Request Header Fields Too Large";
    default: return "Service Unavailable\r\nRetry-After: 5";
    }
}

uint32_t websocket_answer_write(uint8_t *out, const websocket_request_t *request, const websocket_answer_t *answer) {
    if (answer->status == 101) return upgrade_write(out, request, answer);
    return (uint32_t)snprintf((char *)out, WEBSOCKET_ANSWER_MAX,
                              "HTTP/1.1 %u %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %u\r\n"
                              "Cache-Control: no-store\r\nConnection: close%s\r\n\r\n%s\n",
                              answer->status, phrase_of(answer->status), (uint32_t)strlen(answer->why) + 1,
                              answer->status == 426 ? ", Upgrade" : "", answer->why);
}
