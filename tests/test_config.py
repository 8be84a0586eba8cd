"""Settings: declared once, read from file and environment, refused with a helpful error."""

import re
import subprocess
from pathlib import Path

import pytest

from blipmq.base.bind_address import is_loopback, split_address
from blipmq.base.process import memory_limit_bytes
from blipmq.config import memory, schema_reader
from blipmq.config import reader as config_reader
from blipmq.config.reader import from_dict, load, locate, warnings
from blipmq.config.schema import literal
from blipmq.config.settings import KEYS, Config, Logging, reference, shown, value_of, variable
from blipmq.errors import ConfigError

ROOT = Path(__file__).parent.parent


def read(tmp_path, text, environ=None):
    file = tmp_path / "blipmq.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, environ or {})


def refused(tmp_path, text, environ=None):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, environ)
    assert caught.value.exit_status == 78
    return str(caught.value).replace(str(tmp_path) + "/", "")


def problem_with(key, value):
    """The last words of the error for this value, or ""."""
    try:
        load(None, {variable(key): str(value)})
    except ConfigError as error:
        return str(error).rpartition("; ")[2]
    return ""


def test_without_any_source_settings_are_the_defaults():
    loaded = load(None, {})
    assert loaded.config == Config()
    assert loaded.source == "built-in defaults"
    assert set(loaded.origins.values()) == {"default"}


def test_the_documented_defaults_are_the_defaults():
    config = Config()
    assert config.server.bind_addr == "127.0.0.1:7878"
    assert config.server.max_connections == 10_000
    assert config.server.max_message_size_bytes == 1_048_576
    assert config.queues.subscriber_capacity == 262_144
    assert config.queues.subscriber_bytes == 67_108_864
    assert config.queues.overflow_policy == "drop_oldest"
    assert config.delivery.max_batch == 65_536
    assert config.delivery.max_batch_bytes == 1_048_576
    assert config.delivery.flush_interval_ms == 0
    assert config.delivery.default_ttl_ms == 0
    assert config.performance.timer_config.resolution_ms == 10


def test_a_file_changes_only_the_settings_it_names(tmp_path):
    loaded = read(tmp_path, '[server]\nbind_addr = "127.0.0.1:1"\n\n[performance.timer_config]\nresolution_ms = 5\n')
    assert loaded.config.server.bind_addr == "127.0.0.1:1"
    assert loaded.config.performance.timer_config.resolution_ms == 5
    assert loaded.config.queues == Config().queues
    assert loaded.origins["server.bind_addr"].endswith("blipmq.toml:2")
    assert loaded.origins["performance.timer_config.resolution_ms"].endswith("blipmq.toml:5")
    assert loaded.origins["server.max_connections"] == "default"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    environ = {"BLIPMQ_SERVER__MAX_CONNECTIONS": "7", "BLIPMQ_PERFORMANCE__NETWORK_OPTIMIZATIONS__TCP_NODELAY": "false"}
    loaded = read(tmp_path, "[server]\nmax_connections = 5\n[delivery]\nmax_batch = 9\n", environ)
    assert loaded.config.server.max_connections == 7
    assert loaded.origins["server.max_connections"] == "BLIPMQ_SERVER__MAX_CONNECTIONS"
    assert loaded.config.delivery.max_batch == 9
    assert loaded.config.performance.network_optimizations.tcp_nodelay is False


def test_variables_of_other_programs_and_of_the_command_line_are_ignored():
    assert load(None, {"BLIPMQ_ADDR": "x", "BLIPMQ_API_KEY": "y", "BLIPMQ_CONFIG": "z", "HOME": "/"}).config == Config()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BLIPMQ_SERVER__BIND_ADR", "did you mean BLIPMQ_SERVER__BIND_ADDR?"),
        ("BLIPMQ_SERVER_BIND_ADDR", "did you mean BLIPMQ_SERVER__BIND_ADDR?"),
        ("BLIPMQ_MAX_BATCH", "did you mean BLIPMQ_DELIVERY__MAX_BATCH?"),
        ("BLIPMQ_AUTH__API_KEY_FILE", "did you mean BLIPMQ_AUTH__API_KEYS_FILE?"),
        ("BLIPMQ_CONFG", "did you mean BLIPMQ_CONFIG?"),
        ("BLIPMQ_PORT", ""),
        ("BLIPMQ_", "unset it"),
        ("BLIPMQ_COLOUR_OF_THE_BOX", "unset it"),
    ],
)
def test_an_unknown_variable_is_refused_with_a_suggestion(name, meant):
    with pytest.raises(ConfigError) as caught:
        load(None, {name: "7979"})
    assert f"{name}: there is no setting " in str(caught.value) and meant in str(caught.value)
    assert caught.value.exit_status == 78


