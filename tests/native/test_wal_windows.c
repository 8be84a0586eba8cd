/* test_wal_windows.c: the calls of the real disk of Windows when the system does only a part, or refuses. The twin of test_wal_posix.c.
 *
 *      test_wal_windows DIRECTORY
 *
 * Invariant: wal/storage_windows.c itself runs here. Only its system calls are replaced.
 */
#include <windows.h>
#include <stdbool.h>

#include "check.h"

static DWORD plan_error;     /* the next call fails with this error, once */
static DWORD plan_bytes_max; /* bytes per call; 0: no limit */
static bool plan_nameless;   /* files were deleted by somebody else */
static unsigned calls;

static bool fails(void) {
    calls++;
    if (!plan_error) return false;
    SetLastError(plan_error);
    plan_error = 0;
    return true;
}

static DWORD cut(DWORD size) { return plan_bytes_max && size > plan_bytes_max ? plan_bytes_max : size; }
static BOOL planned_write(HANDLE file, const void *bytes, DWORD size, DWORD *count, OVERLAPPED *at) {
    return fails() ? FALSE : WriteFile(file, bytes, cut(size), count, at);
}
static BOOL planned_read(HANDLE file, void *bytes, DWORD size, DWORD *count, OVERLAPPED *at) {
    return fails() ? FALSE : ReadFile(file, bytes, cut(size), count, at);
}
static BOOL planned_flush(HANDLE file) { return fails() ? FALSE : FlushFileBuffers(file); }
static BOOL planned_information(HANDLE file, FILE_INFO_BY_HANDLE_CLASS kind, void *facts, DWORD size) {
    return fails() ? FALSE : SetFileInformationByHandle(file, kind, facts, size);
}
static BOOL planned_move(const wchar_t *from, const wchar_t *to, DWORD flags) {
    return fails() ? FALSE : MoveFileExW(from, to, flags);
}

static BOOL planned_facts(HANDLE file, FILE_INFO_BY_HANDLE_CLASS kind, void *facts, DWORD size) {
    BOOL done = GetFileInformationByHandleEx(file, kind, facts, size);
    if (kind == FileStandardInfo && plan_nameless) ((FILE_STANDARD_INFO *)facts)->DeletePending = TRUE;
    return done;
}

#define WriteFile planned_write
#define ReadFile planned_read
#define FlushFileBuffers planned_flush
#define SetFileInformationByHandle planned_information
#define MoveFileExW planned_move
#define GetFileInformationByHandleEx planned_facts
#include "../../native/wal/storage_windows.c"

static storage_t *disk;
static uint8_t written[10000], read_back[10000];

static void test_short_calls_are_continued(int file) {
    for (size_t i = 0; i < sizeof written; i++) written[i] = (uint8_t)(i * 7 + 1);
    plan_bytes_max = 700;
    CHECK(disk->write(disk, file, 100, written, sizeof written) == 0);
    CHECK(disk->read(disk, file, 100, read_back, sizeof read_back) == (int64_t)sizeof read_back);
    CHECK(memcmp(written, read_back, sizeof written) == 0 && disk->size(disk, file) == 10100);
    CHECK(disk->read(disk, file, 10000, read_back, 500) == 100); /* fewer at the end */
    CHECK(disk->read(disk, file, 20000, read_back, 500) == 0);
    plan_bytes_max = 0;
}

static void test_errors_are_returned_and_a_failed_flush_is_not_repeated(int file) {
    plan_error = ERROR_DISK_FULL;
    CHECK(disk->write(disk, file, 0, written, 10) == -ENOSPC);
    plan_error = ERROR_DISK_QUOTA_EXCEEDED;
    CHECK(disk->write(disk, file, 0, written, 10) == -EDQUOT);
    plan_error = ERROR_CRC;
    CHECK(disk->read(disk, file, 0, read_back, 10) == -EIO);
    plan_error = ERROR_DISK_FULL;
    CHECK(disk->allocate(disk, file, 20000) == -ENOSPC);
    static const struct {
        DWORD error;
        int result;
    } errors[] = {{ERROR_IO_DEVICE, -EIO}, {ERROR_DISK_FULL, -ENOSPC}, {ERROR_WRITE_PROTECT, -EROFS}};
    for (int i = 0; i < 3; i++) {
        unsigned before = calls;
        plan_error = errors[i].error;
        CHECK(disk->sync_data(disk, file) == errors[i].result && calls == before + 1);
        plan_error = errors[i].error;
        CHECK(disk->sync(disk, file) == errors[i].result && calls == before + 2);
        plan_error = errors[i].error;
        CHECK(disk->sync_directory(disk) == errors[i].result && calls == before + 3);
    }
    CHECK(disk->sync_data(disk, file) == 0 && disk->sync(disk, file) == 0 && disk->sync_directory(disk) == 0);
}

static void test_a_file_system_that_cannot_reserve_blocks_gets_a_longer_file(int file) {
    plan_error = ERROR_INVALID_FUNCTION;
    CHECK(disk->allocate(disk, file, 30000) == 0 && disk->size(disk, file) == 30000);
    CHECK(disk->allocate(disk, file, 40000) == 0 && disk->size(disk, file) == 40000);
    CHECK(disk->read(disk, file, 39990, read_back, 10) == 10 && read_back[0] == 0 && read_back[9] == 0);
    CHECK(disk->truncate(disk, file, 50) == 0 && disk->size(disk, file) == 50);
}

