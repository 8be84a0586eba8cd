/* The one-file download: unpacks the program that follows this code in the same file, and runs it by exec.
 *
 *   blipmq = [ this program | zstd frame | trailer ]       trailer = magic[8] frame_bytes[8] unpacked_bytes[8]
 *   inside the frame, for each file: mode[4] name_bytes[4] data_bytes[8] name data          (little endian)
 *   a directory has the directory bit in its mode and no data
 *
 * Invariant: there is only one process. The launcher replaces itself (exec) and does not watch a child, so a signal arrives once,
 * kill -9 leaves no orphan, and the supervisor's process id is that of the broker.
 *
 * The unpacked folder is locked (flock on the folder) while that process runs. An unlocked folder of this user belongs to a killed
 * process: the next start removes it. systemd-tmpfiles, which cleans /tmp, does not remove locked folders. An orderly exit
 * removes the folder (packaging/freeze/unpacked.py).
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* also on 32-bit systems: otherwise stat and readdir fail for large values */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <zstd.h>

#define PROGRAM "blipmq"
#define FOLDER "blipmq-XXXXXX"
#define MAGIC "BLIPMQ\x1a\x01"
#define TRAILER_BYTES 24
#define NAME_BYTES_MAX 512
#define SWEEPS_MAX 64  /* folders examined in one start */
#define DEPTH_MAX 16   /* of a folder that is removed */
#define ATTEMPTS_MAX 8 /* attempts to make a folder before another start removes it */
#define SPARE_BYTES (1u << 20)

enum { EXIT_BROKEN_FILE = 70, EXIT_SYSTEM = 71, EXIT_CANNOT_UNPACK = 73 };

typedef struct {
    int in;            /* this file, at the frame */
    uint64_t in_left;  /* bytes of the frame not yet read */
    uint64_t unpacked; /* bytes the program takes on disk */
    ZSTD_DStream *zstd;
    ZSTD_inBuffer src;
    uint8_t *buffer; /* src points into it */
    size_t buffer_bytes;
} payload_t;

static char folder[PATH_MAX]; /* empty until it exists */
static int folder_fd = -1;

static int remove_tree(int parent, const char *name, int depth);

/* Print one line and remove the folder. */
__attribute__((format(printf, 2, 3), noreturn)) static void fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("blipmq: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    if (folder[0]) remove_tree(AT_FDCWD, folder, 0);
    exit(code);
}

static uint64_t little_endian(const uint8_t *bytes, int count) {
    uint64_t value = 0;
    while (count--) value = value << 8 | bytes[count];
    return value;
}

/* ---- the payload ------------------------------------------------------------------------------------------------ */

static void payload_open(payload_t *payload) {
    uint8_t trailer[TRAILER_BYTES];
    struct stat st;
    payload->in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (payload->in < 0 || fstat(payload->in, &st) < 0)
        fail(EXIT_SYSTEM, "cannot read its own file through /proc/self/exe (%s); is /proc mounted?", strerror(errno));
    if (st.st_size < TRAILER_BYTES || pread(payload->in, trailer, sizeof trailer, st.st_size - TRAILER_BYTES) != TRAILER_BYTES ||
        memcmp(trailer, MAGIC, 8) != 0)
        fail(EXIT_BROKEN_FILE, "this file is incomplete; download it again and compare its SHA-256 with the published list");
    payload->in_left = little_endian(trailer + 8, 8);
    payload->unpacked = little_endian(trailer + 16, 8);
    if (payload->in_left > (uint64_t)st.st_size - TRAILER_BYTES ||
        lseek(payload->in, st.st_size - TRAILER_BYTES - (off_t)payload->in_left, SEEK_SET) < 0)
        fail(EXIT_BROKEN_FILE, "this file is damaged; download it again and compare its SHA-256 with the published list");
    payload->zstd = ZSTD_createDStream();
    payload->buffer_bytes = ZSTD_DStreamInSize();
    payload->buffer = malloc(payload->buffer_bytes);
    if (!payload->zstd || !payload->buffer) fail(EXIT_SYSTEM, "not enough memory to unpack");
    payload->src = (ZSTD_inBuffer){payload->buffer, 0, 0};
}

static void payload_refill(payload_t *payload) {
    size_t want = payload->in_left < payload->buffer_bytes ? payload->in_left : payload->buffer_bytes;
    ssize_t got = want ? read(payload->in, payload->buffer, want) : 0;
    if (got <= 0)
        fail(EXIT_BROKEN_FILE, "this file ends too early; download it again and compare its SHA-256 with the published list");
    payload->in_left -= (uint64_t)got;
    payload->src.size = (size_t)got;
    payload->src.pos = 0;
}

