/* sim_disk.c: see sim_disk.h.
 *
 * Invariant: `now` is the page cache and `safe` the disk. `dirty` marks the sectors of `now` that are not in `safe` yet. A
 * failed sync clears the marks without copying: as on Linux, the page cache then shows data that is not on disk.
 */
#include "sim_disk.h"

#include <errno.h>

#include "check.h"
#include "base/monitor.h"

#define SECTOR 512u
#ifndef FILE_BYTES_MAX
#define FILE_BYTES_MAX (1u << 20)
#endif
#define FILES_MAX 256u
#define PENDING_MAX 4096u
#define HANDLES_MAX 64u
#define NAME_BYTES 64u

typedef struct node { /* a file, independent of its names */
    uint8_t *now, *safe;
    uint8_t dirty[FILE_BYTES_MAX / SECTOR];
    uint64_t size, safe_size, reserved, capacity;
    uint32_t references;
} node_t;

typedef struct entry {
    char name[NAME_BYTES];
    node_t *node;
} entry_t;

typedef struct entries {
    entry_t list[FILES_MAX];
    uint32_t count;
} entries_t;

typedef struct change {                    /* directory changes that are not synced */
    char from[NAME_BYTES], to[NAME_BYTES]; /* from "": created; to "": deleted */
    node_t *node;
} change_t;

struct sim_disk {
    monitor_t monitor;
    entries_t now, safe;
    change_t *pending;
    uint32_t pending_count;
    node_t *handles[HANDLES_MAX];
    bool locked, stopped, failed;
    uint64_t random, changes, calls, stop_at, fail_at, room;
    int fail_error;
    enum sim_fault fault;
    const char *failed_name;
};

typedef struct view {
    storage_t calls;
    sim_disk_t *disk;
} view_t;

static uint64_t chance(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- nodes and entries ----------------------------------------------------------------------------------------------- */

static node_t *node_new(void) {
    node_t *node = calloc(1, sizeof *node);
    CHECK(node);
    return node;
}

static void node_drop(node_t *node) {
    if (--node->references) return;
    free(node->now);
    free(node->safe);
    free(node);
}

static void node_grow(node_t *node, uint64_t size) {
    CHECK(size <= FILE_BYTES_MAX);
    if (size <= node->capacity) return;
    uint64_t capacity = (size + 4095) / 4096 * 4096;
    node->now = realloc(node->now, capacity);
    node->safe = realloc(node->safe, capacity);
    CHECK(node->now && node->safe);
    memset(node->now + node->capacity, 0, capacity - node->capacity);
    memset(node->safe + node->capacity, 0, capacity - node->capacity);
    node->capacity = capacity;
}

static entry_t *entry_find(entries_t *entries, const char *name) {
    for (uint32_t i = 0; i < entries->count; i++)
        if (strcmp(entries->list[i].name, name) == 0) return &entries->list[i];
    return NULL;
}

static void entry_remove(entries_t *entries, const char *name) {
    entry_t *entry = entry_find(entries, name);
    if (!entry) return;
    node_drop(entry->node);
    *entry = entries->list[--entries->count];
}

static void entry_set(entries_t *entries, const char *name, node_t *node) {
    node->references++;
    entry_remove(entries, name);
    CHECK(entries->count < FILES_MAX && strlen(name) < NAME_BYTES);
    entry_t *entry = &entries->list[entries->count++];
    snprintf(entry->name, NAME_BYTES, "%s", name);
    entry->node = node;
}

static void pending_add(sim_disk_t *disk, const char *from, const char *to, node_t *node) {
    CHECK(disk->pending_count < PENDING_MAX);
    change_t *change = &disk->pending[disk->pending_count++];
    snprintf(change->from, NAME_BYTES, "%s", from);
    snprintf(change->to, NAME_BYTES, "%s", to);
    change->node = node;
    node->references++;
}

static void change_apply(entries_t *entries, const change_t *change) {
    if (change->to[0]) entry_set(entries, change->to, change->node);
    if (change->from[0]) entry_remove(entries, change->from);
}

static void pending_clear(sim_disk_t *disk) {
    for (uint32_t i = 0; i < disk->pending_count; i++) node_drop(disk->pending[i].node);
    disk->pending_count = 0;
}

/* ---- faults ---------------------------------------------------------------------------------------------------------- */

enum kind { LOOK, CHANGE };

/* Called inside the monitor at the start of every call. 0: go on; 1: go on, but only partly (the process dies in this call);
 * negative: the call fails. */
static int call_begin(sim_disk_t *disk, enum kind kind, const char *name) {
    uint64_t call = disk->calls++;
    bool dies = false;
    if (disk->stopped) return -EIO;
    if (kind == CHANGE) dies = disk->changes++ == disk->stop_at;
    if (dies) disk->stopped = true;
    if (call == disk->fail_at || (disk->failed && disk->fault == SIM_FOR_EVER)) {
        if (!disk->failed) disk->failed_name = name;
        disk->failed = true;
        return -disk->fail_error;
    }
    return dies;
}

static uint64_t room_used(const sim_disk_t *disk) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < disk->now.count; i++) {
        const node_t *node = disk->now.list[i].node;
        bytes += node->size > node->reserved ? node->size : node->reserved;
    }
    return bytes;
}

