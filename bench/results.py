"""Measured values and their medians, ratios and goals.

Invariant: a ratio is the median of the ratios within each round, because the speed of the machine may change between rounds.
Failed runs and lost messages are reported, never averaged away.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from bench.plan import Goal, Shape

LOSSES = ("lost", "extra", "corrupt", "unsent", "disconnected", "stalls")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the table of goals. `value` is the measured value (a ratio if the goal compares), None without one."""

    goal: Goal
    shape: str
    against: str
    value: float | None

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value <= self.goal.limit


class Results:
    """Samples by (shape, broker, round); a sample is the load generator's JSON object or `{"failed": why}`."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}

    def add(self, shape: str, broker: str, round_number: int, sample: dict[str, Any]) -> None:
        self.samples.setdefault((shape, broker), {})[round_number] = sample

    def values(self, shape: str, broker: str, field: str) -> dict[int, float]:
        """The field's value by round, for the rounds that have it."""
        rounds = self.samples.get((shape, broker), {})
        return {number: sample[field] for number, sample in rounds.items() if field in sample}

    def spread(self, shape: str, broker: str, field: str) -> Spread | None:
        values = self.values(shape, broker, field).values()
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def ratio(self, shape: str, broker: str, field: str, other: str, other_shape: str = "") -> float | None:
        """Median over rounds of the ratio of broker's value to other's value, in other_shape if given."""
        mine = self.values(shape, broker, field)
        theirs = self.values(other_shape or shape, other, field)
        ratios = [mine[number] / theirs[number] for number in mine if theirs.get(number)]
        return statistics.median(ratios) if ratios else None

    def ratios(self, subject: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
        """Ratios of the subject to every other broker, for every shape and field that both have."""
        found = []
        for shape, broker in self.samples:
            for field in fields if broker != subject else ():
                value = self.ratio(shape, subject, field, broker)
                if value is not None:
                    found.append({"shape": shape, "of": field, "to": broker, "ratio": round(value, 5)})
        return found

    def median_of_all(self, field: str) -> float:
        """The median over all runs of all brokers; 0 if none has the field."""
        values = [sample[field] for rounds in self.samples.values() for sample in rounds.values() if field in sample]
        return statistics.median(values) if values else 0.0

    def troubles(self) -> list[str]:
        """One line for each shape and broker with a failed run or lost messages."""
        lines = []
        for (shape, broker), rounds in self.samples.items():
            failed = [sample["failed"] for sample in rounds.values() if "failed" in sample]
            if failed:
                lines.append(f"{broker}, {shape}: {len(failed)} of {len(rounds)} runs failed: {failed[-1]}")
            counts = {what: sum(sample.get(what, 0) for sample in rounds.values()) for what in LOSSES}
            if any(counts.values()):
                sent = sum(sample.get("expected", 0) for sample in rounds.values())
                said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
                lines.append(f"{broker}, {shape}: {said} (of {sent:,} expected)")
        return lines

    def verdicts(self, goals: list[Goal], subject: str, shapes: list[Shape]) -> list[Verdict]:
        """Goals for the shapes of this run. A peer that does not support a shape has no goal for it."""
        names = {shape.name for shape in shapes} | {"start"}
        unable = {(shape.name, broker) for shape in shapes for broker in shape.without}
        every = [shape.name for shape in shapes if shape.kind == "throughput"]
        verdicts = []
        for goal in goals:
            for shape in every if goal.shapes == ["*"] else goal.shapes:
                if shape in names:
                    verdicts += self._verdicts_of_shape(goal, shape, subject)
        return [verdict for verdict in verdicts if (verdict.shape, verdict.against) not in unable]

    def _verdicts_of_shape(self, goal: Goal, shape: str, subject: str) -> list[Verdict]:
        if goal.against_shape:
            value = self.ratio(shape, subject, goal.of, subject, goal.against_shape)
            return [Verdict(goal, shape, goal.against_shape, value)]
        if goal.against:
            return [Verdict(goal, shape, other, self.ratio(shape, subject, goal.of, other)) for other in goal.against]
        spread = self.spread(shape, subject, goal.of)
        return [Verdict(goal, shape, "", spread.median if spread else None)]
