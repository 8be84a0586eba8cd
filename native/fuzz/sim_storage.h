/* sim_storage.h: the simulated disk in place of a directory, for targets that go through the core or the WAL's tool.
 *
 * Invariant: a target that includes this is linked with `-Wl,--wrap=storage_posix`, so that whoever opens a directory gets
 * `disk`. One input, one disk.
 */
#ifndef BQ_FUZZ_SIM_STORAGE_H
#define BQ_FUZZ_SIM_STORAGE_H

#include "../../tests/native/sim_disk.c"

static sim_disk_t *disk;

storage_t *__wrap_storage_posix(const char *directory, int *error);
storage_t *__wrap_storage_posix(const char *directory, int *error) {
    (void)directory;
    *error = 0;
    return sim_disk_storage(disk);
}

#endif
