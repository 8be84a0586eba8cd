/* test_ring.c: the ring compared with a list, then between two threads that sleep and wake each other.
 *
 * Invariant checked: each record comes out unchanged, once, in order. A sleeping consumer is woken; an awake one gets no
 * signal.
 */
#include "check.h"
#include "base/poll.h"
#include "base/ring.h"

#define CAPACITY 4096u
#define RECORDS 200000u
#define WAIT_MS 60000 /* not a measurement: a wake-up that takes longer is lost */

static uint32_t size_of(uint64_t sequence, uint32_t limit) {
    uint64_t seed = sequence * 2 + 1;
    return (uint32_t)random_below(&seed, limit > 60 && random_below(&seed, 8) ? 60 : limit + 1); /* mostly small */
}

static void write_record(uint8_t *record, uint32_t size, uint64_t sequence) {
    for (uint32_t i = 0; i < size; i++) record[i] = (uint8_t)(sequence * 31 + i);
}

static void check_record(const uint8_t *record, uint32_t size, uint64_t sequence, uint32_t limit) {
    CHECK(size == size_of(sequence, limit) && (uintptr_t)record % 8 == 0);
    for (uint32_t i = 0; i < size; i++) CHECK(record[i] == (uint8_t)(sequence * 31 + i));
}

static void test_records_are_read_unchanged_and_in_order(uint32_t capacity, uint64_t seed) {
    ring_t ring;
    CHECK(ring_init(&ring, capacity) == BQ_OK);
    uint32_t limit = ring_record_max(&ring), size;
    uint64_t pushed = 0, popped = 0, refused = 0;
    for (int round = 0; round < 100000; round++) {
        if (random_below(&seed, 2)) {
            size = size_of(pushed, limit);
            uint8_t *record = ring_reserve(&ring, size);
            CHECK(record || pushed > popped); /* an empty ring accepts any record up to the limit, at every position */
            refused += !record;
            if (!record) continue;
            write_record(record, size, pushed++);
            CHECK(!ring_commit(&ring));
        } else {
            const uint8_t *record = ring_peek(&ring, &size);
            CHECK((record != NULL) == (pushed > popped));
            if (!record) continue;
            CHECK(ring_peek(&ring, &size) == record);
            check_record(record, size, popped++, limit);
            ring_pop(&ring);
        }
        CHECK(ring.head - ring.tail <= capacity);
    }
    CHECK(popped > 1000 && refused > 0);
    ring_free(&ring);
}

static void test_sizes_outside_the_limits_are_refused(void) {
    ring_t ring;
    CHECK(ring_init(&ring, 1000) == BQ_E_ARGUMENT && ring_init(&ring, 0) == BQ_E_ARGUMENT &&
          ring_init(&ring, 32) == BQ_E_ARGUMENT);
    CHECK(ring_init(&ring, 64) == BQ_OK);
    CHECK(ring_reserve(&ring, ring_record_max(&ring) + 1) == NULL && ring_reserve(&ring, UINT32_MAX) == NULL);
    CHECK(ring_reserve(&ring, ring_record_max(&ring)) != NULL);
    ring_free(&ring);
}

static void test_only_the_first_commit_after_the_consumer_slept_signals(void) {
    ring_t ring;
    CHECK(ring_init(&ring, 256) == BQ_OK);
    CHECK(ring_wait_begin(&ring));
    CHECK(ring_reserve(&ring, 4) && ring_commit(&ring));
    CHECK(ring_reserve(&ring, 4) && !ring_commit(&ring));
    ring_wait_end(&ring);
    CHECK(!ring_wait_begin(&ring)); /* there is a record: do not sleep */
    CHECK(ring_reserve(&ring, 4) && !ring_commit(&ring));
    ring_free(&ring);
}

struct link {
    ring_t ring;
    poll_wake_t wake;
    uint64_t signals, looks;
};

static void *produce(void *argument) {
    struct link *link = argument;
    uint32_t limit = ring_record_max(&link->ring);
    for (uint64_t sequence = 0; sequence < RECORDS;) {
        uint32_t size = size_of(sequence, limit);
        uint8_t *record = ring_reserve(&link->ring, size);
        if (!record) continue;
        write_record(record, size, sequence++);
        if (!ring_commit(&link->ring)) continue;
        link->signals++;
        poll_wake_signal(&link->wake);
    }
    return NULL;
}

static void sleep_until_signalled(struct link *link, int poller) {
    poll_event_t event;
    link->looks++;
    if (ring_wait_begin(&link->ring)) {
        CHECK(poll_wait(poller, &event, 1, WAIT_MS) == 1);
        poll_wake_clear(&link->wake);
    }
    ring_wait_end(&link->ring);
}

static void test_two_threads_lose_no_record_and_no_wake_up(void) {
    static struct link link;
    poll_thread_t thread;
    int poller = poll_open();
    CHECK(ring_init(&link.ring, CAPACITY) == BQ_OK && poll_wake_open(&link.wake) == BQ_OK);
    CHECK(poll_set(poller, link.wake.read_fd, 1, 0, POLL_READ) == BQ_OK);
    CHECK(poll_thread_start(&thread, "producer", produce, &link) == BQ_OK);
    for (uint64_t sequence = 0; sequence < RECORDS;) {
        uint32_t size;
        const uint8_t *record = ring_peek(&link.ring, &size);
        if (!record) {
            sleep_until_signalled(&link, poller);
            continue;
        }
        check_record(record, size, sequence++, ring_record_max(&link.ring));
        ring_pop(&link.ring);
    }
    CHECK(poll_thread_join(&thread) == BQ_OK);
    CHECK(link.signals <= link.looks); /* a signal may come for a check that found a record: it is only early */
    poll_wake_close(&link.wake);
    poll_close(poller);
    ring_free(&link.ring);
}

int main(void) {
    for (uint32_t capacity = 64; capacity <= CAPACITY; capacity *= 2)
        test_records_are_read_unchanged_and_in_order(capacity, capacity);
    test_sizes_outside_the_limits_are_refused();
    test_only_the_first_commit_after_the_consumer_slept_signals();
    test_two_threads_lose_no_record_and_no_wake_up();
    return 0;
}
