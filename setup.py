"""Settings that pyproject.toml cannot express: how to build the C core, and one wheel for every Python from 3.10 on.

`BLIPMQ_WITHOUT_CORE=1` leaves the core out, for an editable install; make builds its core in place.
"""

import os
import sysconfig

from setuptools import setup

with_core = os.environ.get("BLIPMQ_WITHOUT_CORE") != "1"
# The core uses the limited API, which a free-threaded interpreter does not have.
limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["native/build_native.py:ffibuilder"] if with_core else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if with_core and limited_api else {},
)
