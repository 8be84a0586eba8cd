"""The log lines about handshakes, and the reasons of OpenSSL in them, which differ between its versions.

Invariant: every reason gives a text; only reasons that a client can cause have a text of ours.
"""

from __future__ import annotations

from blipmq.base.logs import Log

_NOT_TLS = "the client did not use TLS, which this port requires"
_TOO_OLD = "the client does not support TLS from tls.min_version up"
_CAUSES = {
    "HTTP_REQUEST": "the client sent plain HTTP: use https://",
    "HTTPS_PROXY_REQUEST": "the client sent a request for an HTTP proxy",
    "UNSUPPORTED_PROTOCOL": _TOO_OLD,
    "VERSION_TOO_LOW": _TOO_OLD,
    "NO_SHARED_CIPHER": "the client has no cipher in common with this broker",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client sent no certificate, but tls.require_client_cert is set",
    "CERTIFICATE_VERIFY_FAILED": "no authority in tls.client_ca_file signed the client's certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not know the authority that signed this broker's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not accept this broker's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client reports that this broker's certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not accept this broker's certificate",
    "UNEXPECTED_EOF_WHILE_READING": "the client closed the connection within a record",
    # A frame of this protocol or anything else that is not TLS: one of these, by version and by the bytes.
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "BAD_RECORD_TYPE": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "INVALID_RECORD_TYPE": _NOT_TLS,
    "BAD_PROTOCOL_VERSION_NUMBER": _NOT_TLS,
    "DATA_LENGTH_TOO_LONG": _NOT_TLS,
}
# From 3.2 on, alerts of SSL 3.0 and later are called so.
_RENAMED = ("SSL/TLS_ALERT_", "SSLV3_ALERT_")


def explain(reason: str, detail: str = "") -> str:
    """`reason` is OpenSSL's text or Python's name for it, `detail` why it refused a certificate, "" if it refused none."""
    name = reason.upper().replace(" ", "_")
    if name.startswith(_RENAMED[0]):
        name = _RENAMED[1] + name.removeprefix(_RENAMED[0])
    text = _CAUSES.get(name) or name.lower().replace("_", " ") or "the TLS library gave no reason"
    return f"{text} ({detail})" if detail else text


def log_opened(log: Log, peer: str, version: str, certificate: str | None) -> None:
    """`certificate`: the name in the client's verified certificate; None without one."""
    if certificate is None:
        log.debug("tls", peer=peer, version=version)
    else:
        log.info("tls", peer=peer, version=version, certificate=certificate)


def log_failed(log: Log, peer: str, reason: str, detail: str = "") -> None:
    """`reason` and `detail` as in `explain`."""
    log.warning("tls_failed", peer=peer, error=explain(reason, detail))


def log_late(log: Log, peer: str, seconds: float) -> None:
    log.warning("tls_failed", peer=peer, error=f"no handshake in {seconds:g} s")
