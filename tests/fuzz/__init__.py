"""Fuzzing every parser of bytes that strangers or disks control: `make fuzz`, `make fuzz-long`, `python -m fuzz --help`.

Invariant: each target has a kept corpus (tests/kept/fuzz/TARGET.zip) and each input that ever broke it is kept beside it
(tests/kept/fuzz/TARGET/); both are run before new inputs are made, and by the test suite.
"""
