"""`segadapt adapt`: the whole two-step procedure, begun or continued."""

import shlex
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from segadapt.commands.options import (
    add_experiment,
    add_machine,
    experiment_from,
    experiment_of,
    machine_of,
    print_scores,
)
from segadapt.config import Experiment
from segadapt.errors import InputError, Stopped
from segadapt.yaml_text import read_yaml

EXAMPLE = "segadapt adapt --config configs/smoke.yaml --run_dir runs/smoke"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    add_machine(command)
    command.add_argument("--run_dir", type=str, default="", help="run folder")
    command.add_argument(
        "--resume", type=str, default="", help="run folder to continue, in place of --run_dir and the experiment"
    )


def run(options: Namespace) -> int:
    """Adapt and print the scores."""
    from segadapt.adaptation.procedure import adapt

    experiment, run_dir = resumed(options) if options.resume else (experiment_of(options), Path(options.run_dir))
    if not options.resume and not options.run_dir:
        raise InputError("--run_dir: required; name a folder for the run, or one to continue with --resume")
    with machine_of(options) as machine:
        try:
            result = adapt(experiment, run_dir, machine)
        except Stopped as stopped:
            stopped.continue_with = shlex.join(["segadapt", "adapt", "--resume", str(run_dir)])
            raise
        if machine.processes.is_first:
            print_scores(result, options.json)
    return 0


def resumed(options: Namespace) -> tuple[Experiment, Path]:
    """The experiment that a run folder was made for, and the folder.

    Raises:
        InputError: it is no run folder of `adapt`, or another experiment was given beside it.
    """
    from segadapt.adaptation.run_folder import EXPERIMENT_FILE, read_left

    run_dir = Path(options.resume)
    kept = run_dir / EXPERIMENT_FILE
    if not kept.is_file():
        raise InputError(f"--resume: {kept} is missing; name the --run_dir of a run that 'segadapt adapt' has begun")
    read_left(kept, read_yaml)
    try:
        experiment = experiment_from(kept)
    except (ArgumentError, InputError) as error:
        raise InputError(f"{kept}: not the experiment of a run of this version ({error}); begin anew") from None
    if experiment_of(options) not in (Experiment(), experiment):
        raise InputError(f"--resume: the experiment is that of {kept}; leave out --config and its options")
    if options.run_dir and Path(options.run_dir) != run_dir:
        raise InputError(f"--run_dir: {options.run_dir} is not the folder to --resume; leave it out")
    return experiment, run_dir
