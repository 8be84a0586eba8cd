"""The codec of MQTT 3.1.1 and 5: packets written by hand for the statements of the specifications.

Invariant: every expected value comes from the specifications.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import mqtt_packets as mqtt
import pytest
from c_library import CC, NATIVE
from mqtt_codec import ERROR_BASE, ERRORS, SOURCES, Codec
from mqtt_packets import connect
from mqtt_rows import ROWS

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec(tmp_path_factory.mktemp("mqtt"))


# ---- the statements of the specifications ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
def test_each_statement_about_a_packet_is_followed(codec: Codec, version: int) -> None:
    wrong = []
    for row in ROWS:
        if row.version != version:
            continue
        found = codec.read(row.packet, version)
        if isinstance(found, dict) and isinstance(row.expected, dict):
            found = {name: found[name] for name in row.expected}
        if found != row.expected:
            wrong.append((row.statement, row.packet.hex(" "), row.expected, found))
    assert wrong == []


def test_every_error_is_in_the_tables() -> None:
    expected = {row.expected for row in ROWS if isinstance(row.expected, str)}
    elsewhere = {"TOO_LARGE", "FILTER_WILDCARD", "FILTER_SHARE"}  # tests of their own below
    assert {name for name, _, _ in ERRORS} == expected | elsewhere


# The reason code that the specification names in words for a violation.
NAMED_REASONS = {
    0x81: "FLAGS LENGTH CUT UTF8 NUL CONNECT_FLAG WILL_QOS PUBLISH_QOS OPTIONS PROPERTY_UNKNOWN PROPERTY_PLACE",
    0x82: "PROPERTY_TWICE PROPERTY_VALUE TOPIC_EMPTY FILTER_MISSING OPTION_QOS OPTION_RETAIN SHARE_NO_LOCAL AUTH_METHOD",
    0x84: "PROTOCOL_NAME PROTOCOL_VERSION",
    0x85: "CLIENT_ID",
    0x90: "TOPIC_LONG",
    0x8F: "FILTER_LONG",
    0x94: "ALIAS",
    0x95: "TOO_LARGE",
}


def test_violations_have_the_reason_codes_that_the_specification_names(codec: Codec) -> None:
    numbers = {name: number for number, (name, _, _) in enumerate(ERRORS)}
    for reason, names in NAMED_REASONS.items():
        for name in names.split():
            assert (name, codec.lib.mqtt_error_reason(ERROR_BASE - numbers[name])) == (name, reason)


def test_codes_that_are_no_errors_of_mqtt_have_a_phrase_too(codec: Codec) -> None:
    for code in (ERROR_BASE + 1, ERROR_BASE - len(ERRORS), -1):
        assert codec.lib.mqtt_error_reason(code) == 0x80
        assert codec.ffi.string(codec.lib.mqtt_error_phrase(code)) == b"unknown error"
    assert codec.ffi.string(codec.lib.mqtt_error_phrase(0)) == b"no error"


def test_defaults_of_connect_are_those_of_the_specification(codec: Codec) -> None:
    expected = {
        "receive_maximum": 65535,
        "maximum_packet_bytes": 2**32 - 1,
        "request_problem": 1,
        "topic_alias_maximum": 0,
    }
    for raw in (connect(4), connect(5), connect(5, values={"session_expiry_s": 1})):
        assert isinstance(codec.read(raw), dict) and codec.defaults == expected
    given_values = {"receive_maximum": 1, "maximum_packet_bytes": 2, "request_problem": 0, "topic_alias_maximum": 3}
    assert isinstance(codec.read(connect(5, values=given_values)), dict) and codec.defaults == given_values


@pytest.mark.parametrize(
    ("raw", "version"),
    [(connect(6), 5), (connect(3), 4), (connect(0x83), 4), (connect(0x84), 4), (connect(5, name=b"HTTP"), 0),
     (connect(5, flags=3), 5)],
)  # fmt: skip
def test_a_refused_connect_tells_which_connack_the_client_understands(codec: Codec, raw: bytes, version: int) -> None:
    assert isinstance(codec.read(raw), str) and codec.refused_version == version


# ---- the fixed header ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455])
def test_a_fixed_header_is_read_from_any_number_of_bytes(codec: Codec, size: int) -> None:
    header = b"\x30" + mqtt.variable(size)
    for have in range(len(header)):
        assert codec.frame(header[:have], 5, 2**32 - 1) is None
    for behind in (b"", b"\xff"):
        frame = codec.frame(header + behind, 5, 2**32 - 1)
        assert (frame.type, frame.flags, frame.header_size, frame.body_size) == (3, 0, len(header), size)


def test_a_remaining_length_has_at_most_four_bytes(codec: Codec) -> None:
    for version in (0, 4, 5):
        assert codec.frame(b"\x30\x80\x80\x80", version) is None
        assert codec.frame(b"\x30\x80\x80\x80\x80", version) == "LENGTH"
        assert codec.frame(b"\x30\xff\xff\xff\xff\x7f", version) == "LENGTH"


def test_only_mqtt_5_refuses_a_remaining_length_that_wastes_bytes(codec: Codec) -> None:
    for raw in (b"\x30\x80\0", b"\x30\x85\x80\0", b"\x30\x80\x80\x80\0"):
        assert codec.frame(raw, 5) == "LENGTH"
        assert codec.frame(raw, 4).wasteful == 1 and codec.frame(raw, 0).header_size == len(raw)


def test_a_packet_over_the_limit_is_refused_by_its_length_alone(codec: Codec) -> None:
    header = b"\x30" + mqtt.variable(1000)
    assert codec.frame(header, 5, 1003).body_size == 1000
    assert codec.frame(header, 5, 1002) == "TOO_LARGE"
    assert codec.frame(b"\x30\xff\xff\xff\x7f", 4, 1 << 20) == "TOO_LARGE"


# ---- topics and filters ----------------------------------------------------------------------------------------------

# filter, then group, filter and whether it has wildcards; or an error
FILTERS: list[tuple[str, tuple[str, str, bool] | str]] = [
    ("a", ("", "a", False)),
    ("/", ("", "/", False)),
    ("a//b", ("", "a//b", False)),
    ("#", ("", "#", True)),
    ("+", ("", "+", True)),
    ("+/+", ("", "+/+", True)),
    ("/+", ("", "/+", True)),
    ("a/#", ("", "a/#", True)),
    ("+/a/#", ("", "+/a/#", True)),
    ("a b/ä", ("", "a b/ä", False)),
    ("a.*", ("", "a.*", False)),
    (">", ("", ">", False)),
    ("a/>/+", ("", "a/>/+", True)),
    ("$SYS/#", ("", "$SYS/#", True)),
    ("$share", ("", "$share", False)),
    ("$sharex/a/b", ("", "$sharex/a/b", False)),
    ("$share/g/a", ("g", "a", False)),
    ("$share/g//", ("g", "/", False)),
    ("$share/g/+/#", ("g", "+/#", True)),
    ("$share/g h/$SYS/+", ("g h", "$SYS/+", True)),
    ("a#", "FILTER_WILDCARD"),
    ("#a", "FILTER_WILDCARD"),
    ("a/#/b", "FILTER_WILDCARD"),
    ("#/", "FILTER_WILDCARD"),
    ("##", "FILTER_WILDCARD"),
    ("a+", "FILTER_WILDCARD"),
    ("+a", "FILTER_WILDCARD"),
    ("++", "FILTER_WILDCARD"),
    ("a/b+/c", "FILTER_WILDCARD"),
    ("+#", "FILTER_WILDCARD"),
    ("12345678901234567890#", "FILTER_WILDCARD"),
    ("$share/g/a#", "FILTER_WILDCARD"),
    ("$share/", "FILTER_SHARE"),
    ("$share//a", "FILTER_SHARE"),
    ("$share/g", "FILTER_SHARE"),
    ("$share/g/", "FILTER_SHARE"),
    ("$share/+/a", "FILTER_SHARE"),
    ("$share/g#/a", "FILTER_SHARE"),
    ("", "FILTER_EMPTY"),
]


@pytest.mark.parametrize(("name", "expected"), FILTERS)
def test_a_filter_follows_the_grammar_of_the_specification(codec: Codec, name: str, expected: Any) -> None:
    found = codec.filter(name.encode())
    if isinstance(expected, str):
        assert found == expected
    else:
        assert isinstance(found, dict)
        assert (found["group"].decode(), found["filter"].decode(), found["wildcards"]) == expected


# 4.7.1.2, 4.7.1.3, 4.7.2, 4.7.3 of the specification, and the characters that are wildcards of the other syntax
MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("#", "$SYS/a", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("$SYS/#", "$SYS/a", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ("ACCOUNTS", "Accounts", False),
    ("a.*", "a.b", False),
    ("a.*", "a.*", True),
    (">", "a", False),
    ("+/>", "a/b", False),
    ("+/>", "a/>", True),
    ("*/+", "a/b", False),
    ("*/#", "*/b/c", True),
    ("$share/g/a/+", "a/b", True),
    ("$share/g/+", "$SYS", False),
]


@pytest.mark.parametrize(("name", "topic", "expected"), MATCHES)
def test_a_filter_matches_as_the_specification_says(codec: Codec, name: str, topic: str, expected: bool) -> None:
    assert codec.matches(name.encode(), topic.encode()) is expected


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_no_packet_makes_the_codec_read_outside_it(tmp_path: Path) -> None:
    """Each packet of the tables, cut at every byte and with random changes, under the sanitizers."""
    program = tmp_path / "test_mqtt"
    flags = [
        "-std=c11",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    files = [str(TESTS / "native" / "test_mqtt.c"), *map(str, SOURCES)]
    subprocess.run([*CC, *flags, f"-I{NATIVE}", *files, "-o", str(program)], check=True)
    stdin = b"".join(struct.pack("<BI", row.version, len(row.packet)) + row.packet for row in ROWS)
    done = subprocess.run([str(program)], input=stdin, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
