"""`segadapt train`: one row of the method."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import (
    ROWS,
    add_experiment,
    add_machine,
    experiment_of,
    machine_of,
    print_scores,
)

TRAIN_ROWS = tuple(row for row in ROWS if row != "sim_ssl")  # that one takes the whole procedure: adapt
EXAMPLE = "segadapt train --config configs/smoke.yaml --row source_only --run_dir runs/source_only"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    add_machine(command)
    command.add_argument("--row", type=Literal[TRAIN_ROWS], default="sim", help="row to train")
    command.add_argument("--run_dir", type=str, required=True, help="run folder")


def run(options: Namespace) -> int:
    """Train and print the scores."""
    from segadapt.adaptation.procedure import train_row

    experiment, run_dir = experiment_of(options), Path(options.run_dir)
    with machine_of(options) as machine:
        result = train_row(experiment, options.row, run_dir, machine, options.row.replace("_", " "))
        if machine.processes.is_first:
            print_scores(result, options.json)
    return 0
