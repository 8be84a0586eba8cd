/* wal/storage_windows.c: the real disk of Windows: one directory and plain files in it. See wal/storage.h.
 *
 * Invariant: a call that returns >= 0 has done everything that was asked. A failed flush is reported and never repeated. The
 * directory stays open without the right to delete it, so it cannot be moved or removed.
 */
#if defined(_WIN32)

#include "base/entropy.h"
#include "wal/storage.h"

#include <windows.h>
#include <sddl.h>
#include <stdlib.h>
#include <wchar.h>

#define CHUNK_BYTES_MAX (1u << 30)
#define PATH_CHARS_MAX 4096u
#define NAME_BYTES_MAX 256u
#define BUSY_TRIES 50 /* a scanner or a backup may have the file open for a moment */
#define BUSY_MS 10
#define SHARE_ALL (FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE)
#define LOCK_AT (1ull << 62) /* far behind the bytes, because a lock forbids others to use the locked bytes */
/* Full access for the owner, the system and administrators, also to new files; nothing from the parent directory. */
#define PRIVATE L"D:P(A;OICI;FA;;;OW)(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

/* FileDispositionInfoEx of newer headers: the name is gone at once, even if the file is open. */
#define DISPOSITION_EX ((FILE_INFO_BY_HANDLE_CLASS)21)
#define DISPOSITION_DELETE_POSIX 3u

typedef struct disk {
    storage_t calls; /* must be first: storage_t * is cast to disk_t * */
    HANDLE directory, lock;
    size_t path_size;
    wchar_t path[PATH_CHARS_MAX]; /* absolute, with the prefix that allows long paths */
} disk_t;

static disk_t *disk_of(storage_t *storage) { return (disk_t *)storage; }
static HANDLE handle_of(int file) { return (HANDLE)(intptr_t)file; }

static int error_of(DWORD error) {
    switch (error) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_DRIVE:
    case ERROR_BAD_NETPATH:
    case ERROR_BAD_NET_NAME: return -ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_DELETE_PENDING: return -EACCES;
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION: return -EWOULDBLOCK;
    case ERROR_WRITE_PROTECT: return -EROFS;
    case ERROR_FILE_EXISTS:
    case ERROR_ALREADY_EXISTS: return -EEXIST;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL: return -ENOSPC;
    case ERROR_DISK_QUOTA_EXCEEDED: return -EDQUOT;
    case ERROR_TOO_MANY_OPEN_FILES: return -EMFILE;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
    case ERROR_NO_SYSTEM_RESOURCES: return -ENOMEM;
    case ERROR_INVALID_HANDLE: return -EBADF;
    case ERROR_DIRECTORY: return -ENOTDIR;
    case ERROR_FILENAME_EXCED_RANGE: return -ENAMETOOLONG;
    case ERROR_INVALID_NAME: return -EINVAL;
    case ERROR_FILE_TOO_LARGE: return -EFBIG;
    default: return -EIO;
    }
}

static int failed(void) { return error_of(GetLastError()); }
static int result_of(BOOL done) { return done ? 0 : failed(); }
static bool busy(int error) { return error == -EACCES || error == -EWOULDBLOCK; }

/* The path of a file in the directory. */
static int path_of(const disk_t *disk, const char *name, wchar_t path[PATH_CHARS_MAX]) {
    wmemcpy(path, disk->path, disk->path_size);
    path[disk->path_size] = L'\\';
    int room = (int)(PATH_CHARS_MAX - disk->path_size - 1);
    return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, name, -1, path + disk->path_size + 1, room) ? 0 : -ENAMETOOLONG;
}

/* ---- files ------------------------------------------------------------------------------------------------------------- */

static int plain_file(HANDLE file) {
    BY_HANDLE_FILE_INFORMATION facts;
    if (GetFileType(file) != FILE_TYPE_DISK) return STORAGE_NOT_A_FILE;
    if (!GetFileInformationByHandle(file, &facts)) return failed();
    return facts.dwFileAttributes & (FILE_ATTRIBUTE_DIRECTORY | FILE_ATTRIBUTE_REPARSE_POINT) ? STORAGE_NOT_A_FILE : 0;
}

