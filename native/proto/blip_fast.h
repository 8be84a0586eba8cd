/* proto/blip_fast.h: the fast path of publishes that differ in their payload alone. */
#ifndef BQ_BLIP_FAST_H
#define BQ_BLIP_FAST_H

#include "base/bytes.h"

/* Publishes that follow one of `view` that has just joined the open run, as long as they are alike and fit it: `first` is that one's
 * frame, length included, in `size` bytes of input. Returns the bytes of those taken behind it, counted as frames in. */
uint32_t blip_fast_path(bq_t *bq, const uint8_t *first, uint32_t size, uint32_t frame_bytes_max, const bq_view_t *view);

#endif
