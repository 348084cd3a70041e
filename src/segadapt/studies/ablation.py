"""The rows of the paper's Tables 2 and 6 over seeds, and with `schedule.evaluate_every` the curves of its Figure 2.

In: one experiment, whole. Out: `RUN_DIR/<row>/seed<N>/` run folders, and `table.json`, `label_free.json`, `table.md` of
all that is finished there. The row `sim` is the first step of `sim_ssl` and is trained once for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from segadapt.adaptation.domains import find_domain
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import finished_row
from segadapt.adaptation.run_folder import CONFIG_FILE, alone_in
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.processes import Processes
from segadapt.studies.cells import Cell, train_cells
from segadapt.studies.runs import GENERATOR, TITLES, WARM_UP, Row, table_rows
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
        The rows in the order of Table 2, with all that is finished in `run_dir`, in this call or an earlier one.

    Raises:
        InputError: wrong input, a row or seed that stands twice, or `run_dir` holds trainings of something else.
    """
    refuse_repeats(seeds=seeds, rows=rows)
    refuse_no_test(experiment)
    refuse_others(run_dir, {title: (name, experiment) for name, title in TITLES.items()})
    if "sim_ssl" in rows:
        for seed in seeds:
            make_step1_of_sim(run_dir, seed, machine.processes)
    order = sorted(rows, key=tuple(TITLES).index)
    cells = [
        cell_of(replace(experiment, seed=seed), TITLES[name], name, folder_of(run_dir, name, seed), run_dir)
        for seed in seeds
        for name in order
        if not (name == "sim" and "sim_ssl" in rows)
    ]
    train_cells(cells, jobs, machine)
    machine.processes.wait()
    found = finished_in(run_dir)
    if machine.processes.is_first:
        write_tables(found, run_dir, experiment.selection.score)
    return found


def default_rows(experiment: Experiment) -> tuple[str, ...]:
    """The rows of the paper's table; + IT where the experiment translates source images."""
    translates = experiment.translation.method != "off" or experiment.source.translated
    return tuple(name for name in TITLES if name != "adabn" and (translates or name != "translation"))


def cell_of(experiment: Experiment, title: str, row: str, folder: Path, shared: Path) -> Cell:
    """A training of a table, in its run folder; `shared` is the folder of what trainings begin with."""
    seed = f"seed{experiment.seed}"
    return Cell(title, row, experiment, folder, shared / WARM_UP / seed, shared / GENERATOR / seed)


def folder_of(run_dir: Path, name: str, seed: int) -> Path:
    """The run folder of a row and a seed; of `sim` it is that of step 1 of `sim_ssl`, once that has begun."""
    step1 = run_dir / "sim_ssl" / f"seed{seed}" / "step1"
    return step1 if name == "sim" and (step1 / CONFIG_FILE).exists() else run_dir / name / f"seed{seed}"


def make_step1_of_sim(run_dir: Path, seed: int, processes: Processes) -> None:
    """Give `sim_ssl` the training of `sim` as its step 1, finished or not, where there is one.

    Raises:
        InputError: another command trains it.
    """
    sim = folder_of(run_dir, "sim", seed)
    if not processes.share(sim.parent.name == "sim" and (sim / CONFIG_FILE).exists()):
        return
    with alone_in(sim, processes):
        pass
    if processes.is_first:
        step1 = run_dir / "sim_ssl" / sim.name / "step1"
        step1.parent.mkdir(parents=True, exist_ok=True)
        sim.rename(step1)  # at once or not at all
        if not any(sim.parent.iterdir()):
            sim.parent.rmdir()


def finished_in(run_dir: Path) -> list[Row]:
    """The rows of a table's folder, with the trainings that have a score."""
    return [replace(row, runs=row.finished) for row in table_rows(run_dir) if row.finished]


def refuse_others(run_dir: Path, known: Mapping[str, tuple[str, Experiment]]) -> None:
    """Refuse a folder whose trainings do not belong into one table with those that are asked for.

    Args:
        run_dir: The folder of the table; it may be new.
        known: By title of a row, its name as `train_row` knows it, and its experiment, whatever the seed.

    Raises:
        InputError: it holds another row, or a training of another experiment.
    """
    if (run_dir / CONFIG_FILE).exists():
        raise InputError(f"{run_dir} holds a single training and no table; choose another --run_dir")
    for row in table_rows(run_dir):
        if row.title not in known:
            raise InputError(
                f"{run_dir} holds {row.title}, which is not in this table; name it too (what is finished is read), or "
                "choose another --run_dir"
            )
        name, experiment = known[row.title]
        for run in row.runs:
            finished_row(replace(experiment, seed=run.seed), name, run.folder)


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
