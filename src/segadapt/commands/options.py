"""Options that several commands have, and what becomes of them: the experiment, the device, the terminal."""

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
ROWS = ("source_only", "adabn", "adversarial", "translation", "sim", "sim_ssl", "target_only")


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


def add_study(command: ArgumentParser, run_dir: str | None = None) -> None:
    """Options of a table over seeds; `run_dir` is the default of the run folder."""
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    command.add_argument("--jobs", type=int, default=1, help="trainings at once, each in a process of its own")
    command.add_argument("--run_dir", type=str, default=run_dir, required=run_dir is None, help="run folder")


def jobs_of(options: Namespace) -> int:
    """How many trainings run at once.

    Raises:
        InputError: fewer than one.
    """
    if options.jobs < 1:
        raise InputError(f"--jobs: {options.jobs} is no number of trainings; use 1 or more")
    return options.jobs


def add_switch(command: ArgumentParser, name: str, text: str) -> None:
    """An option that is off unless given, as `--name` or `--name true`."""
    command.add_argument(name, type=bool, nargs="?", const=True, default=False, help=text)


def experiment_of(options: Namespace) -> Experiment:
    """The experiment that the options describe."""
    return Experiment(**{name: options[name] for name in Experiment.__dataclass_fields__})


def experiment_with(experiment: Experiment, key: str, value: str) -> Experiment:
    """The experiment with one key of the configuration changed, given as on the command line ('loss.gan', 'lsgan').

    Raises:
        ArgumentError: there is no such key, or it does not take the value.
    """
    command = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_experiment(command)
    command.set_defaults(asdict(experiment))
    return experiment_of(command.instantiate(command.parse_args([f"--{key}={value}"])))


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
        InputError: cuda was asked for and is not there, or has too few devices for the processes.
    """
    import torch

    from segadapt.adaptation.machine import keep_freed_memory
    from segadapt.processes import started_processes

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine, or this build of torch, has no CUDA device; use --device cpu")
    keep_freed_memory()
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to promise the same
    use_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    number = started_processes().local_rank
    if use_cuda and number >= torch.cuda.device_count():
        raise InputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, and this is its process {number + 1}; start "
            "one for each device (torchrun --nproc_per_node), or use --device cpu"
        )
    return torch.device(f"cuda:{number}" if use_cuda else "cpu")


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
    # a class may be called "road [wet]", which is no style
    Console(markup=False, emoji=False).print(table)
