"""The key file and its rules: accepted content, refused content, and that no invalid file admits a client."""

import json
import os
import stat
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blipmq.auth import keys
from blipmq.auth.keys import (
    KEYS_MAX,
    KeyNameTaken,
    Keyring,
    KeysDenied,
    NoSuchKey,
    Plain,
    add_key,
    list_keys,
    read_keyring,
    revoke_key,
    rotate_key,
    undo_rotation,
)
from blipmq.errors import ConfigError, UsageError

SALT = "ab" * 32
HEADER = json.dumps({"format": 1, "salt": SALT})
GIVEN = "a-key-that-someone-chose"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def line(name="a", digits="00" * 32, **more):
    return json.dumps({"name": name, "hash": digits, "created": "2026-11-24", **more})


def write(path, *lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


# ---- accepted content ----


def test_a_new_key_is_found_by_its_text_and_only_its_hash_is_in_the_file(path):
    key = add_key(path, "sensor-7", ["pub:site/1", "sub:site/#"])
    assert key.startswith("bq_") and len(key) == 46
    assert key not in path.read_text()
    found = read_keyring(path).find(key.encode())
    assert (found.name, found.allow) == ("sensor-7", ("pub:site/1", "sub:site/#"))


def test_generated_keys_are_always_different(path):
    assert len({add_key(path, f"key-{number}") for number in range(20)}) == 20


def test_a_given_key_is_used_instead_of_a_generated_one(path):
    assert add_key(path, "boiler", key=GIVEN) == GIVEN
    assert read_keyring(path).find(GIVEN.encode()).name == "boiler"


def test_keys_are_listed_in_the_order_they_were_made(path):
    for name in ("c", "a", "b"):
        add_key(path, name)
    assert [(key.name, len(key.created)) for key in list_keys(path)] == [("c", 10), ("a", 10), ("b", 10)]


def test_revoking_removes_one_key_and_keeps_others_and_comments(path):
    kept, gone = add_key(path, "kept"), add_key(path, "gone")
    path.write_text(path.read_text() + "# of the boiler house\n")
    revoke_key(path, "gone")
    ring = read_keyring(path)
    assert ring.find(kept.encode()).name == "kept" and ring.find(gone.encode()) is None
    assert "# of the boiler house\n" in path.read_text()


def test_a_name_can_be_used_again_for_another_key(path):
    first = add_key(path, "a")
    revoke_key(path, "a")
    second = add_key(path, "a")
    ring = read_keyring(path)
    assert first != second and ring.find(first.encode()) is None and ring.find(second.encode()).name == "a"


def test_the_file_is_private_to_its_owner_and_keeps_its_group(path):
    add_key(path, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    add_key(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_written_by_root_keeps_the_owner_of_the_file_or_folder(path, monkeypatch):
    given_to = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _, user, group: given_to.append((user, group)))
    add_key(path, "a")
    folder = path.parent.stat()
    assert set(given_to) == {(folder.st_uid, folder.st_gid)}
    given_to.clear()
    lstat = os.lstat

    def another_owner(name, **_):
        values = list(lstat(name))
        values[stat.ST_UID], values[stat.ST_GID] = 12345, 7
        return os.stat_result(values)

    monkeypatch.setattr(os, "lstat", another_owner)
    add_key(path, "b")
    assert given_to == [(12345, 7)]


def test_no_temporary_file_remains(path):
    add_key(path, "a")
    revoke_key(path, "a")
    assert [entry.name for entry in path.parent.iterdir()] == ["keys"]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    key = add_key(path, "a")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        add_key(path, "b")
    assert path.read_bytes() == before and read_keyring(path).find(key.encode())
    assert [entry.name for entry in path.parent.iterdir()] == ["keys"]


def test_the_file_is_synced_before_the_rename_and_its_folder_after(path, monkeypatch):
    add_key(path, "a")
    done = []
    fsync, replace = os.fsync, os.replace

    def sync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def put(*names):
        done.append("put in place")
        replace(*names)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", put)
    add_key(path, "b")
    assert done == ["file", "put in place", "folder"]


def test_concurrent_writers_lose_no_keys(path):
    threads = [threading.Thread(target=add_key, args=(path, f"key-{number}")) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in list_keys(path)} == {f"key-{number}" for number in range(16)}


def test_a_missing_folder_is_created(tmp_path):
    add_key(tmp_path / "data" / "keys", "a")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


# ---- lookup ----


def test_an_invalid_key_is_not_found(path):
    key = add_key(path, "a")
    ring = read_keyring(path)
    for wrong in ("", key[:-1], key + "x", key.upper(), key + "\0", "\0", "#", "*", "..", "x" * 65536, " " + key):
        assert ring.find(wrong.encode()) is None
    assert ring.find(b"\xff\xfe") is None


def test_every_invalid_key_takes_the_same_steps(path, monkeypatch):
    revoked, _ = add_key(path, "revoked"), add_key(path, "kept")
    revoke_key(path, "revoked")
    ring = read_keyring(path)
    hashed = []
    digest_of = keys.digest_of
    monkeypatch.setattr(keys, "digest_of", lambda *args: hashed.append(args) or digest_of(*args))
    wrongs = [b"", b"wrong", revoked.encode(), b"x" * 4096]
    assert [ring.find(wrong) for wrong in wrongs] == [None] * 4
    assert [presented for presented, _ in hashed] == [wrong for wrong in wrongs for _ in ("file", "plain")]


def test_an_empty_key_ring_admits_no_client():
    assert Keyring().find(b"") is None and len(Keyring()) == 0


def test_plain_keys_of_the_configuration_and_keys_of_the_file_are_both_valid(path):
    add_key(path, "limited", ["pub:a"], key=GIVEN)
    ring = read_keyring(path, Plain(["plain-key", GIVEN]))
    assert ring.find(b"plain-key").name == "auth.api_keys[0]"
    assert ring.find(GIVEN.encode()).allow == ("pub:a",), "of two with the same text the one with fewer rights counts"


def test_a_plain_key_is_current_while_it_is_in_the_configuration(path):
    found = Keyring(plain=Plain(["plain-key", "other"])).find(b"other")
    add_key(path, "a")
    assert read_keyring(path, Plain(["other"])).current(found).name == "auth.api_keys[0]"
    assert read_keyring(path, Plain(["third"])).current(found) is None


def test_a_key_is_current_while_its_text_and_name_exist(path):
    key = add_key(path, "a")
    found = read_keyring(path).find(key.encode())
    assert read_keyring(path).current(found) == found
    path.write_text(path.read_text().replace('"a"', '"b"'))
    assert read_keyring(path).current(found) is None
    revoke_key(path, "b")
    assert read_keyring(path).current(found) is None


# ---- rotation

LATER, EARLIER = "2999-12-31T23:59:59Z", "2001-01-01T00:00:00Z"


def test_both_keys_of_a_rotation_have_one_name_until_the_old_key_expires(path):
    old = add_key(path, "a", ["pub:x"])
    new, until = rotate_key(path, "a", 100)
    ring = read_keyring(path)
    found = [ring.find(text.encode()) for text in (old, new)]
    assert [(key.owner, key.allow) for key in found] == [("a", ("pub:x",))] * 2
    assert (found[0].until, found[1].until) == (until, 0)
    assert ring.end(until - 1) == [] and ring.current(found[0]) is not None
    assert ring.end(until) == [found[0]] and ring.find(old.encode()) is None and ring.current(found[0]) is None
    assert ring.find(new.encode()) == found[1] and len(ring) == 1


def test_an_undone_rotation_leaves_the_file_as_it_was_for_everyone(path):
    old = add_key(path, "a")
    before = path.read_text()
    rotate_key(path, "a", 0)
    undo_rotation(path, "a")
    assert path.read_text() == before and read_keyring(path).find(old.encode()) is not None


def test_the_next_write_removes_expired_keys_and_nothing_else(path):
    write(path, HEADER, "# a person's note", line("a", until=EARLIER), line("b", "01" * 32, until=LATER))
    assert [key.name for key in list_keys(path)] == ["a", "b"]
    assert len(read_keyring(path)) == 1
    add_key(path, "a")  # the name is free again
    text = path.read_text()
    assert EARLIER not in text and LATER in text and "# a person's note" in text
    with pytest.raises(KeyNameTaken):
        add_key(path, "b")
    with pytest.raises(NoSuchKey):
        rotate_key(path, "b", 1)  # no successor is possible: the old key ends anyway
    revoke_key(path, "b")
    assert [key.name for key in list_keys(path)] == ["a"]


@pytest.mark.parametrize(
    "until", ["", "tomorrow", "2026-12-01", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z", 7, None, LATER + "Z"]
)
def test_an_invalid_expiry_time_makes_the_file_invalid(path, until):
    with pytest.raises(ConfigError, match="`until` is a time such as"):
        read_keyring(write(path, HEADER, line(until=until)))


def test_a_name_may_occur_twice_only_in_a_rotation(path):
    assert len(read_keyring(write(path, HEADER, line(), line(digits="01" * 32, until=LATER)))) == 2
    for second in (line(digits="01" * 32), line(until=LATER)):
        with pytest.raises(ConfigError, match="exists twice"):
            read_keyring(write(path, HEADER, line(), second))
    with pytest.raises(ConfigError, match="exists twice"):
        read_keyring(write(path, HEADER, line(until=LATER), line(digits="01" * 32, until=LATER)))


# ---- ACLs ----


@pytest.mark.parametrize(
    ("allow", "filter_", "may"),
    [
        ([], "anything.>", True),
        (["pub:a"], "a", False),
        (["sub:site/#"], "site/+/temp", True),
        (["sub:site/+"], "site/#", False),
        (["sub:a", "sub:b"], "b", True),
        (["sub:#"], "$dlq/x", False),
        (["sub:$dlq/#"], "$dlq/x", True),
        (["sub:#"], "a.*", True),
    ],
)
def test_a_key_may_subscribe_within_its_filters(path, allow, filter_, may):
    key = add_key(path, "a", allow)
    assert read_keyring(path).find(key.encode()).may_subscribe(filter_) is may


@pytest.mark.parametrize(
    "right", ["", "a", "pub", "pub:", "sub:", "PUB:a", "all:a", "pub:a/*", "sub:a#", "sub:" + "x" * 257, "pub:a\n", 7]
)
def test_an_invalid_acl_is_refused(path, right):
    with pytest.raises(UsageError):
        add_key(path, "a", [right])
    assert not path.exists()


def test_the_size_of_an_acl_is_limited(path):
    with pytest.raises(UsageError, match="at most 64 rights, not 65"):
        add_key(path, "a", [f"pub:{number}" for number in range(65)])
    add_key(path, "a", [f"pub:{number}" for number in range(64)] * 2)


# ---- names and texts


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a#", "*", "a/b", "..", "a..b", "a\0", "a\nb", "\x1f", " a", "a ", "a+b", "a>b", "a\\b",
     "\ud800", "auth.api_keys[0]"],
)  # fmt: skip
def test_a_reserved_name_is_refused(path, name):
    with pytest.raises(UsageError):
        add_key(path, name)
    assert not path.exists()


@pytest.mark.parametrize("name", ["a", "x" * 64, "Heizung Süd", "10.0.0.7", "boiler-room_2", "'quoted'", '"'])
def test_a_usual_name_is_accepted(path, name):
    key = add_key(path, name)
    assert read_keyring(path).find(key.encode()).name == name
    revoke_key(path, name)
    assert list_keys(path) == []


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 513, "two words of a key", "with\ttabulator-in-it", "a-key-with-\0-in-it"]
)
def test_a_weak_or_untypable_key_is_refused_and_not_repeated(path, key):
    with pytest.raises(UsageError) as refused:
        add_key(path, "a", key=key)
    assert not path.exists() and (not key or key not in str(refused.value))


