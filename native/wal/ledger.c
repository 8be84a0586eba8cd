/* wal/ledger.c: the ledger: which segments must exist. It is in LOCK, so damage to a segment cannot reach it. Two slots are
 * written in turn.
 *
 *      event                                               the ledger then says          what the next start knows
 *      the segment to continue in has its name on disk     active, created: this one     it must exist
 *      the segment after it has its name on disk           created: this one             it must exist too if `active` is sealed
 *      `active` will be deleted: all its records were      active: the one in use now    it need not exist
 *      consumed and no segment was created since
 *      a clean close                                       CLEAN, the next LSN           exactly how many records are missing
 *
 * The ledger is written after the state it asserts is on disk, and before a file that it no longer names is deleted. So a power
 * cut between the two steps never looks like damage. It is synced once per segment, never per commit.
 *
 * Without a ledger (LOCK was removed, or version 1.0 wrote the WAL) two cases give the same information: a sealed segment with
 * none after it, and a preallocated segment with none before it. A segment is sealed only when the next one exists.
 *
 * Invariant: wal->ledger equals the ledger on disk. A write that finds no space leaves both unchanged. A failed sync stops the
 * WAL.
 */
#include "wal/wal_internal.h"

#include <errno.h>

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static bool is_blank(const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++)
        if (bytes[i]) return false;
    return true;
}

int ledger_read(storage_t *storage, ledger_t *ledger, bool *strange) {
    *ledger = (ledger_t){0};
    *strange = false;
    int file = storage->open(storage, WAL_LOCK_NAME, false);
    if (file < 0) return file == -ENOENT || file == STORAGE_NOT_A_FILE ? 0 : file;
    bool known = false, blank = true;
    for (uint32_t slot = 0; slot < 2; slot++) {
        uint8_t bytes[FORMAT_LEDGER_BYTES] = {0};
        ledger_t found;
        int64_t got = storage->read(storage, file, slot * FORMAT_LEDGER_SLOT, bytes, sizeof bytes);
        if (got < 0 && got != -EIO) {
            storage->close(storage, file);
            return (int)got;
        }
        blank = blank && is_blank(bytes, sizeof bytes);
        known = known || memcmp(bytes, "BLIPLCK", 8) == 0;
        if (format_ledger_decode(bytes, &found) == FORMAT_GOOD && found.sequence > ledger->sequence) *ledger = found;
    }
    storage->close(storage, file);
    *strange = !ledger->sequence && !known && !blank;
    return 0;
}

/* ---- what is missing --------------------------------------------------------------------------------------------------- */

static const segment_t *segment_of(const recover_t *recover, uint64_t number) {
    for (uint32_t i = 0; i < recover->count; i++)
        if (recover->segments[i]->header.number == number) return recover->segments[i];
    return NULL;
}

/* The segment exists and has usable content. */
static bool stands(const segment_t *segment) {
    return segment && (segment->records || segment->sealed || !(segment->beheaded || segment->cut));
}

static const segment_t *newest_used(const recover_t *recover) {
    const segment_t *newest = NULL;
    for (uint32_t i = 0; i < recover->count; i++) {
        const segment_t *segment = recover->segments[i];
        if (segment->records || segment->sealed || (segment->header.first_lsn && stands(segment))) newest = segment;
    }
    return newest;
}

/* Version 1.0 wrote to the WAL after the ledger; it does not know the ledger. */
static bool is_stale(const recover_t *recover) {
    const segment_t *last = recover->count ? recover->segments[recover->count - 1] : NULL;
    return last && last->header.minor == 0 && last->header.number > recover->ledger.created;
}

/* Number of whole segments missing after the last record, according to the ledger. */
static uint32_t missing_by_ledger(const recover_t *recover, const segment_t *used) {
    const ledger_t *ledger = &recover->ledger;
    const segment_t *active = segment_of(recover, ledger->active), *created = segment_of(recover, ledger->created);
    bool ahead = ledger->created != ledger->active;
    if (used && used->header.number > ledger->active && (used->header.number >= ledger->created || used->header.first_lsn))
        return 0;
    if (!ledger->active) return 0;
    bool first = stands(active), second = !ahead || stands(created);
    if (first && (second || !active->sealed || active->in_order)) return 0;
    return !first + !second;
}

/* The same without a ledger, as far as possible. Only since 1.1 a segment is sealed no earlier than the next one exists. */
static uint32_t missing_by_segments(const recover_t *recover, const segment_t *used) {
    const segment_t *last = recover->count ? recover->segments[recover->count - 1] : NULL;
    if (used && used->header.minor && used->sealed && !used->in_order && !stands(segment_of(recover, used->header.number + 1)))
        return 1;
    bool orphan = last && last != used && last->header.minor && !last->header.first_lsn && last->header.number > 1;
    if (orphan && !segment_of(recover, last->header.number - 1)) return 1;
    if (last && !used && (last->beheaded || last->cut)) return 1;
    bool behind = recover->headless_max > (used ? used->header.number : 0);
    return behind && (!used || (used->sealed && !used->in_order)) ? 1 : 0;
}

static uint64_t records_max(uint64_t bytes) { return bytes / FORMAT_RECORD_BYTES + 1; }

/* Size of a missing segment of this WAL. */
static uint64_t segment_bytes_of(const recover_t *recover, bool known) {
    if (known) return 1ull << recover->ledger.size_log2;
    return recover->count ? recover->segments[recover->count - 1]->header.segment_bytes : FORMAT_SEGMENT_BYTES_MAX / 2;
}

