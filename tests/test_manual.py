"""The man pages and completions in packaging/: they match the current parsers and work in a shell."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"


@pytest.fixture(scope="module")
def manual() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual", PACKAGING / "manual.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["manual"] = module
    spec.loader.exec_module(module)
    return module


def test_the_manual_and_completions_match_the_parsers(manual: ModuleType) -> None:
    for name, text in manual.files().items():
        on_disk = (PACKAGING / name).read_text(encoding="utf-8")
        assert on_disk == text, f"packaging/{name} is behind its parser: run `python packaging/manual.py`"


def test_no_page_or_completion_remains_for_a_removed_program(manual: ModuleType) -> None:
    on_disk = {f"{folder}/{path.name}" for folder in ("man", "completions") for path in (PACKAGING / folder).iterdir()}
    assert on_disk == set(manual.files())


def test_every_command_option_and_argument_is_in_the_man_page(manual: ModuleType) -> None:
    for program in manual.programs():
        page = manual.files()[f"man/{program.name}.1"]
        for command in manual.flat(program.commands):
            assert f".SS {', '.join(command.names)}\n" in page
            for option in command.options:
                assert all(f"\\fB{manual.roff(name)}\\fP" in page for name in option.names)
            for argument in command.arguments:
                assert f"\\fI{manual.roff(argument.name)}\\fP" in page
        assert ".SH EXIT STATUS" in page


def test_roff_control_characters_are_escaped(manual: ModuleType) -> None:
    parser = argparse.ArgumentParser(prog="x-y", description="Do it.", epilog="notes:\n  a\n\n  b\n")
    commands = parser.add_subparsers()
    commands.add_parser("go", aliases=["g"], help="begin").add_argument("--at", help=".5 or 100%% of C:\\x")
    page = manual.man_page(manual.read_program(parser, {}), [])
    assert "\\&.5 or 100% of C:\\ex\n" in page
    assert ".TH X\\-Y 1" in page and "x\\-y \\- do it\n" in page
    assert ".SH NOTES\n.nf\n  a\n\n  b\n.fi\n" in page


def test_commands_of_two_words_are_described_and_completed(manual: ModuleType, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(prog="x", description="Do it.")
    log = parser.add_subparsers().add_parser("log", help="look at it").add_subparsers()
    for name in ("verify", "export"):
        log.add_parser(name, help=f"{name} all").add_argument("--format", choices=("text", "json"), help="how")
    program = manual.read_program(parser, {})
    page = manual.man_page(program, [])
    assert "\\fBx log verify\\fP [\\fIoptions\\fP]\n" in page
    assert ".SS log export\nExport all.\n.TP\n" in page
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "x.bash").write_text(manual.bash_completion(program))
    assert complete("log ", "x", packaging=tmp_path) == {"verify", "export", "-h", "--help", "--format"}
    assert complete("log verify --format ", "x", packaging=tmp_path) == {"text", "json"}
    assert "'1:action:(verify export)'" in manual.zsh_completion(program)
    assert "'__fish_seen_subcommand_from log' -a verify\n" in manual.fish_completion(program)


def complete(
    line: str, program: str = "blipmq-cli", folder: Path | None = None, packaging: Path = PACKAGING
) -> set[str]:
    """The completions that bash offers behind this line, split into words as bash does."""
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); '
        '_${COMP_WORDS[0]//-/_}; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = f"{program} {line}".replace("=", " = ").replace(":", " : ").split(" ")
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", packaging / "completions" / f"{program}.bash", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=folder,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_options_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "key one").touch()
    assert complete("") >= {"pub", "sub", "unsub", "info", "bench", "--addr"}
    assert complete("u") == {"unsub"}
    assert complete("--addr host:7878 --key-file x s") == {"sessions", "sub"}
    assert complete("--addr=host:7878 su") == {"sub"}
    assert complete("p --q") == {"--qos", "--quiet"}
    assert complete("sub a --format ") == complete("s a --format=") - {"="} == {"text", "json"}
    assert complete("info --addr ") == set()
    assert complete("info --key-file ke", folder=tmp_path) == {"key", "one"}
    assert complete("", "blipmq") >= {"start", "check", "connect", "version"}
    assert complete("start --config ", "blipmq", tmp_path) == {"key", "one"}
