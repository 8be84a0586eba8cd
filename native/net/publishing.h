/* net/publishing.h: requests to publish, of any protocol: what follows when the message cannot go to all subscribers at once.
 *
 * A refusal goes to the client through protocol_ops_t.refuse, with the number of its request.
 */
#ifndef BQ_PUBLISHING_H
#define BQ_PUBLISHING_H

#include "net/net.h"

/* Result of a frame: TAKEN; PUBLISHED (taken, as QoS 0); KEPT: the connection is paused, and the frame is parsed again
 * later. A frame that closes its connection is TAKEN; the loop checks the state. */
enum frame_outcome { FRAME_TAKEN, FRAME_PUBLISHED, FRAME_KEPT };

/* QoS 1: write the message to the WAL. commit.c answers when it is on disk. */
enum frame_outcome publishing_durably(net_t *net, connection_t *connection, topic_t *topic, uint64_t seq,
                                      const message_t *message);
/* While a publish of this client waits for the disk, one that need not: keep the order. `answered`: it has QoS 1. */
enum frame_outcome publishing_behind(net_t *net, connection_t *connection, uint64_t seq, bool answered, const message_t *message);
/* QoS 0: publish() or publish_message() did not return PUBLISH_DONE. */
enum frame_outcome publishing_otherwise(net_t *net, connection_t *connection, topic_t *topic, uint64_t seq,
                                        const message_t *message, enum publish_outcome outcome, wait_list_t *blocker);

/* The client's share of this turn is used up. */
void publishing_share_used_up(net_t *net, connection_t *connection);

#endif
