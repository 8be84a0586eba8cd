"""`blipmq check --convert`: a configuration of BlipMQ 1.0.0 converted to the current format."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from broker_process import TIMEOUT_S, broker_command, environment
from hypothesis import given, settings
from hypothesis import strategies as st

from blipmq.config import memory
from blipmq.config import reader as config_reader
from blipmq.config.convert import convert
from blipmq.config.convert_v1 import _RULES, read_v1
from blipmq.config.schema import literal
from blipmq.config.settings import KEYS, MIB, value_of
from blipmq.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Settings of 1.0.0 files, each with an example value: the union of its three example files, and the older names.
SERVER = """\
# Where clients come in.
[server]
bind_addr = "0.0.0.0:7878"  # everywhere
max_connections = 10000
max_message_size_bytes = 4194304
[auth]
api_keys = [
    "first-key-of-a-client",  # "the # first"
    'second-key-of-a-client',
]
[queues]
topic_capacity = 65536
# Of each one.
# And not of all.
subscriber_capacity = 8192   # messages
overflow_policy = "drop_oldest"
[wal]
directory = "/var/lib/old"
segment_size_bytes = 104857600
flush_interval_ms = 100
[metrics]
bind_addr = "127.0.0.1:9090"
[delivery]
max_batch = 256
max_batch_bytes = 1048576
flush_interval_ms = 5
fanout_shards = 8
default_ttl_ms = 300000
[performance]
enable_timer_wheel = true
timer_wheel_resolution_ms = 10
enable_memory_pools = true
warm_up_pools = true
enable_batch_processing = true
[performance.timer_config]
max_timeout_ms = 86400000
wheel_size = 512
[performance.pool_config]
buffer_small_count = 8192
buffer_medium_count = 4096
buffer_large_count = 2048
message_batch_count = 4096
[performance.batch_config]
ttl_max_batch_size = 2000
ttl_max_batch_delay_ms = 5
fanout_max_batch_size = 4000
fanout_max_batch_delay_ms = 2
channel_capacity = 32768
[performance.cpu_affinity]
enable_affinity = true
pin_fanout_workers = true
core_offset = 0
timer_cores = "0,1"
[performance.network_optimizations]
tcp_nodelay = true
send_buffer_size = 131072
recv_buffer_size = 131072
reuse_addr = true
reuse_port = false
keepalive_timeout_secs = 600
tcp_sack = true
[performance.memory]
huge_pages = true
[logging]
level = "WARN"
async_logging = true
buffer_size = 1048576
"""


def converted(text):
    return convert(text, "old.toml", read_v1)


def said(made):
    """The reported result for each old setting, by its path."""
    return {fate.old.partition(" = ")[0]: fate.said for fate in made.fates if fate.line}


def loaded(made):
    return config_reader.load_texts([("new.toml", made.text)], {}).config


def test_every_old_setting_is_reported_with_its_line():
    made = converted(SERVER)
    table = tomllib.loads(SERVER)

    def paths(part, prefix=""):
        for word, value in part.items():
            yield from paths(value, f"{prefix}{word}.") if isinstance(value, dict) else [prefix + word]

    assert list(said(made)) == list(paths(table))
    lines = SERVER.splitlines()
    for fate in made.fates:
        path = fate.old.partition(" = ")[0]
        assert lines[fate.line - 1].startswith(f"{path.rpartition('.')[2]} = ")
    kinds = {kind: [path for path, text in said(made).items() if text.startswith(kind)] for kind in
             ("kept", "renamed", "replaced", "left out", "no effect")}  # fmt: skip
    assert sum(map(len, kinds.values())) == len(made.fates) and kinds["left out"] == []
    assert set(kinds["renamed"]) >= {
        "performance.timer_wheel_resolution_ms",
        "performance.cpu_affinity.enable_affinity",
    }
    assert kinds["replaced"] == ["wal.directory", "wal.flush_interval_ms", "delivery.fanout_shards"]


def test_the_converted_settings_have_the_intended_values():
    config = loaded(converted(SERVER))
    old = tomllib.loads(SERVER)
    for path in KEYS:
        *sections, name = path.split(".")
        part = old
        for section in sections:
            part = part.get(section, {})
        if name in part and path not in (
            "wal.directory",
            "wal.flush_interval_ms",
            "delivery.fanout_shards",
            "logging.level",
        ):
            wanted = tuple(part[name]) if isinstance(part[name], list) else part[name]
            assert value_of(config, path) == wanted, path
    assert config.delivery.fanout_shards == 1 and config.wal.flush_interval_ms == 0
    assert config.wal.directory == "/var/lib/old/v2" and config.logging.level == "warning"
    assert config.performance.timer_config.resolution_ms == 10
    assert config.performance.network_optimizations.cpu_affinity == "auto"


def test_comments_are_kept_and_a_hash_in_a_string_is_not_a_comment():
    text = converted(SERVER.replace("[auth]\n", '[auth]\n# below\nkeys_file = \'a "# b\'  # "x"\n')).text
    lines = text.splitlines()
    assert 'bind_addr = "0.0.0.0:7878"  # everywhere' in lines and "subscriber_capacity = 8192  # messages" in lines
    assert lines[lines.index("subscriber_capacity = 8192  # messages") - 2 :][:2] == [
        "# Of each one.",
        "# And not of all.",
    ]
    kept = 'keys_file = "a \\"# b"  # "x"'
    assert lines[lines.index(kept) - 1] == "# below"
    assert "# line 29, delivery.fanout_shards = 8: replaced by 1" in text


def test_keys_are_converted_and_never_printed():
    made = converted(SERVER)
    assert loaded(made).auth.api_keys == ("first-key-of-a-client", "second-key-of-a-client")
    assert not any("key-of-a-client" in fate.old + fate.said for fate in made.fates)
    assert "so they are refused" in said(made)["auth.api_keys"]


@pytest.mark.parametrize(
    ("text", "path", "words", "key", "value"),
    [
        ("[queues]\nmax_queue_depth = 7", "queues.max_queue_depth", "renamed", "queues.topic_capacity", 7),
        ("[queues]\ndefault_ttl_ms = 7", "queues.default_ttl_ms", "renamed", "delivery.default_ttl_ms", 7),
        ("[wal]\nsegment_size_mb = 64", "wal.segment_size_mb", "as 67108864", "wal.segment_size_bytes", 64 * MIB),
        ("[wal]\nmax_segments = 10", "wal.max_segments", "files multiplied", "wal.max_bytes", 640 * MIB),
        ("[wal]\nfsync_interval_ms = 100", "wal.fsync_interval_ms", "renamed to wal.flush", "wal.flush_interval_ms", 0),
        ("[metrics]\nenabled = false", "metrics.enabled", 'which is ""', "metrics.bind_addr", ""),
        ("[metrics]\nenabled = true", "metrics.enabled", "no effect", "metrics.bind_addr", "127.0.0.1:9090"),
        ("[performance]\ntcp_recv_buffer = 9", "performance.tcp_recv_buffer", "renamed",
         "performance.network_optimizations.recv_buffer_size", 9),
        ("[performance]\ncpu_affinity = true", "performance.cpu_affinity", 'as "auto"',
         "performance.network_optimizations.cpu_affinity", "auto"),
        ("[logging]\nformat = 'pretty'", "logging.format", 'kept, as "text"', "logging.format", "text"),
        ("[logging]\nlevel = 'trace'", "logging.level", 'kept, as "debug"', "logging.level", "debug"),
        ("[queues]\noverflow_policy = 'Block'", "queues.overflow_policy", 'as "block"', "queues.overflow_policy", "block"),
        # refused in this version
        ("[queues]\noverflow_policy = 'spill'", "queues.overflow_policy", "left out: 'spill' is not one of",
         "queues.overflow_policy", "drop_oldest"),
        ("[delivery]\nflush_interval_ms = 5000", "delivery.flush_interval_ms", "replaced by 1000",
         "delivery.flush_interval_ms", 1000),
        ("[server]\nmax_connections = 0", "server.max_connections", "replaced by 1", "server.max_connections", 1),
        ("[server]\nmax_connections = '9'", "server.max_connections", "left out: '9' is not a whole number",
         "server.max_connections", 10_000),
        ("[server]\nmax_connections = 1.5", "server.max_connections", "left out: 1.5 is not a whole number",
         "server.max_connections", 10_000),
        ("[server]\nbind_addr = 'nonsense'", "server.bind_addr", "left out", "server.bind_addr", "127.0.0.1:7878"),
        ("[delivery]\nfanout_shards = 0", "delivery.fanout_shards", "kept", "delivery.fanout_shards", 0),
        ("[delivery]\nfanout_shards = -1", "delivery.fanout_shards", "replaced by 0", "delivery.fanout_shards", 0),
        # unknown
        ("[server]\nmax_connection = 9", "server.max_connection", "did you mean server.max_connections?",
         "server.max_connections", 10_000),
        ("[profile]\ntype = 'Balanced'", "profile.type", "unknown to 1.0.0", "server.max_connections", 10_000),
        ("server = 3", "server", "unknown to 1.0.0", "server.max_connections", 10_000),
        ("[limits]\nmemory_bytes = 268435456", "limits.memory_bytes", "kept", "limits.memory_bytes", 256 * MIB),
    ],
)  # fmt: skip
def test_each_kind_of_line_is_converted_and_reported(text, path, words, key, value):
    made = converted(text)
    assert words in said(made)[path]
    assert value_of(loaded(made), key) == value


def test_two_old_settings_with_one_new_name_are_reported():
    made = converted("[performance]\ntimer_wheel_resolution_ms = 5\n[performance.timer_config]\nresolution_ms = 9\n")
    assert said(made)["performance.timer_config.resolution_ms"].endswith("is set by line 2 already")
    assert loaded(made).performance.timer_config.resolution_ms == 5


def test_conflicting_settings_are_adjusted():
    made = converted("[wal]\nsegment_size_bytes = 1048577\n[server]\nmax_message_size_bytes = 16777216\n")
    config = loaded(made)
    assert "replaced by" in said(made)["wal.segment_size_bytes"] and "16777216" in said(made)["wal.segment_size_bytes"]
    assert config.wal.segment_size_bytes >= 2 * memory.wal_batch_bytes(config)
    (added,) = [fate for fate in converted("[wal]\nsegment_size_bytes = 536870912\n").fates if not fate.line]
    assert (added.key, added.value) == ("wal.max_bytes", 2048 * MIB) and added.said.startswith("added: ")
    ttl = converted("[delivery]\ndefault_ttl_ms = 90000\n[performance.timer_config]\nmax_timeout_ms = 60000\n")
    assert loaded(ttl).delivery.default_ttl_ms == 60_000
    same = converted('[server]\nbind_addr = "127.0.0.1:9000"\n[metrics]\nbind_addr = "127.0.0.1:9000"\n')
    assert "is also server.bind_addr" in said(same)["metrics.bind_addr"]


@pytest.mark.parametrize(
    ("auth", "anonymous", "bind_addr"),
    [
        ("", True, "0.0.0.0:7878"),
        ("api_keys = []", True, "0.0.0.0:7878"),
        ('api_keys = ["a-key"]', False, "0.0.0.0:7878"),
        ('enabled = false\napi_key = "a-key"', True, "0.0.0.0:7878"),
        ('enabled = true\napi_key = "a-key"', False, "0.0.0.0:7878"),
        # Authentication was intended, so no setting of this file may open the broker.
        ('api_keys = ["a key"]', False, "127.0.0.1:7878"),
        ("api_keys = 7", False, "127.0.0.1:7878"),
    ],
)
def test_a_converted_broker_is_not_more_open_than_before(auth, anonymous, bind_addr):
    config = loaded(converted(f'[server]\nbind_addr = "0.0.0.0:7878"\n[auth]\n{auth}\n'))
    assert (config.auth.allow_anonymous, config.server.bind_addr) == (anonymous, bind_addr)


def test_an_invalid_configuration_is_refused():
    for text, words in (("a = ", "not valid TOML"), ("# nothing\n", "the file has no settings"), ("", "no setting")):
        with pytest.raises(ConfigError, match=words):
            converted(text)


# ---- arbitrary input ----

PATHS = sorted(
    {*KEYS, *_RULES, "wal.max_segments", "wal.fsync_interval_ms", "wal.directory", "other.thing", "server.x.y"}
)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**40), 2**60),
    st.sampled_from([0, 1, 4096, 65536, 1 << 20, 16 << 20, 1 << 29]),
    st.text(max_size=12),
    st.sampled_from(["0.0.0.0:1", "[::]:2", "127.0.0.1:3", "block", "DEBUG", "auto", "a # b", "\x7f\\\"'"]),
    st.lists(st.one_of(st.text(max_size=8), st.integers(0, 9)), max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(PATHS), VALUES, min_size=1, max_size=12))
def test_any_old_file_converts_to_a_valid_file_and_every_line_is_reported(old):
    text = "".join(f"{path} = {as_toml(value)}  # note\n" for path, value in old.items())
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # `a` and `a.b` in one file
        return
    made = converted(text)
    loaded(made)
    assert {fate.line for fate in made.fates if fate.line} == set(range(1, len(old) + 1))


def as_toml(value):
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return (
        repr(value)
        if isinstance(value, float) and "e" not in repr(value)
        else literal(int(value) if isinstance(value, float) else value)
    )


# ---- the command


def blipmq(*words, cwd):
    return subprocess.run(
        [*broker_command(), *words], capture_output=True, text=True, cwd=cwd, env=environment(), timeout=TIMEOUT_S
    )


def test_the_command_writes_the_file_once_and_check_accepts_it(tmp_path):
    (tmp_path / "old.toml").write_text("\ufeff" + SERVER.replace("\n", "\r\n"))
    shown = blipmq("check", "--convert", "old.toml", cwd=tmp_path)
    assert shown.returncode == 0 and "old.toml:27: delivery.fanout_shards = 8: replaced by 1: " in shown.stderr
    assert "key-of-a-client" not in shown.stderr
    written = blipmq("check", "--convert", "old.toml", "--output", "new.toml", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    assert (tmp_path / "new.toml").read_text() == shown.stdout
    assert (tmp_path / "new.toml").stat().st_mode & 0o777 == 0o600
    accepted = blipmq("check", "--config", "new.toml", cwd=tmp_path)
    assert accepted.returncode == 0 and "max_connections = 10000" in accepted.stdout
    again = blipmq("check", "--convert", "old.toml", "--output", "new.toml", cwd=tmp_path)
    assert again.returncode == 2 and "already exists" in again.stderr
    assert (tmp_path / "new.toml").read_text() == shown.stdout
    assert blipmq("check", "--output", "x.toml", cwd=tmp_path).returncode == 2 and not (tmp_path / "x.toml").exists()
    missing = blipmq("check", "--convert", "missing.toml", cwd=tmp_path)
    assert missing.returncode == 78 and "cannot be read" in missing.stderr
    assert "--convert" in missing.stderr and "--config" not in missing.stderr


@pytest.mark.parametrize("profile", sorted((ROOT / "config").glob("*.toml")), ids=lambda path: path.name)
def test_a_current_configuration_is_not_changed(profile):
    text = profile.read_text()
    before = config_reader.load_texts([(profile.name, text)], {}).config
    after = loaded(converted(text))
    changed = {path for path in KEYS if value_of(before, path) != value_of(after, path)}
    assert changed <= {"wal.flush_interval_ms"}
