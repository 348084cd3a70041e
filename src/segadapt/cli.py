"""The command line: finds the command, reads its options, and turns a user's mistake into one line.

Exit codes: 0 done; 2 wrong input, said in one line; 130 interrupted, 143 terminated, 138 stopped by SIGUSR1. torch is
imported by the commands, only after their options were found right.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import segadapt
from segadapt.commands import COMMANDS
from segadapt.commands.options import command_parser
from segadapt.errors import InputError, Stopped
from segadapt.yaml_text import read_yaml


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text at all, as on standard error
    try:
        code = run(arguments)
        sys.stdout.flush()  # here, where a closed pipe is still an exception
        return code
    except BrokenPipeError:  # who read our output has gone, as `| head` does; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ArgumentError, InputError, OSError) as error:
        line = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
        print(f"segadapt: error: {line}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        name = signal.Signals(stopped.signum).name
        print(f"segadapt: stopped by {name}, everything is saved; continue: {stopped.continue_with}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print(
            "segadapt: interrupted; the same command goes on with the files that are there (a training from its last "
            "checkpoint, schedule.save_every) or begins again if there are none",
            file=sys.stderr,
        )
        return 130


def run(arguments: list[str]) -> int:
    """What `main` does when nothing is wrong."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1  # 'translate fit'
    name, arguments = " ".join(arguments[:words]), arguments[words:]
    if name in ("-h", "--help", "--version"):
        print(f"segadapt {segadapt.__version__}" if name == "--version" else overview())
        return 0
    if name not in COMMANDS:
        wrong = f"{name}: no such command" if name else "no command given"
        raise InputError(f"{wrong}; use one of {', '.join(COMMANDS)} (segadapt --help says more)")
    module, parser = command_parser(name)
    refuse_wrong_config_files(arguments, parser)
    options = parser.parse_args(arguments)
    for key, value in vars(options.as_flat()).items():
        refuse_null(key, value, parser)
    return module.run(parser.instantiate(options))


def overview() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: segadapt COMMAND [options]",
            "",
            "Semantic-segmentation networks adapted to a new domain without labels (SIM, CVPR 2020).",
            "",
            *lines,
            "",
            "segadapt COMMAND --help lists a command's options; segadapt --version says the version.",
        ]
    )


def refuse_wrong_config_files(arguments: list[str], command: ArgumentParser) -> None:
    """Check every `--config FILE` on its own: once mixed with the other options, nothing says where one came from.

    Raises:
        InputError: names the file and the key.
    """
    config_option = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config_option.add_argument("--config", action="append", default=[])
    for path in config_option.parse_known_args(arguments)[0].config:
        try:
            content = read_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, InputError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds no options; write 'name: value' lines, as the files in configs/")
        options = Namespace()
        try:
            for name, value in dotted(content):
                if name in (command.groups or ()):
                    raise InputError(f"{name}: no options; write '{name}: {{name: value}}'")
                options[name] = value
            command.validate(options, skip_required=True)
            for name, value in dotted(content):
                refuse_null(name, value, command)
        except (TypeError, KeyError, InputError) as error:
            raise InputError(f"{path}: {error}") from None


def refuse_null(key: str, value: Any, command: ArgumentParser) -> None:
    """Raises InputError for a null where it stands for nothing: the parser lets it pass for every type."""
    if value is None and not may_be_null(key, command):
        raise InputError(f"{key}: null is not possible; give a value, or leave the key out")


def may_be_null(key: str, command: ArgumentParser) -> bool:
    """Whether null is the default of an option, or one of the types it is declared with (crop: a size, or none)."""
    if command.get_default(key) is None:
        return True
    declared = next((getattr(action, "_typehint", None) for action in command._actions if action.dest == key), None)
    return NoneType in get_args(declared)


def dotted(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries with the names that options have on the command line."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    sys.exit(main())
