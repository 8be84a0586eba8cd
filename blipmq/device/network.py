"""The files of networkd, wpa_supplicant and timesyncd, generated from the device's settings.

Invariant: pure text from checked settings. No value has a line end, so none can start a line of its own.
"""

from __future__ import annotations

from blipmq.device.settings import Device, Network

HEAD = "# Written by blipmq-device from device.toml; changes in this file are lost at the next start.\n"
WIRED, WIFI = "10-blipmq-wired.network", "20-blipmq-wifi.network"
# If both are connected, the wired network is preferred.
WIFI_METRIC = 600


def network_files(device: Device) -> dict[str, str]:
    """The files for networkd, by name. Files not in the result should be removed."""
    network, dhcp = device.network, Network()
    files = {WIRED: _network("Type=ether\nKind=!*", network if network.interface == "wired" else dhcp)}
    if device.wifi.ssid:
        settings = network if network.interface == "wifi" else dhcp
        files[WIFI] = _network("Type=wlan", settings, WIFI_METRIC)
    return files


def _network(match: str, network: Network, metric: int = 0) -> str:
    lines = [f"[Match]\n{match}\n\n[Network]", "MulticastDNS=yes", "LLMNR=no"]
    if network.address == "dhcp":
        lines += ["DHCP=yes", "", "[DHCPv4]", "ClientIdentifier=mac"]
        if metric:
            lines += [f"RouteMetric={metric}", "", "[IPv6AcceptRA]", f"RouteMetric={metric}"]
    else:
        lines += [f"DNS={server}" for server in network.dns]
        lines += [f"Address={network.address}"]
        if network.gateway:
            lines += ["", "[Route]", f"Gateway={network.gateway}"]
            lines += [f"Metric={metric}"] if metric else []
    return HEAD + "\n".join(lines) + "\n"


def wifi_file(device: Device) -> str:
    """wpa_supplicant's configuration; "" without Wi-Fi."""
    wifi = device.wifi
    if not wifi.ssid:
        return ""
    # The ssid in hexadecimal, which needs no quoting. A passphrase in quotes ends at the last quote of its line.
    lines = [f"country={wifi.country}", "update_config=0", "p2p_disabled=1", "", "network={"]
    lines += [f"    ssid={wifi.ssid.encode().hex()}", "    scan_ssid=1"]
    if wifi.passphrase:
        lines += [f'    psk="{wifi.passphrase}"', "    key_mgmt=WPA-PSK WPA-PSK-SHA256 SAE", "    ieee80211w=1"]
    else:
        lines += ["    key_mgmt=NONE"]
    return HEAD + "\n".join([*lines, "}"]) + "\n"


def time_file(device: Device) -> str:
    """timesyncd's configuration; "" leaves it to DHCP and Debian's servers."""
    if not device.time.servers:
        return ""
    return HEAD + "[Time]\nNTP=" + " ".join(device.time.servers) + "\n"


def ssh_file(device: Device) -> str:
    """The authorized keys of sshd; "": sshd does not run."""
    return "".join(f"{key}\n" for key in device.ssh.authorized_keys)
