"""The broker and its command lines as separate processes, for black-box tests.

Invariant: a test uses only sockets, command lines, files and the log on standard error. $BLIPMQ_BINARY and $BLIPMQ_CLI
name frozen binaries to use instead of the modules, so the same tests run against the shipped programs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from hand_client import HelloClient

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60
POLL_SECONDS = 0.02


def broker_command():
    binary = os.environ.get("BLIPMQ_BINARY")
    return [binary] if binary else [sys.executable, "-m", "blipmq"]


def cli_command():
    binary = os.environ.get("BLIPMQ_CLI")
    return [binary] if binary else [sys.executable, "-m", "blipmq.cli.client"]


def environment(**variables):
    """The environment of the processes: without BLIPMQ_ variables of the caller, and with UTF-8 in any locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_") and name != "NO_COLOR"}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", **variables}


def toml(settings):
    """`{"section.key": value}` as a configuration file."""
    sections = {}
    for path, value in settings.items():
        section, _, key = path.rpartition(".")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def until(happened, what):
    """Poll `happened()` until it is true; returns its value."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        value = happened()
        if value:
            return value
        assert time.monotonic() < deadline, f"in {TIMEOUT_S} s it did not happen that {what}"
        time.sleep(POLL_SECONDS)


class BrokerProcess:
    """`blipmq start` on a free port of 127.0.0.1 with its log collected. `settings`: {"section.key": value}. `command`
    replaces `blipmq`; `variables` are added to its environment."""

    def __init__(self, directory, settings, command=None, **variables):
        self.config = directory / "blipmq.toml"
        self.configure(settings)
        self.log = []
        self._log_grew = threading.Condition()
        self.child = subprocess.Popen(
            [*(command or broker_command()), "start", "--config", str(self.config)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=environment(**variables),
        )
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()
        self.address = ""
        self.pid = 0
        # for info requests, if authentication is required
        self.api_key = next(iter(settings.get("auth.api_keys", ())), None)

    def configure(self, settings):
        """Write the file that it reads at start and at SIGHUP."""
        self.config.write_text(toml({"server.bind_addr": "127.0.0.1:0", **settings}))

    def get_ready(self):
        """Wait until it serves clients."""
        self.address = self.wait_for("ready")["address"]
        # With a frozen binary the child process may be a launcher; the broker logs its own pid.
        self.pid = int(self.wait_for("starting")["pid"])
        return self

    def _collect(self):
        for line in self.child.stderr:
            with self._log_grew:
                self.log.append(line.decode().rstrip("\n"))
                self._log_grew.notify_all()
        with self._log_grew:
            self.log.append("")  # end of the log
            self._log_grew.notify_all()

    # ---- the log ----

    def lines(self, event, **facts):
        """The log lines of an event with these fields, each as {key: value} with its level under "level"."""
        found = [line for line in map(parse_line, self.log) if line.get("event") == event]
        return [line for line in found if all(line.get(key) == str(value) for key, value in facts.items())]

    def wait_for(self, event, **facts):
        """The first log line of an event with these fields."""
        with self._log_grew:
            happened = self._log_grew.wait_for(lambda: self.lines(event, **facts) or self._ended(), TIMEOUT_S)
        found = self.lines(event, **facts)
        assert happened and found, f"no {event} {facts} in the log:\n" + "\n".join(self.log)
        return found[0]

    def _ended(self):
        return bool(self.log) and self.log[-1] == ""

    # ---- state ----

    def info(self):
        with HelloClient(self.address, api_key=self.api_key) as client:
            return client.info()

    def wait_for_subscriptions(self, count):
        """Wait until this many subscriptions are active."""
        with HelloClient(self.address, api_key=self.api_key) as client:
            until(lambda: client.info()["subscriptions_total"] == count, f"there are {count} subscriptions")

    def rss_bytes(self):
        """Its private memory: resident and anonymous, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE).group(1)) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # ---- end ----

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self):
        """Its exit status, once the log is complete."""
        status = self.child.wait(TIMEOUT_S)
        self._collector.join(TIMEOUT_S)
        self.child.stderr.close()
        return status

    def stop(self):
        """Stop it and check for an orderly end. Stopping twice is harmless."""
        if self.child.returncode is None:
            self.signal(signal.SIGTERM)
            status = self.wait()
            assert status == 0, f"exit status {status}; its log:\n" + "\n".join(self.log)
        text = "\n".join(self.log)
        assert "Traceback" not in text and " internal_error" not in text, text

    def kill(self):
        """Kill it, as a crash would; also the clean-up of a failed test."""
        if self.child.returncode is None:
            self.child.kill()
            self.wait()


_FACT = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def parse_line(line):
    """A log line `time level event key=value ...` as a dict."""
    words = line.split(" ", 3)
    if len(words) < 3:
        return {}
    facts = {
        key: value[1:-1] if value[:1] == '"' else value for key, value in _FACT.findall(words[3] if words[3:] else "")
    }
    return {"time": words[0], "level": words[1], "event": words[2], **facts}


def run_cli(broker_address, *arguments, stdin=b"", **variables):
    """Run blipmq-cli until it ends. Returns a CompletedProcess with bytes output."""
    where = {"BLIPMQ_ADDR": broker_address} if broker_address else {}
    return subprocess.run(
        [*cli_command(), *arguments],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        env=environment(**where, **variables),
    )


def start_cli(broker_address, *arguments, **options):
    """Start blipmq-cli in the background. Returns a Popen."""
    return subprocess.Popen([*cli_command(), *arguments], env=environment(BLIPMQ_ADDR=broker_address), **options)
