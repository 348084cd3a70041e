"""Tables 3 and 4, and tables like them of any key of the configuration: the score against one setting, over seeds.

In: an experiment for each value. Out: `RUN_DIR/<setting>_<value>/seed<N>/` run folders, and `table.json`,
`label_free.json` and `table.md` of all seeds that are finished there, in which gains are counted from the first value.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.rows import row_of, step2_of, warm_up_of
from segadapt.config import Experiment, MatchingConfig, PseudoLabelConfig
from segadapt.errors import InputError
from segadapt.studies.ablation import cell_of, finished_in, refuse_no_test, refuse_others, refuse_repeats
from segadapt.studies.cells import train_cells
from segadapt.studies.runs import Row
from segadapt.studies.table import markdown_table, score_text, table_of, write_tables

# the values of the paper's tables
PAPER_VALUES = {
    "lambda_ci": ("0.1", "0.05", "0.01", "0.005", "0.001"),
    "w": ("10", "50", "200", "800", "1600"),
}


def sweep(
    varied: Mapping[str, Experiment],
    run_dir: Path,
    setting: str,
    row: str,
    seeds: Sequence[int],
    jobs: int,
    machine: Machine,
) -> list[Row]:
    """Train one row for each value and seed, and write the tables.

    Args:
        varied: The experiment of each value; their own seeds are not used.
        run_dir: Folder of all runs.
        setting: What is varied, for titles.
        row: As `procedure.train_row` knows it; Tables 3 and 4 are of `sim`, step 1.
        seeds: One training of each value each.
        jobs: Trainings at once, each in a process of its own.
        machine: Where to train.

    Returns:
        A row for each value, with all seeds that are finished in `run_dir`, in this call or an earlier one.

    Raises:
        InputError: wrong input, two values or seeds that say the same, a setting that the row does not depend on or
            that changes what is scored, or `run_dir` holds trainings of something else.
    """
    refuse_repeats(seeds=seeds)
    experiments = list(varied.values())
    folders = {value: run_dir / folder_name(setting, value) for value in varied}
    if len(set(folders.values())) < len(folders) or any(e in experiments[:i] for i, e in enumerate(experiments)):
        raise InputError(f"values: {list(varied)} holds a value twice; name each once")
    if any(each.test != experiments[0].test for each in experiments):
        raise InputError(f"setting: {setting} changes the images that are scored; scores on others do not compare")
    refuse_no_test(experiments[0])
    trained = [trained_by(each, row) for each in experiments]
    if any(each in trained[:i] for i, each in enumerate(trained)):
        raise InputError(
            f"setting: row {row} does not depend on {setting}, values of {list(varied)} train the same; choose another "
            "--row or --setting (for seeds there is --seeds)"
        )
    refuse_others(run_dir, {folders[value].name: (row, varied[value]) for value in varied})
    # what trainings begin with is shared if the setting leaves it alone
    beginnings = {(warm_up_of(each), each.cyclegan, each.source, each.target) for each in experiments}
    cells = []
    for value, experiment in varied.items():
        shared = run_dir if len(beginnings) == 1 else folders[value]
        for seed in seeds:
            title = f"{setting} {value}"
            folder = folders[value] / f"seed{seed}"
            cells.append(cell_of(replace(experiment, seed=seed), title, row, folder, shared))
    train_cells(cells, jobs, machine)
    machine.processes.wait()
    by_title = {found.title: found for found in finished_in(run_dir)}
    rows = [by_title[folder.name] for folder in folders.values()]
    if machine.processes.is_first:
        head = values_to_the_right(setting, list(varied), rows)
        write_tables(rows, run_dir, experiments[0].selection.score, rows[0], head)
    return rows


def trained_by(experiment: Experiment, row: str) -> tuple[Experiment, ...]:
    """What a row trains, whatever the seed; settings that it does not read have their defaults."""
    experiment = replace(experiment, seed=0)
    if row == "sim_ssl":
        return row_of(experiment, "sim"), step2_of(experiment)
    trained = row_of(replace(experiment, pseudo_labels=PseudoLabelConfig()), row)
    matching = trained.matching if trained.loss.matching else MatchingConfig()
    return (replace(trained, matching=matching, loss=replace(trained.loss, matching_step2=0.0)),)


def folder_name(setting: str, value: str) -> str:
    """Of a value's trainings; one path element, whatever the value is."""
    return re.sub(r"[^\w.+-]+", "_", f"{setting}_{value}")


def with_setting(experiment: Experiment, setting: str, value: str) -> Experiment:
    """The experiment with lambda_ci, or with rings of w stuff entries and z * w thing entries (Algorithm 1).

    Raises:
        InputError: the value is no number, or out of range.
    """
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"values: {setting} is a number, {value!r} is none") from None
    if setting == "lambda_ci":
        return replace(experiment, loss=replace(experiment.loss, matching=number))
    if not number.is_integer():  # inf and nan are none
        raise InputError(f"values: w is a number of entries, {value} is not; use whole numbers")
    stuff_size = int(number)
    thing_size = stuff_size * experiment.matching.max_instances
    return replace(experiment, matching=replace(experiment.matching, stuff_size=stuff_size, thing_size=thing_size))


def values_to_the_right(setting: str, values: Sequence[str], rows: Sequence[Row]) -> str:
    """The layout of the paper's Tables 3 and 4."""
    return markdown_table([setting, *values], [["mIoU %", *map(score_text, table_of(rows))]])
