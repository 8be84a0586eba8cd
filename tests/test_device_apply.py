"""From files on the FAT partition to generated configuration: valid files, invalid files, no files, and interrupted
writes.
"""

import json
import os
import stat

import pytest
from device_folder import ROOT, DeviceFolder, MemoryStore

from blipmq.auth import keys
from blipmq.config import reader as config_reader
from blipmq.device import atomic_write, keyring
from blipmq.device.apply import NO_DATA, NO_KEY, apply
from blipmq.device.commands import main
from blipmq.device.result import NOT_APPLIED, read_result

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKKWLTmLtPZ1gRS4HG8HtDX9dY6/OibsLVxzLeJfltLO me"
DEVICE, BROKER = "boot/blipmq/device.toml", "boot/blipmq/blipmq.toml"
WIRED, WIFI = "run/systemd/network/10-blipmq-wired.network", "run/systemd/network/20-blipmq-wifi.network"


@pytest.fixture
def device(tmp_path):
    return DeviceFolder(tmp_path)


@pytest.fixture
def store():
    return MemoryStore()


def boot(device, store=None):
    return apply(device.paths, device.system, boot=True, store=store)


def broker_config(device):
    return config_reader.load(device.paths.broker_settings, {}).config


# ---- generated files ----


def test_without_files_a_device_uses_dhcp_and_a_loopback_broker(device):
    result = boot(device)
    assert (result.device, result.broker, result.problems, result.notes) == ("default", "default", (), (NO_KEY,))
    assert "DHCP=yes" in device.read(WIRED) and "MulticastDNS=yes" in device.read(WIRED)
    assert device.read("etc/hostname") == "blipmq\n"
    assert broker_config(device).server.bind_addr == "127.0.0.1:7878"
    assert broker_config(device).wal.directory == str(device.folder / "data/blipmq/wal")
    assert not any(device.has(path) for path in (WIFI, "run/blipmq-device/authorized_keys"))
    assert read_result(device.paths) == result


@pytest.mark.parametrize(
    ("memory_mib", "profile"),
    [
        (220, "edge-256m"),
        (460, "edge-512m"),
        (920, "edge-1g"),
        (1900, "edge-1g"),
        (3800, "production"),
        (0, "edge-256m"),
    ],
)
def test_the_profile_matches_the_available_memory(tmp_path, memory_mib, profile):
    device = DeviceFolder(tmp_path, memory_mib)
    assert boot(device).profile == f"blipmq-{profile}"
    own = config_reader.load(ROOT / "config" / f"blipmq-{profile}.toml", {}).config
    assert broker_config(device).limits == own.limits and broker_config(device).wal.max_bytes == own.wal.max_bytes


def test_every_section_of_device_toml_reaches_its_program(device):
    device.put(
        DEVICE,
        f"""hostname = "gate-7"
[network]
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["192.168.1.2"]
[wifi]
ssid = "Hall 3"
passphrase = 'pass"phrase'
country = "DE"
[time]
servers = ["ntp.example", "10.0.0.1"]
[ssh]
authorized_keys = ["{ED25519}"]
""",
    )
    assert boot(device).problems == ()
    wired = device.read(WIRED)
    assert "Address=192.168.1.20/24\n" in wired and "Gateway=192.168.1.1\n" in wired and "DNS=192.168.1.2\n" in wired
    assert "DHCP" not in wired and "DHCP=yes" in device.read(WIFI)
    wifi = device.read("run/blipmq-device/wpa_supplicant.conf")
    assert f"ssid={b'Hall 3'.hex()}\n" in wifi and 'psk="pass"phrase"\n' in wifi and "country=DE\n" in wifi
    assert device.read("run/systemd/timesyncd.conf.d/blipmq.conf").endswith("[Time]\nNTP=ntp.example 10.0.0.1\n")
    assert device.read("run/blipmq-device/authorized_keys") == ED25519 + "\n"
    assert device.system.hostname == "gate-7"
    for secret in ("run/blipmq-device/wpa_supplicant.conf", "data/device/device.toml"):
        assert stat.S_IMODE((device.folder / secret).stat().st_mode) == 0o600


def test_an_address_can_be_for_the_wireless_network(device):
    device.put(DEVICE, '[network]\ninterface = "wifi"\naddress = "10.0.0.2/8"\n[wifi]\nssid = "a"\ncountry = "DE"\n')
    boot(device)
    assert "Address=10.0.0.2/8" in device.read(WIFI) and "DHCP=yes" in device.read(WIRED)
    assert "key_mgmt=NONE" in device.read("run/blipmq-device/wpa_supplicant.conf")