/* Its handle as an int: the values of handles have 32 bits at most. Directories are refused by the system. */
static int open_at(const disk_t *disk, const char *name, DWORD access, DWORD share, DWORD disposition) {
    wchar_t path[PATH_CHARS_MAX];
    int error = path_of(disk, name, path);
    if (error < 0) return error;
    HANDLE file = CreateFileW(path, access, share, NULL, disposition, FILE_FLAG_OPEN_REPARSE_POINT, NULL);
    if (file != INVALID_HANDLE_VALUE) return (int)(intptr_t)file;
    error = failed();
    DWORD attributes = GetFileAttributesW(path);
    bool directory = attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY);
    return directory && error != -EEXIST ? STORAGE_NOT_A_FILE : error;
}

static int move(const disk_t *disk, const char *from, const char *to, DWORD flags) {
    wchar_t old_path[PATH_CHARS_MAX], new_path[PATH_CHARS_MAX];
    int error = path_of(disk, from, old_path);
    if (error == 0) error = path_of(disk, to, new_path);
    if (error < 0) return error;
    for (int tries = 1;; tries++) {
        error = result_of(MoveFileExW(old_path, new_path, flags | MOVEFILE_WRITE_THROUGH));
        if (!busy(error) || tries == BUSY_TRIES) return error;
        Sleep(BUSY_MS);
    }
}

static int disk_rename(storage_t *storage, const char *from, const char *to) {
    return move(disk_of(storage), from, to, MOVEFILE_REPLACE_EXISTING);
}

/* File systems without this kind of deletion refuse it. There the name stays until the last handle is closed. */
static bool unlink_at_once(const wchar_t *path) {
    HANDLE file = CreateFileW(path, DELETE, SHARE_ALL, NULL, OPEN_EXISTING, FILE_FLAG_OPEN_REPARSE_POINT, NULL);
    if (file == INVALID_HANDLE_VALUE) return false;
    DWORD flags = DISPOSITION_DELETE_POSIX;
    bool done = SetFileInformationByHandle(file, DISPOSITION_EX, &flags, sizeof flags);
    CloseHandle(file);
    return done;
}

static int disk_unlink(storage_t *storage, const char *name) {
    wchar_t path[PATH_CHARS_MAX];
    int error = path_of(disk_of(storage), name, path);
    if (error < 0 || unlink_at_once(path)) return error;
    for (int tries = 1;; tries++) {
        error = result_of(DeleteFileW(path));
        DWORD attributes = busy(error) ? GetFileAttributesW(path) : 0;
        bool directory = attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY);
        if (!busy(error) || directory || tries == BUSY_TRIES) return error;
        Sleep(BUSY_MS);
    }
}

/* Free a name: move the file aside, then delete it. If it was deleted under its own name while it is open elsewhere, some file
 * systems would keep the name in use. A directory stays there under the new name. */
static int out_of_the_way(storage_t *storage, const char *name) {
    char aside[NAME_BYTES_MAX] = "aside-";
    size_t size = strlen(name) + 1;
    if (strlen(aside) + size > sizeof aside) return -ENAMETOOLONG;
    memcpy(aside + strlen(aside), name, size);
    int error = move(disk_of(storage), name, aside, MOVEFILE_REPLACE_EXISTING);
    if (error == -ENOENT) return 0;
    if (error == 0) disk_unlink(storage, aside);
    return error;
}

static int byte_lock(int file, DWORD flags) {
    OVERLAPPED at = {.Offset = (DWORD)LOCK_AT, .OffsetHigh = (DWORD)(LOCK_AT >> 32)};
    return result_of(LockFileEx(handle_of(file), flags | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at));
}

static void byte_unlock(int file) {
    OVERLAPPED at = {.Offset = (DWORD)LOCK_AT, .OffsetHigh = (DWORD)(LOCK_AT >> 32)};
    UnlockFileEx(handle_of(file), 0, 1, 0, &at);
}

