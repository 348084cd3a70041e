"""`segadapt train`: one row of the method."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import (
    ROWS,
    add_experiment,
    add_machine,
    device_of,
    experiment_of,
    print_scores,
    terminal_of,
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
    from segadapt.adaptation.procedure import row_of, run_training, warm_up

    experiment, run_dir, device = experiment_of(options), Path(options.run_dir), device_of(options)
    with terminal_of(options) as terminal:
        if options.row in ("adversarial", "sim"):
            experiment = warm_up(experiment, run_dir / "warm_up", device, terminal)
        experiment = row_of(experiment, options.row)
        result = run_training(experiment, run_dir, device, terminal, options.row.replace("_", " "))
    print_scores(result, options.json)
    return 0
