"""Certificate parsing of the broker: compared with openssl for the same file, and with invalid input."""

import os
import ssl

import pytest
from certificates import Authority, openssl
from hypothesis import given
from hypothesis import strategies as st

from blipmq.config.settings import Tls
from blipmq.errors import ConfigError
from blipmq.net.certificate import FILE_BYTES_MAX, Certificates, read_certificate, subject_of


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def der(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


@pytest.mark.parametrize("kind", ["prime256v1", "rsa"])
def test_subject_and_dates_match_openssl(authority, kind):
    file, _ = authority.sign(f"gateway {kind}", days=40, key_kind=kind)
    told = dict(
        line.split("=", 1) for line in openssl("x509", "-in", file, "-noout", "-startdate", "-enddate").splitlines()
    )
    read = read_certificate(der(file))
    assert read.subject == f"gateway {kind}"
    assert read.not_before == ssl.cert_time_to_seconds(told["notBefore"])
    assert read.not_after == ssl.cert_time_to_seconds(told["notAfter"])


def test_dates_after_2049_are_read(authority, tmp_path):
    """Their ASN.1 form is different."""
    file = tmp_path / "long.pem"
    openssl(
        *("req", "-x509", "-new", "-key", authority.key, "-days", 36_500, "-subj", "/O=No name/CN=Grüße", "-utf8"),
        *("-out", file),
    )
    told = openssl("x509", "-in", file, "-noout", "-enddate").strip().split("=", 1)[1]
    read = read_certificate(der(file))
    assert read.not_after == ssl.cert_time_to_seconds(told)
    assert read.subject == "Grüße"


@given(
    data=st.binary(max_size=300),
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255))),
)
def test_invalid_input_raises_only_value_error(data, cut, flips):
    damaged = bytearray(SAMPLE[:cut])
    for at, bits in flips:
        if at < len(damaged):
            damaged[at] ^= bits
    for sample in data, bytes(damaged):
        try:
            read_certificate(sample)
        except ValueError:
            pass


SAMPLE = bytes.fromhex(
    "3082011f3081c7a003020102020101300a06082a8648ce3d04030230143112301006035504030c09417574686f72697479301e170d3236313132343130"
    "303030305a170d3237313132343130303030305a30113110300e06035504030c0767617465776179"
) + bytes(300)


def test_the_peer_name_is_the_common_name_or_an_alternative_name():
    assert subject_of({"subject": ((("commonName", "sensor"),),), "subjectAltName": (("DNS", "other"),)}) == "sensor"
    assert subject_of({"subject": (), "subjectAltName": (("DNS", "sensor.example"),)}) == "sensor.example"
    assert subject_of({}) == subject_of(None) == ""


def test_changed_files_are_loaded_once_stable_and_a_broken_file_is_reported_once(authority, tmp_path):
    cert, key = authority.sign("first")
    settings = Tls(cert_file=str(tmp_path / "c.pem"), key_file=str(tmp_path / "k.pem"))

    def install(cert, key):
        (tmp_path / "c.pem").write_bytes(cert)
        (tmp_path / "k.pem").write_bytes(key)

    install(cert.read_bytes(), key.read_bytes())
    (tmp_path / "k.pem").chmod(0o600)
    files = Certificates(settings)
    assert not files.look() and files.certificate.subject == "first" and files.warnings == []
    kept = files.context

    second = [path.read_bytes() for path in authority.sign("second")]
    (tmp_path / "c.pem").write_bytes(second[0])
    assert not files.look()  # half of the change: the key is still the old one
    (tmp_path / "k.pem").write_bytes(second[1])
    assert not files.look() and files.context is kept
    assert files.look() and files.certificate.subject == "second" and files.context is not kept
    assert not files.look()

    install(b"broken", second[1])
    files.look()
    assert files.look() and "holds no certificate" in files.problem and files.certificate.subject == "second"
    assert not files.look() and files.refused == 1
    (tmp_path / "c.pem").unlink()
    files.look()
    assert files.look() and "No such file" in files.problem
    install(*second)
    files.look()
    assert files.look() and files.problem == "" and files.certificate.subject == "second"


def test_an_invalid_certificate_file_is_a_configuration_error(authority, tmp_path):
    cert, key = authority.sign("whole")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="damaged"):
        Certificates(Tls(cert_file=str(damaged), key_file=str(key)))
    with pytest.raises(ConfigError, match=r"tls\.client_ca_file"):
        Certificates(Tls(cert_file=str(cert), key_file=str(key), client_ca_file=str(damaged)))
    half = tmp_path / "half.pem"
    half.write_bytes(key.read_bytes()[:100])
    half.chmod(0o600)
    with pytest.raises(ConfigError, match=r"tls\.key_file: .*half\.pem: the key is damaged"):
        Certificates(Tls(cert_file=str(cert), key_file=str(half)))
    large = tmp_path / "large.pem"
    large.write_bytes(cert.read_bytes() * (1 + FILE_BYTES_MAX // cert.stat().st_size))
    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        Certificates(Tls(cert_file=str(large), key_file=str(key)))


def test_a_named_pipe_is_refused_and_not_waited_for(authority, tmp_path):
    cert, key = map(str, authority.sign("whole"))
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    for files in (
        Tls(cert_file=pipe, key_file=key),
        Tls(cert_file=cert, key_file=pipe),
        Tls(cert_file=cert, key_file=key, client_ca_file=pipe),
    ):
        with pytest.raises(ConfigError, match="named pipe"):
            Certificates(files)
