"""Makes the man pages and shell completions of blipmq and blipmq-cli from the parsers that read their command lines.

    python packaging/manual.py          writes packaging/man/ and packaging/completions/; a test compares them

Invariant: the parser is the only source of commands, options and help texts. This module is not imported at run time and not
installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

from blipmq.cli import client, server  # noqa: E402

MADE_BY = "made by packaging/manual.py from the parser of its command line"


# ---- contents of the parsers ------------------------------------------------------------------------------------------


class Option(NamedTuple):
    names: tuple[str, ...]
    value: str  # name of the value; empty: the option takes none
    choices: tuple[str, ...]
    help: str

    @property
    def is_file(self) -> bool:
        return self.value == "FILE"


class Argument(NamedTuple):
    name: str
    required: bool
    help: str


class Command(NamedTuple):
    names: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    actions: tuple[Command, ...]  # as in `blipmq wal verify`

    @property
    def every_option(self) -> tuple[Option, ...]:
        """Its own options and those of its actions, each once."""
        return tuple(dict.fromkeys([*self.options, *(option for action in self.actions for option in action.options)]))


class Program(NamedTuple):
    name: str
    summary: str
    sections: dict[str, str]  # sections of the text behind the options: title, lines
    options: tuple[Option, ...]
    commands: tuple[Command, ...]

    @property
    def function(self) -> str:
        return "_" + self.name.replace("-", "_")


def read_program(parser: argparse.ArgumentParser, sections: dict[str, str]) -> Program:
    """`sections` come first, then those of the parser's own text."""
    told = re.findall(r"^(\w[\w ]*):\n((?:  .*\n|\n)+)", (parser.epilog or "") + "\n", re.MULTILINE)
    every = {**sections, **{title: text.rstrip() for title, text in told}}
    return Program(parser.prog, parser.description or "", every, read_options(parser), read_commands(parser))


def read_commands(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                sub = action.choices[choice.dest]
                names = [name for name, known in action.choices.items() if known is sub]
                parts = (read_options(sub), read_arguments(sub), read_commands(sub))
                commands.append(Command(tuple(names), choice.help or "", *parts))
    return tuple(commands)


def read_options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            "" if action.nargs == 0 else str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest),
            tuple(str(choice) for choice in action.choices or ()),
            (action.help or "").replace("%%", "%"),
        )
        for action in parser._actions
        if action.option_strings
    )


def read_arguments(parser: argparse.ArgumentParser) -> tuple[Argument, ...]:
    return tuple(
        Argument(str(action.metavar or action.dest), action.nargs != "?", action.help or "")
        for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    )


BROKER_SECTIONS = {
    "settings": (
        "Without --config the settings come from the file that $BLIPMQ_CONFIG names, else from ./blipmq.toml, else the\n"
        "defaults apply. Every setting can also be given by a variable, as BLIPMQ_SERVER__BIND_ADDR. `blipmq check` shows\n"
        "those in effect, where each comes from, and the memory they may need."
    ),
    "signals": "SIGTERM and SIGINT end the broker in good order; SIGHUP makes it read its settings again.",
    "exit status": "0 done, 1 refused, 2 usage, 66 a file of [tls] cannot be used, 69 unreachable, 71 the log cannot be opened,\n"
    "74 input or output failed, 77 not allowed,\n"
    "78 bad configuration, 130 interrupted, 141 the reader of the output has gone",
}


def programs() -> list[Program]:
    return [read_program(server._parser(), BROKER_SECTIONS), read_program(client.make_parser(), {})]


