"""The plan of a run: shapes.toml or mqtt.toml as checked values.

Invariant: an unknown key is refused, so a typing error in a plan never changes a measurement silently.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("throughput", "latency", "memory", "soak", "durable", "restart")
CONTROL_KINDS = ("", "subscribers", "subscriptions", "scrapes", "reloads")
# Estimated overhead of a run on two cores, to compute the duration of a plan.
RUN_S, START_S, CONNECTION_S, RECORD_S = 0.2, 0.4, 0.0004, 0.00001
PLAN_FILE = Path(__file__).with_name("shapes.toml")
MQTT_FILE = Path(__file__).with_name("mqtt.toml")


@dataclasses.dataclass(frozen=True)
class BrokerPlan:
    """How one broker is started. `{port}`, `{dir}`, `{config}` and similar names in its command are replaced at start.

    Without `command` it takes part only in the shapes of brokers with a store, and is started by `durable`.
    """

    name: str
    protocol: str = ""
    command: list[str] = dataclasses.field(default_factory=list)
    version: list[str] = dataclasses.field(default_factory=list)
    install: str = ""
    config: str = ""
    window: int = 0
    durable: BrokerPlan | None = None

    def first(self) -> BrokerPlan:
        """The command for most shapes; the durable one if there is no other."""
        return self if self.command or self.durable is None else self.durable


@dataclasses.dataclass(frozen=True)
class Shape:
    """One load. Fields named as options of the load generator are passed on to it; see `load_options`."""

    name: str
    kind: str = "throughput"
    quick: bool = False
    fresh: bool = False
    once: bool = False
    control: str = ""
    files: int = 0
    records: int = 0
    without: list[str] = dataclasses.field(default_factory=list)
    rate_of: str = ""
    rate_factor: float = 1.0
    publishers: int = 1
    subscribers: int = 1
    wildcards: int = 0
    stalled: int = 0
    idle: int = 0
    idle_subscribe: bool = False
    topics: int = 1
    payload: int = 64
    rate: float = 0
    duration: float = 0
    window: int = 0
    single_writes: bool = False

    def __post_init__(self) -> None:
        if self.control not in CONTROL_KINDS:
            raise TypeError(f"control is {self.control!r}, and none of {', '.join(CONTROL_KINDS[1:])}")
        if self.kind not in KINDS:
            raise TypeError(f"kind is {self.kind!r}, and none of {', '.join(KINDS)}")

    @property
    def stored(self) -> bool:
        """Whether it is for brokers with a store, each started only for this shape."""
        return self.kind in ("durable", "restart")

    @property
    def connections(self) -> int:
        return self.publishers + self.subscribers + self.wildcards + self.stalled + self.idle

    def load_options(self) -> list[str]:
        """The load generator's options for this shape, except rate, duration and window, which depend on the run."""
        words = []
        fields = ["publishers", "subscribers", "wildcards", "stalled", "idle", "topics", "payload"]
        for field in ["publishers", "payload"] if self.stored else fields:
            words += [f"--{field}", str(getattr(self, field))]
        words += ["--idle-subscribe"] if self.idle_subscribe else []
        return words + (["--single-writes"] if self.single_writes else [])


@dataclasses.dataclass(frozen=True)
class Goal:
    """A limit for the subject: for a value, or for its ratio to others."""

    text: str
    of: str
    shapes: list[str]
    limit: float
    against: list[str] = dataclasses.field(default_factory=list)
    against_shape: str = ""


@dataclasses.dataclass(frozen=True)
class Mode:
    """Seconds: `duration` and `warmup` of one run, and the time after which no further round begins."""

    rounds: int
    duration: float
    warmup: float
    budget_s: float


@dataclasses.dataclass(frozen=True)
class Plan:
    subject: str
    floor: str
    modes: dict[str, Mode]
    brokers: list[BrokerPlan]
    shapes: list[Shape]
    goals: list[Goal]


def read_plan(path: Path = PLAN_FILE) -> Plan:
    """Raises ValueError naming the entry for a key that is unknown or missing."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Plan(
        subject=table["subject"],
        floor=table["floor"],
        modes={name: _entry(Mode, entry, f"modes.{name}") for name, entry in table["modes"].items()},
        brokers=[_broker(entry) for entry in table["brokers"]],
        shapes=[_entry(Shape, entry, "shapes") for entry in table["shapes"]],
        goals=[_entry(Goal, entry, "goals") for entry in table["goals"]],
    )


def _broker(entry: dict[str, Any]) -> BrokerPlan:
    plan: BrokerPlan = _entry(BrokerPlan, {**entry, "durable": None}, "brokers")
    if "durable" not in entry:
        return plan
    durable = _entry(BrokerPlan, {**entry["durable"], "name": plan.name}, f"durable broker {plan.name}")
    return dataclasses.replace(plan, durable=durable)


def _entry(kind: Any, entry: dict[str, Any], where: str) -> Any:
    try:
        return kind(**entry)
    except TypeError as error:
        raise ValueError(f"plan: {where} {entry.get('name', '')!r}: {error}") from None


def expected_s(plan: Plan, mode: Mode, shapes: list[Shape]) -> float:
    """Seconds that these shapes take on all brokers that support them, with all rounds, without the mode's budget."""
    standing = [broker for broker in plan.brokers if broker.command]
    total = mode.rounds * len(standing) * START_S if any(not shape.stored for shape in shapes) else 0.0
    for shape in shapes:
        able = [broker for broker in plan.brokers if broker.durable] if shape.stored else standing
        count = sum(broker.name not in shape.without for broker in able) * (1 if shape.once else mode.rounds)
        loaded_s = 0.0 if shape.kind == "restart" else mode.warmup + (shape.duration or mode.duration) + RUN_S
        started_s = START_S if shape.fresh or shape.stored else 0.0
        total += count * (loaded_s + started_s + shape.connections * CONNECTION_S + shape.records * RECORD_S)
    return total
