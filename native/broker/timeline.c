/* broker/timeline.c: see broker/timeline.h for the picture and the invariants. */
#include "broker/timeline.h"
#include "broker/commit.h"
#include "broker/broker.h"
#include "broker/consumer_internal.h"

#define TIMELINE_UNKNOWN INT64_MIN
#define CORRECTION_MS_MIN 1000u /* smaller differences are rounding */

/* Contents of a WAL_TIME record: T and the clocks at mono_ms of a run. */
typedef struct time_record {
    uint64_t run, mono_ms;
    timeline_mark_t mark;
} time_record_t;

/* ---- the runs ---------------------------------------------------------------------------------------------------- */

static timeline_run_t *run_find(timeline_t *line, uint64_t run) {
    for (uint32_t i = line->count; i-- > 0;)
        if (line->runs[i].run == run) return &line->runs[i];
    return NULL;
}

static void runs_forget(timeline_t *line, uint32_t count) {
    line->count -= count;
    memmove(line->runs, line->runs + count, line->count * sizeof *line->runs);
}

static timeline_run_t *run_add(timeline_t *line, uint64_t run, uint64_t first_lsn, int64_t base_ms, uint64_t mono_ms) {
    if (line->count == TIMELINE_RUNS_MAX) runs_forget(line, 1);
    timeline_run_t *added = &line->runs[line->count++];
    *added = (timeline_run_t){.run = run, .first_lsn = first_lsn, .base_ms = base_ms, .first_ms = mono_ms, .latest_ms = mono_ms};
    return added;
}

static uint64_t time_of(const timeline_run_t *run, uint64_t mono_ms) {
    int64_t time_ms = (int64_t)mono_ms + run->base_ms;
    return time_ms > 0 ? (uint64_t)time_ms : 0;
}

static void known(timeline_t *line, uint64_t time_ms) {
    if (time_ms > line->known_ms) line->known_ms = time_ms;
}

static void mark_take(timeline_t *line, const timeline_mark_t *mark) {
    known(line, mark->time_ms);
    line->last = *mark;
    if (mark->clock.synchronized) line->synchronized = *mark;
}

/* Larger values are not from a core and could overflow in the calculations. */
static bool plausible(uint64_t ms) { return ms < (uint64_t)INT64_MAX / 4; }

void timeline_restore(broker_t *broker, uint64_t lsn, const uint8_t *bytes, uint32_t size) {
    timeline_t *line = &broker->timeline;
    time_record_t record;
    if (size < sizeof record) return;
    memcpy(&record, bytes, sizeof record);
    if (!plausible(record.mono_ms) || !plausible(record.mark.time_ms)) return;
    int64_t base_ms = (int64_t)record.mark.time_ms - (int64_t)record.mono_ms;
    timeline_run_t *run = run_find(line, record.run);
    if (!run) run = run_add(line, record.run, lsn, base_ms, record.mono_ms);
    run->base_ms = base_ms;
    if (record.mono_ms > run->latest_ms) run->latest_ms = record.mono_ms;
    mark_take(line, &record.mark);
}

void timeline_restore_publish(broker_t *broker, uint64_t lsn, const publish_record_t *record) {
    timeline_t *line = &broker->timeline;
    if (!plausible(record->mono_ms)) return;
    timeline_run_t *run = run_find(line, record->run);
    if (!run) run = run_add(line, record->run, lsn, TIMELINE_UNKNOWN, record->mono_ms);
    if (record->mono_ms > run->latest_ms) run->latest_ms = record->mono_ms;
    if (run->base_ms != TIMELINE_UNKNOWN) known(line, time_of(run, record->mono_ms));
}

/* ---- the section of a checkpoint --------------------------------------------------------------------------------- */

typedef struct timeline_section {
    timeline_mark_t last, synchronized;
    uint64_t count;
} timeline_section_t;

void timeline_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    timeline_t *line = &broker->timeline;
    timeline_section_t head;
    if (size < sizeof head) return;
    memcpy(&head, bytes, sizeof head);
    if (head.count > TIMELINE_RUNS_MAX || size - sizeof head < head.count * sizeof *line->runs) return;
    if (!plausible(head.last.time_ms) || !plausible(head.synchronized.time_ms)) return;
    line->count = (uint32_t)head.count;
    memcpy(line->runs, bytes + sizeof head, head.count * sizeof *line->runs);
    for (uint32_t i = 0; i < line->count; i++) {
        timeline_run_t *run = &line->runs[i];
        bool sound = plausible(run->latest_ms) && plausible(run->first_ms) &&
                     (run->base_ms == TIMELINE_UNKNOWN || (run->base_ms < INT64_MAX / 4 && run->base_ms > -(INT64_MAX / 4)));
        if (!sound) *run = (timeline_run_t){.run = run->run, .first_lsn = run->first_lsn, .base_ms = TIMELINE_UNKNOWN};
        if (run->base_ms != TIMELINE_UNKNOWN) known(line, time_of(run, run->latest_ms));
    }
    mark_take(line, &head.last);
    if (!head.last.clock.synchronized) line->synchronized = head.synchronized;
}

/* The current clocks, calculated from the last reported ones. */
static timeline_mark_t mark_now(const broker_t *broker) {
    const timeline_t *line = &broker->timeline;
    timeline_mark_t mark = {.time_ms = timeline_now_ms(broker), .clock = line->clock};
    mark.clock.boot_ms += broker->now_ms - line->clock_at_ms;
    mark.clock.wall_ms += broker->now_ms - line->clock_at_ms;
    return mark;
}

