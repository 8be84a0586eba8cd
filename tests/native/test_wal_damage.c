/* test_wal_damage.c: many short workloads that end by a kill, a power cut or a clean close. Then files are wiped, cut, emptied,
 * exchanged or deleted.
 *
 *      test_wal_damage [first seed] [seeds]
 *
 * Invariant: an acknowledged record exists, or it is in a reported range. The WAL opens and continues after every LSN it has
 * ever acknowledged. The next start reports the same range. A wiped page loses only the records in it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal_model.h"

#define STEPS 60u
#define PAGE 4096u

enum damage { WIPE_PAGE, WIPE_ALL, CUT, EMPTY, REMOVE, EXCHANGE, ALL_BUT_LOCK, LOCK_ALONE, LOCK_AND_REMOVE, DAMAGES };
static const char *const damages[DAMAGES] = {
    "first page wiped", "wiped", "cut", "emptied", "removed", "exchanged", "all but LOCK is removed", "LOCK removed",
    "removed, and LOCK"};

typedef struct outcome {
    bool there[MODEL_LSN_MAX], reported[MODEL_LSN_MAX];
    uint64_t segment[MODEL_LSN_MAX], offset[MODEL_LSN_MAX]; /* where each record was found */
    uint64_t needed;
} outcome_t;

static uint64_t runs, exact, at_most, harmless;
static char about[200];

static void fail(const model_t *model, const char *what, uint64_t lsn) {
    fprintf(stderr, "seed %llu, %s: %s %llu\n", (unsigned long long)model->seed, about, what, (unsigned long long)lsn);
    exit(1);
}

static bool record_holds(const model_t *model, const wal_record_t *record) {
    uint8_t bytes[4096];
    if (record->lsn == 0 || record->lsn >= model->next_lsn) return false;
    uint32_t tag = model->tags[record->lsn], size = model_payload(tag, bytes);
    return record->size == size && (!size || memcmp(record->bytes, bytes, size) == 0) && record->type == 1 + tag % 5;
}

static void walk(const model_t *model, outcome_t *outcome) {
    recover_t recover;
    wal_record_t record;
    recover_finding_t finding;
    storage_t *storage = sim_disk_storage(model->disk);
    memset(outcome, 0, sizeof *outcome);
    CHECK(recover_begin(&recover, storage) == BQ_OK);
    for (int event; (event = recover_next(&recover, &record, &finding)) != RECOVER_END;) {
        CHECK(event > 0);
        if (event == RECOVER_RECORD && !record_holds(model, &record)) fail(model, "never written:", record.lsn);
        if (event == RECOVER_RECORD) {
            outcome->there[record.lsn] = true;
            outcome->segment[record.lsn] = recover.segments[recover.at]->header.number;
            outcome->offset[record.lsn] = recover.scan.offset - format_padded(record.size) - FORMAT_RECORD_BYTES;
        }
        if (event == RECOVER_RECORD || (finding.kind != RECOVER_LOST && finding.kind != RECOVER_LOST_AT_MOST)) continue;
        for (uint64_t lsn = finding.first_lsn; lsn <= finding.last_lsn && lsn < MODEL_LSN_MAX; lsn++)
            outcome->reported[lsn] = true;
    }
    outcome->needed = recover.checkpoint.keep_from ? recover.checkpoint.keep_from : 1;
    recover_free(&recover);
    storage->release(storage);
}

/* The newest segment with records, or a random one. 0: none. */
static uint64_t segment_choose(model_t *model, const outcome_t *before, uint64_t *size) {
    uint64_t numbers[64], count = 0, newest = 0;
    (void)before;
    for (uint32_t i = 0; i < sim_disk_files(model->disk) && count < 64; i++) {
        uint64_t number = format_segment_number(sim_disk_name(model->disk, i));
        const uint8_t *bytes = number ? sim_disk_bytes(model->disk, sim_disk_name(model->disk, i), size) : NULL;
        segment_header_t header;
        if (!bytes || *size < FORMAT_HEADER_ROOM || format_header_decode(bytes, &header) != FORMAT_GOOD) continue;
        if (header.header_bytes + 8 > *size || load_u64(bytes + header.header_bytes) == 0) continue;
        numbers[count++] = number;
        if (number > newest) newest = number;
    }
    if (!count) return 0;
    uint64_t number = model_random(model, 3) ? newest : numbers[model_random(model, count)];
    char name[FORMAT_NAME_BYTES];
    format_segment_name(name, number);
    sim_disk_bytes(model->disk, name, size);
    return number;
}

