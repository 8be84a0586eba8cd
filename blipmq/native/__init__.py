"""The C core as Python sees it.

    core        a `Core`: typed commands in, typed events out
    clock       the system's clocks, as the core reads them
    config      the settings of the core and its WAL
    events      the core's events
    log         the report of opening the WAL, and its errors
    log_tool    a WAL without a running broker: verify, export, repair
    pure        functions that need no core
    errors      a failed call

Invariant: only these modules use `ffi`. They pass on no pointer into C memory: bytes are copied out of an event before
the next one is read. A negative code from C becomes a `CoreError`.
"""
