"""`segadapt sweep`: Tables 3 and 4 of the paper."""

import json
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_experiment, add_machine, experiment_of, machine_of

SETTINGS = ("lambda_ci", "w")
EXAMPLE = "segadapt sweep --config configs/smoke.yaml --setting lambda_ci --run_dir runs/lambda_ci"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    add_machine(command)
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    command.add_argument("--setting", type=Literal[SETTINGS], required=True, help="what is varied")
    command.add_argument("--values", type=float, nargs="+", default=[], help="default: those of the paper")
    command.add_argument("--run_dir", type=str, required=True, help="run folder")


def run(options: Namespace) -> int:
    """Train every value, print the table."""
    from rich.console import Console

    from segadapt.output.sweep import markdown, sweep

    values = tuple(options["values"])  # not .values: Namespace has a method of that name
    experiment, run_dir = experiment_of(options), Path(options.run_dir)
    with machine_of(options) as machine:
        table = sweep(experiment, run_dir, options.setting, values, options.seeds, machine)
        if machine.processes.is_first:
            if options.json:
                print(json.dumps(table, indent=1))
            else:
                Console().print(markdown(options.setting, table), highlight=False)
    return 0
