"""Certificates for tests, made with the openssl command line: an authority and certificates that it signs.

Invariant: every file is new in the given directory, and its keys are readable only by this user.
"""

import functools
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DAY_SECONDS = 24 * 3600


@functools.cache
def _get_openssl():
    subprocess.run([ROOT / "packaging" / "setup.sh", "openssl"], check=True, timeout=600)


def openssl(*arguments):
    _get_openssl()
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Authority:
    """Signs certificates. `file` is its own certificate. `strict`: with all extensions that Python 3.13 requires."""

    def __init__(self, directory, name="Authority of the tests", strict=True):
        self._directory = directory
        self.key, self.file = directory / f"{name}.key", directory / f"{name}.pem"
        _make_key(self.key)
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign") if strict else ()
        openssl(
            "req", "-x509", "-new", "-key", self.key, "-days", 50, "-subj", f"/CN={name}", *usage, "-out", self.file
        )

    def sign(self, name, *, names="DNS:localhost,IP:127.0.0.1", days=40, key_kind="prime256v1"):
        """A certificate and its key. `days` may be negative for an expired certificate, or a part of a day."""
        key, request, file = (self._directory / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
        extensions = self._directory / f"{name}.ext"
        _make_key(key, key_kind)
        openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        extensions.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n")
        if days < 1:
            self._sign_until(request, extensions, file, days)
        else:
            openssl(
                *("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-CAcreateserial"),
                *("-days", days, "-extfile", extensions, "-out", file),
            )
        return file, key

    def _sign_until(self, request, extensions, file, days):
        """Valid for a year that ends in `days` days. Newer versions of `openssl x509` refuse to make one for the past, and
        none takes parts of a day."""
        settings, database = self._directory / "ca.cnf", self._directory / "ca.db"
        database.write_text("")
        settings.write_text(
            f"[ca]\ndefault_ca=own\n[own]\ndatabase={database}\nnew_certs_dir={self._directory}\n"
            "default_md=sha256\npolicy=any\nrand_serial=yes\n[any]\ncommonName=supplied\n"
        )
        end = time.time() + days * DAY_SECONDS
        begin = end - 365 * DAY_SECONDS
        dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds)) for seconds in (begin, end)]
        openssl(
            *("ca", "-batch", "-notext", "-config", settings, "-cert", self.file, "-keyfile", self.key),
            *("-startdate", dates[0], "-enddate", dates[1], "-extfile", extensions, "-in", request, "-out", file),
        )


def _make_key(path, kind="prime256v1"):
    if kind == "rsa":
        openssl("genrsa", "-out", path, 2048)
    else:
        openssl("ecparam", "-name", kind, "-genkey", "-noout", "-out", path)
    path.chmod(0o600)
