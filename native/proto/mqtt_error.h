/* proto/mqtt_error.h: violations of MQTT 3.1.1 and 5: what a client did, and the reason code that MQTT 5 gives for it. In
 * 3.1.1 the server closes the connection; only the answer to CONNECT has a code.
 *
 * Invariant: each error has one reason code and one phrase. Where the specification names a reason code, the error has it.
 */
#ifndef BQ_MQTT_ERROR_H
#define BQ_MQTT_ERROR_H

#include "base/bytes.h"

enum mqtt_reason {
    MQTT_SUCCESS = 0x00, /* also: normal disconnection, granted QoS 0 */
    MQTT_GRANTED_QOS_1 = 0x01,
    MQTT_GRANTED_QOS_2 = 0x02,
    MQTT_DISCONNECT_WITH_WILL = 0x04,
    MQTT_NO_MATCHING_SUBSCRIBERS = 0x10,
    MQTT_NO_SUBSCRIPTION_EXISTED = 0x11,
    MQTT_CONTINUE_AUTHENTICATION = 0x18,
    MQTT_REAUTHENTICATE = 0x19,
    MQTT_UNSPECIFIED_ERROR = 0x80, /* errors from here on */
    MQTT_MALFORMED_PACKET = 0x81,
    MQTT_PROTOCOL_ERROR = 0x82,
    MQTT_IMPLEMENTATION_SPECIFIC_ERROR = 0x83,
    MQTT_UNSUPPORTED_PROTOCOL_VERSION = 0x84,
    MQTT_CLIENT_IDENTIFIER_NOT_VALID = 0x85,
    MQTT_BAD_USER_NAME_OR_PASSWORD = 0x86,
    MQTT_NOT_AUTHORIZED = 0x87,
    MQTT_SERVER_UNAVAILABLE = 0x88,
    MQTT_SERVER_BUSY = 0x89,
    MQTT_BANNED = 0x8a,
    MQTT_SERVER_SHUTTING_DOWN = 0x8b,
    MQTT_BAD_AUTHENTICATION_METHOD = 0x8c,
    MQTT_KEEP_ALIVE_TIMEOUT = 0x8d,
    MQTT_SESSION_TAKEN_OVER = 0x8e,
    MQTT_TOPIC_FILTER_INVALID = 0x8f,
    MQTT_TOPIC_NAME_INVALID = 0x90,
    MQTT_PACKET_IDENTIFIER_IN_USE = 0x91,
    MQTT_PACKET_IDENTIFIER_NOT_FOUND = 0x92,
    MQTT_RECEIVE_MAXIMUM_EXCEEDED = 0x93,
    MQTT_TOPIC_ALIAS_INVALID = 0x94,
    MQTT_PACKET_TOO_LARGE = 0x95,
    MQTT_MESSAGE_RATE_TOO_HIGH = 0x96,
    MQTT_QUOTA_EXCEEDED = 0x97,
    MQTT_ADMINISTRATIVE_ACTION = 0x98,
    MQTT_PAYLOAD_FORMAT_INVALID = 0x99,
    MQTT_RETAIN_NOT_SUPPORTED = 0x9a,
    MQTT_QOS_NOT_SUPPORTED = 0x9b,
    MQTT_USE_ANOTHER_SERVER = 0x9c,
    MQTT_SERVER_MOVED = 0x9d,
    MQTT_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9e,
    MQTT_CONNECTION_RATE_EXCEEDED = 0x9f,
    MQTT_MAXIMUM_CONNECT_TIME = 0xa0,
    MQTT_SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xa1,
    MQTT_WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xa2
};