# ---- man pages -------------------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Escape text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def man_page(program: Program, others: list[Program]) -> str:
    lines = [
        f'.\\" {MADE_BY}',
        f'.TH {roff(program.name.upper())} 1 "" "BlipMQ" "User Commands"',
        ".SH NAME",
        f"{roff(program.name)} \\- {roff(program.summary.rstrip('.')[:1].lower() + program.summary.rstrip('.')[1:])}",
        ".SH SYNOPSIS",
        ".nf",
        *(synopsis(program, command) for command in flat(program.commands)),
        ".fi",
        ".SH OPTIONS",
        *(line for option in program.options for line in man_option(option)),
        ".SH COMMANDS",
    ]
    common = set(program.options)
    for command in flat(program.commands):
        lines += [f".SS {', '.join(roff(name) for name in command.names)}", f"{roff(sentence(command.help))}"]
        for argument in command.arguments:
            if argument.help:
                lines += [".TP", f".I {roff(argument.name)}", roff(argument.help)]
        lines += [line for option in command.options if option not in common for line in man_option(option)]
    for title, text in program.sections.items():
        is_table = text.startswith("  ")
        lines += [f".SH {title.upper()}", *([".nf"] if is_table else []), roff(text), *([".fi"] if is_table else [])]
    lines += [".SH SEE ALSO", ",\n".join(f".BR {roff(other.name)} (1)" for other in others)]
    return "\n".join(lines) + "\n"


def flat(commands: tuple[Command, ...]) -> list[Command]:
    """Commands, with their actions in place of a command that has actions, under both names."""
    every: list[Command] = []
    for command in commands:
        every += [
            action._replace(names=tuple(f"{command.names[0]} {name}" for name in action.names))
            for action in flat(command.actions)
        ]
        if not command.actions:
            every.append(command)
    return every


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def synopsis(program: Program, command: Command) -> str:
    arguments = [
        f"\\fI{roff(argument.name)}\\fP" if argument.required else f"[\\fI{roff(argument.name)}\\fP]"
        for argument in command.arguments
    ]
    return f"\\fB{roff(program.name)} {roff(command.names[0])}\\fP [\\fIoptions\\fP] {' '.join(arguments)}".rstrip()


def man_option(option: Option) -> Iterator[str]:
    value = f" \\fI{roff(option.value)}\\fP" if option.value else ""
    yield ".TP"
    yield ", ".join(f"\\fB{roff(name)}\\fP{value}" for name in option.names)
    yield roff(option.help)


# ---- bash ------------------------------------------------------------------------------------------------------------


def words_of(options: tuple[Option, ...]) -> list[str]:
    return [name for option in options for name in option.names]


def action_names(command: Command) -> list[str]:
    return [action.names[0] for action in command.actions]


def bash_values(options: tuple[Option, ...], indent: str) -> Iterator[str]:
    """Shell cases of the preceding word, for options that take a value."""
    for option in options:
        if option.value:
            yield f"{indent}{' | '.join(option.names)})"
            if option.is_file:
                yield f"{indent}    files=yes ;;"
            else:
                yield f'{indent}    words="{" ".join(option.choices)}" ;;'


def bash_completion(program: Program) -> str:
    with_value = [name for option in program.options if option.value for name in option.names] or ["--"]
    lines = [
        f"# bash completion for {program.name}, {MADE_BY}",
        f"{program.function}() {{",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}",
        "    local command= files= words= index IFS=$' \\t\\n'",
        "    for ((index = 1; index < COMP_CWORD; index++)); do",
        "        case ${COMP_WORDS[index]} in",
        f"            {' | '.join(with_value)})",
        '                [[ ${COMP_WORDS[index + 1]} == "=" ]] && ((index++))',
        "                ((index++)) ;;",
        "            :) ((index++)) ;; # bash takes HOST:PORT apart",
        "            -*) ;;",
        "            *) command=${COMP_WORDS[index]} && break ;;",
        "        esac",
        "    done",
        '    [[ $before == "=" ]] && before=${COMP_WORDS[COMP_CWORD - 2]}',
        "    case $command in",
        '        "")',
        "            case $before in",
        *bash_values(program.options, "                "),
        f'                *) words="{" ".join([c.names[0] for c in program.commands] + words_of(program.options))}" ;;',
        "            esac ;;",
    ]
    for command in program.commands:
        lines += [
            f"        {' | '.join(command.names)})",
            "            case $before in",
            *bash_values(command.every_option, "                "),
            f'                *) words="{" ".join(action_names(command) + words_of(command.every_option))}" ;;',
            "            esac ;;",
        ]
    lines += [
        "    esac",
        "    if [[ $files ]]; then",
        "        IFS=$'\\n'",
        "        compopt -o filenames 2>/dev/null",
        '        COMPREPLY=($(compgen -f -- "$current"))',
        "    else",
        '        COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "    fi",
        "}",
        f"complete -F {program.function} {program.name}",
    ]
    return "\n".join(lines) + "\n"


