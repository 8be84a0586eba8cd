"""The fuzz targets on their saved inputs: the corpora, and every input that once failed. `make fuzz` searches for more.

Invariant: a target without saved inputs, or a saved input without a target, fails here.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import kept, mutation, native, python, seeds

KEPT_BYTES_MAX = 1 << 20


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The C targets, built to replay under the sanitizers with the compiler of the other C tests."""
    directory = tmp_path_factory.mktemp("fuzz")
    native.build(directory, fuzzer=False)
    yield directory
    shutil.rmtree(directory)


def test_every_saved_input_of_every_c_target_passes(programs: Path) -> None:
    broken = {
        name: done.stderr[-2000:] for name in native.TARGETS if (done := native.replay(programs, name)).returncode
    }
    assert broken == {}


def test_a_replay_names_the_failing_input(programs: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = subprocess.run([str(programs / "fuzz_ring"), str(missing)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"{missing}\n")


def test_delivery_guarantees_hold_in_a_hundred_simulated_runs(programs: Path, tmp_path: Path) -> None:
    seeds.write("promise", tmp_path)
    lives = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([str(programs / "fuzz_promise"), *lives], capture_output=True, text=True, check=False)
    assert (len(lives), done.returncode) == (seeds.LIVES, 0), done.stderr[-2000:]


@pytest.mark.parametrize("name", python.TARGETS)
def test_every_saved_input_of_every_python_target_passes(name: str) -> None:
    for data in [*python.TARGETS[name].first(), *kept.corpus(name), *kept.findings(name).values()]:
        python.TARGETS[name].run(data)


@pytest.mark.parametrize("name", python.TARGETS)
def test_each_python_target_passes_several_hundred_new_inputs(name: str) -> None:
    target = python.TARGETS[name]
    first = [*target.first(), *kept.corpus(name)]
    chance = random.Random(1)
    for _ in range(300):
        target.run(mutation.mutated(chance.choice(first), first, target.words, chance))


def test_every_target_has_a_small_corpus() -> None:
    names = {*native.TARGETS, *python.TARGETS}
    assert {name for name in names if not kept.corpus(name)} == set()
    assert {path.stem for path in kept.KEPT.iterdir()} == names
    assert sum(path.stat().st_size for path in kept.KEPT.rglob("*") if path.is_file()) < KEPT_BYTES_MAX


def test_packing_the_same_inputs_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", tmp_path)
    first = kept.pack("a", [b"two", b"one", b"one"]).read_bytes()
    assert kept.pack("a", [b"one", b"two"]).read_bytes() == first and sorted(kept.corpus("a")) == [b"one", b"two"]


def test_the_python_fuzzer_finds_a_bug_behind_several_comparisons() -> None:
    def target(data: bytes) -> None:
        if len(data) > 3 and data[0] == 0x42 and data[1] == 0x51:
            number = struct.unpack_from("<H", data, 2)[0]
            assert number != 256

    outcome = mutation.fuzz(target, [b"\x42....."], [b"\x51"], [__file__], seconds=60, seed=7)
    assert outcome.broken is not None and isinstance(outcome.broken[1], AssertionError)
    assert len(outcome.corpus) > 1, "nothing new was kept on the way"


def test_the_minimized_corpus_keeps_the_full_coverage() -> None:
    def target(data: bytes) -> None:
        if data == b"a":
            len(data)
        if data == b"b":
            len(data)

    assert mutation.minimal(target, [b"x", b"y", b"a", b"b", b"a"], [__file__]) == [b"x", b"a", b"b"]


def test_every_seed_program_runs_in_a_core() -> None:
    assert all(len(seed) > 4 for seed in seeds.durable_steps()), "a program without steps"
    assert len(set(seeds.durable_steps())) == len(seeds.durable_steps())
