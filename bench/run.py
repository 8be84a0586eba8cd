"""The command: builds the load generator, runs every shape against every broker in turn, writes the results.

Invariant: a slow result never fails a run. The exit status is 1 if the subject could not be measured, 2 for a wrong command,
otherwise 0. The report has lost messages and failed starts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import resource
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import chart, report
from bench.brokers import Broker, BrokerError, find_disk, find_program, missing, running, version_of
from bench.plan import MQTT_FILE, PLAN_FILE, BrokerPlan, Mode, Plan, Shape, expected_s, read_plan
from bench.results import Results
from bench.syncs import counting
from blipmq.wire import frames as wire

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
CONTROL_SUBSCRIPTIONS = 1000
CONTROL_PAUSE_S = 0.03
SUBSCRIPTIONS = b"".join(
    wire.encode_command(wire.SUB, f"control.{number}") for number in range(CONTROL_SUBSCRIPTIONS)
) + wire.encode_command(wire.QUIT)
RESTART_WITHIN_S = 120.0
FILL_WITHIN_S = 90.0
SETTLE_S = 1.0
PROGRAMS = {"loadgen": ["loadgen.c", "wire.c", "measure.c"], "relay": ["relay.c"]}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build_programs() -> None:
    """Compiles loadgen and relay into build/bench. Raises SystemExit with the package to install on failure."""
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "cc")
    for program, sources in PROGRAMS.items():
        command = [*shlex.split(compiler), "-O2", "-Wall", "-Wextra", "-o", str(BUILD / program)]
        try:
            subprocess.run([*command, *(str(HERE / source) for source in sources)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"bench: cannot build {program}: {error}; a C compiler is needed (apt-get install gcc libc6-dev)"
            ) from None


class Session:
    """One measurement: the plan as restricted by the command line, and the results so far."""

    def __init__(
        self, plan: Plan, mode: Mode, shapes: list[Shape], brokers: list[BrokerPlan], places: dict[str, str]
    ) -> None:
        self.plan = plan
        self.mode = mode
        self.shapes = shapes
        self.brokers = brokers
        self.places = places
        self.results = Results()
        self.rounds = 0  # number of completed rounds
        self.notes: list[str] = []

    def run(self) -> None:
        """Runs all rounds that fit into the budget."""
        begin = time.monotonic()
        for number in range(self.mode.rounds):
            round_begin = time.monotonic()
            self.run_round(number)
            self.rounds += 1
            spent, last = time.monotonic() - begin, time.monotonic() - round_begin
            if self.rounds < self.mode.rounds and spent + last > self.mode.budget_s:
                budget = f"{self.mode.budget_s:.0f} s"
                self.note(
                    f"Stopped after {self.rounds} of {self.mode.rounds} rounds: the next would have passed {budget}."
                )
                return

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            say(f"bench: {text}")

    def leave_out(self, plan: BrokerPlan, why: str) -> None:
        """Continues without a peer that failed; fails without the subject, unless --brokers left it out."""
        if plan.name == self.plan.subject:
            raise SystemExit(f"bench: {why}")
        self.note(f"Left out {plan.name}: {why}")

    def run_round(self, number: int) -> None:
        """Starts all brokers. Then, for each shape, loads each broker in turn; each round begins with another one.

        Brokers with a store are started for each run, so each run begins with an empty store.
        """
        standing = any(not shape.stored for shape in self.shapes)
        with contextlib.ExitStack() as stack:
            started: dict[str, Broker] = {}
            for plan in [plan for plan in self.brokers if plan.command and standing]:
                with self.noted(plan):
                    started[plan.name] = stack.enter_context(running(plan, self.places))
                    self.add_start(started[plan.name], number)
            self.brokers = [plan for plan in self.brokers if plan.name in started or not (plan.command and standing)]
            for shape in self.shapes:
                if shape.once and number:
                    continue
                first = number % max(len(self.brokers), 1)
                for plan in self.brokers[first:] + self.brokers[:first]:
                    if plan.name in shape.without:
                        continue
                    if shape.kind == "durable" and plan.durable:
                        self.run_durable(shape, plan.durable, number)
                    elif shape.kind == "restart" and plan.durable:
                        self.run_restart(shape, plan.durable, number)
                    elif not shape.stored and plan.command:
                        self.run_shape(shape, plan, started[plan.name], number)

    @contextlib.contextmanager
    def noted(self, plan: BrokerPlan) -> Iterator[None]:
        try:
            yield
        except BrokerError as error:
            self.leave_out(plan, str(error))

    def add_start(self, broker: Broker, number: int) -> None:
        sample = {"ready_ms": broker.ready_ms, "rss_ready_mb": broker.rss_ready_bytes / 1e6}
        self.results.add("start", broker.plan.name, number, sample)

    def run_shape(self, shape: Shape, plan: BrokerPlan, broker: Broker, number: int) -> None:
        if shape.fresh or not broker.alive:
            if not broker.alive:
                self.note(f"{plan.name} had ended before {shape.name} and was started anew: {broker.last_words()}")
            sample = {"failed": "the broker did not start"}
            with self.noted(plan), running(plan, self.places) as fresh:
                sample = self.load(shape, fresh)
        else:
            sample = self.load(shape, broker)
        self.add_sample(shape, plan, number, sample)

    def run_durable(self, shape: Shape, plan: BrokerPlan, number: int) -> None:
        """All stores are on one disk, in a directory that is removed afterwards."""
        sample: dict[str, Any] = {"failed": "the broker did not start"}
        with self.noted(plan), running(plan, self.places, find_disk()) as broker:
            with counting(broker.pid) as syncs:
                sample = self.load(shape, broker)
            if sample.get("delivered_per_s"):
                sample["us_per_acknowledged"] = 1e6 / sample["delivered_per_s"]
            if syncs.calls and sample.get("delivered"):
                sample["syncs"] = syncs.calls
                sample["acknowledged_per_sync"] = sample["delivered"] / syncs.calls
        self.add_sample(shape, plan, number, sample)

    def run_restart(self, shape: Shape, plan: BrokerPlan, number: int) -> None:
        """Start to ready: with an empty store, or with `records` in it after a crash."""
        sample: dict[str, Any] = {"failed": "the broker did not start"}
        with self.noted(plan), running(plan, self.places, find_disk()) as broker:
            sample = {"records": self.fill(shape, broker)}
            if shape.records:
                broker.kill()
                broker.start(RESTART_WITHIN_S)
            sample |= {"ready_ms": broker.ready_ms, "rss_ready_mb": broker.rss_ready_bytes / 1e6}
        self.add_sample(shape, plan, number, sample)

    def fill(self, shape: Shape, broker: Broker) -> int:
        """Publishes until the store has at least the shape's records. Returns the number of acknowledged messages."""
        kept, begin = 0, time.monotonic()
        duration = 0.25
        while kept < shape.records:
            sample = self.loadgen(
                broker, [*shape.load_options(), "--duration", f"{duration:.2f}", "--warmup", "0"], duration
            )
            added = sample.get("delivered", 0)
            kept += added
            if not added or time.monotonic() - begin > FILL_WITHIN_S:
                raise BrokerError(
                    f"{broker.plan.name} had {kept:,} of {shape.records:,} records after"
                    f" {time.monotonic() - begin:.0f} s: {sample.get('failed', 'too slow')}"
                )
            duration = min(max((shape.records - kept) * duration / added, 0.05), 5.0)
        return kept

    def add_sample(self, shape: Shape, plan: BrokerPlan, number: int, sample: dict[str, Any]) -> None:
        self.results.add(shape.name, plan.name, number, sample)
        say(f"round {number + 1}/{self.mode.rounds}  {shape.name:<26} {plan.name:<10} {_brief(sample)}")

    def load(self, shape: Shape, broker: Broker) -> dict[str, Any]:
        """One run of the load generator: its JSON object, or `{"failed": why}`."""
        rate = shape.rate
        if shape.rate_of:
            reached = self.results.values(shape.rate_of, broker.plan.name, "sent_per_s")
            if not reached:
                return {"failed": f"{shape.rate_of} was not measured, and the rate depends on it"}
            rate = statistics.median(reached.values()) * shape.rate_factor
        duration = shape.duration or self.mode.duration
        words = [*shape.load_options(), "--duration", str(duration), "--warmup", str(self.mode.warmup)]
        window = shape.window or (0 if shape.single_writes else broker.plan.window)
        words += ["--rate", f"{rate:.1f}"] if rate else []
        words += ["--window", str(window)] if window else []
        with self.control_work(broker, shape.control):
            sample = self.loadgen(broker, words, duration)
        if sample.get("broker_gone") or not broker.alive:
            return {"failed": f"the broker ended during the run: {broker.last_words()}"}
        if shape.kind == "memory" and sample.get("connections"):
            grown = sample["rss_joined_bytes"] - sample["rss_before_bytes"]
            sample["bytes_per_connection"] = grown / sample["connections"]
        if shape.kind == "soak":
            time.sleep(SETTLE_S)  # after the connections closed, the broker frees memory
            sample["rss_begun_mb"] = sample.get("rss_before_bytes", 0) / 1e6
            sample["rss_settled_mb"] = broker.rss_bytes() / 1e6
        return sample

    def loadgen(self, broker: Broker, words: list[str], duration: float) -> dict[str, Any]:
        command = [str(BUILD / "loadgen"), "--protocol", broker.plan.protocol, "--port", str(broker.port)]
        try:
            done = subprocess.run(
                [*command, "--pid", str(broker.pid), *words], capture_output=True, text=True, timeout=duration + 120
            )
        except subprocess.TimeoutExpired:
            return {"failed": "the load generator did not end"}
        if done.returncode:
            return {"failed": (done.stderr.strip() or f"the load generator ended with code {done.returncode}")[-300:]}
        sample: dict[str, Any] = json.loads(done.stdout)
        return sample

    def subscribe_wave(self, broker: Broker) -> None:
        """A thousand connections that each subscribe to their own topic and close."""
        words = (
            f"--publishers 0 --subscribers 0 --idle {CONTROL_SUBSCRIPTIONS} --idle-subscribe --duration 0.05".split()
        )
        wave = self.loadgen(broker, words, 1)
        if "failed" in wave:
            raise BrokerError(wave["failed"])

    def subscribe_at_once(self, broker: Broker) -> None:
        """A connection that subscribes to a thousand topics in one write, and closes after all confirmations."""
        frames, received = wire.FrameReader(), list[Any]()
        with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as client:
            client.sendall(SUBSCRIPTIONS)
            while data := client.recv(1 << 20):
                received += frames.feed(data)
        confirmed = sum(isinstance(frame, wire.SubAck) for frame in received)
        if confirmed != CONTROL_SUBSCRIPTIONS:
            raise BrokerError(f"{confirmed} of {CONTROL_SUBSCRIPTIONS} subscriptions were confirmed")

    def scrape(self, broker: Broker) -> None:
        """One scrape of /metrics, as by Prometheus."""
        with urllib.request.urlopen(f"http://127.0.0.1:{broker.metrics_port}/metrics", timeout=10) as answer:
            if not answer.read():
                raise BrokerError("the metrics were empty")

    def reload(self, broker: Broker) -> None:
        """Changes a setting and sends SIGHUP."""
        broker.reloads += 1
        broker.configure(f"\n[delivery]\nmax_batch = {60_000 + broker.reloads % 2}\n")
        os.kill(broker.pid, signal.SIGHUP)

    @contextlib.contextmanager
    def control_work(self, broker: Broker, kind: str) -> Iterator[None]:
        """Repeats one kind of control work beside the load; none for an empty name."""
        kinds = {
            "subscribers": self.subscribe_wave,
            "subscriptions": self.subscribe_at_once,
            "scrapes": self.scrape,
            "reloads": self.reload,
        }
        work = kinds.get(kind)
        ended = threading.Event()

        def over_and_over() -> None:
            while work is not None and not ended.is_set():
                try:
                    work(broker)
                except (OSError, BrokerError) as error:
                    self.note(f"Control work on {broker.plan.name} failed: {error}")
                    return
                ended.wait(CONTROL_PAUSE_S)

        thread = threading.Thread(target=over_and_over)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _brief(sample: dict[str, Any]) -> str:
    if "failed" in sample:
        return f"failed: {sample['failed']}"
    words = []
    if sample.get("cpu_us_per_delivered"):
        words.append(f"{report.number(sample['cpu_us_per_delivered']):>7} µs")
        words.append(f"{report.number(sample.get('delivered_per_s', 0) / 1e6):>7} M/s")
    if "p50_us" in sample:
        words.append(f"p50 {report.number(sample['p50_us'])} p99 {report.number(sample['p99_us'])} µs")
    if "ready_ms" in sample:
        words.append(f"ready after {report.number(sample['ready_ms'])} ms with {sample.get('records', 0):,} records")
    if "rss_settled_mb" in sample:
        words.append(
            f"{report.number(sample['rss_begun_mb'])} MB before, {report.number(sample['rss_settled_mb'])} after"
        )
    if "bytes_per_connection" in sample:
        words.append(f"{report.number(sample['bytes_per_connection'])} bytes a connection")
    if sample.get("lost"):
        words.append(f"LOST {sample['lost']:,}")
    return "  ".join(words)


