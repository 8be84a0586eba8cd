/* test_wal_posix.c: the calls of the real disk when the system interrupts them, does only a part, or refuses.
 *
 *      test_wal_posix DIRECTORY
 *
 * Invariant: wal/storage_posix.c itself runs here. Only its system calls are replaced.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#if !defined(__LP64__) && !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* as in wal/storage_posix.c, which is included below these headers */
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "check.h"

static int plan_error;        /* the next call fails with this error, once */
static size_t plan_bytes_max; /* bytes per call; 0: no limit */
static unsigned calls;

static bool fails(void) {
    calls++;
    if (!plan_error) return false;
    errno = plan_error;
    plan_error = 0;
    return true;
}

static size_t cut(size_t size) { return plan_bytes_max && size > plan_bytes_max ? plan_bytes_max : size; }
static ssize_t planned_pwrite(int file, const void *bytes, size_t size, off_t at) {
    return fails() ? -1 : pwrite(file, bytes, cut(size), at);
}
static ssize_t planned_pread(int file, void *bytes, size_t size, off_t at) {
    return fails() ? -1 : pread(file, bytes, cut(size), at);
}
static int planned_fdatasync(int file) { return fails() ? -1 : fdatasync(file); }
static int planned_fsync(int file) { return fails() ? -1 : fsync(file); }
static int planned_fallocate(int file, int mode, off_t at, off_t size) { return fails() ? -1 : fallocate(file, mode, at, size); }
static int planned_ftruncate(int file, off_t size) { return fails() ? -1 : ftruncate(file, size); }
static int planned_flock(int file, int operation) { return fails() ? -1 : flock(file, operation); }

#define pwrite planned_pwrite
#define pread planned_pread
#define fdatasync planned_fdatasync
#define fsync planned_fsync
#define fallocate planned_fallocate
#define ftruncate planned_ftruncate
#define flock planned_flock
#include "../../native/wal/storage_posix.c"

static storage_t *disk;
static uint8_t written[10000], read_back[10000];

static void test_short_and_interrupted_calls_are_continued(int file) {
    for (size_t i = 0; i < sizeof written; i++) written[i] = (uint8_t)(i * 7 + 1);
    plan_bytes_max = 700;
    plan_error = EINTR;
    CHECK(disk->write(disk, file, 100, written, sizeof written) == 0);
    plan_error = EINTR;
    CHECK(disk->read(disk, file, 100, read_back, sizeof read_back) == (int64_t)sizeof read_back);
    CHECK(memcmp(written, read_back, sizeof written) == 0 && disk->size(disk, file) == 10100);
    CHECK(disk->read(disk, file, 10000, read_back, 500) == 100); /* fewer at the end */
    plan_bytes_max = 0;
}

static void test_errors_are_returned_unchanged_and_a_failed_sync_is_not_repeated(int file) {
    plan_error = ENOSPC;
    CHECK(disk->write(disk, file, 0, written, 10) == -ENOSPC);
    plan_error = EIO;
    CHECK(disk->read(disk, file, 0, read_back, 10) == -EIO);
    plan_error = ENOSPC;
    CHECK(disk->allocate(disk, file, 20000) == -ENOSPC);
    static const int errors[] = {EIO, EINTR, ENOSPC};
    for (int i = 0; i < 3; i++) {
        unsigned before = calls;
        plan_error = errors[i];
        CHECK(disk->sync_data(disk, file) == -errors[i] && calls == before + 1);
        plan_error = errors[i];
        CHECK(disk->sync(disk, file) == -errors[i] && calls == before + 2);
        plan_error = errors[i];
        CHECK(disk->sync_directory(disk) == -errors[i] && calls == before + 3);
    }
    CHECK(disk->sync_data(disk, file) == 0 && disk->sync(disk, file) == 0 && disk->sync_directory(disk) == 0);
}

static void test_a_file_system_that_cannot_reserve_blocks_gets_a_longer_file(int file) {
    plan_error = EOPNOTSUPP;
    CHECK(disk->allocate(disk, file, 30000) == 0 && disk->size(disk, file) == 30000);
    plan_error = EINTR;
    CHECK(disk->allocate(disk, file, 40000) == 0 && disk->size(disk, file) == 40000);
    plan_error = EINTR;
    CHECK(disk->truncate(disk, file, 50) == 0 && disk->size(disk, file) == 50);
}

static void count_visit(void *context, const char *name) {
    CHECK(name[0] != '.');
    ++*(int *)context;
}

static void test_names_stay_inside_the_directory(void) {
    int count = 0, file = disk->open(disk, "two", true);
    CHECK(file >= 0 && disk->close(disk, file) == 0);
    CHECK(disk->rename(disk, "two", "three") == 0 && disk->open(disk, "two", false) == -ENOENT);
    CHECK(disk->list(disk, count_visit, &count) == 0 && count == 2);
    CHECK(disk->unlink(disk, "three") == 0 && disk->unlink(disk, "three") == -ENOENT);
    CHECK(disk->free_bytes(disk) > 0);
    uint8_t a[16], b[16];
    CHECK(disk->random(disk, a, 16) == 0 && disk->random(disk, b, 16) == 0 && memcmp(a, b, 16) != 0);
}

