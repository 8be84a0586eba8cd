"""The fuzz targets on what is kept of them: their corpora, and every input that once broke one. `make fuzz` looks for more.

Invariant: a target without kept inputs, or a kept input without a target, fails here.
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
    """The C targets, built to replay under the sanitizers by the compiler of the other C tests."""
    directory = tmp_path_factory.mktemp("fuzz")
    native.build(directory, fuzzer=False)
    yield directory
    shutil.rmtree(directory)


def test_every_kept_input_of_every_target_in_c_passes(programs: Path) -> None:
    broken = {
        name: done.stderr[-2000:] for name in native.TARGETS if (done := native.replay(programs, name)).returncode
    }
    assert broken == {}


def test_a_replay_says_which_input_broke_it(programs: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = subprocess.run([str(programs / "fuzz_ring"), str(missing)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"{missing}\n")


def test_what_was_promised_holds_in_a_hundred_lives(programs: Path, tmp_path: Path) -> None:
    seeds.write("promise", tmp_path)
    lives = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([str(programs / "fuzz_promise"), *lives], capture_output=True, text=True, check=False)
    assert (len(lives), done.returncode) == (seeds.LIVES, 0), done.stderr[-2000:]


@pytest.mark.parametrize("name", python.TARGETS)
def test_every_kept_input_of_every_target_in_python_passes(name: str) -> None:
    for data in [*python.TARGETS[name].first(), *kept.corpus(name), *kept.findings(name).values()]:
        python.TARGETS[name].run(data)


@pytest.mark.parametrize("name", python.TARGETS)
def test_a_target_in_python_stands_a_few_hundred_new_inputs(name: str) -> None:
    target = python.TARGETS[name]
    first = [*target.first(), *kept.corpus(name)]
    chance = random.Random(1)
    for _ in range(300):
        target.run(mutation.mutated(chance.choice(first), first, target.words, chance))


def test_every_target_has_a_corpus_and_all_of_them_are_small() -> None:
    names = {*native.TARGETS, *python.TARGETS}
    assert {name for name in names if not kept.corpus(name)} == set()
    assert {path.stem for path in kept.KEPT.iterdir()} == names
    assert sum(path.stat().st_size for path in kept.KEPT.rglob("*") if path.is_file()) < KEPT_BYTES_MAX


def test_packing_the_same_inputs_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", tmp_path)
    first = kept.pack("a", [b"two", b"one", b"one"]).read_bytes()
    assert kept.pack("a", [b"one", b"two"]).read_bytes() == first and sorted(kept.corpus("a")) == [b"one", b"two"]


def test_the_fuzzer_in_python_finds_what_lies_behind_a_few_comparisons() -> None:
    def target(data: bytes) -> None:
        if len(data) > 3 and data[0] == 0x42 and data[1] == 0x51:
            number = struct.unpack_from("<H", data, 2)[0]
            assert number != 256

    outcome = mutation.fuzz(target, [b"\x42....."], [b"\x51"], [__file__], seconds=60, seed=7)
    assert outcome.broken is not None and isinstance(outcome.broken[1], AssertionError)
    assert len(outcome.corpus) > 1, "nothing new was kept on the way"


def test_the_smallest_set_of_inputs_reaches_what_all_do() -> None:
    def target(data: bytes) -> None:
        if data == b"a":
            len(data)
        if data == b"b":
            len(data)

    assert mutation.minimal(target, [b"x", b"y", b"a", b"b", b"a"], [__file__]) == [b"x", b"a", b"b"]


def test_every_first_input_of_steps_is_a_program_that_a_core_runs() -> None:
    assert all(len(seed) > 4 for seed in seeds.durable_steps()), "a program without steps"
    assert len(set(seeds.durable_steps())) == len(seeds.durable_steps())