def test_a_removed_setting_returns_to_its_default(device):
    device.put(DEVICE, f'[ssh]\nauthorized_keys = ["{ED25519}"]\n[wifi]\nssid = "a"\ncountry = "DE"\n')
    boot(device)
    assert device.has(WIFI) and device.has("run/blipmq-device/authorized_keys")
    device.put(DEVICE, "")
    boot(device)
    assert not device.has(WIFI) and not device.has("run/blipmq-device/authorized_keys")


def test_blipmq_toml_is_laid_over_the_profile(device):
    device.put(BROKER, "\ufeff[queues]\r\nsubscriber_capacity = 77\r\n[auth]\r\nallow_anonymous = true\r\n")
    result = boot(device)
    config = broker_config(device)
    assert (config.queues.subscriber_capacity, config.server.max_connections) == (77, 1024)
    assert result.broker == "file" and result.is_open and config.server.bind_addr == "[::]:7878"
    assert result.notes == ()


def test_quoted_texts_reach_the_broker_unchanged(device):
    device.put(BROKER, '[performance.network_optimizations]\ncpu_affinity = "0"\n[metrics]\nbind_addr = "[::1]:9091"\n')
    boot(device)
    assert broker_config(device).metrics.bind_addr == "[::1]:9091"
    assert broker_config(device).performance.network_optimizations.cpu_affinity == "0"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nmax_conections = 5\n", "blipmq.toml:2: there is no setting server.max_conections; did you mean"),
        ('[server]\nbind_addr = "0.0.0.0:7878"\n', "blipmq.toml:2: server.bind_addr"),
        ('[wal]\ndirectory = "/mnt"\n', "blipmq.toml:2: wal.directory: the WAL is on the data partition"),
        ("[queues\n", "blipmq.toml:1: not valid TOML"),
        (b"[queues]\n# caf\xe9\n", "blipmq.toml:2: not UTF-8"),
        ("x = " + "[" * 10_000, "blipmq.toml: lists or tables are nested too deeply"),
        ("x = " + "9" * 5_000, "blipmq.toml:1: not valid TOML"),
    ],
)
def test_an_invalid_blipmq_toml_is_reported_with_its_line_and_changes_nothing(device, text, problem):
    device.put(BROKER, "[queues]\nsubscriber_capacity = 77\n")
    boot(device)
    before = device.read("run/blipmq/blipmq.toml")
    device.put(BROKER, text)
    result = boot(device)
    assert result.broker == "kept" and result.problems[0].startswith(problem)
    assert device.read("run/blipmq/blipmq.toml") == before


def test_an_invalid_device_toml_keeps_the_address_and_blipmq_toml(device):
    device.put(DEVICE, '[network]\naddress = "192.168.1.20/24"\n')
    boot(device)
    device.put(DEVICE, '[network]\naddress = "192.168.1.21/24"\n[wifi]\nsid = "a"\n')
    device.put(BROKER, "[queues]\nsubscriber_capacity = 77\n")
    result = boot(device)
    assert "Address=192.168.1.20/24" in device.read(WIRED)
    assert (result.device, result.broker) == ("kept", "file")
    assert broker_config(device).queues.subscriber_capacity == 77
    assert result.problems == ("device.toml:4: there is no setting wifi.sid; did you mean wifi.ssid?",)


def test_the_error_of_an_unparsable_file_includes_advice(device):
    device.put(DEVICE, "hostname = gate\n")
    assert len(boot(device).problems) == 1 and "Strings need quotes" in boot(device).problems[0]


def test_an_invalid_first_file_selects_the_defaults(device):
    device.put(DEVICE, "hostname = 3\n")
    result = boot(device)
    assert result.device == "default" and len(result.problems) == 1 and "DHCP=yes" in device.read(WIRED)


def test_a_missing_file_changes_nothing_and_an_empty_file_selects_the_defaults(device):
    device.put(DEVICE, 'hostname = "gate"\n')
    boot(device)
    (device.folder / DEVICE).unlink()
    result = boot(device)
    assert device.system.hostname == "gate" and result.device == "kept"
    assert result.problems == ("device.toml: missing. To use the defaults, create an empty file of that name",)
    device.put(DEVICE, "")
    assert boot(device).problems == () and device.system.hostname == "blipmq"


def test_a_saved_file_invalid_for_this_version_is_reported(device):
    device.put("data/device/device.toml", "hostnam = 1\n")
    result = boot(device)
    assert result.device == "default"
    assert result.problems[0].startswith("the last good device.toml:1: there is no setting hostnam")


