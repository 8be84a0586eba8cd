/* base/crc32.h: CRC-32 of IEEE 802.3 (reflected 0xEDB88320, as zlib's crc32): carry-less multiplication on x64, the CRC instructions
 * on ARMv8, when the processor has them; else slicing-by-16. Tables are const data: nothing to initialise, no globals that change. */
#ifndef BQ_CRC32_H
#define BQ_CRC32_H

#include "base/bytes.h"

uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, uint64_t size); /* crc 0 to begin with; chunks may be chained */

#endif
