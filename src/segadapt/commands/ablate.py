"""`segadapt ablate`: rows of the paper's Tables 2 and 6 over seeds, with curves, pictures and a page."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import ROWS, add_experiment, add_machine, add_study, experiment_of, jobs_of, machine_of

EXAMPLE = "segadapt ablate --config configs/smoke.yaml --seeds 0 1 2 --run_dir runs/ablation"


def add_options(command: ArgumentParser, run_dir: str | None = None) -> None:
    """Options of the command; `run_dir` is the default of the run folder."""
    add_experiment(command)
    add_machine(command)
    rows = "rows of the table; default: all but adabn, and translation where source images are translated"
    command.add_argument("--rows", type=Literal[ROWS], nargs="+", default=[], help=rows)
    add_study(command, run_dir)


def run(options: Namespace) -> int:
    """Train the rows, write tables, curves, pictures and page, print the tables."""
    from segadapt.output.study import draw_study
    from segadapt.studies.ablation import ablate, default_rows
    from segadapt.studies.table import print_study

    experiment, run_dir, jobs = experiment_of(options), Path(options.run_dir), jobs_of(options)
    rows = options.rows or default_rows(experiment)
    with machine_of(options) as machine:
        found = ablate(experiment, run_dir, options.seeds, rows, jobs, machine)
        if machine.processes.is_first:
            draw_study(found, run_dir, machine)
            print_study(found, experiment.selection.score, options.json)
    return 0