def test_an_image_with_an_invalid_profile_still_runs_a_broker(device):
    device.put("usr/share/blipmq/profiles/blipmq-edge-1g.toml", "[server]\nmax_conections = 5\n")
    result = boot(device)
    assert "the profile blipmq-edge-1g is not valid: blipmq-edge-1g:2: there is no setting" in result.problems[0]
    assert broker_config(device).server.bind_addr == "127.0.0.1:7878"


def test_without_the_data_partition_the_broker_serves_qos_0_and_the_status_says_why(device):
    device.mount(data="")
    device.put(DEVICE, '[[keys]]\nname = "a"\n')
    result = boot(device)
    assert not broker_config(device).wal.enabled and not result.has_log
    assert result.problems == (NO_DATA[""], "keys: they need the data partition, which is missing")
    device.mount(data="ro")
    assert boot(device).problems[0] == NO_DATA["ro"]


def test_without_the_settings_partition_the_last_good_settings_are_in_effect(device):
    device.put(DEVICE, 'hostname = "gate"\n')
    boot(device)
    (device.folder / DEVICE).unlink()
    device.mount(boot="")
    assert "the settings partition is missing" in boot(device).problems[0] and device.system.hostname == "gate"


def test_a_second_apply_writes_nothing_and_restarts_nothing(device):
    device.put(DEVICE, 'hostname = "gate"\n')
    boot(device)
    stamps = {path: path.stat().st_mtime_ns for path in device.folder.rglob("*") if path.is_file()}
    apply(device.paths, device.system, boot=False)
    assert {path: path.stat().st_mtime_ns for path in device.folder.rglob("*") if path.is_file()} == stamps
    assert device.system.commands == []


def test_a_manual_apply_restarts_only_changed_services(device):
    boot(device)
    (device.folder / "sys/class/net/wlan0/wireless").mkdir(parents=True)
    device.put(
        DEVICE,
        f'hostname = "gate"\n[time]\nservers = ["a"]\n[ssh]\nauthorized_keys = ["{ED25519}"]\n'
        '[wifi]\nssid = "a"\ncountry = "DE"\n',
    )
    device.put(BROKER, "[queues]\nsubscriber_capacity = 77\n")
    apply(device.paths, device.system, boot=False)
    assert device.system.commands == [
        "systemctl try-restart systemd-resolved.service",
        "networkctl reload",
        "systemctl try-restart systemd-timesyncd.service",
        "systemctl restart blipmq-wifi@wlan0.service",
        "systemctl start ssh.service",
        "systemctl restart blipmq.service",
    ]


def test_only_the_first_machine_id_is_saved(device):
    boot(device)
    first = device.read("data/device/machine-id")
    device.put("etc/machine-id", "f" * 32 + "\n")
    boot(device)
    assert device.read("data/device/machine-id") == first == "0123456789abcdef0123456789abcdef\n"


def test_the_command_prints_problems_and_never_fails_the_boot(device, capsys):
    device.put(DEVICE, "\nhostname = 3\n")
    assert main(["--root", str(device.folder), "apply", "--boot"]) == 0
    assert "device.toml, line 2: hostname: 3 is not a string in quotes" in capsys.readouterr().out
    assert main(["--root", str(device.folder), "apply"]) == 78


def test_a_missing_or_damaged_result_means_nothing_was_applied(device):
    assert read_result(device.paths) == NOT_APPLIED
    for text in ("{", "[]", '{"hostname": "a"}'):
        device.put("run/blipmq-device/result.json", text)
        assert read_result(device.paths) == NOT_APPLIED


# ---- keys


def keys_told(device):
    text = (device.folder / "boot/blipmq/blipmq-new-keys.txt").read_bytes().decode()
    return dict(line.split(" = ") for line in text.split("\r\n") if " = " in line)


def test_a_key_without_a_text_is_generated_shown_once_and_opens_the_listener(device, store):
    device.put(
        DEVICE,
        '[[keys]]\nname = "press"\nallow = ["pub:plant/#"]\n[[keys]]\nname = "board"\nkey = "0123456789abcdef"\n',
    )
    result = boot(device, store)
    assert result.keys == ("press", "board") and result.notes == () and result.problems == ()
    assert result.is_open
    assert keys_told(device) == {"press": store.keys["press"][0]} and len(store.keys["press"][0]) > 40
    assert store.keys["press"][1] == ("pub:plant/#",) and store.keys["board"] == ("0123456789abcdef", ())
    assert store.keys["blipmq-device"] == (keyring.own_key(device.paths), keyring.OWN_RIGHTS)


def test_at_later_starts_keys_remain_and_a_deleted_key_file_is_not_rewritten(device, store):
    device.put(DEVICE, '[[keys]]\nname = "press"\n')
    boot(device, store)
    (device.folder / "boot/blipmq/blipmq-new-keys.txt").unlink()
    calls = list(store.calls)
    boot(device, store)
    assert store.calls == calls and not device.has("boot/blipmq/blipmq-new-keys.txt")


