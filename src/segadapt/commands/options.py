"""Options that several commands have, and what becomes of them: the experiment, the device, the terminal."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands import COMMANDS
from segadapt.config import Experiment
from segadapt.errors import InputError, Stopped

if TYPE_CHECKING:
    import torch

    from segadapt.adaptation.machine import Machine
    from segadapt.adaptation.run_log import Terminal

Device = Literal["auto", "cpu", "cuda"]
ROWS = ("source_only", "adabn", "adversarial", "sim", "sim_ssl", "target_only")


def command_parser(name: str) -> tuple[ModuleType, ArgumentParser]:
    """A command's module, and a parser of its options alone: those of all commands would take too long to build."""
    module = import_module(f"segadapt.commands.{re.sub('[- ]', '_', name)}")
    parser = ArgumentParser(
        prog=f"segadapt {name}",
        description=f"{COMMANDS[name]} Example: {module.EXAMPLE}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    module.add_options(parser)
    return module, parser


def add_experiment(command: ArgumentParser) -> None:
    """Every key of the configuration as an option, and `--config` for files of them; a later file wins."""
    command.add_argument("--config", action="config", help="YAML file of the experiment; several are composed")
    command.add_class_arguments(Experiment, None)


def add_machine(command: ArgumentParser) -> None:
    """Options that do not belong to the experiment: where it runs, and what is shown."""
    command.add_argument("--device", type=Device, default="auto", help="auto: the GPU if there is one")
    add_switch(command, "--deterministic", "the same run twice, at some speed")
    add_switch(command, "--quiet", "no progress, only results and errors")
    add_switch(command, "--json", "print the result as JSON")


def add_switch(command: ArgumentParser, name: str, text: str) -> None:
    """An option that is off unless given, as `--name` or `--name true`."""
    command.add_argument(name, type=bool, nargs="?", const=True, default=False, help=text)


def experiment_of(options: Namespace) -> Experiment:
    """The experiment that the options describe."""
    return Experiment(**{name: options[name] for name in Experiment.__dataclass_fields__})


def experiment_from(*configs: Path | str, **options: Any) -> Experiment:
    """The experiment of configuration files, a later one before an earlier, with single keys changed.

    Args:
        configs: YAML files.
        options: Keys with __ for the dot: `schedule__steps=3`.
    """
    command = ArgumentParser(exit_on_error=False)
    add_experiment(command)
    given = [f"--config={path}" for path in configs]
    given += [f"--{name.replace('__', '.')}={value}" for name, value in options.items()]
    return experiment_of(command.instantiate(command.parse_args(given)))


def device_of(options: Namespace) -> "torch.device":
    """The device to use, after the settings of torch that go with it.

    Raises:
        InputError: cuda was asked for and is not there.
    """
    import torch

    from segadapt.processes import started_processes

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine, or this build of torch, has no CUDA device; use --device cpu")
    keep_freed_memory()
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    use_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    return torch.device(f"cuda:{started_processes().local_rank}" if use_cuda else "cpu")


def terminal_of(options: Namespace) -> "Terminal":
    """What progress and messages go to."""
    from segadapt.adaptation.run_log import Terminal

    return Terminal(quiet=options.quiet)


@contextmanager
def machine_of(options: Namespace) -> Iterator["Machine"]:
    """Device, terminal, signals, and the processes that torchrun started, connected for as long as the context lasts.

    Raises:
        InputError: cuda was asked for and is not there.
    """
    from segadapt.adaptation.machine import Machine, StopSignals
    from segadapt.adaptation.run_log import Terminal
    from segadapt.processes import join, leave, started_processes

    device, processes = device_of(options), started_processes()
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    join(processes)
    try:
        with StopSignals() as signals, Terminal(quiet=options.quiet or not processes.is_first) as terminal:
            yield Machine(device, terminal, processes, signals)
    except Stopped as stopped:  # by all processes at once, so that they can still part in order
        traceback.clear_frames(stopped.__traceback__)  # which hold the networks
        leave(processes)
        raise
    leave(processes)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next training step instead of returning them to the system.

    A step on the CPU frees and allocates the same hundreds of megabytes; fetching them from the system anew each time,
    page by page, made a step at 288x384 six times slower where page faults are dear (virtual machines).
    """
    import ctypes

    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: nothing to set
        return
    mallopt(trim_threshold, -1)  # never trim
    mallopt(mmap_max, 0)  # never map a block of its own, which would be unmapped when freed


def print_scores(result: dict[str, Any], as_json: bool) -> None:
    """A result as JSON, or as a short table."""
    if as_json:
        import json

        print(json.dumps(result, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    if result["miou"] is None:
        print("trained; no test images were given (test.root), so there is no score")
        return

    table = Table("class", "IoU %")
    for name, value in result["iou"].items():
        table.add_row(name, "-" if value is None else f"{value:.1f}")
    table.add_row("mean", f"{result['miou']:.1f}", style="bold")
    for name, value in result["subsets"].items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