def test_a_duplicate_name_or_key_text_is_refused(path):
    add_key(path, "a", key=GIVEN)
    with pytest.raises(KeyNameTaken, match="Revoke it first"):
        add_key(path, "a")
    with pytest.raises(KeyNameTaken, match=r"'a' .* has the same text"):
        add_key(path, "b", key=GIVEN)


def test_revoking_an_unknown_key_is_an_error(path):
    add_key(path, "a")
    with pytest.raises(NoSuchKey, match="no key 'b'"):
        revoke_key(path, "b")


# ---- invalid files ----


BROKEN = {
    "no header": [line()],
    "a header of another format": [json.dumps({"format": 2, "salt": SALT})],
    "a header with more in it": [json.dumps({"format": 1, "salt": SALT, "rounds": 9})],
    "a short salt": [json.dumps({"format": 1, "salt": "ab"})],
    "a salt of no digits": [json.dumps({"format": 1, "salt": "zz" * 32})],
    "a salt with spaces": [json.dumps({"format": 1, "salt": "ab " * 21 + "a"})],
    "no JSON": [HEADER, "sensor-7"],
    "no object": [HEADER, "[1]"],
    "deep JSON": [HEADER, "[" * 100_000],
    "no hash": [HEADER, json.dumps({"name": "a", "created": "x"})],
    "a short hash": [HEADER, line(digits="00")],
    "a name that is a number": [HEADER, line(name=7)],
    "a name that is not allowed": [HEADER, line(name="a/b")],
    "a field of a newer version": [HEADER, line(expires="2027-01-01")],
    "an empty list of rights": [HEADER, line(allow=[])],
    "rights that are no list": [HEADER, line(allow="pub:a")],
    "rights that are null": [HEADER, line(allow=None)],
    "a right that is none": [HEADER, line(allow=["pub:a", "admin:a"])],
    "a name twice": [HEADER, line(), line(digits="11" * 32)],
    "a text twice": [HEADER, line(), line("b")],
}