static void count_visit(void *context, const char *name) {
    CHECK(name[0] != '.');
    ++*(int *)context;
}

static void test_names_stay_inside_the_directory(void) {
    int count = 0, file = disk->open(disk, "two", true);
    CHECK(file >= 0 && disk->close(disk, file) == 0);
    unsigned before = calls;
    plan_error = ERROR_SHARING_VIOLATION; /* a scanner has it open */
    CHECK(disk->rename(disk, "two", "three") == 0 && calls == before + 2 && disk->open(disk, "two", false) == -ENOENT);
    file = disk->open(disk, "two", true);
    CHECK(file >= 0 && disk->close(disk, file) == 0 && disk->rename(disk, "two", "three") == 0); /* over the older one */
    CHECK(disk->list(disk, count_visit, &count) == 0 && count == 2);
    CHECK(disk->unlink(disk, "three") == 0 && disk->unlink(disk, "three") == -ENOENT);
    CHECK(disk->free_bytes(disk) > 0);
    uint8_t a[16], b[16];
    CHECK(disk->random(disk, a, 16) == 0 && disk->random(disk, b, 16) == 0 && memcmp(a, b, 16) != 0);
}

static void link_to(const char *from, const char *to) {
    wchar_t old_path[PATH_CHARS_MAX], new_path[PATH_CHARS_MAX];
    CHECK(path_of(disk_of(disk), from, old_path) == 0 && path_of(disk_of(disk), to, new_path) == 0);
    CHECK(CreateHardLinkW(new_path, old_path, NULL));
}

static void test_a_name_in_use_is_freed_without_changing_the_file_behind_it(void) {
    uint8_t byte;
    wchar_t path[PATH_CHARS_MAX];
    int file = disk->open(disk, "victim", true);
    CHECK(file >= 0 && disk->write(disk, file, 0, (const uint8_t *)"precious", 8) == 0);
    link_to("victim", "taken");
    int made = disk->open(disk, "taken", true);
    CHECK(made >= 0 && disk->size(disk, made) == 0 && disk->size(disk, file) == 8);
    CHECK(disk->close(disk, made) == 0);
    link_to("victim", "second name");
    CHECK(disk->truncate(disk, file, 1) == -EMLINK && disk->read(disk, file, 7, &byte, 1) == 1 && byte == 's');
    CHECK(path_of(disk_of(disk), "folder", path) == 0 && CreateDirectoryW(path, NULL));
    CHECK(disk->open(disk, "folder", false) == STORAGE_NOT_A_FILE);
    made = disk->open(disk, "folder", true); /* the folder is moved aside */
    CHECK(made >= 0 && disk->close(disk, made) == 0);
    CHECK(path_of(disk_of(disk), "aside-folder", path) == 0 && RemoveDirectoryW(path));
    CHECK(disk->close(disk, file) == 0);
    static const char *const names[] = {"victim", "taken", "second name", "folder"};
    for (int i = 0; i < 4; i++) CHECK(disk->unlink(disk, names[i]) == 0);
}

static void test_a_file_without_a_name_accepts_no_more_records(void) {
    int file = disk->open(disk, "nameless", true);
    CHECK(file >= 0 && disk->sync_data(disk, file) == 0);
    plan_nameless = true;                          /* Wine does not report it */
    CHECK(disk->sync_data(disk, file) == -ENOENT); /* data written now would not be found again */
    plan_nameless = false;
    CHECK(disk->close(disk, file) == 0 && disk->unlink(disk, "nameless") == 0);
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

static void test_the_lock_is_held_until_release(const char *directory) {
    int error;
    storage_t *second = storage_disk(directory, &error);
    CHECK(second && disk->lock(disk, "LOCK") == 0 && second->lock(second, "LOCK") == -EWOULDBLOCK);
    CHECK(disk->lock(disk, "LOCK") == 0);           /* again: nothing to do */
    int file = second->open(second, "LOCK", false); /* the recovery looks at every file */
    CHECK(file >= 0 && second->close(second, file) == 0);
    CHECK(second->rename(second, "LOCK", "moved") == 0);
    CHECK(disk->lock(disk, "LOCK") == 0 && second->lock(second, "LOCK") == -EWOULDBLOCK);
    disk->release(disk);
    CHECK(second->lock(second, "LOCK") == 0);
    second->release(second);
}

int main(int count, char **arguments) {
    char directory[1024];
    int error;
    CHECK(count == 2 && snprintf(directory, sizeof directory, "%s/n\xc3\xa9w", arguments[1]) < 1024);
    CHECK(storage_disk("no/such/directory", &error) == NULL && error == -ENOENT && !storage_present(directory));
    disk = storage_disk(directory, &error);
    CHECK(disk && error == 0 && storage_present(directory));
    int file = disk->open(disk, "one", true);
    CHECK(file >= 0);
    test_short_calls_are_continued(file);
    test_errors_are_returned_and_a_failed_flush_is_not_repeated(file);
    test_a_file_system_that_cannot_reserve_blocks_gets_a_longer_file(file);
    CHECK(disk->close(disk, file) == 0);
    test_names_stay_inside_the_directory();
    test_a_name_in_use_is_freed_without_changing_the_file_behind_it();
    test_a_file_without_a_name_accepts_no_more_records();
    test_a_file_that_is_open_elsewhere_is_reported_as_locked(directory);
    test_the_lock_is_held_until_release(directory);
    return 0;
}
