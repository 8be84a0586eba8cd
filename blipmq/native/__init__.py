"""The C core as Python sees it.

    core        a `Core` that takes typed commands and yields typed events
    clock       the system's clocks, as the core reads them
    config      what it and its log are made with
    events      what it tells
    log         what opening its log finds, and why a log cannot be opened
    log_tool    a log that no broker runs on: verify, export, repair
    pure        functions that need no core
    errors      a call that failed

Invariant: these are the only modules that touch `ffi`. Nothing that points into C memory leaves them: bytes are copied out of
an event before the next one is asked for, and a negative code from C leaves as a `CoreError`.
"""
