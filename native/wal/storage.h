/* wal/storage.h: the one small interface through which the WAL touches the disk. wal/storage_posix.c is the real one; tests put a
 * simulated disk or a failing one in its place.
 *
 * Invariant: names are plain file names inside one directory. Every call returns >= 0 or -errno, does all it was asked for
 * (short writes and EINTR are its business) or says that it did not. The WAL's threads call it at the same time.
 */
#ifndef BQ_STORAGE_H
#define BQ_STORAGE_H

#include <errno.h>

#include "base/bytes.h"

typedef struct storage storage_t;

#define STORAGE_NOT_A_FILE (-ELOOP) /* what has the name is a link, a directory, a pipe: nothing of the WAL */
typedef void (*storage_visit)(void *context, const char *name);

struct storage {
    int (*open)(storage_t *storage, const char *name, bool create); /* a file's handle, for reading and writing; created: a new
                                                                       file, whatever had the name before is left as it is */
    int (*close)(storage_t *storage, int file);
    int (*write)(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size);
    int64_t (*read)(storage_t *storage, int file, uint64_t offset, uint8_t *bytes,
                    uint64_t size);                               /* bytes read; less at the end */
    int (*allocate)(storage_t *storage, int file, uint64_t size); /* blocks for that much, so that writing needs none later */
    int (*truncate)(storage_t *storage, int file, uint64_t size);
    int64_t (*size)(storage_t *storage, int file);
    int (*sync_data)(storage_t *storage, int file);
    int (*sync)(storage_t *storage, int file);
    int (*sync_directory)(storage_t *storage);
    int (*rename)(storage_t *storage, const char *from, const char *to);
    int (*unlink)(storage_t *storage, const char *name);
    int (*list)(storage_t *storage, storage_visit visit, void *context);
    int64_t (*free_bytes)(storage_t *storage); /* of the file system, for this user */
    int (*random)(storage_t *storage, uint8_t *bytes,
                  uint32_t size); /* unpredictable, at most 256; a simulated disk repeats its own */
    int (*lock)(storage_t *storage,
                const char *name); /* -EWOULDBLOCK: another process holds the WAL; until release; again: LOCK is made anew */
    int (*locked)(storage_t *storage, int file); /* -EWOULDBLOCK: another process has it open as a file it has made */
    void (*release)(storage_t *storage);         /* close the directory and free the structure */
};

/* A storage over a directory, made (0700) if it is not there. NULL with *error = -errno. */
storage_t *storage_posix(const char *directory, int *error);

#endif
