/* wal/storage_posix.c: the real disk: one directory that stays open, and plain files in it.
 *
 * Invariant: a call that returns >= 0 has done everything that was asked. A failed sync is reported and never repeated here:
 * the kernel may have marked the lost pages as clean, and a second call would return 0.
 */
#if !defined(_WIN32)

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* fallocate */
#endif
#if !defined(__LP64__) && !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* for a 32-bit long: large files, large disks, and long inode numbers */
#endif

#include "base/entropy.h"
#include "wal/storage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "the WAL needs file offsets of 64 bits: define _FILE_OFFSET_BITS before any system header");

#define CHUNK_BYTES_MAX (1u << 30) /* per call; some systems refuse more */
#define NAME_BYTES_MAX 256u

typedef struct disk {
    storage_t calls; /* must be first: storage_t * is cast to disk_t * */
    int directory;
    int lock;
    char *path; /* absolute, to detect that the directory is no longer there */
    ino_t root; /* inode of / at the start; after a chroot the path is not found, which proves nothing */
} disk_t;

static disk_t *disk_of(storage_t *storage) { return (disk_t *)storage; }
static int result_of(int result) { return result < 0 ? -errno : result; }

static int plain_file(int file) {
    struct stat status;
    if (fstat(file, &status) < 0) return -errno;
    return S_ISREG(status.st_mode) ? 0 : STORAGE_NOT_A_FILE;
}