@pytest.mark.parametrize("lines", BROKEN.values(), ids=BROKEN)
def test_an_invalid_file_is_refused_entirely_with_the_line(path, lines):
    write(path, *lines)
    with pytest.raises(ConfigError, match=rf"keys:{len(lines)}: ") as refused:
        read_keyring(path)
    assert refused.value.exit_status == 78
    for change in (lambda: add_key(path, "new"), lambda: revoke_key(path, "a"), lambda: list_keys(path)):
        with pytest.raises(ConfigError):
            change()


def test_a_truncated_file_is_refused(path):
    write(path, HEADER, line(), line("b", "11" * 32)[:-9], end="")
    with pytest.raises(ConfigError, match="keys:3: the last line is incomplete"):
        read_keyring(path)
    write(path, HEADER, line(allow=["pub:a"]), end="")
    with pytest.raises(ConfigError, match="keys:2: the last line is incomplete"):
        read_keyring(path)


@pytest.mark.parametrize("text", ["", "\n", "# nobody\n", HEADER + "\n", "\ufeff" + HEADER + "\r\n"])
def test_a_file_without_keys_admits_no_client_and_accepts_new_keys(path, text):
    path.write_text(text)
    assert len(read_keyring(path)) == 0
    key = add_key(path, "a")
    assert read_keyring(path).find(key.encode()).name == "a"


