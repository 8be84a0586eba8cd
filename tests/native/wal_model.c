/* wal_model.c: see wal_model.h.
 *
 * Invariant: the seed alone determines the model's actions, and the model waits for the WAL's threads after each step. So the
 * same seed makes the same disk calls in the same order.
 */
#include "wal_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t mix(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t model_random(model_t *model, uint64_t below) { return mix(&model->random) % below; }

static void fault(model_t *model, const char *format, ...) {
    va_list arguments;
    if (model->fault[0]) return; /* the first one is the most useful */
    va_start(arguments, format);
    vsnprintf(model->fault, sizeof model->fault, format, arguments);
    va_end(arguments);
}

/* Zeros, noise, or repeated text: data that could mislead a scan for records. */
uint32_t model_payload(uint32_t tag, uint8_t bytes[4096]) {
    uint64_t state = tag;
    uint32_t size = (uint32_t)(mix(&state) % 10 < 8 ? mix(&state) % 90 : mix(&state) % 400);
    uint64_t kind = mix(&state) % 4;
    for (uint32_t i = 0; i < size; i++) bytes[i] = kind == 0 ? 0 : kind == 1 ? (uint8_t)(i % 7) : (uint8_t)mix(&state);
    return size;
}

static bool payload_holds(const wal_record_t *record, uint32_t tag) {
    uint8_t bytes[4096];
    uint32_t size = model_payload(tag, bytes);
    return record->size == size && (size == 0 || memcmp(record->bytes, bytes, size) == 0) && record->type == 1 + tag % 5 &&
           record->flags == (uint8_t)(tag >> 8);
}

void model_init(model_t *model, sim_disk_t *disk, uint64_t seed) {
    memset(model, 0, sizeof *model);
    model->disk = disk;
    model->seed = model->random = seed;
    model->next_lsn = 1;
    uint32_t segment = 4096u << model_random(model, 3);
    model->config = (wal_config_t){.max_bytes = 1u << 20,
                                   .segment_bytes = segment,
                                   .batch_bytes_max = segment / (uint32_t)(2 << model_random(model, 2)),
                                   .block_bytes = model_random(model, 3) == 0 ? 512 : 0};
}

/* ---- recovering -------------------------------------------------------------------------------------------------------- */

static bool visit(void *context, const wal_record_t *record) {
    model_t *model = context;
    if (record->type == 0) {
        model->visited_checkpoint = true;
        model->visit_next = record->lsn + 1;
        if (record->size != 8 || load_u64(record->bytes) != record->lsn)
            fault(model, "the checkpoint of %llu has other bytes", (unsigned long long)record->lsn);
        if (record->lsn < model->checkpoint_lsn)
            fault(model, "checkpoint %llu came back, %llu was confirmed", (unsigned long long)record->lsn,
                  (unsigned long long)model->checkpoint_lsn);
        return true;
    }
    if (record->lsn != model->visit_next)
        fault(model, "lsn %llu follows %llu", (unsigned long long)record->lsn, (unsigned long long)model->visit_next - 1);
    model->visit_next = record->lsn + 1;
    if (record->lsn >= model->next_lsn)
        fault(model, "lsn %llu was never appended", (unsigned long long)record->lsn);
    else if (!payload_holds(record, model->tags[record->lsn]))
        fault(model, "lsn %llu has other bytes", (unsigned long long)record->lsn);
    return true;
}

static void acked_note(model_t *model) {
    uint64_t durable = wal_durable(model->wal);
    if (durable > model->acked) model->acked = durable;
    if (durable >= model->next_lsn)
        fault(model, "durable is %llu, appended were %llu", (unsigned long long)durable, (unsigned long long)model->next_lsn - 1);
}

bool model_settled(model_t *model) {
    monitor_enter(&model->wal->table);
    bool settled = model->wal->active != NULL;
    monitor_leave(&model->wal->table);
    return settled;
}

int model_open(model_t *model) {
    model->visit_next = 1;
    model->opens++;
    model->visited_checkpoint = false;
    int result = wal_open(&model->wal, sim_disk_storage(model->disk), &model->config, visit, model, &model->report, NULL);
    if (result != BQ_OK) return result;
    wal_settle(model->wal);
    if (sim_disk_stopped(model->disk)) return BQ_OK; /* a recovery on a stopping disk proves nothing */
    uint64_t next = model->report.next_lsn;
    if (next != model->visit_next)
        fault(model, "recovery ends at %llu, the records at %llu", (unsigned long long)next,
              (unsigned long long)model->visit_next);
    if (next <= model->acked)
        fault(model, "%llu was acknowledged, recovery ends before %llu", (unsigned long long)model->acked,
              (unsigned long long)next);
    if (next > model->next_lsn)
        fault(model, "recovery ends at %llu, appended were %llu", (unsigned long long)next,
              (unsigned long long)model->next_lsn - 1);
    if (model->report.lost_ranges)
        fault(model, "a loss of %llu to %llu is reported", (unsigned long long)model->report.lost_first_lsn,
              (unsigned long long)model->report.lost_last_lsn);
    if (model->checkpoint_lsn && !model->visited_checkpoint) fault(model, "the checkpoint is gone");
    model->next_lsn = next;
    acked_note(model); /* these records are served from now on */
    return BQ_OK;
}

