/* test_wal_full.c: many short workloads, each cut at every call that changes the disk, then started again on a disk that others
 * have filled: completely, or with space for a short segment, or only for the tail.
 *
 *      test_wal_full [first seed] [seeds]
 *
 * Invariant: the WAL opens. All acknowledged records exist and, up to the durable LSN of this process, are readable. Nothing is
 * accepted without space for it. When there is space, publishes are accepted without a restart. Cuts at any point lose nothing
 * either.
 */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal_model.h"

#define STEPS 30u
#define ROOM_AGAIN (64u << 20)

static uint64_t starts, begun_whole, begun_short, begun_without, begun_doubtful;

static void stand(const model_t *model, uint64_t change, const char *where) {
    if (!model->fault[0]) return;
    fprintf(stderr, "seed %llu, cut at change %llu, %s: %s\n", (unsigned long long)model->seed, (unsigned long long)change, where,
            model->fault);
    exit(1);
}

#define EXPECT(condition)                                                                                                        \
    do {                                                                                                                         \
        if (!(condition) && !model->fault[0]) snprintf(model->fault, sizeof model->fault, "%s", #condition);                     \
    } while (0)

static bool opens(model_t *model) {
    int result = model_open(model);
    if (result != BQ_OK && !model->fault[0]) snprintf(model->fault, sizeof model->fault, "it does not open: %d", result);
    return result == BQ_OK;
}

/* The free space: between minus three and plus two segments. */
static void fill(model_t *model) {
    uint64_t segment = model->config.segment_bytes, used = sim_disk_used(model->disk);
    uint64_t less = model_random(model, 3 * segment), more = model_random(model, 2 * segment);
    uint64_t room = model_random(model, 2) ? used + more : used > less ? used - less : 0;
    sim_disk_room(model->disk, room);
}

static void count(model_t *model) {
    wal_stats_t stats;
    wal_stats(model->wal, &stats);
    monitor_enter(&model->wal->table);
    uint32_t bytes = model->wal->active ? model->wal->active->header.segment_bytes : 0;
    monitor_leave(&model->wal->table);
    starts++;
    begun_whole += bytes >= model->config.segment_bytes;
    begun_short += bytes && bytes < model->config.segment_bytes;
    begun_without += !bytes;
    begun_doubtful += !bytes && stats.durable_lsn + 1 < stats.next_lsn;
}

/* Behaviour of a WAL without an active segment. */
static void check_without(model_t *model) {
    EXPECT(wal_state(model->wal) == WAL_E_FULL);
    EXPECT(wal_append(model->wal, 1, 0, &(wal_part_t){"x", 1}, 1, false) == WAL_E_FULL);
    EXPECT(wal_append(model->wal, 1, 0, &(wal_part_t){"x", 1}, 1, true) == WAL_E_FULL);
    EXPECT(!wal_commit(model->wal) && !wal_busy(model->wal));
}

static void wait_for_room(model_t *model) {
    for (uint32_t i = 0; i < 4000 && wal_state(model->wal) == WAL_E_FULL && !sim_disk_stopped(model->disk); i++) {
        monitor_enter(&model->wal->work);
        monitor_wait(&model->wal->work, 5);
        monitor_leave(&model->wal->work);
    }
    wal_settle(model->wal);
}

/* Others free space. The process dies in the `calls`-th change that follows; 0: it does not. */
static void room_again(model_t *model, uint64_t calls) {
    if (calls) sim_disk_stop_at(model->disk, sim_disk_changes(model->disk) + calls - 1);
    sim_disk_room(model->disk, ROOM_AGAIN);
    model_append(model, 1); /* the WAL starts to wait when it refuses a record */
    wait_for_room(model);
    if (sim_disk_stopped(model->disk)) return;
    model_commit(model); /* commit earlier records first: the batch may be full */
    uint64_t before = model->next_lsn;
    EXPECT(sim_disk_stopped(model->disk) || wal_state(model->wal) == 0);
    model_append(model, 3);
    EXPECT(sim_disk_stopped(model->disk) || model->next_lsn > before);
    model_commit(model);
    EXPECT(sim_disk_stopped(model->disk) || wal_durable(model->wal) == model->next_lsn - 1);
    if (!sim_disk_stopped(model->disk)) model_read_back(model);
}

static void end(model_t *model, uint64_t fate) {
    if (model_random(model, 2))
        model_kill(model);
    else
        model_close(model);
    sim_disk_end_process(model->disk);
    if (model_random(model, 2)) sim_disk_cut(model->disk, fate);
    sim_disk_heal(model->disk);
}

/* Start and stop on a full disk, once or several times, then with space. Records written then must be found afterwards. */
static void full_life(model_t *model, uint64_t change) {
    for (uint64_t rounds = 1 + model_random(model, 3); rounds; rounds--) {
        fill(model);
        bool well = opens(model);
        stand(model, change, "started on a full disk");
        if (!well) return;
        count(model);
        if (!model_settled(model)) check_without(model);
        model_read_back(model);
        if (model_random(model, 2)) model_checkpoint(model);
        if (model_random(model, 2)) model_run(model, 6);
        stand(model, change, "on a full disk");
        EXPECT(model->wal);
        stand(model, change, "started once more on a full disk");
        if (rounds > 1) end(model, model->seed * 7919 + change * 31 + rounds);
    }
    room_again(model, model_random(model, 3) ? 1 + model_random(model, 12) : 0);
    stand(model, change, "when there is room");
    end(model, model->seed * 104729 + change);
    sim_disk_room(model->disk, ROOM_AGAIN);
    if (!opens(model)) return;
    model_read_back(model);
    room_again(model, 0);
    model_close(model);
}

/* Cut the start on a full disk at each of its changes: the result is the same as without the cut. */
static void start_cut(const model_t *after, uint64_t change) {
    static model_t copy;
    model_t *model = &copy;
    uint64_t next_lsn = 0, changes = 1;
    for (uint64_t inner = 0; inner <= changes; inner++) {
        memcpy(model, after, sizeof *model);
        model->disk = sim_disk_copy(after->disk);
        fill(model); /* the same each time, because the model's random state is copied too */
        if (inner) {
            sim_disk_stop_at(model->disk, inner - 1);
            if (wal_open(&model->wal, sim_disk_storage(model->disk), &model->config, NULL, NULL, NULL, NULL) == BQ_OK)
                wal_close(model->wal);
            model->wal = NULL;
            sim_disk_cut(model->disk, after->seed * 31 + inner);
        }
        if (opens(model)) {
            if (!inner) {
                next_lsn = model->report.next_lsn;
                changes = sim_disk_changes(model->disk);
            }
            EXPECT(model->report.next_lsn == next_lsn);
            room_again(model, 0);
        }
        stand(model, change, "and of a start on a full disk");
        model_close(model);
        sim_disk_free(model->disk);
    }
}

static uint64_t changes_of(uint64_t seed) {
    static model_t model;
    model_init(&model, sim_disk_new(seed), seed);
    model_run(&model, STEPS);
    uint64_t changes = sim_disk_changes(model.disk);
    model_close(&model);
    sim_disk_free(model.disk);
    return changes;
}

static void cut_at(uint64_t seed, uint64_t change) {
    static model_t model;
    model_init(&model, sim_disk_new(seed), seed);
    sim_disk_stop_at(model.disk, change);
    model_run(&model, STEPS);
    model.random += change; /* so that the runs of a seed fill the disk differently */
    model_close(&model);
    sim_disk_end_process(model.disk);
    /* Otherwise only the process ends, and the page cache may show data that is not on disk */
    if (model_random(&model, 2)) {
        sim_disk_cut(model.disk, seed * 1000003 + change);
        if (change % 3 == 0) start_cut(&model, change);
    }
    sim_disk_heal(model.disk);
    full_life(&model, change);
    stand(&model, change, "in the end");
    sim_disk_free(model.disk);
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1, seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 3;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        uint64_t changes = changes_of(seed);
        for (uint64_t change = 0; change < changes; change++) cut_at(seed, change);
    }
    printf("%llu seeds from %llu, %llu starts on a full disk: %llu with a whole segment, %llu with a short one, %llu without, "
           "%llu of "
           "them in doubt\n",
           (unsigned long long)seeds, (unsigned long long)first, (unsigned long long)starts, (unsigned long long)begun_whole,
           (unsigned long long)begun_short, (unsigned long long)begun_without, (unsigned long long)begun_doubtful);
    CHECK(begun_whole && begun_short && begun_without && begun_doubtful);
    return 0;
}
