"""The TLS trust of a client: its SSL context, and the errors of a handshake.

Invariant: a certificate is always checked against an authority and the name in the address; nothing here turns that
off. `ssl` is loaded only by a client that uses TLS.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Union

from blipmq.errors import BlipMQError, ConfigError, NotTrusted, Unreachable, WrongType

if TYPE_CHECKING:
    import ssl

Tls = Union[bool, str, "os.PathLike[str]", "ssl.SSLContext", None]
"""How to use TLS: True: with the system's certificate authorities; a path: with the authorities in this file; or an
ssl.SSLContext. None: as the address says. False: no TLS."""


def client_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """Return a context that trusts the authorities in `ca_file` ("": the system's) and presents `cert_file`, if that is
    not "". Its key is in `key_file`, or in the same file. Raises ConfigError that names the wrong file."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The authority file {ca_file} is not usable: {_why(error)}. It must hold certificates in PEM."
        ) from None
    # Python 3.13 made strict checks the default. They reject authorities made with one openssl command, which many
    # sites use. All versions behave alike.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file or None, password=_refuse_pass_phrase)
        except (OSError, ValueError) as error:
            what = f"The certificate {cert_file} with the key {key_file or 'in it'}"
            raise ConfigError(
                f"{what} is not usable: {_why(error)}. Both must be PEM, and the key not encrypted."
            ) from None
    elif key_file:
        raise ConfigError(f"The key {key_file} needs its certificate. Name the certificate too.")
    return context


def context_for(tls: Tls) -> ssl.SSLContext:
    """Return the context for the option `tls` of `blipmq.connect`. Raises ConfigError or WrongType."""
    import ssl

    if isinstance(tls, ssl.SSLContext):
        return tls
    if tls is None or isinstance(tls, bool):
        return client_context()
    if isinstance(tls, (str, os.PathLike)):
        return client_context(os.fspath(tls))
    raise WrongType(f"tls must be True, the path of a file or an ssl.SSLContext, not {type(tls).__name__}.")


def _refuse_pass_phrase() -> str:
    raise ValueError("the key is encrypted")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else getattr(error, "strerror", None) or str(error)


# ---- errors
# ------------------------------------------------------------------------------------------------------------

# OpenSSL's numbers of certificate errors: X509_V_ERR_...
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
_OURS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires a client certificate. Set one: --cert and "
    "--cert-key, or a context that has it",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority that signed this client's certificate. Use one signed by "
    "an authority in its tls.client_ca_file",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept this client's certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept this client's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this client's certificate has expired. Renew it",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not accept this client's certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no cipher in common with this client, or requires a client certificate",
}
_VERSIONS = ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE")
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "BAD_RECORD_TYPE",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_EOF_WHILE_READING",
)


def refused_certificate(address: object, error: BaseException | None) -> BlipMQError | None:
    """Return the error for a broker that refused this client's certificate or its absence; None for any other error.
    With TLS 1.3 a client learns of it only after its own part of the handshake."""
    cause = _OURS.get(getattr(error, "reason", None) or "")
    return NotTrusted(f"The broker at {address} refused this client: {cause}.") if cause else None


def handshake_failed(address: object, host: str, error: BaseException) -> BlipMQError | None:
    """Return the error for a failed handshake; None if it is not a TLS error."""
    import ssl

    reason = getattr(error, "reason", None) or ""
    code = getattr(error, "verify_code", 0)
    if code:
        return NotTrusted(f"The certificate of the broker at {address} is not trusted: {_distrust(code, host, error)}.")
    if refused := refused_certificate(address, error):
        return refused
    if reason in _VERSIONS:
        return Unreachable(
            f"Cannot reach a broker at {address}: broker and client have no TLS version in common. Update one."
        )
    # OpenSSL and Python versions name the same end differently.
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    if reason in _NOT_TLS or isinstance(error, ended):
        return Unreachable(
            f"Cannot reach a broker at {address}: it ended the TLS handshake. "
            "Check that the port is that of server.tls_bind_addr. The broker's log has the cause."
        )
    return Unreachable(f"Cannot reach a broker at {address}: TLS failed: {_why(error)}.") if reason else None  # type: ignore[arg-type]


def _distrust(code: int, host: str, error: BaseException) -> str:
    if code == _EXPIRED:
        return "it has expired. Renew it on the broker, or set this machine's clock"
    if code == _NOT_YET_VALID:
        return "it is not valid yet. Set the clock of this machine, or of the machine that made it"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return f"it is not for {host}. Connect with a name in the certificate, or get a certificate for {host}"
    said = getattr(error, "verify_message", "") or "verification failed"
    return f"this machine does not know its authority ({said}). Name the file of the authority: --ca-file, or tls=FILE"