def peer(text: str) -> BrokerPlan:
    """NAME=PROTOCOL=COMMAND from the command line."""
    name, _, rest = text.partition("=")
    protocol, _, command = rest.partition("=")
    if not name or not command or protocol not in ("blipmq", "nats", "mqtt", "mqtt5", "redis", "raw"):
        raise argparse.ArgumentTypeError(
            "NAME=PROTOCOL=COMMAND, with blipmq, nats, mqtt, mqtt5, redis or raw as protocol and {port} in the command"
        )
    return BrokerPlan(name=name, protocol=protocol, command=shlex.split(command))


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="the key shapes in two minutes at most; else all in 25 at most"
    )
    parser.add_argument("--rounds", type=int, help="(5; 3 with --quick)")
    parser.add_argument("--duration", type=float, metavar="S", help="of each run (1; 0.3 with --quick)")
    parser.add_argument("--budget", type=float, metavar="S", help="no further round begins that would pass it")
    parser.add_argument("--brokers", metavar="A,B", help="only these")
    parser.add_argument("--shapes", metavar="TEXT,TEXT", help="only shapes whose names contain one of these")
    parser.add_argument(
        "--peer",
        action="append",
        type=peer,
        default=[],
        metavar="NAME=PROTOCOL=COMMAND",
        help="one more broker; {port} and {dir} in the command are filled in",
    )
    parser.add_argument("--subject", help="the broker the goals are about (blipmq)")
    parser.add_argument(
        "--blipmq", metavar="PROGRAM", help="the blipmq to start (the one beside this Python, else on PATH)"
    )
    parser.add_argument("--name", help="of the results, behind the date (quick or full)")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="DIR", help="(bench/results)")
    parser.add_argument("--list", action="store_true", help="print shapes and brokers, run nothing")
    return parser.parse_args(words)


