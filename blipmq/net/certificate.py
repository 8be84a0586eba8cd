"""The broker's certificate: reading, checking, using it for new connections, and reading it again when its files
change.

Invariant: `Certificates.context` always works: new files replace it completely or not at all. Nothing here returns, logs or
keeps a byte of the private key. Loaded only where TLS is configured, because OpenSSL costs an idle broker some megabytes.
"""

from __future__ import annotations

import binascii
import calendar
import os
import stat
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from blipmq.base.files import read_file
from blipmq.base.hardware import has_aes
from blipmq.config.settings import Tls
from blipmq.errors import ConfigError, FileUnusable
from blipmq.native.tls import Part, TlsContext, TlsUnusable

if TYPE_CHECKING:
    import ssl

FILE_BYTES_MAX = 1 << 20
EXPIRES_SOON_SECONDS = 14 * 24 * 3600


class Certificate(NamedTuple):
    """The facts of a certificate that operators need. Times are seconds since 1970."""

    subject: str  # its common name; "" if it has none, like many certificates with alternative names only
    not_before: int
    not_after: int


# ---- reading one ----------------------------------------------------------------------------------------------------

SEQUENCE, SET, OID, UTC_TIME, GENERALIZED_TIME, VERSION = 0x30, 0x31, 0x06, 0x17, 0x18, 0xA0
COMMON_NAME = bytes((0x55, 0x04, 0x03))
_TEXTS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}


def read_certificate(der: bytes) -> Certificate:
    """Subject and dates of an X.509 certificate in DER (RFC 5280). Raises ValueError for anything else.

        Certificate ::= SEQUENCE { SEQUENCE { [0] version OPTIONAL, serial, algorithm, issuer,
                                              SEQUENCE { notBefore, notAfter }, subject, ... } ... }

    The ssl module gives these only for a peer's certificate, not for its own.
    """
    fields = list(_parts(_only(_only(der, SEQUENCE), SEQUENCE)))
    if fields and fields[0][0] == VERSION:
        del fields[0]
    if len(fields) < 5 or fields[3][0] != SEQUENCE or fields[4][0] != SEQUENCE:
        raise ValueError("not an X.509 certificate")
    times = [_time(tag, value) for tag, value in _parts(fields[3][1])]
    if len(times) != 2:
        raise ValueError("a certificate's validity is two dates")
    return Certificate(_common_name(fields[4][1]), *times)


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of a DER sequence."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("an element ends in its head")
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                raise ValueError("an element's length cannot be read")
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + size > len(data):
            raise ValueError("an element is longer than its container")
        yield tag, data[at : at + size]
        at += size


def _only(data: bytes, wanted: int) -> bytes:
    """The content of the first element, which must have this tag."""
    for tag, content in _parts(data):
        if tag == wanted:
            return content
        break
    raise ValueError("not an X.509 certificate")


def _time(tag: int, value: bytes) -> int:
    text = value.decode("ascii")
    if tag == UTC_TIME and len(text) == 13:
        year = int(text[:2])
        text = f"{1900 + year if year >= 50 else 2000 + year}{text[2:]}"
    elif tag != GENERALIZED_TIME or len(text) != 15:
        raise ValueError("a date is neither UTCTime nor GeneralizedTime")
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _common_name(name: bytes) -> str:
    for tag, attributes in _parts(name):
        if tag != SET:
            raise ValueError("a name is not made of sets")
        for pair_tag, pair in _parts(attributes):
            parts = list(_parts(pair)) if pair_tag == SEQUENCE else []
            if len(parts) == 2 and parts[0] == (OID, COMMON_NAME):
                return parts[1][1].decode(_TEXTS.get(parts[1][0], "latin-1"), "replace")
    return ""


def subject_of(peer: Mapping[str, Any] | None) -> str:
    """The name of a verified peer over HTTPS, from `SSLObject.getpeercert`: the common name, else an alternative name."""
    if not peer:
        return ""
    names = {name: value for part in peer.get("subject", ()) for name, value in part}
    return str(names.get("commonName") or next((value for _, value in peer.get("subjectAltName", ())), ""))