def test_container_service_variables_named_blipmq_are_not_settings():
    told = {
        "BLIPMQ_SERVICE_HOST": "10.0.0.11",
        "BLIPMQ_SERVICE_PORT": "7878",
        "BLIPMQ_SERVICE_PORT_METRICS": "9090",
        "BLIPMQ_PORT": "tcp://10.0.0.11:7878",
        "BLIPMQ_PORT_7878_TCP": "tcp://10.0.0.11:7878",
        "BLIPMQ_PORT_7878_TCP_PROTO": "tcp",
        "BLIPMQ_PORT_7878_TCP_PORT": "7878",
        "BLIPMQ_PORT_7878_TCP_ADDR": "10.0.0.11",
        "BLIPMQ_EDGE_SERVICE_HOST": "10.0.0.12",
        "BLIPMQ_EDGE_PORT": "tcp://10.0.0.12:7878",
        "BLIPMQ_EDGE_PORT_7878_TCP_ADDR": "10.0.0.12",
    }
    assert load(None, told).config == Config()


def test_every_variable_read_by_the_project_is_a_setting_or_listed_as_other():
    reads = re.compile(
        r"""(?:environ(?:\.get\(|\[)["']|getenv\(["']|\$\{?|ENV |\.pop\(["'])(BLIPMQ_[A-Z0-9_]*[A-Z0-9])(?![A-Z0-9_$({])"""
    )
    known = {variable(k) for k in KEYS.values()} | {f"{variable(k)}_FILE" for k in KEYS.values() if k.secret}
    listed = subprocess.run(
        ["git", "ls-files", "--full-name", ":/"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    read_somewhere = set()
    for name in listed:
        if not name.startswith("tests/kept/") and not name.endswith((".c", ".h")) and (ROOT / name).is_file():
            read_somewhere |= set(reads.findall((ROOT / name).read_text(errors="ignore")))
    assert {"BLIPMQ_ADDR", "BLIPMQ_BUILD_CACHE", "BLIPMQ_SANITIZE"} <= read_somewhere
    assert read_somewhere - known - {*config_reader.COMMAND_VARIABLES, *config_reader.BUILD_VARIABLES} == set()


def test_every_key_can_be_set_by_its_variable():
    for k in KEYS.values():
        value = k.default
        if k.type == "list":
            value = ("https://a.example", "https://b.example") if k.path == "server.ws_origins" else ("first", "second")
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
        text = ",".join(value) if k.type == "list" else text
        loaded = load(None, {variable(k): text})
        assert loaded.origins[k.path] == variable(k)
        assert value_of(loaded.config, k.path) == value


@pytest.mark.parametrize("key", [k for k in KEYS.values() if k.type == "int"], ids=lambda k: k.path)
def test_a_number_outside_its_range_is_refused_and_the_limits_are_accepted(key):
    for value in (key.low - 1, key.high + 1):
        with pytest.raises(ConfigError, match=re.escape(key.path)):
            load(None, {variable(key): str(value)})
    for value in (key.low, key.high):
        assert problem_with(key, value) in (
            "",
            "raise one or lower the other",
        )  # in range, though other rules may forbid it


def test_an_unknown_key_error_has_file_line_and_suggestion(tmp_path):
    message = refused(tmp_path, "[server]\n\nbind_adr = 'x'\n")
    assert "blipmq.toml:3: there is no setting server.bind_adr; did you mean server.bind_addr?" in message


def test_a_key_in_the_wrong_section_names_the_right_section(tmp_path):
    assert "did you mean delivery.max_batch?" in refused(tmp_path, "[queues]\nmax_batch = 3\n")


def test_an_unknown_section_is_refused(tmp_path):
    assert "blipmq.toml:1: there is no section [servr]; did you mean [server]?" in refused(tmp_path, "[servr]\na = 1\n")


def test_a_section_written_as_a_value_is_refused(tmp_path):
    assert "blipmq.toml:1: server is a section" in refused(tmp_path, "server = 1\n")


def test_all_errors_of_a_file_are_reported_together_with_lines(tmp_path):
    text = (
        "[server]\nmax_connections = 0\nport = 1\n[queues]\noverflow_policy = 'drop_oldst'\n[auth]\napi_keys = 'k3y'\n"
    )
    message = refused(tmp_path, text, {"BLIPMQ_LOGGING__LEVEL": "loud"})
    assert message.startswith("5 problems in the configuration:\n")
    assert "blipmq.toml:2: server.max_connections: 0 is not a whole number from 1 to 1000000 (connections)" in message
    assert "blipmq.toml:3: there is no setting server.port" in message
    assert "blipmq.toml:5: queues.overflow_policy: 'drop_oldst' is not one of " in message
    assert "did you mean drop_oldest?" in message
    assert "blipmq.toml:7: auth.api_keys: the value is not a list of strings, 1000 at most" in message
    assert "k3y" not in message
    assert "BLIPMQ_LOGGING__LEVEL: logging.level: 'loud' is not one of" in message


def test_a_default_that_clashes_with_a_setting_is_reported_at_the_setting(tmp_path):
    message = refused(tmp_path, "[wal]\n\nmax_bytes = 67108864\n")
    assert "blipmq.toml:3: wal.segment_size_bytes: 33554432 is over a quarter of wal.max_bytes (67108864)" in message


def test_more_than_one_io_thread_is_refused_with_the_reason(tmp_path):
    for count in (0, 1):
        assert read(tmp_path, f"[delivery]\nfanout_shards = {count}\n").config.delivery.fanout_shards == count
    message = refused(tmp_path, "[delivery]\nfanout_shards = 2\n")
    assert "blipmq.toml:2: delivery.fanout_shards: 2 is not" in message
    assert "only one I/O thread is supported; more would save no processor time" in message


@pytest.mark.parametrize(
    "value",
    ['"many"', "1.5", "true", "[1]", "1979-05-27", "{ a = 1 }"],
    ids=["text", "float", "bool", "list", "date", "table"],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path, value):
    assert "blipmq.toml:2: server.max_connections: " in refused(tmp_path, f"[server]\nmax_connections = {value}\n")


def test_invalid_toml_is_refused_with_its_line(tmp_path):
    assert "blipmq.toml:2: not valid TOML" in refused(tmp_path, "[server]\nbind_addr = 127.0.0.1:1\n")
    assert "blipmq.toml:1: not valid TOML" in refused(tmp_path, "[server")


def test_invalid_utf8_is_refused_with_its_line(tmp_path):
    assert "blipmq.toml:2: not UTF-8" in refused(tmp_path, b"[server]\nbind_addr = '\xff'\n")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n"}, 512 << 20),
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.service\n",
                "sys/fs/cgroup/a.slice/memory.max": "300\n",
                "sys/fs/cgroup/a.slice/b.service/memory.max": "400\n",
            },
            300,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "700\n",
            },
            700,
        ),
        (
            {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n\n0::/../..\n", "sys/fs/cgroup/memory.max": "nonsense\n"}, None),
    ],
)
def test_the_memory_limit_of_a_container_or_service_is_found(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit_bytes(tmp_path) == limit


def test_a_memory_sum_over_the_process_limit_is_warned_of(monkeypatch):
    worst = memory.worst_bytes(Config())
    monkeypatch.setattr(config_reader, "memory_limit_bytes", lambda: worst)
    assert warnings(load(None, {})) == []
    monkeypatch.setattr(config_reader, "memory_limit_bytes", lambda: worst - 1)
    (warning,) = warnings(load(None, {}))
    assert "its control group" in warning and memory.size(worst) in warning


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    loaded = read(tmp_path, b'\xef\xbb\xbf[server]\r\nbind_addr = "127.0.0.1:9"\r\n')
    assert loaded.config.server.bind_addr == "127.0.0.1:9"
    assert loaded.origins["server.bind_addr"].endswith(":2")


def test_lines_inside_a_multi_line_string_are_not_taken_for_keys(tmp_path):
    text = '[logging]\nlevel = """\nmax_connections = 1\n[server]\n"""\n[server]\nmax_connections = 0\n'
    message = refused(tmp_path, text)
    assert "blipmq.toml:2: logging.level" in message and "blipmq.toml:7: server.max_connections" in message


def test_dotted_and_quoted_keys_are_found_on_their_lines(tmp_path):
    assert "blipmq.toml:2: server.x" in refused(tmp_path, '\nserver."x" = 1\n').replace("there is no setting ", "")


def test_a_missing_file_error_names_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory\nGive the right file"):
        load(tmp_path / "none.toml", {})


def test_a_file_too_large_to_be_a_configuration_is_refused(tmp_path):
    assert "larger than" in refused(tmp_path, b"#" * (schema_reader.FILE_BYTES_MAX + 1))


def test_a_non_loopback_address_requires_explicit_permission(tmp_path):
    for addr in ("0.0.0.0:7878", "[::]:7878", "192.168.1.5:7878", "gateway.local:7878"):
        message = refused(tmp_path, f'[server]\nbind_addr = "{addr}"\n')
        assert "blipmq.toml:2: server.bind_addr" in message and "auth.allow_anonymous = true" in message
        assert read(tmp_path, f'[server]\nbind_addr = "{addr}"\n[auth]\nallow_anonymous = true\n')


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost"])
def test_loopback_addresses_need_no_permission(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "example.org", "127.0.0.1.example.org"]
)
def test_every_other_address_counts_as_reachable(host):
    assert not is_loopback(host)


