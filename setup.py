"""Settings that pyproject.toml cannot express: how to build the C core, and one wheel for every Python from 3.10 on.

`BLIPMQ_WITHOUT_CORE=1` leaves the C modules out, for an editable install; make builds them in place. `BLIPMQ_WITHOUT_TLS=1`
leaves out the one that needs OpenSSL: a broker with `[tls]` then does not start.
"""

import os
import sysconfig

from setuptools import setup

with_core = os.environ.get("BLIPMQ_WITHOUT_CORE") != "1"
with_tls = os.environ.get("BLIPMQ_WITHOUT_TLS") != "1"
modules = ["native/build_native.py:ffibuilder", *(["native/tls/build_tls.py:ffibuilder"] if with_tls else [])]
# The core uses the limited API, which a free-threaded interpreter does not have.
limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=modules if with_core else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if with_core and limited_api else {},
)