/* Up to `bytes` into `out`; fewer only at the end of the frame. Returns the count. */
static size_t payload_read(payload_t *payload, void *out, size_t bytes) {
    ZSTD_outBuffer dst = {out, bytes, 0};
    while (dst.pos < bytes) {
        size_t before = dst.pos;
        if (payload->src.pos == payload->src.size && payload->in_left) payload_refill(payload);
        size_t result = ZSTD_decompressStream(payload->zstd, &dst, &payload->src);
        if (ZSTD_isError(result))
            fail(EXIT_BROKEN_FILE, "this file is damaged (%s); download it again and compare its SHA-256 with the published list",
                 ZSTD_getErrorName(result));
        if (dst.pos == before && payload->src.pos == payload->src.size && !payload->in_left) break;
    }
    return dst.pos;
}

/* ---- the folder ------------------------------------------------------------------------------------------------- */

static int remove_tree(int parent, const char *name, int depth) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd >= 0 && depth < DEPTH_MAX ? fdopendir(fd) : NULL;
    if (!dir) {
        if (fd >= 0) close(fd);
        return -1;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (unlinkat(dirfd(dir), entry->d_name, 0) < 0) remove_tree(dirfd(dir), entry->d_name, depth + 1);
    }
    closedir(dir);
    return unlinkat(parent, name, AT_REMOVEDIR);
}

/* Removes the folders of killed processes of this user in `base`. The process that holds a folder's lock owns it: if another start
 * has locked a new folder to remove it, its owner makes another one. */
static void sweep(const char *base) {
    DIR *dir = opendir(base);
    int looked_at = 0;
    for (struct dirent *entry; dir && looked_at < SWEEPS_MAX && (entry = readdir(dir));) {
        struct stat st;
        if (strlen(entry->d_name) != strlen(FOLDER) || strncmp(entry->d_name, FOLDER, strlen(FOLDER) - 6) != 0) continue;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        looked_at++;
        if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0)
            remove_tree(dirfd(dir), entry->d_name, 0);
        close(fd);
    }
    if (dir) closedir(dir);
}

/* Makes and locks a folder in `base`. Returns 0, or -1 with errno. */
static int folder_make(const char *base) {
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        struct stat opened, named;
        if (snprintf(folder, sizeof folder, "%s/%s", base, FOLDER) >= (int)sizeof folder - NAME_BYTES_MAX) {
            folder[0] = 0;
            errno = ENAMETOOLONG;
            return -1;
        }
        if (!mkdtemp(folder)) {
            folder[0] = 0;
            return -1;
        }
        /* Kept open across exec: the lock lives as long as the program does. */
        folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (folder_fd >= 0 && flock(folder_fd, LOCK_EX | LOCK_NB) == 0 && fstat(folder_fd, &opened) == 0 &&
            stat(folder, &named) == 0 && opened.st_ino == named.st_ino && opened.st_dev == named.st_dev)
            return 0;
        if (folder_fd >= 0) close(folder_fd);
    }
    folder[0] = 0;
    errno = EBUSY;
    return -1;
}

