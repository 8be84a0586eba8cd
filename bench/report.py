"""Results as a Markdown page: the tables, the table of goals, and the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from bench.plan import Plan, Shape
from bench.results import Results, Verdict

OWN_BUSY_MAX = 0.85  # above it, the load generator limits the wall rate
SPINNING_MIN = (
    0.85  # below it, the spinning load generator had to wait for its processor, so latency depends on the machine
)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, kernel."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def markdown(plan: Plan, shapes: list[Shape], brokers: list[str], results: Results, facts: dict[str, Any]) -> str:
    """The whole page. `facts` has the date, the machine, the versions and the number of rounds."""
    throughput = [shape for shape in shapes if shape.kind == "throughput"]
    timed = [shape for shape in shapes if shape.kind == "latency"]
    durable = [shape for shape in shapes if shape.kind == "durable"]
    parts = [
        f"# BlipMQ benchmark, {facts['date']}",
        _facts(facts),
        *(_loads(plan, throughput, timed, brokers, results) if throughput or timed else []),
        *(_durable(plan, durable, brokers, results) if durable else []),
        *(["## Start and memory", _memory(shapes, brokers, results)] if len(durable) < len(shapes) else []),
        "## Goals",
        _verdicts(results.verdicts(plan.goals, plan.subject, shapes)),
        "## Losses and failures",
        "\n".join(f"- {line}" for line in results.troubles())
        or "None: every message sent was delivered or acknowledged, once.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _loads(plan: Plan, throughput: list[Shape], timed: list[Shape], brokers: list[str], results: Results) -> list[str]:
    brokers = _measured(throughput + timed, brokers, results)
    return [
        "## CPU of the broker per delivered message, µs",
        "Median of the rounds (least–greatest). All threads of the broker's process, user and system.",
        _table(throughput + timed, brokers, lambda s, b: _spread(results, s.name, b, "cpu_us_per_delivered")),
        f"## The same as a ratio: {plan.subject} to each of the others",
        "Median of the ratios within each round; below 1, it spends less.",
        _ratios(plan, throughput + timed, brokers, results, "cpu_us_per_delivered"),
        "## Deliveries a second, millions",
        f"`*`: the load generator was busy over {OWN_BUSY_MAX:.0%} of the time: the broker may be faster than shown.",
        _table(throughput, brokers, lambda s, b: _rate(results, s.name, b)),
        "## Latency, µs: p50 / p99 / p99.9",
        "From the time each message was due, so waiting for a slow broker counts. "
        "`†`: other programs kept the load generator waiting, so the figure says nothing about the broker.",
        _table(timed, brokers, lambda s, b: _latency(results, s.name, b)),
    ]


def _durable(plan: Plan, shapes: list[Shape], brokers: list[str], results: Results) -> list[str]:
    """Publishes that are answered after the sync. Here "delivered" means acknowledged."""
    brokers = _measured(shapes, brokers, results)
    cells = {
        "acknowledged": lambda s, b: _spread(results, s.name, b, "delivered_per_s"),
        "cpu": lambda s, b: _spread(results, s.name, b, "cpu_us_per_delivered"),
        "syncs": lambda s, b: _spread(results, s.name, b, "acknowledged_per_sync"),
    }
    return [
        "## Durable publishes: acknowledged a second",
        "Written as publishers / payload bytes; each publisher keeps the shape's window outstanding. Median of the rounds "
        "(least–greatest). All acknowledge from the disk, but for a broker whose name ends in `-unsynced`: that one "
        "acknowledges what a power cut may take, and is here to show what the syncs cost.",
        _table(shapes, brokers, cells["acknowledged"]),
        f"## The same as a ratio: {plan.subject} to each of the others",
        "Median of the ratios within each round; above 1, it acknowledges more.",
        _ratios(plan, shapes, brokers, results, "delivered_per_s"),
        "## CPU of the broker per acknowledged publish, µs",
        _table(shapes, brokers, cells["cpu"]),
        f"## The same as a ratio: {plan.subject} to each of the others",
        "Below 1, it spends less.",
        _ratios(plan, shapes, brokers, results, "cpu_us_per_delivered"),
        "## Acknowledged publishes per sync",
        "Calls of fsync and the like, counted by the kernel over the whole run. Each costs a flash card a write.",
        _table(shapes, brokers, cells["syncs"]),
    ]


def _measured(shapes: list[Shape], brokers: list[str], results: Results) -> list[str]:
    """The brokers that took part in any of these shapes."""
    return [broker for broker in brokers if any((shape.name, broker) in results.samples for shape in shapes)]


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _facts(facts: dict[str, Any]) -> str:
    host = facts["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']};"
        f" other programs kept {facts['other_cpus']:.1f} cores busy (median of all runs).",
        f"{facts['rounds']} rounds of {facts['duration']} s a run, brokers interleaved, everything on 127.0.0.1.",
        "Versions: " + "; ".join(f"{name} ({version})" for name, version in facts["versions"].items() if version) + ".",
    ]
    return "\n".join(lines + facts["notes"])


def _table(shapes: list[Shape], brokers: list[str], cell: Any) -> str:
    rows = [[shape.name, *(cell(shape, broker) or "–" for broker in brokers)] for shape in shapes]
    return _grid(["shape", *brokers], rows)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _spread(results: Results, shape: str, broker: str, field: str) -> str:
    spread = results.spread(shape, broker, field)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})" if spread else ""


def _ratios(plan: Plan, shapes: list[Shape], brokers: list[str], results: Results, field: str) -> str:
    others = [broker for broker in brokers if broker != plan.subject]
    if plan.subject not in brokers or not others:
        return f"{plan.subject} was not measured beside another broker."

    def cell(shape: Shape, other: str) -> str:
        ratio = results.ratio(shape.name, plan.subject, field, other)
        return "" if ratio is None else number(ratio)

    return _table(shapes, others, cell)


def _rate(results: Results, shape: str, broker: str) -> str:
    spread, busy = (results.spread(shape, broker, field) for field in ("delivered_per_s", "own_busy"))
    if not spread:
        return ""
    return number(spread.median / 1e6) + ("*" if busy and busy.median > OWN_BUSY_MAX else "")


def _latency(results: Results, shape: str, broker: str) -> str:
    spreads = [results.spread(shape, broker, field) for field in ("p50_us", "p99_us", "p999_us")]
    busy = results.spread(shape, broker, "own_busy")
    starved = " †" if busy and busy.median < SPINNING_MIN else ""
    return " / ".join(number(spread.median) for spread in spreads if spread) + starved


def _memory(shapes: list[Shape], brokers: list[str], results: Results) -> str:
    def cell(shape: str, broker: str, field: str, scale: float = 1) -> str:
        spread = results.spread(shape, broker, field)
        return number(spread.median / scale) if spread else "–"

    rows = [["start to ready, ms", "start", "ready_ms", 1], ["RSS when ready, MB", "start", "rss_ready_mb", 1]]
    for shape in shapes:
        if shape.kind == "restart":
            rows.append([f"{shape.name}: to ready, ms", shape.name, "ready_ms", 1])
            rows.append([f"{shape.name}: RSS when ready, MB", shape.name, "rss_ready_mb", 1])
        elif shape.kind == "memory":
            rows.append([f"{shape.name}: bytes a connection", shape.name, "bytes_per_connection", 1])
            rows.append([f"{shape.name}: RSS, MB", shape.name, "rss_joined_bytes", 1e6])
        elif shape.kind == "soak":
            rows.append([f"{shape.name}: RSS before, MB", shape.name, "rss_begun_mb", 1])
            rows.append([f"{shape.name}: RSS after, MB", shape.name, "rss_settled_mb", 1])
    cells = [[text, *(cell(shape, broker, field, scale) for broker in brokers)] for text, shape, field, scale in rows]
    return _grid(["", *brokers], [row for row in cells if set(row[1:]) != {"–"}])


def _verdicts(verdicts: list[Verdict]) -> str:
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows = []
    for verdict in sorted(verdicts, key=lambda verdict: verdict.value is None):
        shape = f"{verdict.shape}, to {verdict.against}" if verdict.against else verdict.shape
        value = "–" if verdict.value is None else number(verdict.value)
        rows.append([verdict.goal.text, shape, value, number(verdict.goal.limit), words[verdict.met]])
    return _grid(["goal", "shape", "measured", "at most", ""], rows)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