uint32_t timeline_section_size(broker_t *broker, uint64_t keep_from) {
    timeline_t *line = &broker->timeline;
    uint32_t gone = 0;
    while (gone + 1 < line->count && line->runs[gone + 1].first_lsn <= keep_from) gone++;
    runs_forget(line, gone);
    return (uint32_t)(sizeof(timeline_section_t) + line->count * sizeof *line->runs);
}

void timeline_section_write(broker_t *broker, uint8_t *out) {
    timeline_t *line = &broker->timeline;
    timeline_section_t head = {
        .last = line->begun ? mark_now(broker) : line->last, .synchronized = line->synchronized, .count = line->count};
    if (line->begun) line->runs[line->count - 1].latest_ms = broker->now_ms;
    memcpy(out, &head, sizeof head);
    memcpy(out + sizeof head, line->runs, line->count * sizeof *line->runs);
}

/* ---- the time line ----------------------------------------------------------------------------------------------- */

/* The current T according to a mark of an earlier run: within the same boot by the boot clock, otherwise by the wall clock if it
 * was synchronized both times. 0: not known. */
static uint64_t time_by(const timeline_mark_t *mark, const bq_clock_t *clock) {
    if (!mark->time_ms) return 0;
    if (clock->boot_id && clock->boot_id == mark->clock.boot_id)
        return clock->boot_ms >= mark->clock.boot_ms ? mark->time_ms + (clock->boot_ms - mark->clock.boot_ms) : 0;
    bool right = clock->synchronized && mark->clock.synchronized && clock->wall_ms >= mark->clock.wall_ms;
    return right ? mark->time_ms + (clock->wall_ms - mark->clock.wall_ms) : 0;
}

static uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* T starts at 1 in a new WAL, because 0 means none. */
static uint64_t time_at_start(const timeline_t *line, const bq_clock_t *clock) {
    uint64_t time_ms = later(line->known_ms, 1);
    return later(time_ms, later(time_by(&line->last, clock), time_by(&line->synchronized, clock)));
}

static void begin(broker_t *broker, const bq_clock_t *clock) {
    timeline_t *line = &broker->timeline;
    uint64_t time_ms = time_at_start(line, clock);
    /* runs from a version without TIME records: treat their newest record as written now */
    for (uint32_t i = 0; i < line->count; i++)
        if (line->runs[i].base_ms == TIMELINE_UNKNOWN)
            line->runs[i].base_ms = (int64_t)time_ms - (int64_t)line->runs[i].latest_ms;
    run_add(line, broker->run, broker->found_lsn + 1, (int64_t)time_ms - (int64_t)broker->now_ms, broker->now_ms);
    line->begun = line->due = true;
}

void timeline_begin(broker_t *broker) {
    if (!broker->timeline.begun) begin(broker, &broker->timeline.clock);
}

/* Corrects T if the clocks show that more time has passed: the wall clock is synchronized now and was before the machine was off,
 * or the machine was suspended. */
static void correct(broker_t *broker, const bq_clock_t *clock) {
    timeline_t *line = &broker->timeline;
    uint64_t time_ms = time_at_start(line, clock), now_ms = timeline_now_ms(broker);
    if (time_ms < now_ms + CORRECTION_MS_MIN) return;
    line->runs[line->count - 1].base_ms += (int64_t)(time_ms - now_ms);
    consumers_aged(broker, time_ms - now_ms);
}

void timeline_clock(broker_t *broker, const bq_clock_t *clock) {
    timeline_t *line = &broker->timeline;
    if (!plausible(clock->boot_ms) || !plausible(clock->wall_ms)) return;
    bool first = !line->begun;
    if (first)
        begin(broker, clock);
    else
        correct(broker, clock);
    line->clock = *clock;
    line->clock_at_ms = broker->now_ms;
    line->due = true;
}

int bq_clock_read(bq_clock_t *clock) {
    bool synchronized;
    *clock = (bq_clock_t){.wall_ms = poll_clock_wall_ms()};
    poll_clock_boot(&clock->boot_id, &clock->boot_ms, &synchronized);
    clock->synchronized = synchronized;
    return BQ_OK;
}

int64_t timeline_write(broker_t *broker) {
    timeline_t *line = &broker->timeline;
    timeline_begin(broker);
    if (!line->due) return 0;
    time_record_t record = {.run = broker->run, .mono_ms = broker->now_ms, .mark = mark_now(broker)};
    wal_part_t part = {&record, sizeof record};
    int64_t lsn = wal_append(broker->wal, WAL_TIME, 0, &part, 1, WAL_URGENT);
    if (lsn < 0) return lsn;
    line->due = false;
    return 0;
}

uint64_t timeline_now_ms(const broker_t *broker) {
    const timeline_t *line = &broker->timeline;
    return line->begun ? time_of(&line->runs[line->count - 1], broker->now_ms) : line->known_ms;
}

uint64_t timeline_age_ms(const broker_t *broker, uint64_t lsn, const publish_record_t *record) {
    const timeline_t *line = &broker->timeline;
    if (record->run == broker->run) return broker->now_ms > record->mono_ms ? broker->now_ms - record->mono_ms : 0;
    const timeline_run_t *run = run_find((timeline_t *)line, record->run);
    if (!run) { /* dropped: counts as old as the oldest known run */
        if (!line->count || lsn >= line->runs[0].first_lsn) return 0;
        run = &line->runs[0];
    }
    if (run->base_ms == TIMELINE_UNKNOWN || !plausible(record->mono_ms)) return 0;
    uint64_t accepted_ms = time_of(run, run->run == record->run ? record->mono_ms : run->first_ms);
    uint64_t now_ms = timeline_now_ms(broker);
    return now_ms > accepted_ms ? now_ms - accepted_ms : 0;
}
