"""Fuzzing of every parser of untrusted bytes from clients or disks: `make fuzz`, `make fuzz-long`, `python -m fuzz
--help`.

Invariant: each target has a saved corpus (tests/kept/fuzz/TARGET.zip). Each input that ever failed is saved too
(tests/kept/fuzz/TARGET/). Both are run before new inputs are generated, and by the test suite.
"""