static int open_at(int directory, const char *name, int flags) {
    int file;
    do file = openat(directory, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    while (file < 0 && errno == EINTR);
    bool strange = file < 0 && (errno == ELOOP || errno == EMLINK || errno == EISDIR || errno == ENXIO || errno == ENODEV);
    return strange ? STORAGE_NOT_A_FILE : result_of(file);
}

static int lock_try(int file, int operation) {
    int result;
    do result = flock(file, operation | LOCK_NB);
    while (result < 0 && errno == EINTR);
    return result_of(result);
}

static int out_of_the_way(int directory, const char *name) {
    char aside[NAME_BYTES_MAX];
    if (unlinkat(directory, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -errno;
    if (snprintf(aside, sizeof aside, "aside-%s", name) >= (int)sizeof aside) return -ENAMETOOLONG;
    return result_of(renameat(directory, name, directory, aside));
}

/* Create a new file. A file that has the name is not written to, because hard links to it may exist. The lock is held while
 * the file is open, so that a broker which reaches the file without LOCK sees that it is in use. */
static int disk_create(storage_t *storage, const char *name) {
    int directory = disk_of(storage)->directory, error = out_of_the_way(directory, name);
    int file = error < 0 ? error : open_at(directory, name, O_RDWR | O_CREAT | O_EXCL);
    if (file >= 0) lock_try(file, LOCK_EX); /* if the file system has no locks, only LOCK protects */
    return file;
}

static int disk_open(storage_t *storage, const char *name, bool create) {
    if (create) return disk_create(storage, name);
    int directory = disk_of(storage)->directory, file = open_at(directory, name, O_RDWR);
    if (file == -EACCES || file == -EROFS) file = open_at(directory, name, O_RDONLY); /* enough for verify and export */
    if (file < 0) return file;
    int error = plain_file(file);
    if (error == 0) return file;
    close(file);
    return error;
}

static int disk_locked(storage_t *storage, int file) {
    (void)storage;
    int error = lock_try(file, LOCK_SH);
    if (error == 0) lock_try(file, LOCK_UN);
    return error == -EWOULDBLOCK ? error : 0;
}

static int disk_close(storage_t *storage, int file) {
    (void)storage;
    return close(file) < 0 && errno != EINTR ? -errno : 0; /* after EINTR the descriptor is closed too */
}

static int disk_write(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size) {
    (void)storage;
    while (size) {
        ssize_t count = pwrite(file, bytes, size < CHUNK_BYTES_MAX ? (size_t)size : CHUNK_BYTES_MAX, (off_t)offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        if (count == 0) return -EIO; /* a file system that writes nothing and reports no error */
        bytes += count;
        offset += (uint64_t)count;
        size -= (uint64_t)count;
    }
    return 0;
}

static int64_t disk_read(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    (void)storage;
    uint64_t done = 0;
    while (done < size) {
        uint64_t left = size - done;
        ssize_t count =
            pread(file, bytes + done, left < CHUNK_BYTES_MAX ? (size_t)left : CHUNK_BYTES_MAX, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        if (count == 0) break;
        done += (uint64_t)count;
    }
    return (int64_t)done;
}

static int disk_truncate(storage_t *storage, int file, uint64_t size) {
    (void)storage;
    struct stat status;
    /* Another hard link, for example a backup, must keep its length */
    if (fstat(file, &status) == 0 && status.st_nlink > 1) return -EMLINK;
    int result;
    do result = ftruncate(file, (off_t)size);
    while (result < 0 && errno == EINTR);
    return result_of(result);
}

/* If blocks cannot be reserved (FAT, some network file systems), only the length is set. A write may then find the disk
 * full; wal/writer.c keeps the batch and tries again. Writing zeros instead would double the wear of an SD card. */
static int disk_allocate(storage_t *storage, int file, uint64_t size) {
#if defined(FALLOC_FL_KEEP_SIZE)
    int result;
    do result = fallocate(file, 0, 0, (off_t)size);
    while (result < 0 && errno == EINTR);
    if (result == 0) return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS) return -errno;
#endif
    return disk_truncate(storage, file, size);
}

static int64_t disk_size(storage_t *storage, int file) {
    (void)storage;
    struct stat status;
    if (fstat(file, &status) < 0) return -errno;
    return S_ISREG(status.st_mode) ? (int64_t)status.st_size : -EINVAL;
}

/* On macOS fsync leaves the data in the drive's cache; this flushes the cache too. */
static int full_sync(int file) {
#if defined(F_FULLFSYNC)
    if (fcntl(file, F_FULLFSYNC) == 0) return 0;
    if (errno != ENOTSUP && errno != EINVAL) return -errno;
#endif
    return result_of(fsync(file));
}

static bool same_file(const struct stat *a, const struct stat *b) { return a->st_ino == b->st_ino && a->st_dev == b->st_dev; }

/* Data is lost if its file has no name any more, or if its directory is no longer at the path. */
static int still_there(const disk_t *disk, int file) {
    struct stat status, directory;
    if (fstat(file, &status) == 0 && status.st_nlink == 0) return -ENOENT;
    bool none = stat(disk->path, &status) < 0;
    if (none && errno != ENOENT && errno != ENOTDIR) return 0;
    if (!none && fstat(disk->directory, &directory) == 0 && same_file(&status, &directory)) return 0;
    return stat("/", &directory) == 0 && directory.st_ino == disk->root ? -ENOENT : 0;
}

static int disk_sync_data(storage_t *storage, int file) {
#if defined(F_FULLFSYNC)
    int error = full_sync(file);
#else
    int error = result_of(fdatasync(file));
#endif
    return error < 0 ? error : still_there(disk_of(storage), file);
}

static int disk_sync(storage_t *storage, int file) {
    (void)storage;
    return full_sync(file);
}

static int disk_sync_directory(storage_t *storage) { return full_sync(disk_of(storage)->directory); }

static int disk_rename(storage_t *storage, const char *from, const char *to) {
    int directory = disk_of(storage)->directory;
    return result_of(renameat(directory, from, directory, to));
}

static int disk_unlink(storage_t *storage, const char *name) { return result_of(unlinkat(disk_of(storage)->directory, name, 0)); }

static int disk_list(storage_t *storage, storage_visit visit, void *context) {
    int copy = openat(disk_of(storage)->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (copy < 0) return -errno;
    DIR *directory = fdopendir(copy);
    if (!directory) {
        int error = -errno;
        close(copy);
        return error;
    }
    int error = 0;
    for (;;) {
        errno = 0; /* the only way to distinguish the end from an error */
        struct dirent *entry = readdir(directory);
        if (!entry) {
            error = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) visit(context, entry->d_name);
    }
    closedir(directory);
    return error;
}

static int64_t disk_free_bytes(storage_t *storage) {
    struct statvfs status;
    if (fstatvfs(disk_of(storage)->directory, &status) < 0) return -errno;
    return (int64_t)((uint64_t)status.f_bavail * status.f_frsize);
}

static int disk_random(storage_t *storage, uint8_t *bytes, uint32_t size) {
    (void)storage;
    return entropy_fill(bytes, size) ? 0 : -errno;
}

/* The directory is locked too, because somebody may remove LOCK. Called again, it creates LOCK again if it was removed. */
static int disk_lock(storage_t *storage, const char *name) {
    disk_t *disk = disk_of(storage);
    int error = lock_try(disk->directory, LOCK_EX);
    if (error == -EWOULDBLOCK) return error; /* other errors: the file system cannot lock directories */
    struct stat held, named;
    if (disk->lock >= 0 && fstat(disk->lock, &held) == 0 && fstatat(disk->directory, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        same_file(&held, &named))
        return 0;
    int file = open_at(disk->directory, name, O_RDWR | O_CREAT);
    if (file < 0) return file;
    error = plain_file(file);
    if (error == 0) error = lock_try(file, LOCK_EX);
    if (error < 0) {
        close(file);
        return error;
    }
    if (disk->lock >= 0) close(disk->lock);
    disk->lock = file;
    return 0;
}

static void disk_release(storage_t *storage) {
    disk_t *disk = disk_of(storage);
    if (disk->lock >= 0) close(disk->lock);
    close(disk->directory);
    free(disk->path);
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

/* Sync the parent too: otherwise a power cut may remove the new directory. */
static int parent_sync(const char *directory) {
    size_t size = strlen(directory);
    while (size > 1 && directory[size - 1] == '/') size--;
    while (size && directory[size - 1] != '/') size--;
    char *parent = malloc(size + 2);
    if (!parent) return -ENOMEM;
    memcpy(parent, directory, size);
    memcpy(parent + size, size ? "" : ".", size ? 1 : 2);
    int file = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(parent);
    if (file < 0) return -errno;
    int error = full_sync(file);
    close(file);
    return error;
}

/* Links are not resolved, so that a changed link is noticed. */
static char *absolute(const char *directory) {
    char *here = directory[0] == '/' ? NULL : getcwd(NULL, 0);
    size_t size = strlen(directory) + (here ? strlen(here) : 0) + 2;
    char *path = here || directory[0] == '/' ? malloc(size) : NULL;
    if (path) snprintf(path, size, "%s%s%s", here ? here : "", here ? "/" : "", directory);
    free(here);
    return path;
}

bool storage_present(const char *directory) { return access(directory, F_OK) == 0; }

storage_t *storage_disk(const char *directory, int *error) {
    *error = 0;
    if (mkdir(directory, 0700) == 0)
        *error = parent_sync(directory);
    else if (errno != EEXIST)
        *error = -errno;
    int file = *error ? -1 : open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0) {
        if (!*error) *error = -errno;
        return NULL;
    }
    disk_t *disk = malloc(sizeof *disk);
    char *path = absolute(directory);
    struct stat root;
    if (!disk || !path || stat("/", &root) < 0) {
        free(disk);
        free(path);
        close(file);
        *error = -ENOMEM;
        return NULL;
    }
    *disk = (disk_t){.calls = disk_calls, .directory = file, .lock = -1, .path = path, .root = root.st_ino};
    return &disk->calls;
}

#endif
