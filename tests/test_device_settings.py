"""device.toml: accepted values, refused values, and error messages."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blipmq.config.schema_reader import read_text
from blipmq.device import settings
from blipmq.device.settings import SETTINGS, Device
from blipmq.device.settings_reader import read_device
from blipmq.errors import ConfigError

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKKWLTmLtPZ1gRS4HG8HtDX9dY6/OibsLVxzLeJfltLO me"
NO_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPutTheLineOfYourOwnPubFileHereXXXXXXXXXXXXX you"
FULL = f"""
hostname = "gate-7"
[network]
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["192.168.1.1", "fd00::1"]
[wifi]
ssid = "Hall 3"
passphrase = 'a"b \\ c d e'
country = "DE"
[time]
servers = ["pool.example", "10.0.0.1"]
[ssh]
authorized_keys = ["{ED25519}"]
[[keys]]
name = "press"
allow = ["pub:plant/press/#", "sub:plant.>"]
[[keys]]
name = "board"
key = "0123456789abcdef"
"""


def problems(text):
    with pytest.raises(ConfigError) as caught:
        read_device(text)
    return str(caught.value).splitlines()


def test_an_empty_file_means_the_defaults_and_a_full_file_is_used_as_written():
    assert read_device("") == Device()
    device = read_device(FULL)
    assert (device.hostname, device.network.dns, device.wifi.ssid) == ("gate-7", ("192.168.1.1", "fd00::1"), "Hall 3")
    assert device.wifi.passphrase == 'a"b \\ c d e'
    assert [(key.name, key.allow, key.key) for key in device.keys] == [
        ("press", ("pub:plant/press/#", "sub:plant.>"), ""),
        ("board", (), "0123456789abcdef"),
    ]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    path = tmp_path / "device.toml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert read_device(read_text(path)) == read_device(FULL)


def test_all_problems_are_reported_together_with_lines():
    assert problems('hostnam = "x"\n[network]\nadress = "1.2.3.4/8"\n[[keys]]\nname = "a"\n[[keys]]\nname = 3\n') == [
        "device.toml:1: there is no setting hostnam; did you mean hostname?",
        "device.toml:3: there is no setting network.adress; did you mean network.address?",
        "device.toml:7: keys.name: 3 is not a string in quotes",
    ]
    assert problems("[netwrk]\n") == ["device.toml:1: there is no section [netwrk]; did you mean [network]?"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('hostname = "my gate"', 1, "letters, digits and hyphens"),
        ('\n[network]\naddress = "192.168.1.20"', 3, '"192.168.1.20/24" is meant'),
        ('[network]\naddress = "192.168.1.0/24"', 2, "the address of the network 192.168.1.0/24"),
        ('[network]\naddress = "192.168.1.300/24"', 2, "length of its network"),
        ('[network]\ngateway = "192.168.1.1"', 2, 'with address = "dhcp"'),
        ('[network]\ninterface = "wifi"', 2, "there is no [wifi] section"),
        ('[network]\ndns = "1.1.1.1"', 2, "a list of strings"),
        ("network = 3", 1, "write [network] on a line of its own"),
        ('[wifi]\nssid = "a"', 1, "radio rules depend on it"),
        ('[wifi]\ncountry = "DE"', 1, "wifi.ssid: missing"),
        ('[wifi]\npassphrase = "short"', 2, "8 to 63 characters"),
        ('[wifi]\nssid = "ab\\u0007"', 2, "control characters"),
        ('[wifi]\ncountry = "Germany"', 2, "two capital letters"),
        ('[time]\nservers = ["a b"]', 2, "pool.ntp.org"),
        ('[ssh]\nauthorized_keys = ["-----BEGIN OPENSSH PRIVATE KEY-----"]', 2, "this is a private key"),
        ('[ssh]\nauthorized_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1"]', 2, "copy the whole line"),
        (f'[ssh]\nauthorized_keys = ["{NO_KEY}"]', 2, "the key is damaged"),
        (f'[ssh]\nauthorized_keys = ["{ED25519[:-12]}"]', 2, "copy the whole line"),
        ("[ssh]\nauthorized_keys = ['command=\"x\" ssh-ed25519 AAAA']", 2, "the line of a .pub file"),
        ("keys = 3", 1, "write [[keys]]"),
        ('[keys]\nname = "a"', 1, "write [[keys]]"),
        ('[[keys]]\nallow = ["pub:a"]', 1, "name: missing"),
        ('[[keys]]\nname = "a"\n[[keys]]\nname = "a"', 4, "exists twice"),
        ('[[keys]]\nname = "a"\nallow = ["publish:a"]', 3, '"pub:TOPIC"'),
        ('[[keys]]\nname = "a"\nallow = ["sub:a/#/b"]', 3, "keys.allow"),
        ('[[keys]]\nname = "a"\nkey = "short"', 3, "16 to 256"),
        ('[[keys]]\nname = "blipmq-device"', 2, "the device's own"),
        ('hostname = "a', 1, "not valid TOML"),
        ("a = " + "[" * 10_000, 0, "nested too deeply"),
        ("hostname = " + "9" * 5000, 1, "not valid TOML"),
        ("hostname = 0x" + "9" * 5000, 1, "is not a string"),
        ("hostname." + "a." * 300 + "b = 1", 1, "is not a string"),
    ],
)
def test_an_invalid_value_is_refused_with_its_line_and_the_valid_values(text, line, words):
    found = problems(text)[0]
    assert found.startswith(f"device.toml:{line}: " if line else "device.toml: ") and words in found


def test_no_list_is_longer_than_its_limit():
    assert "the maximum is 64" in problems("[time]\nservers = [" + '"a",' * 65 + "]")[0]
    assert (
        "64 keys" not in problems("[[keys]]\n" * 65)[0]
        and "65 keys; the maximum is 64" in problems("[[keys]]\n" * 65)[0]
    )


WORDS = st.sampled_from(["hostname", "network", "address", "keys", "name", "[[", "]]", "x", "3", *"[]={}.,\n\"'"])
LINES = st.sampled_from(
    [
        "[network]",
        "[[keys]]",
        "[keys]",
        "[[wifi]]",
        "name",
        'name = "a"',
        "allow = [1]",
        "keys.a = 1",
        "wifi.ssid.a = 2",
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(LINES).map("\n".join)))
@example("keys = [[1]]")
@example("[[keys]]\n[keys.a]\n")
@example("\x00")
def test_any_text_is_accepted_or_refused_with_errors_that_name_the_file(text):
    try:
        assert isinstance(read_device(text), Device)
    except ConfigError as error:
        # The error comes first; advice about unparsable TOML may follow on its own line.
        assert str(error).startswith("device.toml")


@given(st.sampled_from(sorted(SETTINGS)), st.text())
def test_no_accepted_text_can_start_a_line_in_a_generated_file(path, text):
    check = SETTINGS[path].check
    if check is not None and text:
        try:
            check(text)
        except ValueError:
            return
        assert len(text.splitlines()) == 1 and text.isprintable()


def test_every_setting_has_a_description():
    assert all(len(setting.help) > 20 for setting in SETTINGS.values())
    assert len(SETTINGS) == len(set(SETTINGS)) and "keys.allow" in SETTINGS
    assert settings.reference().count("\n| `") == len(SETTINGS)


def test_errors_do_not_repeat_a_passphrase_or_key():
    for text in (
        '[wifi]\npassphrase = "s3cret"',
        '[[keys]]\nname = "a"\nkey = "s3cret"',
        "[wifi]\npassphrase = 1234567",
    ):
        (problem,) = problems(text)
        assert "s3cret" not in problem and "1234567" not in problem
    device = read_device('[wifi]\nssid = "a"\ncountry = "DE"\npassphrase = "s3cret s3cret"\n')
    assert "s3cret" not in repr(device)
