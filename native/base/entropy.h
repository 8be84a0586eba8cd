/* base/entropy.h: unpredictable bytes from the operating system.
 *
 * Invariant: needs neither a descriptor nor a device, so it works in a chroot and when descriptors ran out.
 */
#ifndef BQ_ENTROPY_H
#define BQ_ENTROPY_H

#include "base/bytes.h"

#if defined(_WIN32)
unsigned char SystemFunction036(void *bytes, unsigned long size); /* RtlGenRandom of advapi32, which no header declares */
static inline bool entropy_fill(void *bytes, uint32_t size) { return SystemFunction036(bytes, size) != 0; }
#else
#include <sys/random.h> /* getentropy, on macOS */
#include <unistd.h>
/* At most 256 bytes. The including file defines _DEFAULT_SOURCE or _GNU_SOURCE before its first header. */
static inline bool entropy_fill(void *bytes, uint32_t size) { return getentropy(bytes, size) == 0; }
#endif

#endif
