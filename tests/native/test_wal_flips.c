/* test_wal_flips.c: single flipped bits in a whole WAL with its checkpoints, and larger damage.
 *
 *      test_wal_flips [seed] [flips]
 *
 * Invariant: a flip is harmless or it is reported. The missing records are exactly the reported range, or they are the end of
 * an unclean WAL's last batch and are counted as torn. Nothing else is missing, nothing is changed, and the WAL always opens.
 */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal_model.h"

typedef struct outcome {
    bool there[MODEL_LSN_MAX], reported[MODEL_LSN_MAX];
    uint64_t records, torn, damaged, lost, needed, checkpoints_bad; /* needed: lower LSNs may be gone */
} outcome_t;

static uint64_t harmless, torn, lost, checkpoints;

static void fail(const char *what, uint64_t seed, const char *name, uint64_t bit) {
    fprintf(stderr, "seed %llu, bit %llu of %s: %s\n", (unsigned long long)seed, (unsigned long long)bit, name, what);
    exit(1);
}

static bool record_holds(const model_t *model, const wal_record_t *record) {
    uint8_t bytes[4096];
    if (record->lsn == 0 || record->lsn >= model->next_lsn) return false;
    uint32_t tag = model->tags[record->lsn], size = model_payload(tag, bytes);
    return record->size == size && (!size || memcmp(record->bytes, bytes, size) == 0) && record->type == 1 + tag % 5 &&
           record->flags == (uint8_t)(tag >> 8);
}

/* Walk the WAL as wal_open does, without its threads. false: it returned a record that was never written. */
static bool walk(const model_t *model, sim_disk_t *disk, outcome_t *outcome) {
    recover_t recover;
    wal_record_t record;
    recover_finding_t finding;
    storage_t *storage = sim_disk_storage(disk);
    memset(outcome, 0, sizeof *outcome);
    bool well = recover_begin(&recover, storage) == BQ_OK;
    for (int event; well && (event = recover_next(&recover, &record, &finding)) != RECOVER_END;) {
        if (event < 0) well = false;
        if (event == RECOVER_RECORD) {
            well = well && record_holds(model, &record) && !outcome->there[record.lsn];
            if (well) outcome->there[record.lsn] = true;
            outcome->records++;
        }
        if (event != RECOVER_FINDING) continue;
        outcome->torn += finding.kind == RECOVER_TORN;
        outcome->damaged += finding.kind == RECOVER_DAMAGED;
        outcome->lost += finding.kind == RECOVER_LOST;
        for (uint64_t lsn = finding.first_lsn; finding.kind == RECOVER_LOST && lsn <= finding.last_lsn && lsn < MODEL_LSN_MAX;
             lsn++)
            outcome->reported[lsn] = true;
    }
    outcome->needed = recover.checkpoint.keep_from;
    outcome->checkpoints_bad = recover.report.checkpoints_bad;
    if (well) recover_free(&recover);
    storage->release(storage);
    return well;
}

/* Records of `before` that are not in `after` must be reported or be in a torn end. Returns an error text, or NULL. */
static const char *compare(const model_t *model, const outcome_t *before, const outcome_t *after) {
    bool missing = false, end = true;
    for (uint64_t lsn = model->next_lsn; lsn-- > 1 && lsn >= after->needed;) {
        if (after->there[lsn] && !before->there[lsn]) return "a record came back from the dead";
        if (after->there[lsn] && after->reported[lsn]) return "a record is there and reported lost";
        if (!after->there[lsn] && before->there[lsn] && !after->reported[lsn]) {
            missing = true;
            if (!end) return "a record in the middle is missing without a word";
        }
        if (after->there[lsn]) end = false;
        if (after->reported[lsn] && !before->there[lsn]) return "a loss is reported of what was not there before";
    }
    if (missing && !after->torn) return "the end is missing and nothing is counted as torn";
    lost += after->lost != 0;
    torn += missing;
    checkpoints += after->checkpoints_bad != 0;
    harmless += !after->lost && !missing && !after->checkpoints_bad;
    return NULL;
}

/* For some flips the whole WAL is opened, used, and opened again. */
static void open_and_use(const model_t *model, sim_disk_t *disk, uint64_t seed, const char *name, uint64_t bit) {
    wal_report_t first, second;
    wal_t *wal;
    for (int round = 0; round < 2; round++) {
        wal_report_t *report = round ? &second : &first;
        if (wal_open(&wal, sim_disk_storage(disk), &model->config, NULL, NULL, report, NULL) != BQ_OK)
            fail("it does not open", seed, name, bit);
        if (wal_append(wal, 1, 0, &(wal_part_t){"x", 1}, 1, false) != (int64_t)report->next_lsn)
            fail("it cannot be written to", seed, name, bit);
        wal_close(wal);
    }
    if (second.next_lsn != first.next_lsn + 1) fail("a record written afterwards is not there", seed, name, bit);
    if (first.lost_ranges != second.lost_ranges || first.lost_first_lsn != second.lost_first_lsn ||
        first.lost_last_lsn != second.lost_last_lsn)
        fail("the second opening reports another loss than the first", seed, name, bit);
}

static void flip(const model_t *model, const outcome_t *before, uint64_t *random, uint64_t number) {
    static outcome_t after;
    sim_disk_t *disk = sim_disk_copy(model->disk);
    char name[64];
    snprintf(name, sizeof name, "%s", sim_disk_name(disk, (uint32_t)random_below(random, sim_disk_files(disk))));
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, name, &size);
    if (size) {
        uint64_t used = size;
        if (format_segment_number(name) && used > FORMAT_END_BYTES && random_below(random, 8)) used -= FORMAT_END_BYTES;
        while (used > 1 && random_below(random, 8) && !bytes[used - 1]) used--; /* mostly in used bytes */
        uint64_t bit = random_below(random, used * 8);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        sim_disk_put(disk, name, bytes, size);
        if (!walk(model, disk, &after)) fail("a record came back that was never written", model->seed, name, bit);
        const char *wrong = compare(model, before, &after);
        if (wrong) fail(wrong, model->seed, name, bit);
        if (number % 40 == 0) open_and_use(model, disk, model->seed, name, bit);
    }
    sim_disk_free(disk);
}

int main(int count, char **arguments) {
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 1, flips = count > 2 ? strtoull(arguments[2], NULL, 10) : 4000;
    uint64_t random = seed * 2 + 1, wals = 8;
    for (uint64_t round = 0; round < wals; round++) {
        static model_t model;
        static outcome_t before;
        model_init(&model, sim_disk_new(seed + round), seed + round);
        model_run(&model, 60 + 20 * (uint32_t)round);
        CHECK(!model.fault[0]);
        if (round % 2) model_close(&model); /* half of them are closed cleanly */
        if (!(round % 2)) {
            model_commit(&model);
            model_kill(&model);
            sim_disk_heal(model.disk);
        }
        sim_disk_cut(model.disk, seed);
        CHECK(walk(&model, model.disk, &before));
        CHECK(before.lost == 0 && before.records > 0);
        for (uint64_t i = 0; i < flips / wals; i++) flip(&model, &before, &random, i);
        sim_disk_free(model.disk);
    }
    CHECK(lost > 0 && torn > 0 && harmless > 0 && checkpoints > 0);
    printf("seed %llu: %llu flips in %llu logs: %llu harmless, %llu with an exact range lost, %llu at an unclean end, %llu in a "
           "checkpoint\n",
           (unsigned long long)seed, (unsigned long long)flips, (unsigned long long)wals, (unsigned long long)harmless,
           (unsigned long long)lost, (unsigned long long)torn, (unsigned long long)checkpoints);
    return 0;
}