def test_addresses_are_split_into_host_and_port():
    assert split_address("127.0.0.1:7878") == ("127.0.0.1", 7878)
    assert split_address("[::1]:0") == ("::1", 0)
    assert split_address("gateway.local:1") == ("gateway.local", 1)


@pytest.mark.parametrize(
    "text", ["7878", "localhost", "::1:7878", "host:99999", "host:port", ":7878", "[::1]", "a b:1", "h:-1"]
)
def test_an_invalid_address_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|brackets|65535"):
        split_address(text)
    with pytest.raises(ConfigError, match=r"server\.bind_addr"):
        from_dict({"server": {"bind_addr": text}})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"queues.subscriber_bytes: 4096 is less than server.max_message_size_bytes"):
        from_dict({"queues": {"subscriber_bytes": 4096}})
    with pytest.raises(
        ConfigError, match=r"delivery.default_ttl_ms: 5000 is over performance.timer_config.max_timeout_ms"
    ):
        from_dict({"delivery": {"default_ttl_ms": 5000}, "performance": {"timer_config": {"max_timeout_ms": 1000}}})


def test_a_configuration_does_not_change_after_it_is_made():
    config = Config()
    with pytest.raises(AttributeError, match=r"settings do not change: Server\.max_connections"):
        config.server.max_connections = 1
    with pytest.raises(AttributeError, match=r"settings do not change: Server\.max_connections"):
        del config.server.max_connections
    assert config == Config() and hash(config) == hash(Config())


