"""Applies the two files on the settings partition: writes the files of networkd, sshd, timesyncd and the broker.

Invariant: whatever the files contain, the device ends with a complete and consistent set of settings. The result names
each setting that differs from the files. Applying twice changes nothing the second time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from blipmq.device import clock, keyring, network
from blipmq.device.atomic_write import remove_file, write_file
from blipmq.device.broker_settings import Broker, Ground, read_broker
from blipmq.device.keyring import KeyFile, Keys, Store
from blipmq.device.last_known_good import LastKnownGood, choose
from blipmq.device.paths import Paths
from blipmq.device.result import Result
from blipmq.device.settings import Device
from blipmq.device.settings_reader import read_device
from blipmq.device.system import System
from blipmq.errors import ConfigError

NO_KEY = (
    "the broker is reachable only from the device itself, because no key has been created: "
    "add a [[keys]] section to device.toml"
)
NO_DATA = {
    "": "the data partition is missing: QoS 1, keys and earlier settings cannot be used; "
    "restart, then try a factory reset, then another medium",
    "ro": "the data partition has become read-only after errors: its medium is failing; restart, then replace it",
}


def apply(paths: Paths, system: System, boot: bool, store: Store | None = None) -> Result:
    """Read and write the settings and, unless the system is only starting (`boot`), reload the running services. Raises
    OSError if /run cannot be written."""
    problems: list[str] = []
    with _told(problems, "the clock could not be set"):
        clock.restore(paths, system)
    with _told(problems, "the machine's id could not be kept"):
        _keep_machine_id(paths)
    state = paths.mounted(paths.data)
    problems += [NO_DATA[state]] if state in NO_DATA else []
    if not paths.mounted(paths.boot):
        problems.append("the settings partition is missing; the last good settings are in effect")

    keep = state == "rw"
    device = choose("device.toml", paths.boot, paths.kept, read_device, Device(), keep)
    keys = _apply_keys(paths, device.value, state, store)
    broker = _choose_broker(paths, bool(keys.names), keep)
    changed = _write(paths, device.value, broker.value)
    with _told(problems, "the host name could not be set"):
        system.set_hostname(device.value.hostname)
    result = _result(device, broker, keys, problems, keep)
    result.write(paths)
    if not boot:
        activate(paths, system, changed)
    return result


@contextlib.contextmanager
def _told(problems: list[str], what: str) -> Iterator[None]:
    """Record an OSError of the body as a problem, and continue."""
    try:
        yield
    except OSError as error:
        problems.append(f"{what}: {error.strerror or error}")


def _keep_machine_id(paths: Paths) -> None:
    """Keep the first machine id of this device; the initrd sets it at later starts."""
    current = paths.text("etc/machine-id")
    if len(current) == 32 and not paths.machine_id.exists() and paths.mounted(paths.data) == "rw":
        write_file(paths.machine_id, current + "\n")


def _apply_keys(paths: Paths, device: Device, data: str, store: Store | None) -> Keys:
    if data != "rw":
        lost = ["keys: they need the data partition, which is missing"] if device.keys else []
        return Keys([], lost)
    if not device.keys and not paths.broker_keys.exists() and not paths.made_keys.exists():
        return Keys([], [])
    try:
        store = store or KeyFile(paths)
    except ImportError:
        return Keys([], ["keys: this version of the broker does not support keys"])
    return keyring.apply_keys(paths, device.keys, store)


def _choose_broker(paths: Paths, has_keys: bool, keep: bool) -> LastKnownGood[Broker]:
    ground, problems = Ground.of(paths, has_keys), []
    try:
        default = read_broker("", "the defaults", ground)
    except ConfigError as error:  # an image must have a broker even if the broker refuses its profile
        problems = [f"the profile {ground.profile} is not valid: {error}"]
        ground = ground._replace(profile="the defaults", profile_text="", has_keys=False)
        default = read_broker("", "the defaults", ground)

    def check(text: str, name: str) -> Broker:
        return read_broker(text, name, ground)

    chosen = choose("blipmq.toml", paths.boot, paths.kept, check, default, keep)
    return replace(chosen, problems=problems + chosen.problems)


def _write(paths: Paths, device: Device, broker: Broker) -> set[Path]:
    """Write the files of the other programs. Returns the files that have changed."""
    networks = network.network_files(device)
    files = {paths.networks / name: networks.get(name, "") for name in (network.WIRED, network.WIFI)}
    files[paths.time_servers] = network.time_file(device)
    files[paths.hostname] = f"{device.hostname}\n"
    private = {paths.wifi: network.wifi_file(device), paths.authorized_keys: network.ssh_file(device)}
    changed = {path for path, text in files.items() if _put(path, text, 0o644)}
    changed |= {path for path, text in private.items() if _put(path, text, 0o600)}
    if write_file(paths.broker_settings, broker.text, 0o640, _broker_group(paths)):
        changed.add(paths.broker_settings)
    return changed


def _put(path: Path, text: str, mode: int) -> bool:
    return write_file(path, text, mode) if text else remove_file(path)


def _broker_group(paths: Paths) -> int | None:
    found = re.search(r"^blipmq:[^:]*:(\d+):", paths.text("etc/group"), re.MULTILINE)
    return int(found[1]) if found else None


def _result(
    device: LastKnownGood[Device], broker: LastKnownGood[Broker], keys: Keys, problems: list[str], has_data: bool
) -> Result:
    config = broker.value.config
    return Result(
        hostname=device.value.hostname,
        address=device.value.network.address,
        device=device.origin,
        broker=broker.origin,
        profile=broker.value.profile,
        bind_addr=config.server.bind_addr,
        metrics_addr=config.metrics.bind_addr,
        is_open=broker.value.is_open,
        has_log=config.wal.enabled,
        has_data=has_data,
        keys=tuple(keys.names),
        problems=(*problems, *device.problems, *keys.problems, *broker.problems),
        notes=() if keys.names or broker.value.is_open else (NO_KEY,),
    )


def activate(paths: Paths, system: System, changed: set[Path]) -> None:
    """Reload or restart the services whose settings have changed."""
    if paths.hostname in changed:
        system.run("systemctl", "try-restart", "systemd-resolved.service")
    if changed & {paths.networks / network.WIRED, paths.networks / network.WIFI}:
        system.run("networkctl", "reload")
    if paths.time_servers in changed:
        system.run("systemctl", "try-restart", "systemd-timesyncd.service")
    if paths.wifi in changed:
        for device in sorted((paths.root / "sys/class/net").glob("*/wireless")):
            system.run("systemctl", "restart", f"blipmq-wifi@{device.parent.name}.service")
    if paths.authorized_keys in changed:
        system.run("systemctl", "start" if paths.authorized_keys.exists() else "stop", "ssh.service")
    if paths.broker_settings in changed:
        system.run("systemctl", "restart", "blipmq.service")
