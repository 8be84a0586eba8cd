/* sim_disk.h: a disk in memory that simulates power cuts, a worn SD card and a full file system.
 *
 *      page cache (what reads see)  --sync-->  the disk (what remains after a power cut)
 *
 * Invariant: after sim_disk_cut only synced data is certain. Of the rest any subset of sectors may be on disk, some of them
 * torn. Files have their old or their new length. Directory entries that were not synced exist or not. The same seed and the
 * same calls give the same disk.
 */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "wal/storage.h"

typedef struct sim_disk sim_disk_t;

sim_disk_t *sim_disk_new(uint64_t seed);
sim_disk_t *sim_disk_copy(const sim_disk_t *disk); /* without handles, lock and planned faults */
void sim_disk_free(sim_disk_t *disk);
storage_t *sim_disk_storage(sim_disk_t *disk); /* a process's view of the disk; one at a time holds the lock */

void sim_disk_end_process(sim_disk_t *disk);        /* kill -9: handles and lock are released, the page cache stays */
void sim_disk_cut(sim_disk_t *disk, uint64_t seed); /* power cut */

/* Planned faults, by the number of the call. `changes` counts calls that write or sync, `calls` counts all calls. */
uint64_t sim_disk_changes(sim_disk_t *disk);
uint64_t sim_disk_calls(sim_disk_t *disk);
void sim_disk_stop_at(sim_disk_t *disk,
                      uint64_t change); /* the process dies in this change: it is done partly, and all later ones fail */
bool sim_disk_stopped(sim_disk_t *disk);
enum sim_fault { SIM_ONCE, SIM_FOR_EVER };
void sim_disk_fail_at(sim_disk_t *disk, uint64_t call, int error, enum sim_fault fault); /* error: a positive errno */
bool sim_disk_failed(sim_disk_t *disk, const char **name); /* true: the planned failure has happened; in which call */
void sim_disk_heal(sim_disk_t *disk);                      /* cancel all planned faults */
void sim_disk_room(sim_disk_t *disk, uint64_t bytes);      /* size of the file system: more gives ENOSPC */
uint64_t sim_disk_used(sim_disk_t *disk);                  /* used bytes; a smaller room means that others have filled the disk */

/* Inspection from outside. */
uint32_t sim_disk_files(const sim_disk_t *disk);
const char *sim_disk_name(const sim_disk_t *disk, uint32_t file);
uint8_t *sim_disk_bytes(sim_disk_t *disk, const char *name, uint64_t *size); /* changes the page cache and, if synced, the disk */
void sim_disk_put(sim_disk_t *disk, const char *name, const uint8_t *bytes, uint64_t size); /* create a synced file */
void sim_disk_remove(sim_disk_t *disk, const char *name);

#endif