/* Create a new file. A file that has the name is not written to, because hard links to it may exist. The lock is held while
 * the file is open, so that a broker which reaches the file without LOCK sees that it is in use. */
static int disk_create(storage_t *storage, const char *name) {
    int error = out_of_the_way(storage, name);
    int file = error < 0 ? error : open_at(disk_of(storage), name, GENERIC_READ | GENERIC_WRITE, SHARE_ALL, CREATE_NEW);
    if (file >= 0) byte_lock(file, LOCKFILE_EXCLUSIVE_LOCK); /* if the file system has no locks, only LOCK protects */
    return file;
}

static int disk_open(storage_t *storage, const char *name, bool create) {
    if (create) return disk_create(storage, name);
    const disk_t *disk = disk_of(storage);
    int file = open_at(disk, name, GENERIC_READ | GENERIC_WRITE, SHARE_ALL, OPEN_EXISTING);
    if (file == -EACCES || file == -EROFS)
        file = open_at(disk, name, GENERIC_READ, SHARE_ALL, OPEN_EXISTING); /* enough for verify and export */
    if (file < 0) return file;
    int error = plain_file(handle_of(file));
    if (error == 0) return file;
    CloseHandle(handle_of(file));
    return error;
}

static int disk_locked(storage_t *storage, int file) {
    (void)storage;
    int error = byte_lock(file, 0);
    if (error == 0) byte_unlock(file);
    return error == -EWOULDBLOCK ? error : 0;
}

static int disk_close(storage_t *storage, int file) {
    (void)storage;
    return result_of(CloseHandle(handle_of(file)));
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */

static OVERLAPPED place(uint64_t offset) { return (OVERLAPPED){.Offset = (DWORD)offset, .OffsetHigh = (DWORD)(offset >> 32)}; }

static int disk_write(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size) {
    (void)storage;
    while (size) {
        OVERLAPPED at = place(offset);
        DWORD count = 0;
        if (!WriteFile(handle_of(file), bytes, size < CHUNK_BYTES_MAX ? (DWORD)size : CHUNK_BYTES_MAX, &count, &at))
            return failed();
        if (count == 0) return -EIO; /* a file system that writes nothing and reports no error */
        bytes += count;
        offset += count;
        size -= count;
    }
    return 0;
}

static int64_t disk_read(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    (void)storage;
    uint64_t done = 0;
    while (done < size) {
        OVERLAPPED at = place(offset + done);
        uint64_t left = size - done;
        DWORD count = 0;
        if (!ReadFile(handle_of(file), bytes + done, left < CHUNK_BYTES_MAX ? (DWORD)left : CHUNK_BYTES_MAX, &count, &at)) {
            if (GetLastError() == ERROR_HANDLE_EOF) break;
            return failed();
        }
        if (count == 0) break;
        done += count;
    }
    return (int64_t)done;
}

static int end_set(int file, uint64_t size) {
    FILE_END_OF_FILE_INFO end = {.EndOfFile.QuadPart = (LONGLONG)size};
    return result_of(SetFileInformationByHandle(handle_of(file), FileEndOfFileInfo, &end, sizeof end));
}

static int disk_truncate(storage_t *storage, int file, uint64_t size) {
    (void)storage;
    BY_HANDLE_FILE_INFORMATION facts;
    /* Another hard link, for example a backup, must keep its length */
    if (GetFileInformationByHandle(handle_of(file), &facts) && facts.nNumberOfLinks > 1) return -EMLINK;
    return end_set(file, size);
}

/* If blocks cannot be reserved (FAT, some network file systems), only the length is set. A write may then find the disk
 * full; wal/writer.c keeps the batch and tries again. */
static int disk_allocate(storage_t *storage, int file, uint64_t size) {
    FILE_ALLOCATION_INFO blocks = {.AllocationSize.QuadPart = (LONGLONG)size};
    int error = result_of(SetFileInformationByHandle(handle_of(file), FileAllocationInfo, &blocks, sizeof blocks));
    if (error == -ENOSPC || error == -EDQUOT) return error;
    return disk_truncate(storage, file, size);
}

static int64_t disk_size(storage_t *storage, int file) {
    (void)storage;
    LARGE_INTEGER size;
    if (plain_file(handle_of(file)) != 0) return -EINVAL;
    return GetFileSizeEx(handle_of(file), &size) ? (int64_t)size.QuadPart : failed();
}

/* ---- durability -------------------------------------------------------------------------------------------------------- */

static int disk_sync(storage_t *storage, int file) {
    (void)storage;
    return result_of(FlushFileBuffers(handle_of(file)));
}

/* Data is lost if its file has no name any more. */
static int disk_sync_data(storage_t *storage, int file) {
    FILE_STANDARD_INFO facts;
    int error = disk_sync(storage, file);
    if (error < 0) return error;
    bool known = GetFileInformationByHandleEx(handle_of(file), FileStandardInfo, &facts, sizeof facts);
    return known && (facts.DeletePending || facts.NumberOfLinks == 0) ? -ENOENT : 0;
}

/* NTFS keeps a journal of changed names, and renames are written through. Systems that cannot flush a directory refuse the
 * handle, not the write. */
static int disk_sync_directory(storage_t *storage) {
    if (FlushFileBuffers(disk_of(storage)->directory)) return 0;
    DWORD error = GetLastError();
    bool unable = error == ERROR_ACCESS_DENIED || error == ERROR_INVALID_HANDLE || error == ERROR_INVALID_FUNCTION ||
                  error == ERROR_NOT_SUPPORTED || error == ERROR_INVALID_PARAMETER;
    return unable ? 0 : error_of(error);
}

/* ---- the directory ----------------------------------------------------------------------------------------------------- */

static int disk_list(storage_t *storage, storage_visit visit, void *context) {
    wchar_t pattern[PATH_CHARS_MAX];
    char name[3 * MAX_PATH + 1];
    WIN32_FIND_DATAW entry;
    int error = path_of(disk_of(storage), "*", pattern);
    if (error < 0) return error;
    HANDLE search = FindFirstFileW(pattern, &entry);
    if (search == INVALID_HANDLE_VALUE) return GetLastError() == ERROR_FILE_NOT_FOUND ? 0 : failed();
    do {
        if (!WideCharToMultiByte(CP_UTF8, 0, entry.cFileName, -1, name, sizeof name, NULL, NULL))
            continue; /* not a name of the WAL */
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) visit(context, name);
    } while (FindNextFileW(search, &entry));
    error = GetLastError() == ERROR_NO_MORE_FILES ? 0 : failed();
    FindClose(search);
    return error;
}