static bool has_room(const sim_disk_t *disk, const node_t *node, uint64_t size) {
    uint64_t held = node->size > node->reserved ? node->size : node->reserved;
    return size <= held || room_used(disk) - held + size <= disk->room;
}

/* ---- the storage interface ------------------------------------------------------------------------------------------- */

static sim_disk_t *enter(storage_t *storage) {
    sim_disk_t *disk = ((view_t *)storage)->disk;
    monitor_enter(&disk->monitor);
    return disk;
}

static int leave(sim_disk_t *disk, int result) {
    monitor_leave(&disk->monitor);
    return result > 0 ? -EIO : result; /* a call in which the process dies returns no result */
}

static int handle_new(sim_disk_t *disk, node_t *node) {
    for (uint32_t i = 0; i < HANDLES_MAX; i++) {
        if (disk->handles[i]) continue;
        disk->handles[i] = node;
        node->references++;
        return (int)i;
    }
    return -EMFILE;
}

static int sim_open(storage_t *storage, const char *name, bool create) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, create ? CHANGE : LOOK, create ? "create" : "open");
    entry_t *entry = entry_find(&disk->now, name);
    if (begun >= 0 && create) { /* replaces an older file of that name as a whole: one of the possible results of truncating it */
        node_t *node = node_new();
        entry_set(&disk->now, name, node);
        pending_add(disk, "", name, node);
        entry = entry_find(&disk->now, name);
    }
    int file = begun ? (begun < 0 ? begun : -EIO) : entry ? handle_new(disk, entry->node) : -ENOENT;
    monitor_leave(&disk->monitor);
    return file;
}

static int sim_close(storage_t *storage, int file) {
    sim_disk_t *disk = enter(storage);
    CHECK(file >= 0 && file < (int)HANDLES_MAX && disk->handles[file]);
    node_drop(disk->handles[file]);
    disk->handles[file] = NULL;
    return leave(disk, 0);
}

static void mark_dirty(node_t *node, uint64_t offset, uint64_t size) {
    for (uint64_t sector = offset / SECTOR; sector * SECTOR < offset + size; sector++) node->dirty[sector] = 1;
}

static int sim_write(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size) {
    sim_disk_t *disk = enter(storage);
    node_t *node = disk->handles[file];
    int begun = call_begin(disk, CHANGE, "write");
    if (begun >= 0 && !has_room(disk, node, offset + size)) begun = -ENOSPC;
    if (begun == 1 || begun == -ENOSPC) size = chance(&disk->random) % (size + 1); /* a part may have been written */
    if (begun >= 0 || begun == -ENOSPC) {
        if (begun == -ENOSPC && !has_room(disk, node, offset + size)) size = 0;
        node_grow(node, offset + size);
        if (size) memcpy(node->now + offset, bytes, size);
        if (size) mark_dirty(node, offset, size);
        if (offset + size > node->size && size) node->size = offset + size;
    }
    return leave(disk, begun);
}

static int64_t sim_read(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    sim_disk_t *disk = enter(storage);
    const node_t *node = disk->handles[file];
    int begun = call_begin(disk, LOOK, "read");
    uint64_t left = offset < node->size ? node->size - offset : 0;
    if (size > left) size = left;
    if (begun >= 0 && size) memcpy(bytes, node->now + offset, size);
    monitor_leave(&disk->monitor);
    return begun < 0 ? begun : (int64_t)size;
}

