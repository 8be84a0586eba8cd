"""Bugs that tests plant into a copy of the core sources, to show that other tests find them.

Invariant: the real sources contain no planted bug. A `Bug` names a file of native/ by its base name; each of its edits
replaces a text that occurs there exactly once. If it does not, `Stale` names the bug that must be updated.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"


class Stale(AssertionError):
    """The source has changed and an edit no longer fits it."""


class Edit(NamedTuple):
    before: str
    after: str


class Bug(NamedTuple):
    """In native/**/`file` each edit replaces `before` with `after`."""

    file: str
    edits: tuple[Edit, ...]


def bug(file: str, *edits: tuple[str, str]) -> Bug:
    return Bug(file, tuple(Edit(*edit) for edit in edits))


BUGS: dict[str, Bug] = {
    # ---- the write-ahead log
    "retry_fsync": bug(
        "writer.c",
        (
            "error = wal->storage->sync_data(wal->storage, file);",
            "error = wal->storage->sync_data(wal->storage, file);\n"
            "    if (error < 0) error = wal->storage->sync_data(wal->storage, file);",
        ),
    ),
    "reply_before_fsync": bug(
        "writer.c",
        (
            "    if (!whole && !next) {\n        wal->position += part.bytes;",
            "    atomic_store(&wal->durable, part.next_lsn - 1);\n    wal_wake(wal);\n    if (!whole && !next) {\n"
            "        wal->position += part.bytes;",
        ),
    ),
    "serve_doubtful": bug(
        "writer.c",
        (
            "atomic_store(&wal->durable, wal->sure_lsn);",
            "atomic_store(&wal->durable, wal->next_lsn - 1);",
        ),
    ),
    "no_directory_fsync": bug(
        "directory.c",
        (
            "    if (error >= 0) error = storage->sync_directory(storage);\n    return error < 0 ? error : 0;",
            "    return error < 0 ? error : 0;",
        ),
    ),
    "headers_in_one_page": bug(
        "directory.c",
        (
            "    bool ends = third == FORMAT_GOOD &&",
            "    third = FORMAT_BAD;\n    bool ends = third == FORMAT_GOOD &&",
        ),
    ),
    "crc_without_length": bug(
        "format.c",
        (
            "return crc32_update(seed, record, 20);",
            "return crc32_update(crc32_update(seed, record, 4), record + 8, 12);",
        ),
    ),
    "forget_newest": bug(
        "ledger.c",
        (
            "    int error = ledger_write(wal, ledger);\n    monitor_leave(&wal->ledger_monitor);\n    return error;\n}\n\n"
            "bool ledger_lets_go(",
            "    if (wal->ledger.sequence) ledger = wal->ledger;\n    int error = ledger_write(wal, ledger);\n"
            "    monitor_leave(&wal->ledger_monitor);\n    return error;\n}\n\nbool ledger_lets_go(",
        ),
    ),
    "truncate_on_damage": bug(
        "recover.c",
        (
            "segment->damaged = segment->damaged || junk_end > begin;",
            "segment->damaged = segment->damaged || junk_end > begin;\n        segment_leave(recover);",
        ),
    ),
    "ledger_too_early": bug(
        "tail.c",
        (
            "    error = segment_write(wal, segment, next_lsn, &file);",
            "    ledger_begun(wal, segment, segment);\n    error = segment_write(wal, segment, next_lsn, &file);",
        ),
    ),
    "drop_before_ledger": bug(
        "tail.c",
        (
            "    const ledger_t *ledger = &wal->ledger;\n    const segment_t *newest =",
            "    if (wal) return true;\n    const ledger_t *ledger = &wal->ledger;\n    const segment_t *newest =",
        ),
    ),
    "cut_before_sync": bug(
        "tail.c",
        (
            "        if (size >= 0 && storage->sync_data(storage, file) < 0) return;\n    }",
            "    }",
        ),
    ),
    "header_copy_not_written": bug(
        "directory.c",
        ("    memcpy(room + FORMAT_HEADER_COPY, room, FORMAT_HEADER_BYTES);\n    *file =", "    *file ="),
    ),
    "header_at_the_end_not_written": bug(
        "directory.c",
        (
            "    if (error >= 0) error = storage->write(storage, *file, format_records_end(header), room, FORMAT_END_BYTES);\n",
            "",
        ),
    ),
    # ---- subscriptions and groups
    "group_is_durable_as_its_first_member": bug(
        "consumer_table.c",
        (
            "bool holds = request->durable && !registration;",
            "bool holds = request->durable && !registration && !(attempt.consumer && attempt.consumer->grouped);",
        ),
    ),
    "group_has_the_qos_of_its_first_member": bug(
        "consumer_table.c",
        (
            "if (qos <= attempt->consumer->qos) return;",
            "if (qos <= attempt->consumer->qos || attempt->consumer->grouped) return;",
        ),
    ),
    "unsub_of_one_member_ends_the_group": bug(
        "consumer_table.c",
        (
            "    registration_remove(broker, consumer, registration);\n    if (consumer->registrations) return false;",
            "    (void)registration;\n    while (consumer->registrations)"
            " registration_remove(broker, consumer, consumer->registrations);",
        ),
    ),
    "suback_before_the_disk": bug(
        "consumer_table.c",
        (
            "    commit_answer_wait(broker, client, pending, (uint64_t)lsn);\n    registration->record_lsn = (uint64_t)lsn;",
            "    commit_answer_wait(broker, client, pending, wal_durable(broker->wal));\n"
            "    registration->record_lsn = (uint64_t)lsn;",
        ),
    ),
    "key_has_as_many_sessions_as_it_wants": bug(
        "consumer_table.c", ("    if (!request->keyed ||", "    if (request->keyed || !request->keyed ||")
    ),
    "expiry_ends_a_connected_session": bug(
        "consumer_expire.c",
        ("    if (!consumer->durable || consumer->members) return false;", "    if (!consumer->durable) return false;"),
        (
            "    if (consumer->members) return 0;",
            "    if (consumer->members && consumer->member_count > 1000) return 0;",
        ),
    ),
    "quota_drops_instead_of_dead_letters": bug(
        "wal_quota.c", ("    if (broker->config.session_overflow != BQ_SESSION_OVERFLOW_DROP) return false;\n", "")
    ),
    # ---- deliveries
    "acknowledgement_forgotten_across_a_reconnect": bug(
        "consumer_history.c",
        (
            "    if (history->at == history->count ||"
            " history->base_lsn + history->entries[history->at].after != lsn) return true;",
            "    if (history->at == history->count ||"
            " history->base_lsn + history->entries[history->at].after != lsn) return false;",
        ),
    ),
    "ack_timer_before_it_was_handed_over": bug(
        "consumer.c",
        (
            "    flight_begin(broker, delivery, member);",
            "    flight_begin(broker, delivery, member);\n"
            "    if (member->qos) timer_set(broker, &delivery->hold.timer, ack_timeout_ms(broker, delivery));",
        ),
        (
            "    } else if (delivery->place == DELIVERY_HANDED) {\n        flight_end(",
            "    } else {\n        flight_end(",
        ),
    ),
    "tried_again_unmarked": bug(
        "consumer.c",
        (
            "        delivery->redelivered = true;\n        delivery->killed = false;",
            "        delivery->killed = false;",
        ),
    ),
    "floor_above_what_is_not_acknowledged": bug(
        "consumer.c",
        (
            "        consumer->floor_lsn = consumer->head->lsn - 1;",
            "        consumer->floor_lsn = consumer->tail->lsn - 1;",
        ),
    ),
    "kept_entry_sent_twice": bug(
        "outqueue.c",
        (
            "    hold->count = run->size;\n    entry_insert_after(queue, queue->tail, entry);",
            "    hold->count = run->size;\n    entry_insert_after(queue, queue->tail, entry);\n"
            "    queue_entry_t *twin = entry_new(env, queue, run);\n    if (!twin) return true;\n"
            "    twin->kept = true;\n    entry_insert_after(queue, queue->tail, twin);",
        ),
    ),
    "dead_letter_without_room_dropped_uncounted": bug(
        "dead_letter.c",
        (
            "        } else if (error == WAL_E_FULL && overtaken(broker, delivery)) {\n            continue;",
            "        } else if (error == WAL_E_FULL) {\n            delivery_dead(broker, delivery);",
        ),
        ("static bool overtaken(", "bool overtaken(broker_t *broker, const delivery_t *first);\nbool overtaken("),
    ),
    "refused_sub_delivers": bug(
        "commit.c", ("        if (!durable && pending->undo) consumer_subscribe_undo(broker, client, pending);\n", "")
    ),
    "message_settled_before_its_dead_letter_is_on_disk": bug(
        "dead_letter.c",
        (
            "        return lsn > 0 ? 0 : lsn;",
            "        if (lsn <= 0) return lsn;\n"
            "        delivery->letter->delivery = NULL;\n        delivery->letter = NULL;\n"
            "        delivery_dead(broker, delivery);\n        return 0;",
        ),
    ),
    "quota_takes_what_lies_within_it": bug(
        "wal_quota.c",
        (
            "    uint64_t quota = broker->config.session_log_bytes, bytes = quota, lsn",
            "    uint64_t quota = broker->config.session_log_bytes / 8, bytes = quota, lsn",
        ),
    ),
    "dead_letter_of_the_quota_is_not_written": bug(
        "wal_quota.c", ("    dead_letter_send(broker, delivery);\n", "    delivery_dead(broker, delivery);\n")
    ),
    "subscription_ends_in_half_the_time": bug(
        "consumer_expire.c",
        (
            "away_ms >= broker->config.session_expiry_ms;",
            "away_ms >= broker->config.session_expiry_ms / 2;",
        ),
    ),
    # ---- time
    "time_to_live_begins_anew_at_a_restart": bug(
        "timeline.c",
        ("    return now_ms > accepted_ms ? now_ms - accepted_ms : 0;", "    return now_ms < accepted_ms;"),
    ),
    "time_to_live_judged_late": bug(
        "consumer.c",
        (
            "delivery->expiry_tick && delivery->expiry_tick <= broker->wheel.now;",
            "delivery->expiry_tick && delivery->expiry_tick + 2000 <= broker->wheel.now;",
        ),
    ),
    "time_line_falls_back_after_a_kill": bug(
        "timeline.c",
        ("    if (run->base_ms != TIMELINE_UNKNOWN) known(line, time_of(run, record->mono_ms));\n", ""),
    ),
    # ---- work and memory
    "filters_matched_in_one_go": bug(
        "router.c",
        (
            "    uint64_t more = (uint64_t)units << topic->restarts;",
            "    uint64_t more = units + topic->restarts + (1ull << 40);",
        ),
    ),
    "drops_walk_over_all_that_is_kept": bug(
        "outqueue.c",
        (
            "queue_entry_t *entry = queue->oldest = with_messages(env, queue->oldest);",
            "queue_entry_t *entry = queue->oldest = with_messages(env, queue->head);",
        ),
    ),
    "qos_0_behind_the_disk_outside_the_budget": bug(
        "commit.c",
        (
            "    return client->pending_bytes < PENDING_BYTES_OWN &&"
            " budget_part(broker, broker->pending_bytes) && !budget_over(broker);",
            "    return client->pending_bytes < UINT64_MAX && broker;",
        ),
    ),
    "blocked_group_outside_the_budget": bug(
        "publish.c",
        ("    if (target->blocked && target->queue.messages && budget_over(broker)) return false;\n", ""),
    ),
    "marked_copies_outside_the_budget": bug(
        "consumer.c",
        (
            "budget_over(broker) && delivery->consumer->flight_count ? NULL : shared_reserve(broker, size);",
            "shared_reserve(broker, size);",
        ),
        ("    if (other && other->id == delivery->id &&", "    if (other && other->id == delivery->id + 1 &&"),
    ),
    "output_through_python_outside_the_budget": bug(
        "transport_memory.c",
        ("budget_part(&net->broker, net->broker.credit_bytes) ? CREDIT_BYTES : MEMORY_CHUNK_BYTES;", "CREDIT_BYTES;"),
    ),
    "output_through_python_never_counted_back": bug(
        "transport_memory.c", ("    net->broker.credit_bytes -= back;\n", "")
    ),
    "held_bytes_never_counted_back": bug("commit.c", ("    broker->pending_bytes -= pending_bytes(pending);\n", "")),
    # ---- lost peers ----
    "silent_client_keeps_its_place": bug(
        "keepalive.c",
        (
            "uint64_t silent_ms = net->broker.now_ms - connection->heard_ms;",
            "uint64_t silent_ms = (net->broker.now_ms - connection->heard_ms) % most_ms;",
        ),
    ),
    # ---- TLS in the core
    "input_behind_the_handshake_lost": bug(
        "transport_secure.c",
        (
            "    take(net, connection, (ciphertext_t){step->in + step->in_used, step->in_size - step->in_used});\n",
            "    (void)step;\n",
        ),
    ),
    "handshakes_without_a_limit": bug(
        "admission.c",
        ("endpoint->transport->shakes || endpoint->websocket", "endpoint->websocket"),
    ),
    "certificate_without_room_forgotten": bug(
        "transport_secure.c",
        ("secure->untold = !told && facts.has_certificate;", "secure->untold = false;"),
    ),
    "input_while_ciphertext_waits": bug(
        "transport_secure.c",
        (
            "connection->state == CONNECTION_OPEN && !connection->client.pause && !connection->input_ended &&\n"
            "                     unsent_bytes(connection) < UNSENT_BYTES_MAX;",
            "connection->state == CONNECTION_OPEN && !connection->client.pause && !connection->input_ended;",
        ),
        ("connection->away || unsent_bytes(connection) >= UNSENT_BYTES_MAX", "connection->away"),
    ),
    "more_encrypted_while_ciphertext_waits": bug(
        "transport_secure.c",
        (
            "else if (secure_is_open(connection) && !secure->unsent_size && !secure->stalled && !connection->send_error) {",
            "else if (secure_is_open(connection) && !connection->send_error) {",
        ),
    ),
    # ---- WebSocket
    "begun_frame_not_kept": bug(
        "websocket.c",
        (
            "    if (websocket->frame_bytes) websocket->cut = websocket->cutting;",
            "    if (bytes > websocket->lead_size && bytes < (uint64_t)websocket->lead_size + websocket->frame_bytes) {\n"
            "        websocket->rest_size = 0;\n        return bytes - websocket->lead_size;\n    }",
        ),
    ),
    "head_of_the_queue_not_known_to_be_cut": bug(
        "websocket.c",
        ("if (websocket->frame_bytes) websocket->cut = websocket->cutting;", "websocket->cut = false;"),
    ),
    "frames_without_a_mask_accepted": bug(
        "websocket_codec.c", ("else if (!(second & 0x80))", "else if (!(second & 0x80) && decoder->fragmented)")
    ),
    "any_page_may_connect": bug(
        "websocket_handshake.c", ("return !strict && !origins->size;", "return !origins->size;")
    ),
    "certificate_forgotten_for_origins": bug(
        "websocket.c",
        ("(connection->secure && connection->secure->certified)", "(connection->secure && !connection->secure)"),
    ),
    "close_after_the_end_of_tls": bug(
        "websocket.c",
        ("if (websocket->rest_size || close_due(connection)) return true;", "if (websocket->rest_size) return true;"),
    ),
}


def source_of(file: str) -> Path:
    """The only file with that base name below native/."""
    found = sorted(NATIVE.rglob(file))
    if len(found) != 1:
        raise Stale(f"tests/planted.py: native/ has {len(found)} files named {file}; an edit needs exactly one")
    return found[0]


def text_with(name: str) -> str:
    """The source text with the bug."""
    source = source_of(BUGS[name].file)
    text = source.read_text(encoding="utf-8")
    for edit in BUGS[name].edits:
        if (times := text.count(edit.before)) != 1:
            raise Stale(
                f"tests/planted.py: planted bug {name!r} no longer applies: the text it replaces stands {times} times in "
                f"{source.relative_to(ROOT)}, not once. The source has changed; change the bug's edit with it:\n{edit.before}"
            )
        text = text.replace(edit.before, edit.after)
    return text


def source_with(name: str, directory: Path) -> Path:
    """The source file with the bug, in `directory`."""
    file = directory / BUGS[name].file
    file.write_text(text_with(name), encoding="utf-8")
    return file