def test_a_missing_file_error_names_the_next_step(path):
    with pytest.raises(ConfigError, match=r"No such file or directory\. Create a key with `blipmq keys add NAME`"):
        read_keyring(path)


def test_an_unreadable_file_has_its_own_exit_status(path, monkeypatch):
    def denied(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(KeysDenied) as refused:
        read_keyring(path)
    assert refused.value.exit_status == 77


def test_a_named_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="named pipe"):
        read_keyring(path)


def test_a_binary_or_oversized_file_is_refused(path, monkeypatch):
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="keys:2: not UTF-8"):
        read_keyring(path)
    monkeypatch.setattr(keys, "FILE_BYTES_MAX", 100)
    write(path, "#" * 200)
    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        read_keyring(path)


def test_the_number_of_keys_is_limited(path, monkeypatch):
    monkeypatch.setattr(keys, "KEYS_MAX", 2)
    add_key(path, "a")
    add_key(path, "b")
    with pytest.raises(ConfigError, match="holds 2 keys"):
        add_key(path, "c")
    write(path, *path.read_text().splitlines(), line("c"))
    with pytest.raises(ConfigError, match="more than 2 keys"):
        read_keyring(path)
    assert KEYS_MAX >= 10_000


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0), flip=st.integers(0), bit=st.integers(0, 7), whole=st.booleans())
def test_truncated_files_and_flipped_bits_never_extend_an_acl(tmp_path_factory, cut, flip, bit, whole):
    path = tmp_path_factory.mktemp("keys") / "keys"
    key = add_key(path, "a", ["pub:site/1", "sub:site/1"])
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 1 << bit
    path.write_bytes(data if whole else data[: cut % len(data)])
    try:
        found = read_keyring(path).find(key.encode())
    except ConfigError:
        return
    assert found is None or found.allow