/* Whether code can be mapped from the folder. Making a folder does not show noexec. */
static int folder_executable(void) {
    int fd = openat(folder_fd, ".probe", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    int result = -1;
    if (fd >= 0 && ftruncate(fd, 1) == 0) {
        void *page = mmap(NULL, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
        if (page != MAP_FAILED) {
            munmap(page, 1);
            result = 0;
        }
    }
    int saved = errno;
    if (fd >= 0) close(fd);
    unlinkat(folder_fd, ".probe", 0);
    errno = saved;
    return result;
}

/* Why `base` cannot be used, as the end of a sentence; NULL: it can, and the folder exists now. */
static const char *folder_try(const char *base, uint64_t bytes) {
    static char reason[128];
    struct statvfs fs;
    sweep(base);
    if (folder_make(base) < 0) {
        snprintf(reason, sizeof reason, "it cannot be written (%s)", strerror(errno));
        return reason;
    }
    const char *why = NULL;
    if (folder_executable() < 0) {
        if (errno == EPERM || errno == EACCES)
            why = "programs may not run from it (mounted noexec)";
        else {
            snprintf(reason, sizeof reason, "it cannot be written (%s)", strerror(errno));
            why = reason;
        }
    } else if (fstatvfs(folder_fd, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < bytes + SPARE_BYTES) {
        snprintf(reason, sizeof reason, "it has only %llu MB free",
                 (unsigned long long)((uint64_t)fs.f_bavail * fs.f_frsize >> 20));
        why = reason;
    }
    if (why) {
        remove_tree(AT_FDCWD, folder, 0);
        close(folder_fd);
        folder[0] = 0;
    }
    return why;
}

/* Only $TMPDIR if it is set. Otherwise /tmp, then /var/tmp. */
static void folder_find(uint64_t bytes) {
    const char *chosen = getenv("TMPDIR");
    const char *bases[] = {chosen && *chosen ? chosen : "/tmp", chosen && *chosen ? NULL : "/var/tmp", NULL};
    const char *why = NULL;
    for (int i = 0; bases[i]; i++) {
        const char *refused = folder_try(bases[i], bytes);
        if (!refused) return;
        if (!why) why = refused;
    }
    fail(EXIT_CANNOT_UNPACK,
         "cannot unpack into %s: %s; set TMPDIR to a folder on a writable file system that allows programs, with %llu MB free",
         bases[0], why, (unsigned long long)((bytes + SPARE_BYTES) >> 20) + 1);
}

/* ---- unpacking -------------------------------------------------------------------------------------------------- */

static void file_write(int fd, const uint8_t *data, size_t bytes) {
    while (bytes) {
        ssize_t wrote = write(fd, data, bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0)
            fail(EXIT_CANNOT_UNPACK, "cannot unpack into %s: %s; free some room, or set TMPDIR to another folder", folder,
                 strerror(errno));
        data += wrote;
        bytes -= (size_t)wrote;
    }
}

static void file_unpack(payload_t *payload, const char *name, mode_t mode, uint64_t bytes) {
    static uint8_t block[1 << 16];
    int fd = openat(folder_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0700);
    if (fd < 0) fail(EXIT_CANNOT_UNPACK, "cannot unpack %s into %s: %s", name, folder, strerror(errno));
    while (bytes) {
        size_t want = bytes < sizeof block ? bytes : sizeof block;
        if (payload_read(payload, block, want) != want)
            fail(EXIT_BROKEN_FILE, "this file ends too early; download it again and compare its SHA-256 with the published list");
        file_write(fd, block, want);
        bytes -= want;
    }
    close(fd);
}

static void unpack(payload_t *payload) {
    uint8_t header[16];
    char name[NAME_BYTES_MAX + 1];
    size_t got;
    while ((got = payload_read(payload, header, sizeof header)) == sizeof header) {
        mode_t mode = (mode_t)little_endian(header, 4);
        size_t name_bytes = little_endian(header + 4, 4);
        if (name_bytes == 0 || name_bytes > NAME_BYTES_MAX || payload_read(payload, name, name_bytes) != name_bytes)
            fail(EXIT_BROKEN_FILE, "this file is damaged; download it again and compare its SHA-256 with the published list");
        name[name_bytes] = 0;
        if (!S_ISDIR(mode))
            file_unpack(payload, name, mode, little_endian(header + 8, 8));
        else if (mkdirat(folder_fd, name, 0700) < 0)
            fail(EXIT_CANNOT_UNPACK, "cannot unpack %s into %s: %s", name, folder, strerror(errno));
    }
    if (got)
        fail(EXIT_BROKEN_FILE, "this file ends too early; download it again and compare its SHA-256 with the published list");
}

/* The start-up code finds zlib here on a system without it; the caller's value follows. */
static void library_path_set(void) {
    const char *before = getenv("LD_LIBRARY_PATH");
    char *path = NULL;
    if (asprintf(&path, "%s/_internal%s%s", folder, before && *before ? ":" : "", before ? before : "") < 0 ||
        setenv("LD_LIBRARY_PATH", path, 1) < 0)
        fail(EXIT_SYSTEM, "not enough memory to start");
    free(path);
}

/* Opens those of descriptors 0 to 2 that the caller closed, until exec closes them again. Otherwise a file opened here could get such a
 * number, and messages or the program's output would be written into it. */
static void standard_descriptors_hold(void) {
    int fd;
    do fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) close(fd);
}

int main(int argc, char **argv) {
    payload_t payload;
    char path[PATH_MAX + 16], note[PATH_MAX + 16];
    if (argc < 1) return EXIT_SYSTEM;
    standard_descriptors_hold();
    payload_open(&payload);
    folder_find(payload.unpacked);
    unpack(&payload);
    snprintf(path, sizeof path, "%s/%s", folder, PROGRAM);
    snprintf(note, sizeof note, "%d:%s", folder_fd, folder);
    setenv("_BLIPMQ_UNPACKED", note, 1);
    library_path_set();
    execv(path, argv);
    if (errno == ENOENT)
        fail(EXIT_SYSTEM, "this system has no glibc, or not where Debian, Fedora and the like keep it; use the container image, "
                          "or pip install blipmq");
    fail(EXIT_SYSTEM, "cannot run %s: %s", path, strerror(errno));
}