evidence_t recover_evidence(const recover_t *recover) {
    const ledger_t *ledger = &recover->ledger;
    const segment_t *used = newest_used(recover);
    bool known = ledger->sequence && !is_stale(recover);
    evidence_t evidence = {.next = recover->expected};
    if (recover->checkpoint.generation && recover->checkpoint.lsn >= evidence.next) evidence.next = recover->checkpoint.lsn + 1;
    bool told = known && (!ledger->active || (ledger->flags & FORMAT_LEDGER_CLEAN)); /* the end of the WAL is known too */
    if (told && ledger->lsn > evidence.next) evidence.next = ledger->lsn;
    uint32_t missing = known ? missing_by_ledger(recover, used) : missing_by_segments(recover, used);
    evidence.gone = missing != 0;
    if (told) return evidence;
    uint64_t most = missing * records_max(segment_bytes_of(recover, known));
    if (missing && known && ledger->lsn > evidence.next) evidence.next = ledger->lsn;
    if (used && used->cut && !used->sealed && used->header.segment_bytes > used->data_bytes)
        most += records_max(used->header.segment_bytes - used->data_bytes);
    evidence.unknown = most != 0;
    evidence.next += most;
    return evidence;
}

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static int ledger_open(wal_t *wal, bool *anew) {
    storage_t *storage = wal->storage;
    int file = storage->open(storage, WAL_LOCK_NAME, false);
    *anew = file == -ENOENT;
    if (!*anew) return file;
    int locked = storage->lock(storage, WAL_LOCK_NAME); /* LOCK was removed */
    return locked < 0 ? locked : storage->open(storage, WAL_LOCK_NAME, false);
}

/* Call inside `ledger_monitor`. 0: written, or the disk is full; wal->ledger shows which. */
static int ledger_write(wal_t *wal, ledger_t ledger) {
    storage_t *storage = wal->storage;
    uint8_t bytes[FORMAT_LEDGER_BYTES];
    bool anew;
    ledger.wal_id = wal->wal_id;
    ledger.sequence = wal->ledger.sequence + 1;
    format_ledger_encode(bytes, &ledger);
    int file = ledger_open(wal, &anew);
    int error = file;
    if (file >= 0) error = storage->write(storage, file, ledger.sequence % 2 * FORMAT_LEDGER_SLOT, bytes, sizeof bytes);
    bool full = error == -ENOSPC || error == -EDQUOT;
    if (error >= 0 && !wal->config.no_sync) error = storage->sync_data(storage, file);
    if (error >= 0 && anew) error = storage->sync_directory(storage);
    if (file >= 0) storage->close(storage, file);
    if (full) return 0;
    if (error >= 0) wal->ledger = ledger;
    return error == -ENOSPC || error == -EDQUOT ? -EIO : error < 0 ? error : 0; /* a failed sync is permanent */
}

static uint8_t log2_above(uint64_t bytes) {
    uint8_t log2 = 0;
    while ((1ull << log2) < bytes) log2++;
    return log2;
}

int ledger_begun(wal_t *wal, const segment_t *active, const segment_t *created) {
    uint64_t larger = active->file_bytes > created->file_bytes ? active->file_bytes : created->file_bytes;
    ledger_t ledger = {.active = active->header.number,
                       .created = created->header.number,
                       .lsn = active->first_lsn,
                       .size_log2 = log2_above(larger)};
    monitor_enter(&wal->ledger_monitor);
    ledger.note = atomic_load(&wal->note);
    int error = ledger_write(wal, ledger);
    monitor_leave(&wal->ledger_monitor);
    return error;
}

bool ledger_lets_go(wal_t *wal, uint64_t number) {
    monitor_enter(&wal->table);
    const segment_t *active = wal->active;
    uint64_t in_use = active ? active->header.number : 0, lsn = active ? active->first_lsn : 0;
    monitor_leave(&wal->table);
    monitor_enter(&wal->ledger_monitor);
    ledger_t ledger = wal->ledger;
    int error = 0;
    if (ledger.sequence && number >= ledger.active) {
        ledger.created = in_use > ledger.created || !in_use ? in_use : ledger.created;
        ledger.active = in_use;
        ledger.lsn = in_use ? lsn : atomic_load(&wal->shown_next_lsn); /* without space nothing can be appended */
        ledger.flags = 0;
        ledger.note = atomic_load(&wal->note);
        error = ledger_write(wal, ledger);
    }
    bool gone = !wal->ledger.sequence || number < wal->ledger.active || !wal->ledger.active;
    monitor_leave(&wal->ledger_monitor);
    if (error < 0) wal_fail(wal, error);
    return error == 0 && gone;
}

void wal_note(wal_t *wal, uint64_t note, bool now) {
    int error = 0;
    atomic_store(&wal->note, note);
    if (!now || atomic_load(&wal->failed)) return;
    monitor_enter(&wal->ledger_monitor);
    if (wal->ledger.sequence) {
        ledger_t ledger = wal->ledger;
        ledger.note = note;
        ledger.flags = 0;
        error = ledger_write(wal, ledger);
    }
    monitor_leave(&wal->ledger_monitor);
    if (error < 0) wal_fail(wal, error);
}

void ledger_close(wal_t *wal) {
    monitor_enter(&wal->ledger_monitor);
    ledger_t ledger = wal->ledger;
    ledger.active = ledger.created = wal->active->header.number;
    ledger.lsn = wal->next_lsn;
    ledger.note = atomic_load(&wal->note);
    ledger.flags = FORMAT_LEDGER_CLEAN;
    if (ledger.sequence) ledger_write(wal, ledger);
    monitor_leave(&wal->ledger_monitor);
}