static void put_foreign(sim_disk_t *disk, const char *name) {
    sim_disk_t *other = sim_disk_new(4711);
    wal_t *wal;
    uint64_t size;
    const wal_config_t config = {.max_bytes = 1u << 20, .segment_bytes = 4096, .batch_bytes_max = 1024};
    CHECK(wal_open(&wal, sim_disk_storage(other), &config, NULL, NULL, NULL, NULL) == BQ_OK);
    CHECK(wal_append(wal, 1, 0, &(wal_part_t){"x", 1}, 1, false) == 1);
    wal_close(wal);
    uint8_t *bytes = sim_disk_bytes(other, "wal-0000000001.log", &size);
    sim_disk_put(disk, name, bytes, size);
    sim_disk_free(other);
}

static void all_but_lock(sim_disk_t *disk) {
    for (uint32_t i = 0; i < sim_disk_files(disk);) {
        char name[64];
        snprintf(name, sizeof name, "%s", sim_disk_name(disk, i));
        if (strcmp(name, WAL_LOCK_NAME) == 0)
            i++;
        else
            sim_disk_remove(disk, name), i = 0;
    }
}

static void checkpoints_remove(sim_disk_t *disk) {
    for (uint32_t i = 0; i < sim_disk_files(disk);) {
        char name[64];
        snprintf(name, sizeof name, "%s", sim_disk_name(disk, i));
        if (!format_checkpoint_number(name))
            i++;
        else
            sim_disk_remove(disk, name), i = 0;
    }
}

/* false: no file to which this damage can be done. */
static bool damage_do(model_t *model, enum damage damage, uint64_t number, uint64_t size) {
    char name[FORMAT_NAME_BYTES], next[FORMAT_NAME_BYTES];
    sim_disk_t *disk = model->disk;
    format_segment_name(name, number);
    format_segment_name(next, number + 1);
    uint8_t *bytes = sim_disk_bytes(disk, name, NULL);
    uint64_t at = model_random(model, size);
    switch (damage) {
    case WIPE_PAGE: memset(bytes, 0, size < PAGE ? size : PAGE); break;
    case WIPE_ALL: memset(bytes, 0, size); break;
    case CUT: size = at; break;
    case EMPTY: size = 0; break;
    case EXCHANGE: put_foreign(disk, name); return true;
    case ALL_BUT_LOCK: all_but_lock(disk); return true;
    case LOCK_AND_REMOVE: /* the next segment must show it */
        if (!sim_disk_bytes(disk, next, NULL)) return false;
        sim_disk_remove(disk, WAL_LOCK_NAME);
        sim_disk_remove(disk, name);
        return true;
    case REMOVE: sim_disk_remove(disk, name); return true;
    case LOCK_ALONE: sim_disk_remove(disk, WAL_LOCK_NAME); return true;
    default: CHECK(false);
    }
    sim_disk_put(disk, name, bytes, size);
    return true;
}

static uint64_t missing_count(model_t *model, const outcome_t *before, const outcome_t *after) {
    uint64_t missing = 0;
    for (uint64_t lsn = after->needed; lsn < model->next_lsn; lsn++) {
        if (after->there[lsn] && after->reported[lsn]) fail(model, "there, and reported as lost:", lsn);
        if (after->there[lsn] || !before->there[lsn] || lsn > model->acked) continue;
        if (!after->reported[lsn]) fail(model, "acknowledged, and gone without a word:", lsn);
        missing++;
    }
    return missing;
}

static void wiped_check(const model_t *model, const outcome_t *before, const outcome_t *after, uint64_t number) {
    for (uint64_t lsn = after->needed; lsn <= model->acked; lsn++) {
        bool in_page = before->segment[lsn] == number && before->offset[lsn] < PAGE;
        if (before->there[lsn] && !in_page && !after->there[lsn]) fail(model, "it did not lie in the page that was wiped:", lsn);
    }
}

