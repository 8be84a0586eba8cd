/* wal/storage.h: the interface between the WAL and the disk. wal/storage_posix.c and
 * wal/storage_windows.c implement it for real disks. Tests use a simulated disk or one that fails.
 *
 * Invariant: names are plain file names inside one directory. Every call returns >= 0 or -errno. It does everything that was
 * asked, including retries after short writes and EINTR, or reports an error. The WAL's threads call it concurrently.
 */
#ifndef BQ_STORAGE_H
#define BQ_STORAGE_H

#include <errno.h>

#include "base/bytes.h"

#ifndef EDQUOT
#define EDQUOT 10069 /* the number of Windows, whose C library does not have it */
#endif

typedef struct storage storage_t;

#define STORAGE_NOT_A_FILE (-ELOOP) /* the name belongs to a link, a directory or a pipe, which the WAL never creates */
typedef void (*storage_visit)(void *context, const char *name);

struct storage {
    /* A file's handle, for reading and writing. create: makes a new file; an older file loses the name, not its bytes. */
    int (*open)(storage_t *storage, const char *name, bool create);
    int (*close)(storage_t *storage, int file);
    int (*write)(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size);
    int64_t (*read)(storage_t *storage, int file, uint64_t offset, uint8_t *bytes,
                    uint64_t size);                               /* bytes read; fewer at the end of the file */
    int (*allocate)(storage_t *storage, int file, uint64_t size); /* reserves blocks, so that later writes need none */
    int (*truncate)(storage_t *storage, int file, uint64_t size);
    int64_t (*size)(storage_t *storage, int file);
    int (*sync_data)(storage_t *storage, int file);
    int (*sync)(storage_t *storage, int file);
    int (*sync_directory)(storage_t *storage);
    int (*rename)(storage_t *storage, const char *from, const char *to);
    int (*unlink)(storage_t *storage, const char *name);
    int (*list)(storage_t *storage, storage_visit visit, void *context);
    int64_t (*free_bytes)(storage_t *storage); /* of the file system, available to this user */
    int (*random)(storage_t *storage, uint8_t *bytes,
                  uint32_t size); /* unpredictable bytes, at most 256; a simulated disk repeats its own */
    /* Held until release. -EWOULDBLOCK: another process holds the WAL. Called again, it creates LOCK again if it was
     * removed. */
    int (*lock)(storage_t *storage, const char *name);
    int (*locked)(storage_t *storage, int file); /* -EWOULDBLOCK: another process created this file and has it open */
    void (*release)(storage_t *storage);         /* close the directory and free the structure */
};

/* A storage over a directory, created with mode 0700 if it does not exist. NULL with *error = -errno. */
storage_t *storage_disk(const char *directory, int *error);

bool storage_present(const char *directory); /* storage_disk would create it; false with errno */

#endif