def test_a_section_refuses_undeclared_values():
    assert Config(logging=Logging(level="debug")).logging.level == "debug"
    with pytest.raises(TypeError, match="Logging has no colour"):
        Logging(colour="red")


def test_the_file_is_searched_at_the_documented_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(None, {}) is None
    (tmp_path / "blipmq.toml").write_text("")
    assert locate(None, {}) == "blipmq.toml"
    assert locate(None, {"BLIPMQ_CONFIG": "/etc/b.toml"}) == "/etc/b.toml"
    assert locate("here.toml", {"BLIPMQ_CONFIG": "/etc/b.toml"}) == "here.toml"


def test_the_documented_reference_matches_the_declarations():
    assert (ROOT / "docs" / "CONFIGURATION.md").read_text() == reference()


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.toml")), ids=lambda f: f.stem)
def test_each_profile_is_valid_and_contains_only_changed_settings(file):
    loaded = load(file, {})
    changed = {path for path, origin in loaded.origins.items() if origin != "default"}
    assert changed
    for path in changed:
        assert value_of(loaded.config, path) != KEYS[path].default, (
            f"{path} = {literal(KEYS[path].default)} is the default"
        )


def test_the_documented_profiles_exist():
    names = {file.stem for file in (ROOT / "config").glob("*.toml")}
    assert names == {
        "blipmq-dev",
        "blipmq-production",
        "blipmq-ultra",
        *(f"blipmq-edge-{n}" for n in ("256m", "512m", "1g")),
    }


