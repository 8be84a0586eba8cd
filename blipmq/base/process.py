"""The operating system's figures of this process: processor time, memory, descriptors, threads.

Invariant: reads a few counters, never waits, never raises. Figures that a system does not provide are left out.
"""

from __future__ import annotations

import os
import time

Root = str | os.PathLike[str]
_UNLIMITED_BYTES = 1 << 60  # older kernels write a large number for "no limit"


def started_at(root: Root = "/") -> float:
    """The start of this process, in seconds since 1970; the present time if the system does not provide it."""
    now = time.time()
    try:
        # The command's name, in parentheses, may contain anything, so count from its end. starttime is field 22.
        ticks = int(_read(root, "proc/self/stat").rpartition(b")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return now


def read_process(root: Root = "/") -> dict[str, float]:
    """cpu_seconds; with /proc also resident_bytes, virtual_bytes, threads; with descriptors open_fds and max_fds.
    `root` is the parent of /proc and /dev."""
    times = os.times()
    figures: dict[str, float] = {"cpu_seconds": times.user + times.system}
    try:
        virtual, resident = _read(root, "proc/self/statm").split()[:2]
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        figures["virtual_bytes"], figures["resident_bytes"] = int(virtual) * page_bytes, int(resident) * page_bytes
        figures["threads"] = len(os.listdir(os.path.join(root, "proc/self/task")))
    except (OSError, ValueError):
        pass
    return {**figures, **_descriptors(root)}


def memory_limit_bytes(root: Root = "/") -> int | None:
    """The memory limit of this process from its control groups: a container's limit, or MemoryMax= of a service. None:
    no limit."""
    try:
        lines = _read(root, "proc/self/cgroup").decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            folder, file = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts) + 1):  # in a container the path is the host's, and only the top level exists
            try:
                text = _read(root, "/".join([folder, *parts[:depth], file])).strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


def _read(root: Root, name: str) -> bytes:
    with open(os.path.join(root, name), "rb") as file:
        return file.read()


def _descriptors(root: Root) -> dict[str, float]:
    try:
        import resource

        count = _count(root)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):
        return {}
    figures: dict[str, float] = {"open_fds": count}
    if soft != resource.RLIM_INFINITY:
        figures["max_fds"] = soft
    return figures


def _count(root: Root) -> int:
    folder = os.path.join(root, "proc/self/fd")
    if os.path.exists(folder):
        # Since Linux 6.2 the size is the count; walking a hundred thousand descriptors would block the loop.
        return os.stat(folder).st_size or len(os.listdir(folder)) - 1
    return len(os.listdir(os.path.join(root, "dev/fd"))) - 1  # without the one that lists