#define MQTT_ERRORS(X)                                                                                                           \
    X(TYPE, MALFORMED_PACKET, "there is no packet of this type in this version of MQTT")                                         \
    X(SENDER, PROTOCOL_ERROR, "a client sent a packet that only a server may send")                                              \
    X(FLAGS, MALFORMED_PACKET, "the reserved bits of a fixed header have wrong values")                                          \
    X(LENGTH, MALFORMED_PACKET, "a length of variable size has more than four bytes, or more than it needs")                     \
    X(TOO_LARGE, PACKET_TOO_LARGE, "the packet is larger than the maximum packet size")                                          \
    X(CUT, MALFORMED_PACKET, "the packet ends inside a field")                                                                   \
    X(EXTRA, MALFORMED_PACKET, "bytes follow the last field of the packet")                                                      \
    X(UTF8, MALFORMED_PACKET, "a string is not valid UTF-8")                                                                     \
    X(NUL, MALFORMED_PACKET, "a string contains U+0000")                                                                         \
    X(PROTOCOL_NAME, UNSUPPORTED_PROTOCOL_VERSION, "the protocol name of CONNECT is neither MQTT nor MQIsdp")                    \
    X(PROTOCOL_VERSION, UNSUPPORTED_PROTOCOL_VERSION, "the protocol version of CONNECT is not 3.1, 3.1.1 or 5")                  \
    X(CONNECT_FLAG, MALFORMED_PACKET, "the reserved connect flag is set")                                                        \
    X(WILL_FLAGS, MALFORMED_PACKET, "CONNECT has a QoS or retain flag for a will, but no will")                                  \
    X(WILL_QOS, MALFORMED_PACKET, "the QoS of the will is 3")                                                                    \
    X(PASSWORD, MALFORMED_PACKET, "CONNECT has a password but no user name, which only MQTT 5 allows")                           \
    X(CLIENT_ID, CLIENT_IDENTIFIER_NOT_VALID, "the client identifier is empty, and the session is not clean")                    \
    X(PUBLISH_QOS, MALFORMED_PACKET, "the QoS of a PUBLISH is 3")                                                                \
    X(PUBLISH_DUP, MALFORMED_PACKET, "a PUBLISH with QoS 0 is marked as a duplicate")                                            \
    X(PACKET_ID, PROTOCOL_ERROR, "the packet identifier is 0")                                                                   \
    X(REQUEST_ID, MALFORMED_PACKET, "the packet identifier of a SUBSCRIBE or UNSUBSCRIBE is 0")                                  \
    X(TOPIC_EMPTY, PROTOCOL_ERROR, "a topic is empty and has no alias")                                                          \
    X(TOPIC_WILDCARD, PROTOCOL_ERROR, "a topic contains + or #, which are for filters only")                                     \
    X(CONTROL, MALFORMED_PACKET, "a topic or filter contains a control character")                                               \
    X(TOPIC_LONG, TOPIC_NAME_INVALID, "a topic is longer than this broker allows")                                               \
    X(FILTER_EMPTY, MALFORMED_PACKET, "a filter is empty")                                                                       \
    X(FILTER_WILDCARD, MALFORMED_PACKET, "a wildcard of a filter is not a whole level, or # is not the last level")              \
    X(FILTER_SHARE, MALFORMED_PACKET, "a shared filter is not $share/NAME/FILTER, or its name has a wildcard")                   \
    X(FILTER_LONG, TOPIC_FILTER_INVALID, "a filter is longer than this broker allows")                                           \
    X(FILTER_MISSING, PROTOCOL_ERROR, "a SUBSCRIBE or UNSUBSCRIBE has no filter")                                                \
    X(OPTIONS, MALFORMED_PACKET, "reserved bits of the subscription options are set")                                            \
    X(OPTION_QOS, PROTOCOL_ERROR, "the maximum QoS of a subscription is 3")                                                      \
    X(OPTION_RETAIN, PROTOCOL_ERROR, "the retain handling of a subscription is 3")                                               \
    X(SHARE_NO_LOCAL, PROTOCOL_ERROR, "a shared subscription has the option no local")                                           \
    X(REASON, PROTOCOL_ERROR, "a client does not send this reason code in this packet")                                          \
    X(PROPERTY_UNKNOWN, MALFORMED_PACKET, "there is no property with this identifier")                                           \
    X(PROPERTY_PLACE, MALFORMED_PACKET, "a property does not belong to this packet")                                             \
    X(PROPERTY_TWICE, PROTOCOL_ERROR, "a property that may appear once appears twice")                                           \
    X(PROPERTY_VALUE, PROTOCOL_ERROR, "the value of a property is outside its range")                                            \
    X(PROPERTY_SENDER, PROTOCOL_ERROR, "a client sent a property that only a server may send")                                   \
    X(ALIAS, TOPIC_ALIAS_INVALID, "the topic alias is 0")                                                                        \
    X(AUTH_DATA, PROTOCOL_ERROR, "a packet has authentication data but no authentication method")                                \
    X(AUTH_METHOD, PROTOCOL_ERROR, "an AUTH has no authentication method")

#define MQTT_E_BASE (-200) /* distinct from enum bq_error and the codes of topics and other protocols */
#define MQTT_E_PLACE(name, reason, phrase) MQTT_E_AT_##name,
#define MQTT_E_CODE(name, reason, phrase) MQTT_E_##name = MQTT_E_BASE - MQTT_E_AT_##name,
enum { MQTT_ERRORS(MQTT_E_PLACE) MQTT_E_COUNT };
enum mqtt_error { MQTT_ERRORS(MQTT_E_CODE) };

uint8_t mqtt_error_reason(int code);     /* enum mqtt_reason; MQTT_UNSPECIFIED_ERROR for a code that is no error of MQTT */
const char *mqtt_error_phrase(int code); /* never NULL */
int mqtt_connack_code_3(uint8_t reason); /* the return code of a CONNACK of MQTT 3.1.1; -1: it has none, close only */

#endif