# ---- zsh -------------------------------------------------------------------------------------------------------------


def zsh_quote(text: str) -> str:
    return text.replace("'", "'\\''")


def zsh_text(text: str) -> str:
    """Escape text for the brackets of _arguments."""
    return re.sub(r"([\\\[\]:])", r"\\\1", text)


def zsh_option(option: Option) -> str:
    excluded = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    value = ""
    if option.value:
        action = "_files" if option.is_file else f"({' '.join(option.choices)})" if option.choices else ""
        value = f":{zsh_text(option.value)}:{action or ' '}"
    names = f"{{{','.join(option.names)}}}" if len(option.names) > 1 else option.names[0]
    text = f"[{zsh_text(option.help)}]{value}"
    return f"'{excluded}'{names}'{zsh_quote(text)}'"


def zsh_completion(program: Program) -> str:
    described = [
        f"        '{zsh_quote(zsh_text(command.names[0]))}:{zsh_quote(command.help.replace(':', ' '))}'"
        for command in program.commands
    ]
    lines = [
        f"#compdef {program.name}",
        f"# zsh completion for {program.name}, {MADE_BY}",
        f"{program.function}() {{",
        "    local curcontext=$curcontext state state_descr line",
        "    typeset -A opt_args",
        "    local -a commands=(",
        *described,
        "    )",
        "    _arguments -C \\",
        *(f"        {zsh_option(option)} \\" for option in program.options),
        "        '1:command:->command' '*::argument:->argument'",
        "    case $state in",
        "        command) _describe command commands ;;",
        "        argument)",
        "            case $words[1] in",
    ]
    for command in program.commands:
        options = [f"                        {zsh_option(option)} \\" for option in command.every_option]
        arguments = (
            [f"'1:action:({' '.join(action_names(command))})'"]
            if command.actions
            else [
                f"'{place}:{zsh_quote(zsh_text(argument.name))}: '"
                for place, argument in enumerate(command.arguments, 1)
            ]
        )
        lines += [
            f"                {'|'.join(command.names)})",
            "                    _arguments \\",
            *options,
            f"                        {' '.join(arguments) or '--'} ;;",
        ]
    lines += ["            esac ;;", "    esac", "}", f'{program.function} "$@"']
    return "\n".join(lines) + "\n"


# ---- fish ------------------------------------------------------------------------------------------------------------


def fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish_option(program: Program, condition: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = " -r -F" if option.is_file else " -x" if option.value else ""
    choices = f" -a {fish_quote(' '.join(option.choices))}" if option.choices else ""
    return f"complete -c {program.name} -n {fish_quote(condition)} {names}{value}{choices} -d {fish_quote(option.help)}"


def fish_completion(program: Program) -> str:
    lines = [f"# fish completion for {program.name}, {MADE_BY}", f"complete -c {program.name} -f"]
    lines += [
        f"complete -c {program.name} -n __fish_use_subcommand -a {command.names[0]} -d {fish_quote(command.help)}"
        for command in program.commands
    ]
    lines += [fish_option(program, "__fish_use_subcommand", option) for option in program.options]
    for command in program.commands:
        condition = f"__fish_seen_subcommand_from {' '.join(command.names)}"
        lines += [f"complete -c {program.name} -n {fish_quote(condition)} -a {name}" for name in action_names(command)]
        lines += [fish_option(program, condition, option) for option in command.every_option]
    return "\n".join(lines) + "\n"


# ---- all of it -------------------------------------------------------------------------------------------------------


def files() -> dict[str, str]:
    """Every file by its path below packaging/."""
    made: dict[str, str] = {}
    every = programs()
    for program in every:
        made[f"man/{program.name}.1"] = man_page(program, [other for other in every if other is not program])
        made[f"completions/{program.name}.bash"] = bash_completion(program)
        made[f"completions/_{program.name}"] = zsh_completion(program)
        made[f"completions/{program.name}.fish"] = fish_completion(program)
    return made


def main() -> None:
    for name, text in files().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
