"""`segadapt sweep`: Tables 3 and 4 of the paper, and tables like them of any key of the configuration."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import (
    ROWS,
    add_experiment,
    add_machine,
    add_study,
    experiment_of,
    experiment_with,
    jobs_of,
    machine_of,
)
from segadapt.errors import InputError

EXAMPLE = "segadapt sweep --config configs/smoke.yaml --setting lambda_ci --run_dir runs/lambda_ci"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    add_machine(command)
    setting = "what is varied: lambda_ci (Table 3), w (Table 4), or a key of the configuration, as translation.method"
    command.add_argument("--setting", type=str, required=True, help=setting)
    command.add_argument("--values", type=str, nargs="+", default=[], help="default: those of the paper's tables")
    command.add_argument("--row", type=Literal[ROWS], default="sim", help="row that is trained")
    add_study(command)


def run(options: Namespace) -> int:
    """Train every value, write tables, curves and page, print the tables."""
    from segadapt.output.study import draw_study
    from segadapt.studies.sweep import PAPER_VALUES, sweep, with_setting
    from segadapt.studies.table import print_study

    experiment, setting, jobs = experiment_of(options), options.setting, jobs_of(options)
    # not .values: Namespace has a method of that name
    values = tuple(options["values"]) or PAPER_VALUES.get(setting, ())
    if not values:
        raise InputError(f"values: none given for {setting}, and the paper has no table of it; give two or more")
    with_value = with_setting if setting in PAPER_VALUES else experiment_with
    varied = {value: with_value(experiment, setting, value) for value in values}
    if len(varied) < len(values):
        raise InputError(f"values: {list(values)} holds a value twice; name each once")
    run_dir = Path(options.run_dir)
    with machine_of(options) as machine:
        found = sweep(varied, run_dir, setting, options.row, options.seeds, jobs, machine)
        if machine.processes.is_first:
            draw_study(found, run_dir, machine, pictures=0)
            print_study(found, experiment.selection.score, options.json, found[0])
    return 0
