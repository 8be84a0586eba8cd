"""What pyproject.toml cannot say: what builds the C core, and that one wheel serves every Python from 3.10 on."""

import sysconfig

from setuptools import setup

# The core uses the limited API, which a free-threaded interpreter does not offer.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["native/build_native.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
)
