/* power.c: a disk that can lose power and fail, put between a broker and its log directory with LD_PRELOAD.
 *
 * Everything that changes a file or a name in $CRASH_DIRECTORY is carried out and then noted in $CRASH_JOURNAL; a sync is
 * noted after it, with where the journal ended before it. So whoever kills the process knows which bytes and names were
 * synced and which were not, and can put the directory into any state a power cut could have left (disk.py does).
 * Faults are read from the page $CRASH_FAULTS, which the tests write while the broker runs.
 *
 *      journal    { u32 kind, u32 size, u64 inode, u64 offset } bytes[size]
 *
 * Invariant: an operation is noted only when it has been done, a sync only when it has returned 0. What was killed in between
 * counts as not synced, which is legal: nobody had been told.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES_MAX 4096

enum kind { CREATE = 1, WRITE, SIZE, RENAME, UNLINK, SYNC, SYNC_DIRECTORY };
enum call { CALL_SYNC_DATA, CALL_SYNC, CALL_SYNC_DIRECTORY, CALL_WRITE, CALL_ALLOCATE, CALL_RENAME, CALL_OPEN, CALLS };

typedef struct fault {
    int32_t error; /* 0: none */
    int32_t after; /* calls that still succeed */
    int32_t times; /* how many fail then; -1: all */
    int32_t calls; /* so many there have been */
} fault_t;

typedef struct faults {
    fault_t calls[CALLS];
    int64_t free_bytes; /* what the file system is said to have; -1: the truth */
    int32_t sync_lies;  /* 1: a sync returns 0 and has done nothing */
    int32_t sync_us;    /* longest time that one takes; each takes a part of it */
    int32_t die_after;  /* > 0: the process is killed when so many more changes have been noted */
} faults_t;

typedef struct note {
    uint32_t kind, size;
    uint64_t inode, offset;
} note_t;

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static uint64_t inodes[FILES_MAX]; /* by descriptor; 0: not a file of the log */
static uint64_t journal_end;
static int journal = -1;
static faults_t *faults;
static struct stat directory;
static bool watching;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("CRASH_DIRECTORY"), *notes = getenv("CRASH_JOURNAL"), *page = getenv("CRASH_FAULTS");
    if (!where || stat(where, &directory) < 0) return;
    if (notes) journal = REAL(open)(notes, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal >= 0) journal_end = (uint64_t)lseek(journal, 0, SEEK_END);
    int file = page ? REAL(open)(page, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *at = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (at != MAP_FAILED) faults = at;
        REAL(close)(file);
    }
    watching = true;
}

static bool is_directory(int descriptor) {
    struct stat status;
    return watching && descriptor >= 0 && fstat(descriptor, &status) == 0 && status.st_ino == directory.st_ino &&
           status.st_dev == directory.st_dev;
}

static uint64_t inode_of(int descriptor) {
    return descriptor >= 0 && descriptor < FILES_MAX ? __atomic_load_n(&inodes[descriptor], __ATOMIC_RELAXED) : 0;
}

/* Inside the gate: the order of the notes is the order of what was done. */
static void note(enum kind kind, uint64_t inode, uint64_t offset, const void *bytes, size_t size) {
    note_t head = {kind, (uint32_t)size, inode, offset};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)bytes, size}};
    if (journal < 0) return;
    if (writev(journal, parts, 2) != (ssize_t)(sizeof head + size)) abort(); /* a storm that cannot note proves nothing */
    journal_end += sizeof head + size;
    if (faults && faults->die_after > 0 && --faults->die_after == 0) kill(getpid(), SIGKILL);
}

/* True: fail now, errno is set. */
static bool fails(enum call call) {
    bool now = false;
    if (!faults) return false;
    pthread_mutex_lock(&gate);
    fault_t *fault = &faults->calls[call];
    fault->calls++;
    if (fault->error && fault->after > 0) {
        fault->after--;
    } else if (fault->error && fault->times) {
        if (fault->times > 0) fault->times--;
        errno = fault->error;
        now = true;
    }
    pthread_mutex_unlock(&gate);
    return now;
}

/* ---- files and names --------------------------------------------------------------------------------------------------- */

int openat(int at, const char *name, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (!is_directory(at) || strcmp(name, ".") == 0) return REAL(openat)(at, name, flags, mode);
    if (fails(CALL_OPEN)) return -1;
    pthread_mutex_lock(&gate);
    struct stat status;
    bool was = fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    int file = REAL(openat)(at, name, flags, mode);
    if (file >= FILES_MAX) abort();
    if (file >= 0 && fstat(file, &status) == 0) {
        inodes[file] = status.st_ino;
        if (!was)
            note(CREATE, status.st_ino, 0, name, strlen(name));
        else if (flags & O_TRUNC)
            note(SIZE, status.st_ino, 0, NULL, 0);
    }
    pthread_mutex_unlock(&gate);
    return file;
}

