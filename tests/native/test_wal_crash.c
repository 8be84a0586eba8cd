/* test_wal_crash.c: many short workloads on a simulated disk, each with a cut at every call that changes the disk.
 *
 *      test_wal_crash [first seed] [seeds] [no-sync]
 *
 * Invariant: after every cut, also after further cuts at every call of the recovery, all acknowledged records exist, all
 * existing records were appended, and no LSN is missing. With no-sync this must fail, which proves that the test can fail.
 */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal_model.h"

#define STEPS 40u

static uint64_t cuts, faults;
static bool no_sync;

static void model_check(const model_t *model, const char *where, uint64_t change, uint64_t inner) {
    if (!model->fault[0]) return;
    faults++;
    if (no_sync) return;
    fprintf(stderr, "seed %llu, cut at change %llu, %s %llu: %s\n", (unsigned long long)model->seed, (unsigned long long)change,
            where, (unsigned long long)inner, model->fault);
    exit(1);
}

static void start(model_t *model, uint64_t seed) {
    model_init(model, sim_disk_new(seed), seed);
    model->config.no_sync = no_sync;
}

static uint64_t changes_of(uint64_t seed) {
    static model_t model;
    start(&model, seed);
    model_run(&model, STEPS);
    uint64_t changes = sim_disk_changes(model.disk);
    model_check(&model, "in the whole run, change", changes, 0);
    model_close(&model);
    changes = sim_disk_changes(model.disk);
    sim_disk_free(model.disk);
    return changes;
}

/* Recover a copy with a cut at each of recovery's own changes, then recover again: the result is the same. */
static void recovery_cut(const model_t *after, uint64_t change) {
    static model_t model;
    uint64_t next_lsn = 0, changes = 1;
    for (uint64_t inner = 0; inner <= changes; inner++) {
        memcpy(&model, after, sizeof model);
        model.disk = sim_disk_copy(after->disk);
        if (inner) {
            sim_disk_stop_at(model.disk, inner - 1);
            if (wal_open(&model.wal, sim_disk_storage(model.disk), &model.config, NULL, NULL, NULL, NULL) == BQ_OK)
                wal_close(model.wal);
            model.wal = NULL;
            sim_disk_cut(model.disk, after->seed * 31 + inner);
            cuts++;
        }
        int result = model_open(&model);
        if (result != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open: %d", result);
        if (!inner) {
            next_lsn = model.report.next_lsn;
            changes = sim_disk_changes(model.disk);
        }
        if (result == BQ_OK && model.report.next_lsn != next_lsn && !no_sync)
            snprintf(model.fault, sizeof model.fault, "another end than without the second cut");
        model_check(&model, "and of recovery", change, inner);
        if (result == BQ_OK) model_close(&model);
        sim_disk_free(model.disk);
    }
}

static void cut_at(uint64_t seed, uint64_t change) {
    static model_t model;
    start(&model, seed);
    sim_disk_stop_at(model.disk, change);
    model_run(&model, STEPS);
    bool killed = model_random(&model, 3) == 0;
    uint64_t fate = seed * 1000003 + change;
    model_close(&model);
    cuts++;
    /* At first only the process ends: records from its page cache must not be served and then lost */
    if (killed) {
        sim_disk_end_process(model.disk);
        sim_disk_heal(model.disk);
        if (model_open(&model) != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open after a kill");
        model_check(&model, "killed", change, 0);
        model_kill(&model);
    }
    sim_disk_cut(model.disk, fate);
    if (change % 3 == 0) recovery_cut(&model, change);
    int result = model_open(&model);
    if (result != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open: %d", result);
    if (result == BQ_OK) model_read_back(&model);
    if (result == BQ_OK) model_run(&model, 8); /* normal work continues */
    model_check(&model, "afterwards", change, 0);
    model_close(&model);
    result = model_open(&model);
    if (result != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open again: %d", result);
    model_check(&model, "opened again", change, 0);
    model_close(&model);
    sim_disk_free(model.disk);
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1, seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 4;
    no_sync = count > 3 && strcmp(arguments[3], "no-sync") == 0;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        uint64_t changes = changes_of(seed);
        for (uint64_t change = 0; change < changes; change++) cut_at(seed, change);
    }
    printf("%llu seeds from %llu, %llu cuts, %llu faults\n", (unsigned long long)seeds, (unsigned long long)first,
           (unsigned long long)cuts, (unsigned long long)faults);
    if (no_sync) CHECK(faults > 0);
    return 0;
}