def narrowed(plan: Plan, arguments: argparse.Namespace) -> tuple[Plan, Mode, list[Shape]]:
    """The plan, its mode and its shapes, as changed by the command line."""
    mode = plan.modes["quick" if arguments.quick else "full"]
    changes = {"rounds": arguments.rounds, "duration": arguments.duration, "budget_s": arguments.budget}
    mode = dataclasses.replace(mode, **{name: value for name, value in changes.items() if value is not None})
    brokers = plan.brokers + arguments.peer
    if arguments.brokers:
        wanted = arguments.brokers.split(",") + [added.name for added in arguments.peer]
        unknown = set(wanted) - {broker.name for broker in brokers}
        if unknown:
            raise SystemExit(f"bench: no broker {', '.join(sorted(unknown))}; --list shows them")
        brokers = [broker for broker in brokers if broker.name in wanted]
    shapes = [shape for shape in plan.shapes if shape.quick or not arguments.quick]
    if arguments.shapes:
        shapes = [shape for shape in plan.shapes if any(part in shape.name for part in arguments.shapes.split(","))]
    if mode.rounds < 1 or mode.duration <= 0 or not shapes:
        raise SystemExit(
            "bench: at least one round, one shape and a duration above 0 are needed; --list shows the shapes"
        )
    return dataclasses.replace(plan, brokers=brokers, subject=arguments.subject or plan.subject), mode, shapes


