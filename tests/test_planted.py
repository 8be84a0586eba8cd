"""Planted bugs (planted.py) fit the current sources, and their tests detect them.

Invariant: the same tests and simulated runs pass on the unchanged sources: see test_fuzz.py. Bugs of the write-ahead
log are detected in test_wal_programs.py.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import planted
import planted_builds
import pytest
import test_wal_programs
from fuzz import seeds

# Detected by native/fuzz/fuzz_promise.c, which knows the obligations to each durable subscription and group, in one of
# a hundred simulated runs.
BY_LIVES = [
    "group_is_durable_as_its_first_member",
    "unsub_of_one_member_ends_the_group",
    "suback_before_the_disk",
    "acknowledgement_forgotten_across_a_reconnect",
    "tried_again_unmarked",
    "floor_above_what_is_not_acknowledged",
    "kept_entry_sent_twice",
    "time_to_live_begins_anew_at_a_restart",
    "time_to_live_judged_late",
    "quota_takes_what_lies_within_it",
    "dead_letter_of_the_quota_is_not_written",
    "subscription_ends_in_half_the_time",
    "output_through_python_never_counted_back",
    "held_bytes_never_counted_back",
]
# Detected by a test of this directory, on the package with that core.
BY_TESTS = {
    "refused_sub_delivers": "test_core_log.py::test_a_subscription_whose_commit_fails_delivers_nothing",
    "group_has_the_qos_of_its_first_member": "test_core_identity.py::test_repeated_requests_change_a_subscription_as",
    "key_has_as_many_sessions_as_it_wants": "test_key_limits.py::test_a_key_cannot_exceed_its_consumer_limit_and",
    "expiry_ends_a_connected_session": "test_session_expire.py::test_a_subscription_without_connection_expires_and",
    "quota_drops_instead_of_dead_letters": "test_session_quota.py::test_messages_over_the_quota_become_dead_letters",
    "ack_timer_before_it_was_handed_over": "test_core_deliveries.py::test_a_message_for_a_slow_reader_is_queued_once",
    "dead_letter_without_room_dropped_uncounted": "test_core_dead_letters.py::test_the_oldest_dead_letters_are_dropped",
    "message_settled_before_its_dead_letter_is_on_disk": "test_core_dead_letters.py::test_a_message_is_not_settled_before_its",
    "time_line_falls_back_after_a_kill": "test_timeline.py::test_a_kill_and_a_reboot_never_move_the_timeline_back",
    "filters_matched_in_one_go": "test_core_share.py::test_the_work_for_one_publisher_in_a_turn_is_bounded",
    "drops_walk_over_all_that_is_kept": "test_core_share.py::test_a_queue_drop_scans_undroppable_messages_only_once",
    "qos_0_behind_the_disk_outside_the_budget": "test_core_memory.py::test_qos_0_messages_pending_behind_a_commit",
    "blocked_group_outside_the_budget": "test_core_memory.py::test_unread_group_queues_stay_within_the_budget",
    "marked_copies_outside_the_budget": "test_core_deliveries.py::test_a_redelivery_to_many_is_marked_in_one_shared",
    "output_through_python_outside_the_budget": "test_core_memory.py::test_unread_replies_are_bounded_in_memory",
    "input_behind_the_handshake_lost": "test_core_secure.py::test_frames_directly_behind_the_last_handshake",
    "handshakes_without_a_limit": "test_core_secure.py::test_at_max_pending_the_slowest_handshake_is_displaced",
    "certificate_without_room_forgotten": "test_core_secure.py::test_no_request_is_parsed_while_the_certificate",
    "input_while_ciphertext_waits": "test_core_secure.py::test_input_stops_while_answers_of_tls_itself_wait",
    "more_encrypted_while_ciphertext_waits": "test_core_secure.py::test_little_more_is_encrypted_than_a_slow_reader",
    "begun_frame_not_kept": "test_websocket.py::test_a_frame_that_was_begun_keeps_its_length_while_the_queue_drops",
    "head_of_the_queue_not_known_to_be_cut": "test_websocket.py::test_a_long_answer_that_was_begun_is_completed",
    "frames_without_a_mask_accepted": "test_websocket.py::test_a_frame_without_a_mask_is_refused",
    "any_page_may_connect": "test_websocket_handshake.py::test_pages_may_connect_only_if_their_origin_is_allowed",
    "certificate_forgotten_for_origins": "test_websocket_secure.py::test_a_certificate_of_the_client_makes_pages_need",
    "close_after_the_end_of_tls": "test_websocket_secure.py::test_the_close_comes_before_the_end_of_tls",
    "silent_client_keeps_its_place": "test_core_keepalive.py::test_a_client_that_misses_its_keep_alive_is_closed_and",
}
SHARE = [
    "group_is_durable_as_its_first_member",
    "acknowledgement_forgotten_across_a_reconnect",
    "time_to_live_begins_anew_at_a_restart",
    "held_bytes_never_counted_back",
    "expiry_ends_a_connected_session",
    "filters_matched_in_one_go",
]


def not_found(directory: Path, names: list[str]) -> list[str]:
    """The bugs that no test detects."""
    builds = planted_builds.Builds(directory)
    seeds.write("promise", directory / "lives")
    lives = sorted(map(str, (directory / "lives").iterdir()))

    def found(name: str) -> bool:
        objects = builds.with_bug(name)
        if name in BY_LIVES:
            return planted_builds.breaks(builds.replayer(name, "promise", objects), lives)
        file, test = BY_TESTS[name].split("::")
        return planted_builds.fails(builds.package(name, objects), f"tests/{file}", test)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [name for name, was in zip(names, pool.map(found, names), strict=True) if not was]


def test_a_share_of_the_planted_bugs_is_found(tmp_path: Path) -> None:
    assert not_found(tmp_path, SHARE) == []


@pytest.mark.slow
def test_every_planted_bug_is_found(tmp_path: Path) -> None:
    names = [name for name in [*BY_LIVES, *BY_TESTS] if name not in SHARE]
    assert not_found(tmp_path, names) == []


def test_every_planted_bug_has_a_test_that_should_find_it() -> None:
    named = [*BY_LIVES, *BY_TESTS, *(bug for bug, _, _ in test_wal_programs.PLANTED)]
    assert sorted(named) == sorted(planted.BUGS)


def test_every_planted_bug_fits_the_current_source() -> None:
    for name, bug in planted.BUGS.items():
        assert planted.text_with(name) != planted.source_of(bug.file).read_text(encoding="utf-8"), name


def test_a_planted_bug_that_no_longer_fits_is_named_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planted.BUGS, "gone", planted.bug("writer.c", ("a text that stands nowhere", "")))
    with pytest.raises(planted.Stale, match=r"'gone' no longer applies.* 0 times in native/.*writer\.c"):
        planted.text_with("gone")
    monkeypatch.setitem(planted.BUGS, "gone", planted.bug("no_such_file.c"))
    with pytest.raises(planted.Stale, match="0 files named no_such_file"):
        planted.text_with("gone")


def test_the_core_has_no_switch_that_plants_a_bug() -> None:
    sources = [*planted.NATIVE.rglob("*.c"), *planted.NATIVE.rglob("*.h")]
    assert len(sources) > 50
    assert [path.name for path in sources if re.search(r"\bBUG_", path.read_text(encoding="utf-8"))] == []