@pytest.mark.parametrize("megabytes", [256, 512, 1024])
def test_the_maximum_memory_of_an_edge_profile_fits_its_device(megabytes):
    name = "1g" if megabytes == 1024 else f"{megabytes}m"
    config = load(ROOT / "config" / f"blipmq-edge-{name}.toml", {}).config
    assert memory.worst_bytes(config) <= megabytes * memory.MIB // 2  # the system and its caches need the other half


def test_the_memory_sum_grows_with_every_setting_it_is_made_of():
    unbounded = {variable(KEYS["limits.memory_bytes"]): "0"}
    base = memory.worst_bytes(load(None, unbounded).config)
    for path, value in {
        "server.max_connections": 20_000,
        "server.max_message_size_bytes": 4 << 20,
        "queues.subscriber_bytes": 128 << 20,
        "performance.pool_config.buffer_large_count": 64,
        "limits.route_cache_entries": 8192,
        "limits.max_subscriptions_per_connection": 2048,
    }.items():
        assert memory.worst_bytes(load(None, {**unbounded, variable(KEYS[path]): str(value)}).config) > base, path


def test_with_tls_the_sum_includes_connections_and_handshakes():
    def worst(**limits):
        tls = {"server": {"tls_bind_addr": "127.0.0.1:0"}, "tls": {"cert_file": "c.pem", "key_file": "k.pem"}}
        return memory.worst_bytes(from_dict({**tls, "limits": {"memory_bytes": 0, **limits}}))

    handshakes = 1000 * memory.TLS_HANDSHAKE_BYTES
    assert worst(max_pending=2024) - worst(max_pending=1024) >= handshakes


def test_the_total_is_the_sum_of_the_terms_that_are_printed():
    config = load(None, {variable(KEYS["limits.memory_bytes"]): "0"}).config
    total, text = memory.memory_of(config), " ".join(memory.table(config).split())
    for term in (*total.outside, *total.core):
        assert f"{term.name} {memory.size(term.worst)} {term.formula}" in text
    assert f"worst case {memory.size(sum(t.worst for t in (*total.outside, *total.core)))} " in text


def test_the_budget_bounds_the_sum_however_large_the_queues_may_grow():
    small = from_dict({"limits": {"memory_bytes": 64 << 20}})
    large = from_dict({"limits": {"memory_bytes": 64 << 20}, "queues": {"subscriber_bytes": 1 << 40}})
    assert memory.worst_bytes(small) == memory.worst_bytes(large) < 256 << 20


def test_a_budget_too_small_for_the_largest_message_is_refused():
    with pytest.raises(ConfigError, match=r"limits.memory_bytes: 1048576 is less than four frames of server.max_mess"):
        from_dict({"limits": {"memory_bytes": 1 << 20}})


def test_a_reload_applies_changeable_settings_and_names_the_others():
    old, new = from_dict({}), from_dict({"delivery": {"max_batch": 5}, "server": {"max_connections": 6}})
    config, applied, waiting = config_reader.reloaded(old, new)
    assert (config.delivery.max_batch, config.server.max_connections) == (5, 10_000)
    assert [k.path for k in applied] == ["delivery.max_batch"]
    assert [k.path for k in waiting] == ["server.max_connections"]


