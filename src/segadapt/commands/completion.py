"""`segadapt completion`: commands and options for the Tab key of a shell."""

import re
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands import COMMANDS
from segadapt.commands.options import command_parser

EXAMPLE = 'eval "$(segadapt completion bash)"'

# what the words so far allow is decided by the longest command that they begin with; anything else is a file
_BASH = """\
_segadapt() {
    local line="${COMP_WORDS[*]:1:COMP_CWORD-1}" word="${COMP_WORDS[COMP_CWORD]}"
    case "$line " in
%s
        *) COMPREPLY=($(compgen -W "%s" -- "$word")) ;;
    esac
}
complete -o default -F _segadapt segadapt
"""
_CASE = '        "%s "*) COMPREPLY=($(compgen -W "%s" -- "$word")) ;;'


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument(
        "shell", type=Literal["bash", "zsh", "fish"], help="put the line of the example into the shell's start-up file"
    )


def run(options: Namespace) -> int:
    """Print the script."""
    known = {name: options_of(name) for name in sorted(COMMANDS, key=len, reverse=True)}
    print(fish(known) if options.shell == "fish" else bash(known, options.shell), end="")
    return 0


def options_of(name: str) -> list[str]:
    """The options of a command, as its help lists them."""
    return sorted(set(re.findall(r"(?<![\w-])--[\w.]+", command_parser(name)[1].format_help())))


def bash(known: dict[str, list[str]], shell: str) -> str:
    """For bash, and for zsh by its own way to read such scripts."""
    second: dict[str, list[str]] = {}  # 'translate' alone is followed by 'fit' or 'apply'
    for first, *rest in (name.split() for name in COMMANDS):
        if rest:
            second.setdefault(first, []).extend(rest)
    cases = "\n".join(_CASE % (name, " ".join(words)) for name, words in {**known, **second}.items())
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + _BASH % (cases, " ".join(sorted({name.split()[0] for name in known})))


def fish(known: dict[str, list[str]]) -> str:
    """For fish."""
    names = " ".join(sorted({name.split()[0] for name in known}))
    lines = [f"complete -c segadapt -n '__fish_use_subcommand' -f -a '{names}'"]
    for name, words in known.items():
        seen = " and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split()).replace(" and ", "; and ")
        lines += [f"complete -c segadapt -n '{seen}' -l {word.removeprefix('--')} -r" for word in words]
    return "\n".join(lines) + "\n"
