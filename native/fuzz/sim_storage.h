/* sim_storage.h: replaces a directory by the simulated disk, for targets that use the core or the WAL's tool.
 *
 * Invariant: a target that includes this is linked with `-Wl,--wrap=storage_disk`, so every storage_disk() call gets `disk`.
 * Each input has its own disk.
 */
#ifndef BQ_FUZZ_SIM_STORAGE_H
#define BQ_FUZZ_SIM_STORAGE_H

#include "../../tests/native/sim_disk.c"

static sim_disk_t *disk;

storage_t *__wrap_storage_disk(const char *directory, int *error);
storage_t *__wrap_storage_disk(const char *directory, int *error) {
    (void)directory;
    *error = 0;
    return sim_disk_storage(disk);
}

#endif
