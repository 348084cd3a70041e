"""`segadapt ablate`: rows of the paper's Table 2 over seeds."""

import json
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import ROWS, add_experiment, add_machine, experiment_of, machine_of

TABLE_ROWS = ("source_only", "adversarial", "sim", "sim_ssl", "target_only")
EXAMPLE = "segadapt ablate --config configs/smoke.yaml --seeds 0 1 2 --run_dir runs/ablation"


def add_options(command: ArgumentParser, run_dir: str | None = None) -> None:
    """Options of the command; `run_dir` is the default of the run folder."""
    add_experiment(command)
    add_machine(command)
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    command.add_argument("--rows", type=Literal[ROWS], nargs="+", default=list(TABLE_ROWS), help="rows of the table")
    command.add_argument("--run_dir", type=str, default=run_dir, required=run_dir is None, help="run folder")


def run(options: Namespace) -> int:
    """Train the rows, print the table."""
    from segadapt.output.ablation import ablate, print_table

    with machine_of(options) as machine:
        table = ablate(experiment_of(options), Path(options.run_dir), options.seeds, options.rows, machine)
        if machine.processes.is_first:
            if options.json:
                print(json.dumps(table, indent=1))
            else:
                print_table(table)
    return 0
