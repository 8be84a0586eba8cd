/* proto/mqtt_error.c: see proto/mqtt_error.h. */
#include "proto/mqtt_error.h"

#define ERROR_ROW(name, reason, phrase) [MQTT_E_AT_##name] = {MQTT_##reason, phrase},
static const struct {
    uint8_t reason;
    const char *phrase;
} errors[MQTT_E_COUNT] = {MQTT_ERRORS(ERROR_ROW)};

static bool is_error(int code) { return code <= MQTT_E_BASE && code > MQTT_E_BASE - MQTT_E_COUNT; }

uint8_t mqtt_error_reason(int code) { return is_error(code) ? errors[MQTT_E_BASE - code].reason : MQTT_UNSPECIFIED_ERROR; }

const char *mqtt_error_phrase(int code) {
    if (is_error(code)) return errors[MQTT_E_BASE - code].phrase;
    return code < 0 ? "unknown error" : "no error";
}

int mqtt_connack_code_3(uint8_t reason) {
    switch (reason) {
    case MQTT_SUCCESS: return 0;
    case MQTT_UNSUPPORTED_PROTOCOL_VERSION: return 1;
    case MQTT_CLIENT_IDENTIFIER_NOT_VALID: return 2;
    case MQTT_SERVER_UNAVAILABLE:
    case MQTT_SERVER_BUSY:
    case MQTT_SERVER_SHUTTING_DOWN:
    case MQTT_QUOTA_EXCEEDED:
    case MQTT_CONNECTION_RATE_EXCEEDED: return 3;
    case MQTT_BAD_USER_NAME_OR_PASSWORD: return 4;
    case MQTT_NOT_AUTHORIZED:
    case MQTT_BANNED: return 5;
    default: return -1;
    }
}
