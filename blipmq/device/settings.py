"""device.toml: what a technician may say about a device, each thing declared once.

Invariant: the reader, the reference in docs/APPLIANCE.md and the messages about errors are derived from these classes; settings
never change after they are made, and the defaults are a device that asks DHCP and lets nobody in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from blipmq.device import checks

LIST_MAX = 64


def setting(default: Any, help: str, check: Callable[[str], object] | None = None) -> Any:
    """Declare one setting, a string or a list of strings. `check` raises ValueError at a text that will not do."""
    return field(default=default, metadata={"help": help, "check": check})


@dataclass(frozen=True)
class Network:
    interface: str = setting(
        "wired",
        'Which network `address` is for: `"wired"` or `"wifi"`. The other one asks DHCP.',
        checks.check_interface,
    )
    address: str = setting(
        "dhcp",
        '`"dhcp"`, or an address with the length of its network: `"192.168.1.20/24"`.',
        checks.check_interface_address,
    )
    gateway: str = setting("", "With an address of its own: where other networks are reached.", checks.check_address)
    dns: tuple[str, ...] = setting((), "With an address of its own: name servers.", checks.check_address)


@dataclass(frozen=True)
class Wifi:
    ssid: str = setting("", "Name of the wireless network. Empty: no Wi-Fi.", checks.check_ssid)
    passphrase: str = setting(
        "", "Its passphrase, 8 to 63 characters (WPA2, WPA3). Empty: an open network.", checks.check_passphrase
    )
    country: str = setting(
        "", "Where the device stands, two capital letters (ISO 3166). Needed with Wi-Fi.", checks.check_country
    )


@dataclass(frozen=True)
class Time:
    servers: tuple[str, ...] = setting(
        (), "Time servers, names or addresses. None: those that DHCP names, else Debian's.", checks.check_host
    )


@dataclass(frozen=True)
class Ssh:
    authorized_keys: tuple[str, ...] = setting(
        (),
        "Public keys that may log in as `root`, each as one line of an `id_ed25519.pub`. None: SSH is off.",
        checks.check_ssh_key,
    )


@dataclass(frozen=True)
class BrokerKey:
    """A table of the list `[[keys]]`."""

    name: str = setting("", "What the key is called: letters, digits, `-`, `_` and `.`.", checks.check_key_name)
    allow: tuple[str, ...] = setting(
        (),
        '`"pub:TOPIC"`, `"sub:FILTER"` and `"admin"`, what its holder may do. None: everything.',
        checks.check_right,
    )
    key: str = setting(
        "",
        "The key itself, if you have one already. Empty: one is made, and `blipmq-new-keys.txt` tells it to you.",
        checks.check_key,
    )


@dataclass(frozen=True)
class Device:
    """All of device.toml. `Device()` is what an image starts with."""

    hostname: str = setting("blipmq", "The device answers to this name with `.local` behind it.", checks.check_hostname)
    network: Network = field(default_factory=Network)
    wifi: Wifi = field(default_factory=Wifi)
    time: Time = field(default_factory=Time)
    ssh: Ssh = field(default_factory=Ssh)
    keys: tuple[BrokerKey, ...] = ()


class Setting(NamedTuple):
    """One setting as it was declared."""

    path: str  # hostname, section.key, keys.key
    default: Any
    help: str
    check: Callable[[str], object] | None

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def expected(self) -> str:
        return 'a list of strings: ["one", "another"]' if self.is_list else "a string in quotes"


def _declared(section: Any, prefix: str) -> Iterator[Setting]:
    item: Field[Any]
    for item in fields(section):
        if item.metadata:
            yield Setting(prefix + item.name, item.default, **item.metadata)
        elif item.name == "keys":
            yield from _declared(BrokerKey(), "keys.")
        else:
            yield from _declared(getattr(section, item.name), f"{item.name}.")


SETTINGS: dict[str, Setting] = {s.path: s for s in _declared(Device(), "")}
SECTIONS = tuple(dict.fromkeys(path.partition(".")[0] for path in SETTINGS if "." in path))
KEYS_MAX = 64


def reference() -> str:
    """The tables of docs/APPLIANCE.md."""
    lines: list[str] = []
    shown: str | None = None
    for s in SETTINGS.values():
        section, _, name = s.path.rpartition(".")
        if section != shown:
            title = {"": "At the top", "keys": "`[[keys]]`, once for each key of the broker"}.get(
                section, f"`[{section}]`"
            )
            lines += ["", f"### {title}", "", "| setting | default | meaning |", "|---|---|---|"]
            shown = section
        default = "`[]`" if s.is_list else f'`"{s.default}"`'
        lines.append(f"| `{name}` | {default} | {s.help} |")
    return "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
