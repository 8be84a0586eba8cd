/* sim_disk.h: a disk in memory that does to files what a power cut, a worn card and a full file system do.
 *
 *      page cache (what reads see)  --sync-->  the disk (what a power cut leaves)
 *
 * Invariant: after sim_disk_cut only what was synced is certain. Of the rest any subset of sectors may have arrived, some of
 * them torn, files have their old or their new length, and directory entries that were not synced are there or not.
 * The same seed and the same calls give the same disk.
 */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "wal/storage.h"

typedef struct sim_disk sim_disk_t;

sim_disk_t *sim_disk_new(uint64_t seed);
sim_disk_t *sim_disk_copy(const sim_disk_t *disk); /* without handles, lock and planned faults */
void sim_disk_free(sim_disk_t *disk);
storage_t *sim_disk_storage(sim_disk_t *disk); /* what a process sees of it; one at a time holds the lock */

void sim_disk_end_process(sim_disk_t *disk);        /* kill -9: handles and lock are gone, the page cache stays */
void sim_disk_cut(sim_disk_t *disk, uint64_t seed); /* power cut */

/* Planned faults, by the number of the call. Changes are the calls that write or sync; calls are all of them. */
uint64_t sim_disk_changes(sim_disk_t *disk);
uint64_t sim_disk_calls(sim_disk_t *disk);
void sim_disk_stop_at(sim_disk_t *disk,
                      uint64_t change); /* the process dies in this change: it is cut short, all later ones fail */
bool sim_disk_stopped(sim_disk_t *disk);
enum sim_fault { SIM_ONCE, SIM_FOR_EVER };
void sim_disk_fail_at(sim_disk_t *disk, uint64_t call, int error, enum sim_fault fault); /* error: a positive errno */
bool sim_disk_failed(sim_disk_t *disk, const char **name); /* has the planned failure happened, and to which call */
void sim_disk_heal(sim_disk_t *disk);                      /* no planned faults any more */
void sim_disk_room(sim_disk_t *disk, uint64_t bytes);      /* size of the file system: allocating or writing past it is ENOSPC */
uint64_t sim_disk_used(sim_disk_t *disk);                  /* of it; a room below that is a disk that others have filled */

/* Looking at it from outside. */
uint32_t sim_disk_files(const sim_disk_t *disk);
const char *sim_disk_name(const sim_disk_t *disk, uint32_t file);
uint8_t *sim_disk_bytes(sim_disk_t *disk, const char *name, uint64_t *size); /* of the page cache and, once synced, the disk */
void sim_disk_put(sim_disk_t *disk, const char *name, const uint8_t *bytes, uint64_t size); /* a file, synced */
void sim_disk_remove(sim_disk_t *disk, const char *name);

#endif