int openat64(int at, const char *name, int flags, ...) __attribute__((alias("openat")));

int close(int file) {
    if (file >= 0 && file < FILES_MAX) __atomic_store_n(&inodes[file], 0, __ATOMIC_RELAXED);
    return REAL(close)(file);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    if (!is_directory(from_at)) return REAL(renameat)(from_at, from, to_at, to);
    if (fails(CALL_RENAME)) return -1;
    char names[1024];
    int size = snprintf(names, sizeof names, "%s/%s", from, to);
    pthread_mutex_lock(&gate);
    int result = REAL(renameat)(from_at, from, to_at, to);
    if (result == 0) note(RENAME, 0, 0, names, (size_t)size);
    pthread_mutex_unlock(&gate);
    return result;
}

int unlinkat(int at, const char *name, int flags) {
    if (!is_directory(at)) return REAL(unlinkat)(at, name, flags);
    pthread_mutex_lock(&gate);
    int result = REAL(unlinkat)(at, name, flags);
    if (result == 0) note(UNLINK, 0, 0, name, strlen(name));
    pthread_mutex_unlock(&gate);
    return result;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */

ssize_t pwrite(int file, const void *bytes, size_t size, off_t offset) {
    uint64_t inode = inode_of(file);
    if (!inode) return REAL(pwrite)(file, bytes, size, offset);
    if (fails(CALL_WRITE)) return -1;
    pthread_mutex_lock(&gate);
    ssize_t done = REAL(pwrite)(file, bytes, size, offset);
    if (done > 0) note(WRITE, inode, (uint64_t)offset, bytes, (size_t)done);
    pthread_mutex_unlock(&gate);
    return done;
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) __attribute__((alias("pwrite")));

static void size_note(int file, uint64_t inode, int result) {
    struct stat status;
    if (result == 0 && fstat(file, &status) == 0) note(SIZE, inode, (uint64_t)status.st_size, NULL, 0);
}

int ftruncate(int file, off_t size) {
    uint64_t inode = inode_of(file);
    if (!inode) return REAL(ftruncate)(file, size);
    pthread_mutex_lock(&gate);
    int result = REAL(ftruncate)(file, size);
    size_note(file, inode, result);
    pthread_mutex_unlock(&gate);
    return result;
}

int ftruncate64(int file, off64_t size) __attribute__((alias("ftruncate")));

int fallocate(int file, int mode, off_t offset, off_t size) {
    uint64_t inode = inode_of(file);
    if (!inode) return REAL(fallocate)(file, mode, offset, size);
    if (fails(CALL_ALLOCATE)) return -1;
    pthread_mutex_lock(&gate);
    int result = REAL(fallocate)(file, mode, offset, size);
    size_note(file, inode, result);
    pthread_mutex_unlock(&gate);
    return result;
}

int fallocate64(int file, int mode, off64_t offset, off64_t size) __attribute__((alias("fallocate")));

int fstatvfs(int file, struct statvfs *status) {
    int result = REAL(fstatvfs)(file, status);
    if (result == 0 && faults && faults->free_bytes >= 0 && is_directory(file))
        status->f_bavail = (fsblkcnt_t)((uint64_t)faults->free_bytes / status->f_frsize);
    return result;
}

int fstatvfs64(int file, struct statvfs64 *status) __attribute__((alias("fstatvfs")));

/* ---- syncs ------------------------------------------------------------------------------------------------------------- */

/* With a journal the disk is a simulated one, and syncing the real one under it would prove nothing. It takes its time, so that
 * kills meet a sync under way. */
static int sync_note(int file, enum call call, enum kind kind, uint64_t inode, int (*real)(int)) {
    pthread_mutex_lock(&gate);
    uint64_t before = journal_end;
    pthread_mutex_unlock(&gate);
    if (faults && faults->sync_us) usleep((useconds_t)(random() % faults->sync_us));
    if (fails(call)) return -1;
    if (faults && faults->sync_lies) return 0;
    if (journal < 0) return real(file);
    pthread_mutex_lock(&gate);
    note(kind, inode, before, NULL, 0);
    pthread_mutex_unlock(&gate);
    return 0;
}

int fdatasync(int file) {
    uint64_t inode = inode_of(file);
    return inode ? sync_note(file, CALL_SYNC_DATA, SYNC, inode, REAL(fdatasync)) : REAL(fdatasync)(file);
}

int fsync(int file) {
    uint64_t inode = inode_of(file);
    if (inode) return sync_note(file, CALL_SYNC, SYNC, inode, REAL(fsync));
    if (is_directory(file)) return sync_note(file, CALL_SYNC_DIRECTORY, SYNC_DIRECTORY, 0, REAL(fsync));
    return REAL(fsync)(file);
}
