/* test_wal_errors.c: in many short workloads every disk call fails, once or from then on, with EIO or ENOSPC.
 *
 *      test_wal_errors [first seed] [seeds]
 *
 * Invariant: a failed call loses no acknowledged record, whether the process or the whole machine ends afterwards. A failed
 * sync stops the WAL permanently. A disk that is full for a short time stops nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal_model.h"

#define STEPS 30u

static uint64_t runs, stops, fulls;

static const struct {
    const char *name;
    int error;
    enum sim_fault fault;
} plans[] = {{"EIO once", EIO, SIM_ONCE},
             {"EIO for ever", EIO, SIM_FOR_EVER},
             {"ENOSPC once", ENOSPC, SIM_ONCE},
             {"ENOSPC for ever", ENOSPC, SIM_FOR_EVER}};

static void stand(const model_t *model, uint64_t call, uint32_t plan, const char *where) {
    const char *name = "";
    if (!model->fault[0]) return;
    sim_disk_failed(model->disk, &name);
    fprintf(stderr, "seed %llu, %s at call %llu (%s), %s: %s\n", (unsigned long long)model->seed, plans[plan].name,
            (unsigned long long)call, name, where, model->fault);
    exit(1);
}

static bool is_any(const char *name, const char *const *names) {
    for (; *names; names++)
        if (strcmp(name, *names) == 0) return true;
    return false;
}

/* Directly after the planned failure, if the WAL was open. */
static void check_state(model_t *model, uint32_t plan) {
    static const char *const final[] = {"sync_data", "sync", "sync_directory", NULL}, *const passing[] = {"write", "allocate",
                                                                                                          "create", NULL};
    const char *name;
    sim_disk_failed(model->disk, &name);
    int state = wal_state(model->wal);
    if (is_any(name, final) && plans[plan].error == EIO && state != WAL_E_FAILED)
        snprintf(model->fault, sizeof model->fault, "a failed %s did not stop the log", name);
    if (strcmp(name, "sync_data") == 0 && state != WAL_E_FAILED)
        snprintf(model->fault, sizeof model->fault, "a sync without room did not stop the log");
    if (is_any(name, passing) && plans[plan].error == ENOSPC && state == WAL_E_FAILED)
        snprintf(model->fault, sizeof model->fault, "a full disk (%s) stopped the log", name);
    stops += state == WAL_E_FAILED;
    fulls += state == WAL_E_FULL;
}

static void work(model_t *model, uint32_t plan) {
    bool known = false;
    if (model_open(model) != BQ_OK) return;
    known = sim_disk_failed(model->disk, NULL); /* failures during recovery are not checked here */
    for (uint32_t i = 0; i < STEPS && model->wal && !model->fault[0]; i++) {
        uint64_t opens = model->opens;
        uint64_t durable = wal_durable(model->wal);
        bool failed = wal_state(model->wal) == WAL_E_FAILED;
        model_run(model, 1);
        bool same = model->wal && model->opens == opens;
        if (!same) known = known || sim_disk_failed(model->disk, NULL);
        if (!same) continue;
        if (failed && wal_durable(model->wal) != durable)
            snprintf(model->fault, sizeof model->fault, "something became durable after the failure");
        if (!known && sim_disk_failed(model->disk, NULL)) check_state(model, plan);
        known = known || sim_disk_failed(model->disk, NULL);
    }
}

static uint64_t calls_of(uint64_t seed) {
    static model_t model;
    model_init(&model, sim_disk_new(seed), seed);
    work(&model, 0);
    stand(&model, 0, 0, "without a failure");
    model_close(&model);
    uint64_t calls = sim_disk_calls(model.disk);
    sim_disk_free(model.disk);
    return calls;
}

static void fail_at(uint64_t seed, uint64_t call, uint32_t plan) {
    static model_t model;
    model_init(&model, sim_disk_new(seed), seed);
    sim_disk_fail_at(model.disk, call, plans[plan].error, plans[plan].fault);
    work(&model, plan);
    stand(&model, call, plan, "while it runs");
    runs++;
    if (call % 2) {
        model_close(&model);
        sim_disk_end_process(model.disk);
    } else {
        model_kill(&model);
    }
    sim_disk_heal(model.disk);
    /* Restart, then a power cut: everything it served must still exist */
    if (call % 3) {
        int result = model_open(&model);
        if (result != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open: %d", result);
        stand(&model, call, plan, "started again");
        model_kill(&model);
    }
    sim_disk_cut(model.disk, seed + call);
    int result = model_open(&model);
    if (result != BQ_OK) snprintf(model.fault, sizeof model.fault, "it does not open: %d", result);
    if (result == BQ_OK) model_read_back(&model);
    stand(&model, call, plan, "after the power cut");
    model_close(&model);
    sim_disk_free(model.disk);
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1, seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 3;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        uint64_t calls = calls_of(seed);
        for (uint32_t plan = 0; plan < 4; plan++)
            for (uint64_t call = 0; call < calls; call++) fail_at(seed, call, plan);
    }
    CHECK(stops > 0 && fulls > 0);
    printf("%llu seeds from %llu, %llu runs, the log stopped in %llu and was full in %llu\n", (unsigned long long)seeds,
           (unsigned long long)first, (unsigned long long)runs, (unsigned long long)stops, (unsigned long long)fulls);
    return 0;
}