/* Open twice, with a record appended in between: the same report, and LSNs that were never used before. */
static void open_twice(model_t *model, bool any_lost) {
    wal_report_t first, second;
    wal_t *wal;
    for (int round = 0; round < 2; round++) {
        wal_report_t *report = round ? &second : &first;
        if (wal_open(&wal, sim_disk_storage(model->disk), &model->config, NULL, NULL, report, NULL) != BQ_OK)
            fail(model, "it does not open", (uint64_t)round);
        wal_settle(wal);
        if (report->next_lsn <= model->acked) fail(model, "an LSN is given twice, from", report->next_lsn);
        int64_t lsn = wal_append(wal, 1, 0, &(wal_part_t){"x", 1}, 1, false);
        if (wal_state(wal) == 0 && lsn != (int64_t)report->next_lsn) fail(model, "it cannot be written to:", report->next_lsn);
        if (round || model_random(model, 2)) {
            wal_close(wal);
        } else {
            wal_commit(wal);
            wal_settle(wal);
            sim_disk_fail_at(model->disk, sim_disk_calls(model->disk), 5, SIM_FOR_EVER);
            wal_close(wal);
            sim_disk_cut(model->disk, model->seed);
        }
    }
    if (any_lost && !first.lost_ranges) fail(model, "records are missing, and nothing is reported", 0);
    if (first.lost_first_lsn != second.lost_first_lsn || first.lost_last_lsn != second.lost_last_lsn ||
        first.lost_unknown != second.lost_unknown)
        fail(model, "the second opening reports another loss, up to", second.lost_last_lsn);
    if (first.lost_ranges && first.lost_unknown) at_most++;
    if (first.lost_ranges && !first.lost_unknown) exact++;
    if (!first.lost_ranges) harmless++;
}

static void run(uint64_t seed, enum damage damage) {
    static model_t model;
    static outcome_t before, after;
    model_init(&model, sim_disk_new(seed), seed);
    model_run(&model, 5 + (uint32_t)model_random(&model, STEPS));
    CHECK(!model.fault[0] && model.wal);
    model_commit(&model);
    uint64_t end = model_random(&model, 4);
    if (end)
        model_kill(&model);
    else
        model_close(&model);
    sim_disk_heal(model.disk);
    if (end == 1) sim_disk_cut(model.disk, seed);
    sim_disk_end_process(model.disk);
    snprintf(about, sizeof about, "before");
    walk(&model, &before);
    uint64_t size, number = segment_choose(&model, &before, &size);
    bool without = model_random(&model, 3) == 0 && damage != LOCK_ALONE;
    snprintf(about, sizeof about, "%s%s (segment %llu of %llu bytes, %s)", damages[damage],
             without ? ", and the checkpoints" : "", (unsigned long long)number, (unsigned long long)size,
             end ? "killed" : "closed");
    if (number && damage_do(&model, damage, number, size)) {
        if (without) checkpoints_remove(model.disk);
        walk(&model, &after);
        uint64_t missing = missing_count(&model, &before, &after);
        if (damage == LOCK_ALONE && missing) fail(&model, "LOCK is not part of the log, and records are missing:", missing);
        if (damage == WIPE_PAGE && size >= FORMAT_APART_BYTES) wiped_check(&model, &before, &after, number);
        open_twice(&model, missing != 0);
        runs++;
    }
    sim_disk_free(model.disk);
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1, seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 100;
    for (uint64_t seed = first; seed < first + seeds; seed++)
        for (uint32_t damage = 0; damage < DAMAGES; damage++) run(seed, (enum damage)damage);
    printf("%llu seeds from %llu: %llu damaged logs, %llu with an exact loss, %llu with an upper bound, %llu without one\n",
           (unsigned long long)seeds, (unsigned long long)first, (unsigned long long)runs, (unsigned long long)exact,
           (unsigned long long)at_most, (unsigned long long)harmless);
    CHECK(exact && at_most && harmless);
    return 0;
}