def open_files_raise() -> int:
    """Raises the limit on open files to the maximum allowed, also for the brokers. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


def available(session: Session) -> None:
    """Leaves out the brokers that this machine cannot run, and prints how to install them."""
    for plan in [plan for plan in session.brokers if missing(plan.first(), session.places)]:
        session.leave_out(plan, f"{plan.name} is not installed; {plan.install or 'its command was not found'}")
        session.brokers.remove(plan)
    if find_disk() is None and any(shape.stored for shape in session.shapes):
        session.note("Left out what needs a store: all directories for temporary files are on RAM disks; set TMPDIR.")
        session.shapes[:] = [shape for shape in session.shapes if not shape.stored]
    files = open_files_raise()
    for shape in [shape for shape in session.shapes if shape.files > files]:
        session.note(f"Left out {shape.name}: it needs {shape.files} open files and the limit is {files} (ulimit -Hn).")
        session.shapes.remove(shape)


def write_results(session: Session, name: str, output: Path, host: dict[str, Any], versions: dict[str, str]) -> None:
    """NAME.md, NAME.json and NAME.png in the output directory; the page goes to stdout too."""
    brokers = [
        plan.name for plan in session.plan.brokers if any(key[1] == plan.name for key in session.results.samples)
    ]
    facts = {
        "date": datetime.datetime.now().isoformat(" ", "minutes"),
        "machine": host,
        "other_cpus": session.results.median_of_all("other_cpus"),
        "versions": versions,
        "rounds": session.rounds,
        "duration": session.mode.duration,
        "warmup": session.mode.warmup,
        "notes": session.notes,
        "subject": session.plan.subject,
        "ratios": session.results.ratios(session.plan.subject, ("cpu_us_per_delivered", "delivered_per_s")),
    }
    samples = [
        {"shape": shape, "broker": broker, "round": number, **sample}
        for (shape, broker), by_round in session.results.samples.items()
        for number, sample in by_round.items()
    ]
    output.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(sample) for sample in samples)
    ratios = ",\n".join(json.dumps(ratio) for ratio in facts.pop("ratios"))
    head = json.dumps(facts, indent=1, ensure_ascii=False).removesuffix("\n}")
    (output / f"{name}.json").write_text(
        f'{head},\n "ratios": [\n{ratios}\n],\n "samples": [\n{lines}\n]}}\n', encoding="utf-8"
    )
    charted = [shape for shape in session.shapes if shape.kind in ("throughput", "latency")]
    title = f"BlipMQ benchmark, {facts['date']}"
    drawn = bool(charted) and chart.draw(output / f"{name}.png", title, charted, brokers, session.results)
    if charted and not drawn:
        session.note("No chart: it needs Pillow (pip install pillow) and at least one measured shape.")
    page = report.markdown(session.plan, session.shapes, brokers, session.results, facts)
    (output / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
    say(f"bench: written to {output / name}.md, .json{', .png' if drawn else ''}")


def mqtt(words: list[str]) -> int:
    """`python -m bench mqtt`: brokers of MQTT, with BlipMQ's own protocol as the floor. The options are the same."""
    return main(words, MQTT_FILE)