static int sim_allocate(storage_t *storage, int file, uint64_t size) {
    sim_disk_t *disk = enter(storage);
    node_t *node = disk->handles[file];
    int begun = call_begin(disk, CHANGE, "allocate");
    if (begun >= 0 && !has_room(disk, node, size)) begun = -ENOSPC;
    if (begun >= 0) {
        node_grow(node, size);
        if (size > node->size) node->size = size;
        node->reserved = size;
    }
    return leave(disk, begun);
}

static int sim_truncate(storage_t *storage, int file, uint64_t size) {
    sim_disk_t *disk = enter(storage);
    node_t *node = disk->handles[file];
    int begun = call_begin(disk, CHANGE, "truncate");
    if (begun >= 0) {
        node_grow(node, size);
        if (size < node->size) memset(node->now + size, 0, node->size - size);
        node->size = node->reserved = size;
    }
    return leave(disk, begun);
}

static int64_t sim_size(storage_t *storage, int file) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, LOOK, "size");
    int64_t size = (int64_t)disk->handles[file]->size;
    monitor_leave(&disk->monitor);
    return begun < 0 ? begun : size;
}

static void node_sync(node_t *node) {
    if (node->size) memcpy(node->safe, node->now, node->size);
    if (node->capacity > node->size) memset(node->safe + node->size, 0, node->capacity - node->size);
    node->safe_size = node->size;
}

static int sync_named(storage_t *storage, int file, const char *name) {
    sim_disk_t *disk = enter(storage);
    node_t *node = disk->handles[file];
    int begun = call_begin(disk, CHANGE, name);
    if (begun == 0) { /* sector by sector; sectors of an earlier failed sync are clean and are not written now */
        for (uint64_t sector = 0; sector * SECTOR < node->size; sector++)
            if (node->dirty[sector]) memcpy(node->safe + sector * SECTOR, node->now + sector * SECTOR, SECTOR);
        if (node->size < node->safe_size) memset(node->safe + node->size, 0, node->safe_size - node->size);
        node->safe_size = node->size;
    }
    if (begun != 1) memset(node->dirty, 0, sizeof node->dirty); /* after a failed sync: marked clean, but not on disk */
    return leave(disk, begun);
}

static int sim_sync_data(storage_t *storage, int file) { return sync_named(storage, file, "sync_data"); }
static int sim_sync(storage_t *storage, int file) { return sync_named(storage, file, "sync"); }

static int sim_sync_directory(storage_t *storage) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, CHANGE, "sync_directory");
    if (begun == 0) {
        for (uint32_t i = 0; i < disk->pending_count; i++) change_apply(&disk->safe, &disk->pending[i]);
        pending_clear(disk);
    }
    return leave(disk, begun);
}

static int sim_rename(storage_t *storage, const char *from, const char *to) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, CHANGE, "rename");
    entry_t *entry = entry_find(&disk->now, from);
    if (begun >= 0 && !entry) begun = -ENOENT;
    if (begun >= 0) {
        pending_add(disk, from, to, entry->node);
        change_apply(&disk->now, &disk->pending[disk->pending_count - 1]);
    }
    return leave(disk, begun);
}

static int sim_unlink(storage_t *storage, const char *name) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, CHANGE, "unlink");
    entry_t *entry = entry_find(&disk->now, name);
    if (begun >= 0 && !entry) begun = -ENOENT;
    if (begun >= 0) {
        pending_add(disk, name, "", entry->node);
        entry_remove(&disk->now, name);
    }
    return leave(disk, begun);
}

static int sim_list(storage_t *storage, storage_visit visit, void *context) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, LOOK, "list");
    for (uint32_t i = 0; begun >= 0 && i < disk->now.count; i++) visit(context, disk->now.list[i].name);
    return leave(disk, begun);
}

static int64_t sim_free_bytes(storage_t *storage) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, LOOK, "free_bytes");
    uint64_t used = room_used(disk);
    int64_t bytes = used < disk->room ? (int64_t)(disk->room - used) : 0;
    monitor_leave(&disk->monitor);
    return begun < 0 ? begun : bytes;
}

