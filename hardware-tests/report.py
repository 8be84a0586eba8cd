"""One page about a run: passed and failed tests, measured values, and tests that were not run, with reasons.

Invariant: every collected test is listed once.
"""

import platform
import time

KINDS = (("failed", "Failed"), ("passed", "Passed"), ("left out", "Not run"))
REASON_LENGTH = 300


def sentence(nodeid):
    """`test_power.py::test_a_cut_loses_nothing[x64]` as "a cut loses nothing (x64)"."""
    name, _, parameters = nodeid.rpartition("::")[2].removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" ({parameters[:-1]})" if parameters else "")


class Report:
    def __init__(self, title):
        self.title = title
        self.began = time.time()
        self.tests = {}  # sentence: (kind, seconds, reason)
        self.figures = []  # (what, value, unit)
        self.subject = []  # lines about the tested device

    def note(self, nodeid, kind, seconds=0.0, reason=""):
        """Record the result of a test. Of several failures (test, clean-up) the first is kept."""
        name = sentence(nodeid)
        if self.tests.get(name, ("",))[0] != "failed":
            self.tests[name] = (kind, seconds, reason[:REASON_LENGTH])

    def figure(self, what, value, unit=""):
        self.figures.append((what, value, unit))

    def text(self):
        counts = [f"{sum(test[0] == kind for test in self.tests.values())} {kind}" for kind, _ in KINDS]
        began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.began))
        lines = [f"# {self.title}", "", f"{began}, {round((time.time() - self.began) / 60)} minutes, tested from "
                 f"{platform.system()} {platform.machine()}: **{', '.join(counts)}**"]  # fmt: skip
        lines += ["", *(f"- {line}" for line in self.subject)] if self.subject else []
        if self.figures:
            lines += ["", "## Figures", "", "| | |", "|---|---:|"]
            lines += [f"| {what} | {value:,} {unit} |" if isinstance(value, int) else f"| {what} | {value} {unit} |"
                      for what, value, unit in self.figures]  # fmt: skip
        for kind, title in KINDS:
            chosen = [(name, seconds, reason) for name, (its, seconds, reason) in self.tests.items() if its == kind]
            if chosen:
                lines += ["", f"## {title}", ""]
                lines += [f"- {name}{f', {seconds:.0f} s' if seconds else ''}{f': {reason}' if reason else ''}"
                          for name, seconds, reason in chosen]  # fmt: skip
        return "\n".join(lines) + "\n"