def main(words: list[str] | None = None, plan_file: Path = PLAN_FILE) -> int:
    arguments = parse_arguments(words)
    plan, mode, shapes = narrowed(read_plan(plan_file), arguments)
    if arguments.list:
        print("shapes:  " + "; ".join(shape.name for shape in shapes))
        print("brokers: " + "; ".join(f"{broker.name} ({broker.first().protocol})" for broker in plan.brokers))
        print(f"takes:   about {expected_s(plan, mode, shapes) / 60:.1f} minutes, if all of them are installed")
        return 0
    if sys.platform != "linux":
        raise SystemExit("bench: CPU time and memory of the brokers are read from /proc: this runs on Linux only")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also ends the brokers
    build_programs()
    places = {"bench": str(BUILD), "blipmq": arguments.blipmq or find_program("blipmq")}
    places["newest_nats"] = find_program("nats-server")
    session = Session(plan, mode, shapes, list(plan.brokers), places)
    available(session)
    host = report.machine()
    versions = {}
    if any(not shape.stored for shape in session.shapes):
        versions = {broker.name: version_of(broker, places) for broker in session.brokers if broker.command}
    if any(shape.stored for shape in session.shapes):
        durable = [broker.durable for broker in session.brokers if broker.durable]
        versions.update({f"{broker.name}, durable": version_of(broker, places) for broker in durable})
    counts = f"{len(session.shapes)} shapes, {len(session.brokers)} brokers, {mode.rounds} rounds"
    say(f"bench: {counts} of {mode.duration} s a run")
    try:
        session.run()
    except KeyboardInterrupt:
        session.note(f"Interrupted after {session.rounds} whole rounds: what was measured by then is shown.")
    if not session.results.samples:
        raise SystemExit("bench: nothing was measured")
    kind = "mqtt-" if plan_file is MQTT_FILE else ""
    name = f"{datetime.date.today().isoformat()}-{kind}{arguments.name or ('quick' if arguments.quick else 'full')}"
    write_results(session, name, arguments.output, host, versions)
    return 0
