/* proto/blip_fast.h: the fast path for publishes that differ only in the payload. */
#ifndef BQ_BLIP_FAST_H
#define BQ_BLIP_FAST_H

#include "base/bytes.h"

struct net;

/* Publish the frames that follow `view`, a publish that has just joined the open run, as long as they are similar and fit
 * into the run. `first` is that publish's frame with its length, in `size` bytes of input. Returns the bytes of the frames
 * taken after it; they are counted as frames in. */
uint32_t blip_fast_path(struct net *net, const uint8_t *first, uint32_t size, uint32_t frame_bytes_max, const bq_view_t *view);

#endif
