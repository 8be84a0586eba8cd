/* fuzz_restore.c: any bytes as the records and the checkpoint of a WAL with correct CRCs, as someone with access to the disk,
 * or a later version, could write them.
 *
 *      input      [how][records: type, size, bytes ...]      the first of type 0 is the checkpoint
 *
 * Invariant: for any content, a core opens the WAL or rejects it, and reads nothing outside it. The resulting state can be
 * written as a checkpoint and read again, and a subscriber to everything gets only well-formed frames.
 */
#include "sim_storage.h"
#include "stepped.h"

#define RECORDS_MAX 40u

static const bq_wal_config_t config = {
    .max_bytes = 256 << 10, .segment_bytes = 16384, .flush_interval_ms = 0, .batch_bytes = 4096};

typedef struct item {
    uint8_t type;
    text_t bytes;
} item_t;

static uint32_t entries_of(input_t *input, item_t *entries) {
    uint32_t count = 0;
    while (count < RECORDS_MAX && input->at < input->end) {
        uint8_t type = input_byte(input), size = input_byte(input);
        entries[count++] = (item_t){type % 8 == 7 ? WAL_SESSION : type % 8, input_bytes(input, size)};
    }
    return count;
}

static void checkpoint_again(bq_t *bq, const bq_config_t *limits) {
    uint32_t size, again_size;
    uint64_t keep_from;
    uint8_t *bytes = consumers_serialize(&bq->broker, &size, &keep_from);
    bq_t *again = bq_new(limits, 1);
    CHECK(bytes && again);
    CHECK(consumer_restore(again, &(wal_record_t){.lsn = 1, .bytes = bytes, .size = size}));
    CHECK(again->broker.consumers.count == bq->broker.consumers.count &&
          again->broker.next_message_id == bq->broker.next_message_id);
    uint8_t *twice = consumers_serialize(&again->broker, &again_size, &keep_from);
    CHECK(twice && again_size == size);
    free(bytes);
    free(twice);
    bq_free(again);
}

/* Each record has memory of its own size, so that a read beyond it is detected. */
static void restore_each(const bq_config_t *limits, const item_t *entries, uint32_t count) {
    bq_t *bq = bq_new(limits, 1);
    CHECK(bq);
    bool whole = true;
    for (uint32_t i = 0; i < count && whole; i++) {
        uint8_t *copy = malloc(entries[i].bytes.size);
        CHECK(copy || !entries[i].bytes.size);
        if (entries[i].bytes.size) memcpy(copy, entries[i].bytes.bytes, entries[i].bytes.size);
        wal_record_t record = {.lsn = i + 1, .bytes = copy, .size = entries[i].bytes.size, .type = entries[i].type};
        whole = consumer_restore(bq, &record);
        free(copy);
    }
    if (whole) checkpoint_again(bq, limits);
    bq_free(bq);
}

static void wal_write(const item_t *entries, uint32_t count) {
    wal_t *wal;
    const wal_config_t plain = {.max_bytes = config.max_bytes, .segment_bytes = 16384, .batch_bytes_max = 4096};
    CHECK(wal_open(&wal, sim_disk_storage(disk), &plain, NULL, NULL, NULL, NULL) == BQ_OK);
    const item_t *checkpoint = NULL;
    for (uint32_t i = 0; i < count; i++) {
        wal_part_t part = {entries[i].bytes.bytes, entries[i].bytes.size};
        if (!entries[i].type)
            checkpoint = checkpoint ? checkpoint : &entries[i];
        else
            wal_append(wal, entries[i].type == 6 ? 13 : entries[i].type, 0, &part, 1, WAL_URGENT);
        wal_commit(wal);
        wal_settle(wal);
    }
    if (checkpoint) wal_checkpoint(wal, count & 1, checkpoint->bytes.bytes, checkpoint->bytes.size, 1);
    wal_settle(wal);
    wal_close(wal);
}

/* A client that subscribes to each existing durable subscription and to everything, and reads the messages in the WAL. */
static void read_all(machine_t *machine) {
    test_client_t *client = &machine->clients[0];
    uint8_t frame[4 + 400];
    input_t trusted = {(const uint8_t *)"\1", (const uint8_t *)"\1" + 1};
    machine->now_ms = 1000;
    machine->answering = true;
    step_attach(machine, client, &trusted);
    CHECK(client->open);
    client->filters_unknown = true;
    uint32_t rounds = 0;
    for (const consumer_t *consumer = machine->bq->broker.consumers.all; consumer && rounds < 4;
         consumer = consumer->next, rounds++) {
        uint32_t id_size = consumer->registrations ? consumer->registrations->size : 0, size = id_size + consumer->group_size;
        uint8_t *data = malloc(size + 1);
        CHECK(data);
        if (id_size) memcpy(data, consumer->registrations->client_id, id_size);
        memcpy(data + id_size, consumer_group(consumer), consumer->group_size);
        push(machine,
             (bq_command_t){
                 .type = BQ_CMD_SUBSCRIBE, .conn = client->conn, .value = id_size, .flags = BQ_SUB_QOS1 | BQ_SUB_DURABLE},
             (text_t){consumer->text, consumer->filter_size}, (text_t){data, size});
        free(data);
    }
    settle(machine, 1, 12);
    fields_t ack = {.action = FRAME_ACK, .seq = client->last_id};
    send_input(machine, client, (text_t){frame, command_encode(frame, &ack)}, 0);
    settle(machine, 2000, 6);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t defaults[4];
    input_t input = {data, data + size}, plain = {defaults, defaults + sizeof defaults};
    machine_t machine = {.config = config_of(&plain), .restores = true};
    machine.config.max_sessions = machine.config.max_sessions_per_key = 64;
    machine.config.max_in_flight = 8;
    uint8_t how = input_byte(&input);
    item_t entries[RECORDS_MAX];
    uint32_t count = entries_of(&input, entries);
    restore_each(&machine.config, entries, count);
    if (how & 1) return 0; /* threads and files are slow: only for half of the inputs */
    bq_wal_report_t report;
    disk = sim_disk_new(1);
    sim_disk_room(disk, 1 << 20);
    wal_write(entries, count);
    machine.bq = bq_new(&machine.config, 1);
    CHECK(machine.bq);
    if (bq_wal_open(machine.bq, "/", &config, &report) == BQ_OK) {
        read_all(&machine);
        finish(&machine);
    } else {
        bq_free(machine.bq);
    }
    sim_disk_free(disk);
    return 0;
}