static int64_t disk_free_bytes(storage_t *storage) {
    ULARGE_INTEGER available;
    return GetDiskFreeSpaceExW(disk_of(storage)->path, &available, NULL, NULL) ? (int64_t)available.QuadPart : failed();
}

static int disk_random(storage_t *storage, uint8_t *bytes, uint32_t size) {
    (void)storage;
    return entropy_fill(bytes, size) ? 0 : -EIO;
}

static bool same_file(HANDLE one, HANDLE other) {
    BY_HANDLE_FILE_INFORMATION a, b;
    return GetFileInformationByHandle(one, &a) && GetFileInformationByHandle(other, &b) &&
           a.dwVolumeSerialNumber == b.dwVolumeSerialNumber && a.nFileIndexHigh == b.nFileIndexHigh &&
           a.nFileIndexLow == b.nFileIndexLow;
}

/* Called again, it creates LOCK again if it was moved or removed. */
static int disk_lock(storage_t *storage, const char *name) {
    disk_t *disk = disk_of(storage);
    int file = open_at(disk, name, GENERIC_READ | GENERIC_WRITE, SHARE_ALL, OPEN_ALWAYS);
    if (file < 0) return file;
    bool held = disk->lock && same_file(disk->lock, handle_of(file));
    int error = held ? 0 : plain_file(handle_of(file));
    if (error == 0 && !held) error = byte_lock(file, LOCKFILE_EXCLUSIVE_LOCK);
    if (error < 0 || held) {
        CloseHandle(handle_of(file));
        return error;
    }
    if (disk->lock) CloseHandle(disk->lock);
    disk->lock = handle_of(file);
    return 0;
}

