"""The rows of the paper's Tables 2 and 6 over seeds, and with `schedule.evaluate_every` the curves of its Figure 2.

In: one experiment, whole. Out: `RUN_DIR/<row>/seed<N>/` run folders, `table.json`, `label_free.json`, `table.md`. The
row `sim` is the first step of `sim_ssl` and is trained once for both.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segadapt.adaptation.domains import find_domain
from segadapt.adaptation.machine import Machine
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.studies.cells import Cell, train_cells
from segadapt.studies.runs import GENERATOR, TITLES, WARM_UP, Row, read_run
from segadapt.studies.table import write_tables


def ablate(
    experiment: Experiment, run_dir: Path, seeds: Sequence[int], rows: Sequence[str], jobs: int, machine: Machine
) -> list[Row]:
    """Train `rows` for each of `seeds`, write the tables.

    Args:
        experiment: The whole method; its own seed is not used.
        run_dir: Folder of all runs.
        seeds: One training of each row each.
        rows: Names, as `procedure.train_row` knows them.
        jobs: Trainings at once, each in a process of its own.
        machine: Where to train.

    Returns:
        The rows, finished.

    Raises:
        InputError: wrong input, or a row or seed that stands twice.
    """
    refuse_repeats(seeds=seeds, rows=rows)
    refuse_no_test(experiment)
    order = sorted(rows, key=tuple(TITLES).index)
    cells = [
        cell_of(replace(experiment, seed=seed), TITLES[name], name, run_dir / name, run_dir)
        for seed in seeds
        for name in order
        if not (name == "sim" and "sim_ssl" in rows)
    ]
    train_cells(cells, jobs, machine)
    machine.processes.wait()
    found = [
        Row(name, TITLES[name], tuple(read_run(folder_of(run_dir, name, seed, rows)) for seed in seeds))
        for name in rows
    ]
    if machine.processes.is_first:
        write_tables(found, run_dir, experiment.selection.score)
    return found


def default_rows(experiment: Experiment) -> tuple[str, ...]:
    """The rows of the paper's table; + IT where the experiment translates source images."""
    translates = experiment.translation.method != "off" or experiment.source.translated
    return tuple(name for name in TITLES if name != "adabn" and (translates or name != "translation"))


def cell_of(experiment: Experiment, title: str, row: str, folder: Path, shared: Path) -> Cell:
    """A training of a table: `folder` is that of all its seeds, `shared` that of what trainings begin with."""
    seed = f"seed{experiment.seed}"
    return Cell(title, row, experiment, folder / seed, shared / WARM_UP / seed, shared / GENERATOR / seed)


def folder_of(run_dir: Path, name: str, seed: int, rows: Sequence[str]) -> Path:
    """The run folder of a row and a seed, in a table of `rows`."""
    if name == "sim" and "sim_ssl" in rows:
        return run_dir / "sim_ssl" / f"seed{seed}" / "step1"
    return run_dir / name / f"seed{seed}"


def refuse_no_test(experiment: Experiment) -> None:
    """Raises InputError where a table would have nothing to show."""
    if not experiment.test.root:
        find_domain("source", experiment.source, labelled=True)  # what is wrong there is said first
        find_domain("target", experiment.target, labelled=False)
        raise InputError("test.root: is empty; a table needs labelled images of the target to score on")


def refuse_repeats(**options: Sequence[object]) -> None:
    """Raises InputError for an option that holds a value twice: its trainings would be one."""
    for option, values in options.items():
        if len(set(values)) < len(values):
            raise InputError(f"{option}: {list(values)} holds a value twice; name each once")
