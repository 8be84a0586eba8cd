"""The TLS module: contexts of TLS listeners, made from PEM texts, and the address of its functions for the core.

Invariant: a context is never changed. Keys stay inside OpenSSL. Loaded only where `[tls]` is configured, because OpenSSL costs
an idle broker some megabytes; the core itself is not linked with it.
"""

from __future__ import annotations

from enum import IntEnum

from blipmq.errors import ConfigError

_INSTEAD = "or remove [tls] and server.tls_bind_addr"
try:
    from blipmq._tls import ffi, lib
except ModuleNotFoundError:
    raise ConfigError(
        "TLS is configured, but this BlipMQ was built without it (BLIPMQ_WITHOUT_TLS=1). "
        f"Install one that was built with it, {_INSTEAD}."
    ) from None
except ImportError as error:
    raise ConfigError(
        f"TLS is configured, but its module does not load: {error}. Install OpenSSL 3.0 or newer, {_INSTEAD}."
    ) from None


class Part(IntEnum):
    """The part of a context that cannot be used: `enum bqtls_part`."""

    LIBRARY = 0
    CHAIN = 1
    KEY = 2
    KEY_ENCRYPTED = 3
    PAIR = 4
    CLIENT_CA = 5
    ALPN = 6


class TlsUnusable(Exception):
    """A text of a context cannot be used. `part` says which, `reason` is OpenSSL's."""

    def __init__(self, part: Part, reason: str) -> None:
        super().__init__(f"{part.name.lower()}: {reason}")
        self.part = part
        self.reason = reason


class TlsContext:
    """Certificates, key and rules of a TLS listener. Raises `TlsUnusable`.

    `chain` is the broker's certificate with those of its issuers, `key` its private key, `client_ca` the authorities that
    sign clients' certificates, all in PEM; without `client_ca` clients are not asked for one. `alpn` are protocol names.
    """

    def __init__(
        self,
        chain: bytes,
        key: bytes,
        client_ca: bytes = b"",
        *,
        require_client_cert: bool = False,
        only_tls13: bool = False,
        chacha_first: bool = False,
        alpn: tuple[str, ...] = (),
    ) -> None:
        names = b"".join(bytes((len(name),)) + name.encode("ascii") for name in alpn)
        texts = {"chain": chain, "key": key, "client_ca": client_ca, "alpn": names}
        # from_buffer makes no copy, so no second copy of the key is left in memory
        kept = {
            name: ffi.from_buffer("char[]" if name != "alpn" else "uint8_t[]", text) for name, text in texts.items()
        }
        settings = ffi.new("bqtls_settings_t *", kept)
        for name, text in texts.items():
            setattr(settings, f"{name}_size", len(text))
        settings.require_client_cert = require_client_cert
        settings.only_tls13 = only_tls13
        settings.chacha_first = chacha_first
        error = ffi.new("bqtls_error_t *")
        self._own(lib.bqtls_context_new(settings, error), error)

    def __repr__(self) -> str:
        return f"<TlsContext {self.address:#x}>"

    def _own(self, context: object, error: object) -> None:
        if context == ffi.NULL:
            raise TlsUnusable(Part(error.part), ffi.string(error.reason).decode("utf-8", "replace"))  # type: ignore[attr-defined]
        self._context = ffi.gc(context, lib.bqtls_context_free)

    @property
    def address(self) -> int:
        """The address of the context; valid while this object lives."""
        return int(ffi.cast("uintptr_t", self._context))

    def share(self) -> int:
        """The address of the context with a new reference, which the receiver releases (`context_free` of the table)."""
        return int(ffi.cast("uintptr_t", lib.bqtls_context_share(self._context)))

    def renewed(self) -> TlsContext:
        """A context with the same certificates and settings and fresh ticket keys. Raises `TlsUnusable`."""
        fresh = TlsContext.__new__(TlsContext)
        error = ffi.new("bqtls_error_t *")
        fresh._own(lib.bqtls_context_renewed(self._context, error), error)
        return fresh


def table() -> int:
    """The address of the functions for the core (`bq_secure_ops_t`). They live as long as the process."""
    return int(ffi.cast("uintptr_t", lib.bqtls_ops()))


def library() -> str:
    """Name and version of the TLS library in use, such as "OpenSSL 3.5.7 ..."."""
    return str(ffi.string(lib.bqtls_library()).decode("ascii", "replace"))
