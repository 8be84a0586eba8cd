/* fuzz_consumer.c: a stepped core with a WAL on a simulated disk: QoS 1, durable subscriptions, groups, restarts, power cuts, a
 * full or failing disk, between the steps of stepped.h.
 *
 * Invariant: as in stepped.h. In addition: a core always restarts from its disk, with ids above all earlier ones, unless the
 * disk has failed. A consumer with free space that is behind will be served. Read blocks count their users correctly. Dead
 * letters wait in WAL order.
 */
#include "sim_storage.h"
#include "stepped.h"

enum { DISK_BYTES = 1 << 20, WAL_BYTES = 64 << 10 };

static const bq_wal_config_t wal_config = {
    .max_bytes = WAL_BYTES, .segment_bytes = 8192, .flush_interval_ms = 2, .batch_bytes = 2048, .block_bytes = 0};

/* A core whose WAL does not open can only be freed. A broker exits then; here the steps continue with a core without a WAL. */
static bool start(machine_t *machine) {
    bq_wal_report_t report;
    machine->bq = bq_new(&machine->config, 1);
    CHECK(machine->bq);
    if (bq_wal_open(machine->bq, "/", &wal_config, &report) == BQ_OK) return true;
    bq_free(machine->bq);
    machine->bq = bq_new(&machine->config, 1);
    CHECK(machine->bq);
    return false;
}

/* The process ends: cleanly, by kill -9, or by a power cut. The last two happen during one of the last writes. */
static void restart(machine_t *machine, input_t *input, bool harmed) {
    uint8_t how = input_byte(input);
    if (how % 3) sim_disk_stop_at(disk, sim_disk_changes(disk) + how % 16 / 3);
    bq_free(machine->bq);
    everyone_gone(machine);
    if (how % 3 == 1) {
        sim_disk_end_process(disk);
        sim_disk_heal(disk);
    } else if (how % 3 == 2) {
        sim_disk_cut(disk, 1 + how);
    }
    bool opened = start(machine);
    if (harmed) return;
    CHECK(opened && machine->bq->broker.next_message_id > machine->id_max);
}

/* The disk fails once or permanently, or has limited space. 0: it works again. */
static bool harm(input_t *input) {
    static const int errors[] = {EIO, ENOSPC, EROFS, EMFILE};
    uint8_t how = input_byte(input), when = input_byte(input);
    if (how % 8 == 0) {
        sim_disk_heal(disk);
        sim_disk_room(disk, DISK_BYTES);
        return false;
    }
    if (how % 8 < 3)
        sim_disk_room(disk, 8192u * (when % 16));
    else
        sim_disk_fail_at(disk, sim_disk_calls(disk) + when, errors[how % COUNT(errors)], how & 128 ? SIM_FOR_EVER : SIM_ONCE);
    return true;
}

static void readers_check(const bq_t *bq) {
    uint32_t users[CONSUMER_SLOTS] = {0}, in_line = 0, waiting = 0;
    uint64_t failing = 0;
    for (const consumer_t *consumer = bq->broker.consumers.all; consumer; consumer = consumer->next) {
        bool in_block = consumer->reader && consumer->reader->generation == consumer->read_generation;
        if (in_block) users[consumer->reader - bq->broker.consumers.readers]++;
        CHECK(!in_block || !consumer->read_link);
        in_line += consumer->read_link != NULL;
        failing += consumer->read_failures > 0;
        bool hungry =
            consumer->behind && consumer->members && !consumer->window_count && consumer->next_lsn <= bq->broker.dispatched_lsn;
        CHECK(!hungry || consumer->read_link || consumer->pumping);
    }
    for (const consumer_t *consumer = bq->broker.consumers.read_first; consumer; consumer = consumer->read_next) waiting++;
    CHECK(waiting == in_line && failing == bq->broker.consumers.read_failing);
    for (uint32_t slot = 0; slot < CONSUMER_SLOTS; slot++) CHECK(bq->broker.consumers.readers[slot].users == users[slot]);
}

static void dead_letters_check(const bq_t *bq) {
    const delivery_t *last = NULL;
    for (const delivery_t *delivery = bq->broker.dead_letters.first; delivery;
         last = delivery, delivery = delivery->letter_next) {
        CHECK(delivery->given_up && delivery->dead_letter_waits && !delivery->letter && delivery->letter_previous == last);
        CHECK(!last || last->lsn <= delivery->lsn);
    }
    CHECK(bq->broker.dead_letters.last == last);
    for (const pending_commit_t *pending = bq->broker.pending; pending; pending = pending->next)
        CHECK(!pending->delivery || pending->delivery->letter == pending);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    machine_t machine = {.config = config_of(&input), .now_ms = 1000, .answering = true};
    bool harmed = false;
    machine.config.max_frame_bytes = 4096; /* so that most publishes fit the WAL's batch */
    disk = sim_disk_new(1);
    sim_disk_room(disk, DISK_BYTES);
    CHECK(start(&machine));
    for (uint32_t steps = 0; steps < STEPS_MAX && input.at < input.end; steps++) {
        uint8_t what = input_byte(&input);
        if (what < 240)
            step(&machine, what, &input);
        else if (what < 248)
            restart(&machine, &input, harmed);
        else
            harmed |= harm(&input);
        if (!machine.bq->broker.wal) continue;
        readers_check(machine.bq);
        dead_letters_check(machine.bq);
    }
    sim_disk_heal(disk);
    sim_disk_room(disk, DISK_BYTES);
    finish(&machine);
    sim_disk_free(disk);
    return 0;
}
