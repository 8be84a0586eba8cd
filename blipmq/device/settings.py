"""device.toml: the settings of a device, each declared once.

Invariant: the reader, the reference in docs/APPLIANCE.md and the error messages are generated from these classes.
Settings never change after they are created. The defaults are a device that uses DHCP and that no other machine can
access.
"""

from __future__ import annotations

import sys

from blipmq.config.schema import Schema, Section, literal, section, tables
from blipmq.config.schema import key as setting  # because one of the settings is called key
from blipmq.device import checks


class Network(Section):
    interface: str = setting(
        "wired",
        'Which network `address` is for: `"wired"` or `"wifi"`. The other one asks DHCP.',
        choices=("wired", "wifi"),
    )
    address: str = setting(
        "dhcp",
        '`"dhcp"`, or an address with the length of its network: `"192.168.1.20/24"`.',
        check=checks.check_interface_address,
    )
    gateway: str = setting("", "With a fixed address: the gateway to other networks.", check=checks.check_address)
    dns: tuple[str, ...] = setting((), "With a fixed address: name servers.", check=checks.check_address)


class Wifi(Section):
    ssid: str = setting("", "Name of the wireless network. Empty: no Wi-Fi.", check=checks.check_ssid)
    passphrase: str = setting(
        "",
        "Its passphrase, 8 to 63 characters (WPA2, WPA3). Empty: an open network.",
        check=checks.check_passphrase,
        secret=True,
    )
    country: str = setting(
        "", "Country of the device, two capital letters (ISO 3166). Needed with Wi-Fi.", check=checks.check_country
    )


class Time(Section):
    servers: tuple[str, ...] = setting(
        (), "Time servers, names or addresses. None: those from DHCP, else those of Debian.", check=checks.check_host
    )


class Ssh(Section):
    authorized_keys: tuple[str, ...] = setting(
        (),
        "Public keys that may log in as `root`, each as one line of an `id_ed25519.pub`. None: SSH is off.",
        check=checks.check_ssh_key,
    )


class BrokerKey(Section):
    """A table of the list `[[keys]]`."""

    name: str = setting("", "Name of the key: letters, digits, `-`, `_` and `.`.", check=checks.check_key_name)
    allow: tuple[str, ...] = setting(
        (),
        '`"pub:TOPIC"`, `"sub:FILTER"` and `"admin"`: its rights. None: everything.',
        check=checks.check_right,
    )
    key: str = setting(
        "",
        "Text of the key. Empty: one is generated and written to `blipmq-new-keys.txt`.",
        check=checks.check_key,
        secret=True,
    )


class Device(Section):
    """All settings of device.toml. `Device()` has the defaults of an image."""

    hostname: str = setting(
        "blipmq", "Host name of the device; it answers to this name followed by `.local`.", check=checks.check_hostname
    )
    network: Network = section(Network)
    wifi: Wifi = section(Wifi)
    time: Time = section(Time)
    ssh: Ssh = section(Ssh)
    keys: tuple[BrokerKey, ...] = tables(BrokerKey)


SCHEMA = Schema(Device)
SETTINGS = SCHEMA.keys


def reference() -> str:
    """The tables of docs/APPLIANCE.md."""
    lines: list[str] = []
    for path, keys in SCHEMA.groups():
        title = {"": "At the top", "keys": "`[[keys]]`, once for each key of the broker"}.get(path, f"`[{path}]`")
        lines += ["", f"### {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [f"| `{k.path.rpartition('.')[2]}` | `{literal(k.default)}` | {k.help} |" for k in keys]
    return "\n".join(lines[1:]) + "\n"


_BEGIN, _END = "then `make settings`. -->\n\n", "\n<!-- Made up to here. -->"


def page_with_reference(page: str) -> str:
    """docs/APPLIANCE.md with the present tables. Raises ValueError if the page has no place for them."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the page has no markers for the tables")
    return head + begin + reference() + end + tail


if __name__ == "__main__":
    with open(sys.argv[1], "r+", encoding="utf-8") as file:
        page = page_with_reference(file.read())
        file.seek(0)
        file.truncate()
        file.write(page)