static void disk_release(storage_t *storage) {
    disk_t *disk = disk_of(storage);
    if (disk->lock) CloseHandle(disk->lock);
    if (disk->directory) CloseHandle(disk->directory);
    free(disk);
}

static const storage_t disk_calls = {
    .open = disk_open,
    .close = disk_close,
    .write = disk_write,
    .read = disk_read,
    .allocate = disk_allocate,
    .truncate = disk_truncate,
    .size = disk_size,
    .sync_data = disk_sync_data,
    .sync = disk_sync,
    .sync_directory = disk_sync_directory,
    .rename = disk_rename,
    .unlink = disk_unlink,
    .list = disk_list,
    .free_bytes = disk_free_bytes,
    .random = disk_random,
    .lock = disk_lock,
    .locked = disk_locked,
    .release = disk_release,
};

/* The absolute path of a directory, with the prefix for long paths: of a drive, or of a share. */
static int absolute(const char *directory, wchar_t path[PATH_CHARS_MAX], size_t *size) {
    wchar_t given[PATH_CHARS_MAX], full[PATH_CHARS_MAX];
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, directory, -1, given, PATH_CHARS_MAX)) return -ENAMETOOLONG;
    DWORD count = GetFullPathNameW(given, PATH_CHARS_MAX, full, NULL);
    if (count == 0) return failed();
    if (count + 16 > PATH_CHARS_MAX) return -ENAMETOOLONG;
    while (count > 3 && full[count - 1] == L'\\') full[--count] = 0;
    bool device = !wcsncmp(full, L"\\\\?\\", 4) || !wcsncmp(full, L"\\\\.\\", 4), share = !device && !wcsncmp(full, L"\\\\", 2);
    wcscpy(path, device ? L"" : share ? L"\\\\?\\UNC" : L"\\\\?\\");
    wcscat(path, share ? full + 1 : full);
    *size = wcslen(path);
    return 0;
}

bool storage_present(const char *directory) {
    wchar_t path[PATH_CHARS_MAX];
    size_t size;
    int error = absolute(directory, path, &size);
    if (error == 0 && GetFileAttributesW(path) == INVALID_FILE_ATTRIBUTES) error = failed();
    errno = -error;
    return error == 0;
}

static int directory_create(const wchar_t *path) {
    SECURITY_ATTRIBUTES security = {.nLength = sizeof security};
    if (!ConvertStringSecurityDescriptorToSecurityDescriptorW(PRIVATE, SDDL_REVISION_1, &security.lpSecurityDescriptor, NULL))
        return failed();
    int error = result_of(CreateDirectoryW(path, &security));
    LocalFree(security.lpSecurityDescriptor);
    return error == -EEXIST ? 0 : error;
}

/* Flushing needs the right to write. Without it, for example on a read-only medium, reading is enough. */
static int directory_open(disk_t *disk) {
    static const DWORD rights[] = {GENERIC_READ | GENERIC_WRITE, GENERIC_READ};
    HANDLE directory = INVALID_HANDLE_VALUE;
    for (int i = 0; i < 2 && directory == INVALID_HANDLE_VALUE; i++)
        directory = CreateFileW(disk->path, rights[i], FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, OPEN_EXISTING,
                                FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (directory == INVALID_HANDLE_VALUE) return failed();
    disk->directory = directory;
    BY_HANDLE_FILE_INFORMATION facts;
    if (!GetFileInformationByHandle(directory, &facts)) return failed();
    return facts.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? 0 : -ENOTDIR;
}

storage_t *storage_disk(const char *directory, int *error) {
    disk_t *disk = calloc(1, sizeof *disk);
    *error = disk ? absolute(directory, disk->path, &disk->path_size) : -ENOMEM;
    if (*error == 0) *error = directory_create(disk->path);
    if (*error == 0) *error = directory_open(disk);
    if (*error == 0) {
        disk->calls = disk_calls;
        return &disk->calls;
    }
    if (disk) disk_release(&disk->calls);
    return NULL;
}

#endif