def test_a_key_is_revoked_with_its_table_and_replaced_when_it_changes(device, store):
    device.put(DEVICE, '[[keys]]\nname = "a"\n[[keys]]\nname = "b"\n')
    boot(device, store)
    first = store.keys["b"][0]
    device.put(DEVICE, '[[keys]]\nname = "b"\nallow = ["sub:x"]\n')
    assert boot(device, store).keys == ("b",)
    assert store.keys["b"][0] != first and keys_told(device)["b"] == store.keys["b"][0]
    device.put(DEVICE, "")
    result = boot(device, store)
    assert store.keys == {} and not result.is_open and result.notes == (NO_KEY,)


def test_a_manually_created_key_is_not_changed(device, store):
    store.add("mine", (), "f" * 16)
    device.put("data/blipmq/keys", "")
    result = boot(device, store)
    assert result.keys == ("mine",) and set(store.keys) == {"mine", "blipmq-device"}


def test_the_shown_keys_are_valid_for_the_broker(device):
    device.put(DEVICE, '[[keys]]\nname = "press"\nallow = ["pub:plant/#"]\n[[keys]]\nname = "board"\n')
    boot(device, keyring.KeyFile(device.paths))
    told, ring = keys_told(device), keys.read_keyring(device.paths.broker_keys)
    assert {name: ring.find(text.encode()).allow for name, text in told.items()} == {
        "press": ("pub:plant/#",),
        "board": (),
    }
    device.put(DEVICE, '[[keys]]\nname = "press"\nallow = ["pub:plant/#"]\n')
    boot(device, keyring.KeyFile(device.paths))
    ring = keys.read_keyring(device.paths.broker_keys)
    assert ring.find(told["board"].encode()) is None
    assert ring.find(told["press"].encode()).name == "press"


class CutStore(MemoryStore):
    """Loses power at the n-th change."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def _count(self):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt

    def add(self, name, allow, key):
        self._count()
        super().add(name, allow, key)
        self._count()

    def revoke(self, name):
        self._count()
        super().revoke(name)
        self._count()


@pytest.mark.parametrize("after", range(8))
def test_a_power_cut_at_any_step_loses_no_key(device, after):
    device.put(DEVICE, '[[keys]]\nname = "a"\n[[keys]]\nname = "b"\n')
    store = CutStore(after)
    try:
        boot(device, store)
    except KeyboardInterrupt:
        store.after = 1000
    boot(device, store)
    assert {name: store.keys[name][0] for name in "ab"} == keys_told(device)
    assert store.keys["blipmq-device"][0] == keyring.own_key(device.paths)


def test_a_key_that_cannot_be_shown_is_not_created(device, store, monkeypatch):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(keyring, "write_for_notepad", refuse)
    device.put(DEVICE, '[[keys]]\nname = "a"\n')
    result = boot(device, store)
    assert store.keys == {} and result.problems == ("keys: Read-only file system",) and not result.is_open


def test_losing_the_record_of_generated_keys_is_harmless(device, store):
    device.put(DEVICE, '[[keys]]\nname = "a"\n')
    boot(device, store)
    for text in ("{", "[]", '{"salt": 1, "keys": []}'):
        device.put("data/device/keys.json", text)
        assert boot(device, store).keys == ("a",)
    assert keys_told(device) == {"a": store.keys["a"][0]}
    assert set(json.loads(device.read("data/device/keys.json"))["keys"]) == {"a"}


# ---- atomic files ----


@pytest.mark.parametrize("step", ["fsync", "fchmod", "replace", "open"])
def test_a_failed_write_at_any_step_leaves_only_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    atomic_write.write_file(path, "old")

    def fail(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(atomic_write.os, step, fail)
        with pytest.raises(OSError):
            atomic_write.write_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "file.new").write_text("what a cut left")
    assert atomic_write.write_file(path, "new") and path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_synced_before_its_rename_and_the_rename_after(tmp_path, monkeypatch):
    order = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    monkeypatch.setattr(atomic_write.os, "fsync", lambda handle: (order.append("fsync"), real["fsync"](handle)))
    monkeypatch.setattr(atomic_write.os, "replace", lambda *paths: (order.append("replace"), real["replace"](*paths)))
    assert atomic_write.write_for_notepad(tmp_path / "status.txt", "a\nb\n")
    assert order == ["fsync", "replace", "fsync", "fsync"] and (tmp_path / "status.txt").read_bytes() == b"a\r\nb\r\n"
    assert not atomic_write.write_for_notepad(tmp_path / "status.txt", "a\nb\n") and len(order) == 4