static int sim_random(storage_t *storage, uint8_t *bytes, uint32_t size) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, LOOK, "random");
    for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)chance(&disk->random);
    return leave(disk, begun);
}

static int sim_lock(storage_t *storage, const char *name) {
    sim_disk_t *disk = enter(storage);
    int begun = call_begin(disk, LOOK, "lock");
    if (begun == 0 && disk->locked && entry_find(&disk->now, name)) begun = -EWOULDBLOCK;
    if (begun == 0) disk->locked = true;
    if (begun == 0 && !entry_find(&disk->now, name)) {
        node_t *node = node_new();
        entry_set(&disk->now, name, node);
        pending_add(disk, "", name, node);
    }
    return leave(disk, begun);
}

static int sim_locked(storage_t *storage, int file) {
    (void)storage;
    (void)file;
    return 0;
}

static void sim_release(storage_t *storage) {
    sim_disk_t *disk = enter(storage);
    disk->locked = false;
    leave(disk, 0);
    free(storage);
}

storage_t *sim_disk_storage(sim_disk_t *disk) {
    view_t *view = malloc(sizeof *view);
    CHECK(view);
    view->disk = disk;
    view->calls = (storage_t){.open = sim_open,
                              .close = sim_close,
                              .write = sim_write,
                              .read = sim_read,
                              .allocate = sim_allocate,
                              .truncate = sim_truncate,
                              .size = sim_size,
                              .sync_data = sim_sync_data,
                              .sync = sim_sync,
                              .sync_directory = sim_sync_directory,
                              .rename = sim_rename,
                              .unlink = sim_unlink,
                              .list = sim_list,
                              .free_bytes = sim_free_bytes,
                              .random = sim_random,
                              .lock = sim_lock,
                              .locked = sim_locked,
                              .release = sim_release};
    return &view->calls;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

sim_disk_t *sim_disk_new(uint64_t seed) {
    sim_disk_t *disk = calloc(1, sizeof *disk);
    CHECK(disk && monitor_init(&disk->monitor) == BQ_OK);
    disk->pending = calloc(PENDING_MAX, sizeof *disk->pending);
    CHECK(disk->pending);
    disk->random = seed;
    disk->room = 64u << 20;
    sim_disk_heal(disk);
    return disk;
}

static void entries_clear(entries_t *entries) {
    while (entries->count) entry_remove(entries, entries->list[0].name);
}

void sim_disk_free(sim_disk_t *disk) {
    sim_disk_end_process(disk);
    pending_clear(disk);
    entries_clear(&disk->now);
    entries_clear(&disk->safe);
    monitor_free(&disk->monitor);
    free(disk->pending);
    free(disk);
}

/* Copies the page cache as synced files. Files known only to the page cache or only to the disk are rare enough to ignore
 * this. */
sim_disk_t *sim_disk_copy(const sim_disk_t *disk) {
    sim_disk_t *copy = sim_disk_new(disk->random);
    CHECK(disk->pending_count == 0);
    copy->room = disk->room;
    for (uint32_t i = 0; i < disk->now.count; i++) {
        const node_t *node = disk->now.list[i].node;
        sim_disk_put(copy, disk->now.list[i].name, node->now, node->size);
    }
    return copy;
}

void sim_disk_end_process(sim_disk_t *disk) {
    for (uint32_t i = 0; i < HANDLES_MAX; i++) {
        if (disk->handles[i]) node_drop(disk->handles[i]);
        disk->handles[i] = NULL;
    }
    disk->locked = false;
}

/* State of one file after a power cut. */
static void node_cut(node_t *node, uint64_t *random) {
    if (node->size != node->safe_size && chance(random) % 2) node->safe_size = node->size;
    for (uint64_t sector = 0; sector * SECTOR < node->capacity; sector++) {
        if (!node->dirty[sector]) continue;
        uint64_t fate = chance(random) % 10, bytes = fate < 4 ? 0 : fate < 8 ? SECTOR : chance(random) % SECTOR;
        memcpy(node->safe + sector * SECTOR, node->now + sector * SECTOR, bytes);
    }
    if (node->safe_size < node->capacity) memset(node->safe + node->safe_size, 0, node->capacity - node->safe_size);
    memset(node->dirty, 0, sizeof node->dirty);
    if (node->capacity) memcpy(node->now, node->safe, node->capacity);
    node->size = node->reserved = node->safe_size;
}

void sim_disk_cut(sim_disk_t *disk, uint64_t seed) {
    uint64_t random = seed;
    sim_disk_end_process(disk);
    uint64_t ordered = chance(&random) % 2, prefix = chance(&random) % (disk->pending_count + 1ull);
    for (uint32_t i = 0; i < disk->pending_count; i++)
        if (ordered ? i < prefix : chance(&random) % 2) change_apply(&disk->safe, &disk->pending[i]);
    pending_clear(disk);
    entries_clear(&disk->now);
    for (uint32_t i = 0; i < disk->safe.count; i++) {
        node_cut(disk->safe.list[i].node, &random);
        entry_set(&disk->now, disk->safe.list[i].name, disk->safe.list[i].node);
    }
    disk->random ^= chance(&random);
    sim_disk_heal(disk);
}

static uint64_t counted(sim_disk_t *disk, const uint64_t *counter) {
    monitor_enter(&disk->monitor); /* the WAL's threads may be counting now */
    uint64_t count = *counter;
    monitor_leave(&disk->monitor);
    return count;
}

uint64_t sim_disk_changes(sim_disk_t *disk) { return counted(disk, &disk->changes); }
uint64_t sim_disk_calls(sim_disk_t *disk) { return counted(disk, &disk->calls); }

void sim_disk_stop_at(sim_disk_t *disk, uint64_t change) {
    monitor_enter(&disk->monitor);
    disk->stop_at = change;
    monitor_leave(&disk->monitor);
}

bool sim_disk_stopped(sim_disk_t *disk) {
    monitor_enter(&disk->monitor);
    bool stopped = disk->stopped;
    monitor_leave(&disk->monitor);
    return stopped;
}

void sim_disk_fail_at(sim_disk_t *disk, uint64_t call, int error, enum sim_fault fault) {
    monitor_enter(&disk->monitor);
    disk->fail_at = call;
    disk->fail_error = error;
    disk->fault = fault;
    disk->failed = false;
    monitor_leave(&disk->monitor);
}

bool sim_disk_failed(sim_disk_t *disk, const char **name) {
    monitor_enter(&disk->monitor);
    bool failed = disk->failed;
    if (name) *name = disk->failed_name;
    monitor_leave(&disk->monitor);
    return failed;
}

void sim_disk_heal(sim_disk_t *disk) {
    monitor_enter(&disk->monitor);
    disk->stop_at = disk->fail_at = UINT64_MAX;
    disk->stopped = disk->failed = false;
    disk->changes = disk->calls = 0;
    monitor_leave(&disk->monitor);
}

void sim_disk_room(sim_disk_t *disk, uint64_t bytes) {
    monitor_enter(&disk->monitor);
    disk->room = bytes;
    monitor_leave(&disk->monitor);
}

uint64_t sim_disk_used(sim_disk_t *disk) {
    monitor_enter(&disk->monitor);
    uint64_t bytes = room_used(disk);
    monitor_leave(&disk->monitor);
    return bytes;
}

/* ---- from outside ---------------------------------------------------------------------------------------------------- */

uint32_t sim_disk_files(const sim_disk_t *disk) { return disk->now.count; }
const char *sim_disk_name(const sim_disk_t *disk, uint32_t file) { return disk->now.list[file].name; }

uint8_t *sim_disk_bytes(sim_disk_t *disk, const char *name, uint64_t *size) {
    entry_t *entry = entry_find(&disk->now, name);
    if (size) *size = entry ? entry->node->size : 0;
    return entry ? entry->node->now : NULL;
}

void sim_disk_put(sim_disk_t *disk, const char *name, const uint8_t *bytes, uint64_t size) {
    node_t *node = node_new();
    node_grow(node, size + 1);
    if (size) memcpy(node->now, bytes, size);
    node->size = node->reserved = size;
    node_sync(node);
    entry_set(&disk->now, name, node);
    entry_set(&disk->safe, name, node);
}

void sim_disk_remove(sim_disk_t *disk, const char *name) {
    entry_remove(&disk->now, name);
    entry_remove(&disk->safe, name);
}