static void test_a_name_in_use_is_freed_without_changing_the_file_behind_it(void) {
    uint8_t byte;
    int file = disk->open(disk, "victim", true);
    CHECK(file >= 0 && disk->write(disk, file, 0, (const uint8_t *)"precious", 8) == 0);
    CHECK(linkat(disk_of(disk)->directory, "victim", disk_of(disk)->directory, "taken", 0) == 0);
    int made = disk->open(disk, "taken", true);
    CHECK(made >= 0 && disk->size(disk, made) == 0 && disk->size(disk, file) == 8);
    CHECK(disk->close(disk, made) == 0);
    CHECK(linkat(disk_of(disk)->directory, "victim", disk_of(disk)->directory, "second name", 0) == 0);
    CHECK(disk->truncate(disk, file, 1) == -EMLINK && disk->read(disk, file, 7, &byte, 1) == 1 && byte == 's');
    CHECK(symlinkat("victim", disk_of(disk)->directory, "link") == 0 && disk->open(disk, "link", false) == STORAGE_NOT_A_FILE);
    CHECK(mkdirat(disk_of(disk)->directory, "folder", 0700) == 0 && disk->open(disk, "folder", false) == STORAGE_NOT_A_FILE);
    CHECK(mkfifoat(disk_of(disk)->directory, "pipe", 0600) == 0 && disk->open(disk, "pipe", false) == STORAGE_NOT_A_FILE);
    made = disk->open(disk, "folder", true); /* the folder is moved aside */
    CHECK(made >= 0 && disk->close(disk, made) == 0);
    CHECK(unlinkat(disk_of(disk)->directory, "aside-folder", AT_REMOVEDIR) == 0);
    static const char *const names[] = {"victim", "taken", "second name", "link", "folder", "pipe"};
    for (int i = 0; i < 6; i++) CHECK(disk->unlink(disk, names[i]) == 0);
    CHECK(disk->sync_data(disk, file) == -ENOENT); /* data written now would not be found again */
    CHECK(disk->close(disk, file) == 0);
}

static void test_a_file_that_is_open_elsewhere_is_reported_as_locked(const char *directory) {
    int error, file = disk->open(disk, "made", true);
    storage_t *second = storage_disk(directory, &error);
    CHECK(second && file >= 0);
    int other = second->open(second, "made", false);
    CHECK(other >= 0 && second->locked(second, other) == -EWOULDBLOCK);
    CHECK(disk->close(disk, file) == 0 && second->locked(second, other) == 0);
    CHECK(second->close(second, other) == 0 && second->unlink(second, "made") == 0);
    second->release(second);
}

static void test_a_moved_directory_accepts_no_more_records(const char *directory) {
    char moved[4200];
    CHECK(snprintf(moved, sizeof moved, "%s-moved", directory) < (int)sizeof moved);
    int file = disk->open(disk, "made", true);
    CHECK(file >= 0 && disk->sync_data(disk, file) == 0);
    CHECK(rename(directory, moved) == 0 && disk->sync_data(disk, file) == -ENOENT);
    CHECK(mkdir(directory, 0700) == 0 && disk->sync_data(disk, file) == -ENOENT);
    CHECK(rmdir(directory) == 0 && rename(moved, directory) == 0 && disk->sync_data(disk, file) == 0);
    CHECK(disk->close(disk, file) == 0 && disk->unlink(disk, "made") == 0);
}

static void test_the_lock_is_held_until_release(const char *directory) {
    int error;
    storage_t *second = storage_disk(directory, &error);
    CHECK(second);
    plan_error = EINTR;
    CHECK(disk->lock(disk, "LOCK") == 0 && second->lock(second, "LOCK") == -EWOULDBLOCK);
    CHECK(disk->lock(disk, "LOCK") == 0);                                                   /* again: nothing to do */
    CHECK(disk->unlink(disk, "LOCK") == 0 && second->lock(second, "LOCK") == -EWOULDBLOCK); /* the directory is locked too */
    CHECK(disk->lock(disk, "LOCK") == 0 && second->lock(second, "LOCK") == -EWOULDBLOCK);
    CHECK(disk->open(disk, "LOCK", false) >= 0);
    disk->release(disk);
    CHECK(second->lock(second, "LOCK") == 0);
    second->release(second);
}

int main(int count, char **arguments) {
    char directory[4096];
    int error;
    CHECK(count == 2 && snprintf(directory, sizeof directory, "%s/new", arguments[1]) < 4096);
    CHECK(storage_disk("/proc/self/no/such", &error) == NULL && error == -ENOENT);
    disk = storage_disk(directory, &error);
    CHECK(disk && error == 0);
    int file = disk->open(disk, "one", true);
    CHECK(file >= 0);
    test_short_and_interrupted_calls_are_continued(file);
    test_errors_are_returned_unchanged_and_a_failed_sync_is_not_repeated(file);
    test_a_file_system_that_cannot_reserve_blocks_gets_a_longer_file(file);
    CHECK(disk->close(disk, file) == 0);
    test_names_stay_inside_the_directory();
    test_a_name_in_use_is_freed_without_changing_the_file_behind_it();
    test_a_file_that_is_open_elsewhere_is_reported_as_locked(directory);
    test_a_moved_directory_accepts_no_more_records(directory);
    test_the_lock_is_held_until_release(directory);
    return 0;
}
