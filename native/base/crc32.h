/* base/crc32.h: CRC-32 of IEEE 802.3 (reflected 0xEDB88320, as zlib's crc32). Uses carry-less multiplication on x64 and the
 * CRC instructions on ARMv8 if the processor has them, otherwise slicing-by-16. The tables are const data: no
 * initialisation, no mutable globals. */
#ifndef BQ_CRC32_H
#define BQ_CRC32_H

#include "base/bytes.h"

uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, uint64_t size); /* start with crc 0; chunks may be chained */

#endif