/* ---- working ----------------------------------------------------------------------------------------------------------- */

void model_append(model_t *model, uint32_t count) {
    uint8_t bytes[4096];
    while (count-- && model->next_lsn < MODEL_LSN_MAX) {
        uint32_t tag = (uint32_t)mix(&model->random), size = model_payload(tag, bytes), cut = size ? tag % size : 0;
        wal_part_t parts[2] = {{bytes, cut}, {bytes + cut, size - cut}};
        int64_t lsn = wal_append(model->wal, (uint8_t)(1 + tag % 5), (uint8_t)(tag >> 8), parts, 2, false);
        if (lsn < 0) return;
        if ((uint64_t)lsn != model->next_lsn)
            fault(model, "append gave %lld, expected %llu", (long long)lsn, (unsigned long long)model->next_lsn);
        model->tags[lsn] = tag;
        model->next_lsn = (uint64_t)lsn + 1;
    }
}

void model_commit(model_t *model) {
    wal_commit(model->wal);
    wal_settle(model->wal);
    acked_note(model);
}

void model_checkpoint(model_t *model) {
    uint64_t lsn = wal_durable(model->wal);
    uint8_t bytes[8];
    store_u64(bytes, lsn);
    uint64_t keep_from = model->keep_from + model_random(model, lsn + 2 > model->keep_from ? lsn + 2 - model->keep_from : 1);
    if (wal_checkpoint(model->wal, lsn, bytes, sizeof bytes, keep_from) != BQ_OK) return;
    model->keep_from = keep_from;
    wal_settle(model->wal);
    wal_stats_t stats;
    wal_stats(model->wal, &stats);
    if (stats.checkpoint_lsn > model->checkpoint_lsn) model->checkpoint_lsn = stats.checkpoint_lsn;
}

void model_read_back(model_t *model) {
    static _Thread_local uint8_t buffer[2048];
    wal_stats_t stats;
    wal_stats(model->wal, &stats);
    uint64_t lsn = model->keep_from ? model->keep_from : 1;
    if (stats.first_lsn > lsn)
        fault(model, "the log begins at %llu, kept from %llu", (unsigned long long)stats.first_lsn, (unsigned long long)lsn);
    while (lsn <= stats.durable_lsn && !model->fault[0]) {
        wal_read_t read;
        wal_read_start(model->wal, 0, lsn, buffer, sizeof buffer);
        wal_settle(model->wal);
        if (!wal_read_done(model->wal, &read) || read.result <= 0) {
            if (!sim_disk_stopped(model->disk) && !sim_disk_failed(model->disk, NULL))
                fault(model, "reading back %llu: %d", (unsigned long long)lsn, read.result);
            return;
        }
        for (uint32_t at = 0; at < read.used; lsn++) {
            wal_record_t record = {.lsn = load_u64(buffer + at),
                                   .size = load_u32(buffer + at + 8),
                                   .type = buffer[at + 12],
                                   .flags = buffer[at + 13],
                                   .bytes = buffer + at + 16};
            if (record.lsn != lsn || !payload_holds(&record, model->tags[lsn]))
                fault(model, "read back %llu instead of %llu, or other bytes", (unsigned long long)record.lsn,
                      (unsigned long long)lsn);
            at += 16 + (uint32_t)format_padded(record.size);
        }
    }
}

void model_close(model_t *model) {
    if (!model->wal) return;
    wal_settle(model->wal);
    acked_note(model);
    bool well = wal_state(model->wal) != WAL_E_FAILED && !sim_disk_failed(model->disk, NULL) && model_settled(model);
    wal_close(model->wal);
    model->wal = NULL;
    if (well && !sim_disk_stopped(model->disk) && !sim_disk_failed(model->disk, NULL)) model->acked = model->next_lsn - 1;
}

void model_kill(model_t *model) {
    if (model->wal) {
        wal_settle(model->wal);
        acked_note(model);
        sim_disk_stop_at(model->disk, sim_disk_changes(model->disk) + model_random(model, 2));
        wal_close(model->wal); /* none of its changes reaches the disk */
        model->wal = NULL;
    }
    sim_disk_end_process(model->disk);
}

static void step(model_t *model) {
    uint64_t dice = model_random(model, 100);
    if (dice < 55) {
        model_append(model, 1 + (uint32_t)model_random(model, dice < 5 ? 40 : 4));
    } else if (dice < 84) {
        model_commit(model);
    } else if (dice < 91) {
        model_checkpoint(model);
    } else if (dice < 94) {
        model_read_back(model);
    } else if (dice < 98) {
        model_close(model);
        if (!sim_disk_stopped(model->disk)) model_open(model);
    } else {
        model_commit(model);
    }
}

void model_run(model_t *model, uint32_t steps) {
    if (!model->wal && model_open(model) != BQ_OK) return;
    while (steps-- && model->wal && !sim_disk_stopped(model->disk) && !model->fault[0]) step(model);
}