def date(seconds: float) -> str:
    """A date as written in messages. `seconds`: since 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


# ---- the files ------------------------------------------------------------------------------------------------------


class Certificates:
    """The loaded files of `[tls]`. Raises `ConfigError` that names the wrong file and the error.

    `warnings` are sentences about files that work but need attention. `problem` says why changed files were not loaded,
    "" if the newest are in use. `clock` returns seconds since 1970. With `https` the same files also make a context of the
    module ssl, `https`.
    """

    def __init__(self, settings: Tls, clock: Any = time.time, https: bool = False) -> None:
        self.https: ssl.SSLContext | None = None
        self._clock = clock
        self._with_https = https
        self.problem = ""
        self.loads = self.refused = 0
        self._known: tuple[Any, ...] = ()  # stamps of the files last loaded or refused
        self._seen: tuple[Any, ...] = ()  # stamps at the last check
        self._take(settings, _stamps(settings))

    def __repr__(self) -> str:
        return f"<Certificates {self.certificate.subject!r} expires={date(self.certificate.not_after)} {self.problem}>"

    def use(self, settings: Tls) -> None:
        """Load other settings, or the same files again. If they are invalid, raises `ConfigError` and keeps the current
        ones."""
        self._take(settings, _stamps(settings))

    def look(self) -> bool:
        """Load files that have changed; to be called about once a second. Returns True if the new files are in use, or
        if they were refused and `problem` says why.

        A change counts when two checks in a row see the same stamps, because certificate and key are two files that are
        rarely written at the same time.
        """
        stamps = _stamps(self._settings)
        settled, self._seen = stamps == self._seen, stamps
        if not settled or stamps == self._known:
            return False
        try:
            self._take(self._settings, stamps)
        except ConfigError as error:
            self._known = stamps  # reported once
            self.problem = str(error)
            self.refused += 1
        return True

    def renew_tickets(self) -> None:
        """Replace the context by one of the same files, whose session tickets have other keys."""
        self.context: TlsContext = self.context.renewed()

    def _take(self, settings: Tls, stamps: tuple[Any, ...]) -> None:
        context, certificate, warnings = _load(settings, self._clock())
        if self._with_https:
            self.https = _https(settings)
        self._settings = settings
        self._known = self._seen = stamps
        self.context, self.certificate, self.warnings = context, certificate, warnings
        self.problem = ""
        self.loads += 1


def _stamps(settings: Tls) -> tuple[Any, ...]:
    """A value that changes when a file is written or replaced; zeros for a missing file."""
    found = []
    for path in filter(None, (settings.cert_file, settings.key_file, settings.client_ca_file)):
        try:
            about = os.stat(path)
            found.append((about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size))
        except OSError:
            found.append((0, 0, 0, 0))
    return tuple(found)


def _load(settings: Tls, now: float) -> tuple[TlsContext, Certificate, list[str]]:
    chain = _read("tls.cert_file", settings.cert_file, "-----BEGIN CERTIFICATE-----")
    key = _read("tls.key_file", settings.key_file, "PRIVATE KEY-----")
    client_ca = ""
    if settings.client_ca_file:
        client_ca = _read("tls.client_ca_file", settings.client_ca_file, "-----BEGIN CERTIFICATE-----")
    certificate = _first(settings.cert_file, chain)
    try:
        context = TlsContext(
            *(text.encode("latin-1") for text in (chain, key, client_ca)),
            require_client_cert=settings.require_client_cert,
            only_tls13=settings.min_version == "1.3",
            chacha_first=not has_aes(),
        )
    except TlsUnusable as error:
        raise FileUnusable(_explained(settings, error)) from None
    return context, certificate, list(_warnings(settings, certificate, now))


def _https(settings: Tls) -> ssl.SSLContext:
    from blipmq.net.https import context_of  # imported here because few brokers serve metrics over HTTPS

    try:
        return context_of(settings)
    except (OSError, ValueError) as error:  # the files have changed again, or are not what this library takes
        raise FileUnusable(
            f"tls.cert_file: {settings.cert_file} with {settings.key_file}: metrics.tls cannot use them: {error}."
        ) from None


def _read(key: str, path: str, holds: str) -> str:
    """The text of a PEM file. Raises `ConfigError` if the file does not hold this kind."""
    try:
        text = read_file(path, FILE_BYTES_MAX + 1).decode("latin-1")
    except OSError as error:
        raise FileUnusable(
            f"{key}: {path} cannot be read: {error.strerror}. Correct the path, or allow the broker's user to read the file."
        ) from None
    if len(text) > FILE_BYTES_MAX:
        raise FileUnusable(
            f"{key}: {path} is larger than {FILE_BYTES_MAX} bytes. Name a PEM file with fewer certificates."
        )
    if holds not in text:
        what = "private key" if "KEY" in holds else "certificate"
        raise FileUnusable(f"{key}: {path} holds no {what} in PEM format. Name a PEM file.")
    return text


def _first(path: str, chain: str) -> Certificate:
    """The certificate that clients see: the first of the file."""
    head, tail = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    begin = chain.find(head)
    end = chain.find(tail, begin)
    try:
        if end < 0:
            raise ValueError("no end")
        return read_certificate(binascii.a2b_base64(chain[begin + len(head) : end].encode("ascii")))
    except ValueError:
        raise FileUnusable(f"tls.cert_file: {path}: its first certificate is damaged. Copy the file again.") from None


def _explained(settings: Tls, error: TlsUnusable) -> str:
    if error.part is Part.PAIR:
        return (
            f"tls.key_file: {settings.key_file} is not the key of the certificate in {settings.cert_file}. "
            "Set two files that belong together; in the first, the certificate comes before those of its issuers."
        )
    if error.part is Part.KEY_ENCRYPTED:
        return (
            f"tls.key_file: {settings.key_file}: the key is encrypted, but the broker cannot ask for a pass phrase. "
            "Decrypt it (`openssl pkey -in OLD -out NEW`), and make the file readable only for the broker's user."
        )
    if error.part is Part.KEY:
        return (
            f"tls.key_file: {settings.key_file}: the key is damaged, or of a kind that OpenSSL does not know: {error.reason}. "
            "Check it with `openssl pkey -noout -in FILE`, or copy the file again."
        )
    if error.part is Part.CLIENT_CA:
        return (
            f"tls.client_ca_file: {settings.client_ca_file}: {error.reason}. "
            "The file must hold the certificates of the authorities that signed the client certificates, in PEM."
        )
    return (
        f"tls.cert_file: {settings.cert_file} with {settings.key_file}: {error.reason}. "
        "Check them with `openssl x509` and `openssl pkey`."
    )


def _warnings(settings: Tls, certificate: Certificate, now: float) -> Iterator[str]:
    path = settings.cert_file
    if certificate.not_after <= now:
        yield f"tls.cert_file: {path} expired on {date(certificate.not_after)}, so clients refuse to connect: renew it"
    elif certificate.not_after - now < EXPIRES_SOON_SECONDS:
        yield f"tls.cert_file: {path} expires on {date(certificate.not_after)}: renew it before that date"
    if certificate.not_before > now:
        yield f"tls.cert_file: {path} is not valid before {date(certificate.not_before)}: check the clock of this machine"
    if os.name == "posix":
        mode = os.stat(settings.key_file).st_mode
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            yield f"tls.key_file: everyone on this machine can read {settings.key_file}: chmod o= {settings.key_file}"