def test_a_reload_that_is_valid_only_after_a_restart_is_refused():
    new = from_dict({"server": {"max_message_size_bytes": 4096}, "queues": {"subscriber_bytes": 8192}})
    with pytest.raises(ConfigError, match=r"with the settings that need a restart: queues.subscriber_bytes: 8192"):
        config_reader.reloaded(from_dict({}), new)


# ---- keys


def test_a_secret_is_shown_nowhere(tmp_path):
    config = read(tmp_path, '[auth]\napi_keys = ["s3cret-one", "s3cret-two"]\n').config
    assert config.auth.api_keys == ("s3cret-one", "s3cret-two")
    assert "s3cret" not in repr(config) and shown(config, "auth.api_keys") == "(2, not shown)"
    for value in (
        '"s3cret"',
        '["s3cret", 1]',
        '["s3cret s3cret"]',
        '["s3cret", "s3cret"]',
        '["s3cret\\u0000"]',
        '[""]',
    ):
        message = refused(tmp_path, f"[auth]\napi_keys = {value}\n")
        assert "blipmq.toml:2: auth.api_keys: " in message and "s3cret" not in message
    for text in ("s3cret,s3cret", "s3cret\0", "s3cret" * 100, ""):
        with pytest.raises(ConfigError) as error:
            load(None, {"BLIPMQ_AUTH__API_KEYS": text})
        assert "BLIPMQ_AUTH__API_KEYS: auth.api_keys: " in str(error.value) and "s3cret" not in str(error.value)


def test_a_variable_may_name_a_file_with_the_secret(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret-one\r\n\n  s3cret-two\n")
    loaded = load(None, {"BLIPMQ_AUTH__API_KEYS_FILE": str(secret)})
    assert loaded.config.auth.api_keys == ("s3cret-one", "s3cret-two")
    assert loaded.origins["auth.api_keys"] == "BLIPMQ_AUTH__API_KEYS_FILE"
    for environ, text in [
        ({"BLIPMQ_AUTH__API_KEYS_FILE": str(tmp_path / "none")}, "cannot be read: No such file"),
        ({"BLIPMQ_AUTH__API_KEYS_FILE": str(tmp_path)}, "cannot be read: Is a directory"),
        ({"BLIPMQ_AUTH__API_KEYS_FILE": str(secret), "BLIPMQ_AUTH__API_KEYS": "a"}, "only one of them can count"),
        ({"BLIPMQ_SERVER__BIND_ADDR_FILE": str(secret)}, "there is no setting"),
    ]:
        with pytest.raises(ConfigError, match=text):
            load(None, environ)
    secret.write_bytes(b"s3cret\xff")
    with pytest.raises(ConfigError, match="it is not text"):
        load(None, {"BLIPMQ_AUTH__API_KEYS_FILE": str(secret)})


def test_keys_and_open_access_exclude_each_other(tmp_path):
    assert "auth.allow_anonymous: true, but keys are configured" in refused(
        tmp_path, "[auth]\nallow_anonymous = true\nkeys_file = 'keys'\n"
    )


def test_a_world_readable_key_file_and_a_short_key_are_warned_of(tmp_path):
    loaded = read(tmp_path, '[auth]\napi_keys = ["short"]\n')
    path = tmp_path / "blipmq.toml"
    path.chmod(0o644)
    readable, short = warnings(loaded)
    assert "every user of this machine can read it" in readable and "can be guessed" in short
    path.chmod(0o640)
    assert warnings(loaded) == [short]
    path.chmod(0o644)
    assert warnings(load(path, {"BLIPMQ_AUTH__API_KEYS": "a-long-key-of-the-environment"})) == []
    assert warnings(read(tmp_path, "")) == []


def test_a_keep_alive_too_short_for_tcp_probes_is_refused_with_the_reason():
    for keepalive_ms in (0, 2000, 60_000):
        assert from_dict({"server": {"keepalive_ms": keepalive_ms}}).server.keepalive_ms == keepalive_ms
    for keepalive_ms in (1, 1999):
        with pytest.raises(ConfigError, match=r"server\.keepalive_ms: .* is less than 2000.*0 to turn keep-alive off"):
            from_dict({"server": {"keepalive_ms": keepalive_ms}})
