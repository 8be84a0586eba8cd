"""`make conformance`: mosquitto's own tests of a broker, with BlipMQ in its place."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from conformance import exceptions, runner, source

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ADAPTER = HERE / "adapter.py"
# mosquitto as root gives up its rights and cannot write into the directories of the scripts.
MOSQUITTO = """#!/bin/sh
if [ "$(id -u)" = 0 ] && [ "$2" = -c ]; then
    grep -q '^user root$' "$3" || printf '\\nuser root\\n' >>"$3"
fi
exec {program} "$@"
"""
JOBS = 8


def executable(broker: str) -> str:
    """The text of the file that stands at src/mosquitto."""
    if broker == "mosquitto":
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            sys.exit("conformance: mosquitto is missing: packaging/setup.sh mosquitto")
        return MOSQUITTO.replace("{program}", program)
    return f'#!/bin/sh\nexec "{sys.executable}" "{ADAPTER}" "$@"\n'


def main() -> None:
    parser = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    parser.add_argument("names", nargs="*", help="scripts, by the beginning of their names; default: all")
    parser.add_argument("--broker", choices=("blipmq", "mosquitto"), default="blipmq")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"scripts at the same time; default {JOBS}")
    parser.add_argument("--output", action="store_true", help="print the output of scripts that fail")
    parser.add_argument("--strict", action="store_true", help="pending scripts are failures")
    options = parser.parse_args()
    try:
        tree = source.fetch()
        if options.broker == "mosquitto":
            subprocess.run([ROOT / "packaging" / "setup.sh", "mosquitto"], check=True)
            source.build_plugins(tree)
        every = source.scripts(tree)
        excepted = exceptions.load(HERE / f"exceptions_{options.broker}.toml", set(every))
        if options.strict:
            excepted.pending.clear()
    except (source.SourceError, ValueError) as error:
        sys.exit(f"conformance: {error}")
    chosen = {
        name: ports for name, ports in every.items() if not options.names or name.startswith(tuple(options.names))
    }

    def told(result: runner.Result) -> None:
        if result.wrong or (result.verdict == runner.PENDING and result.why):
            print(f"{result.name}: {result.verdict}, {result.why} ({result.seconds:.1f} s)", flush=True)
            if options.output:
                print("    " + result.output[-4000:].strip().replace("\n", "\n    "), flush=True)

    results = runner.run_all(
        chosen, tree, executable(options.broker), source.PLACE / f"work-{options.broker}", excepted, options.jobs, told
    )
    wrong = [result for result in results if result.wrong]
    for verdict in (runner.PASSED, runner.FAILED, runner.EXCEPTED, runner.PENDING):
        print(f"{verdict:10}{sum(result.verdict == verdict for result in results):5}")
    print(f"{'of':10}{len(results):5} scripts of mosquitto {source.VERSION}, {len(wrong)} errors")
    sys.exit(1 if wrong or not results else 0)


main()
