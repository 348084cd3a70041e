"""Tables 3 and 4: the score of step 1 against one of its two own settings, over seeds.

In: one experiment. Out: `RUN_DIR/<setting>_<value>/seed<N>/` run folders, `table.json` and `table.md`. A finished run
is read, not trained again.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from segadapt.adaptation.machine import Machine
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.output.ablation import refuse_no_test, refuse_repeats, row_summary, run_row

Setting = Literal["lambda_ci", "w"]
# the values of the paper's tables
PAPER_VALUES: dict[Setting, tuple[float, ...]] = {
    "lambda_ci": (0.1, 0.05, 0.01, 0.005, 0.001),
    "w": (10.0, 50.0, 200.0, 800.0, 1600.0),
}


def sweep(
    experiment: Experiment,
    run_dir: Path,
    setting: Setting,
    values: Sequence[float],
    seeds: Sequence[int],
    machine: Machine,
) -> list[dict[str, Any]]:
    """Train step 1 (row `sim`) for each value and seed, and write the table.

    Args:
        experiment: Everything but the setting and the seed.
        run_dir: Folder of all runs.
        setting: `lambda_ci` (Table 3) or `w` (Table 4).
        values: Of the setting; empty: those of the paper.
        seeds: One training of each value each.
        machine: Where to train.

    Returns:
        The content of `run_dir/table.json`: as that of `ablate`, with `value` for each row.

    Raises:
        InputError: wrong input, or a value or seed that stands twice.
    """
    values = values or PAPER_VALUES[setting]
    refuse_repeats(values=values, seeds=seeds)
    refuse_no_test(experiment)
    varied = {value: with_setting(experiment, setting, value) for value in values}  # all of them before any training
    table = []
    for value, experiment in varied.items():
        results = []
        for seed in seeds:
            folder = run_dir / f"{setting}_{value:g}" / f"seed{seed}"
            results.append(run_row(replace(experiment, seed=seed), "sim", run_dir, folder, machine))
            machine.terminal.say(f"{setting} {value:g}, seed {seed}: mIoU {results[-1]['miou']:.1f}")
        table.append({"value": value, **row_summary(f"{setting} {value:g}", results, seeds)})
    if not machine.processes.is_first:
        return table
    (run_dir / "table.json").write_text(json.dumps(table, indent=1))
    (run_dir / "table.md").write_text(markdown(setting, table))
    return table


def with_setting(experiment: Experiment, setting: Setting, value: float) -> Experiment:
    """The experiment with lambda_ci, or with rings of w stuff entries and z * w thing entries (Algorithm 1)."""
    if setting == "lambda_ci":
        return replace(experiment, loss=replace(experiment.loss, matching=value))
    if value != int(value):
        raise InputError(f"values: w is a number of entries, {value} is not; use whole numbers")
    stuff_size = int(value)
    thing_size = stuff_size * experiment.matching.max_instances
    return replace(experiment, matching=replace(experiment.matching, stuff_size=stuff_size, thing_size=thing_size))


def markdown(setting: Setting, table: list[dict[str, Any]]) -> str:
    """The table in the layout of the paper's: values to the right."""
    scores = [f"{row['miou']:.1f}" + ("" if row["miou_std"] is None else f" ± {row['miou_std']:.1f}") for row in table]
    values = [f"{row['value']:g}" for row in table]
    rows = ([setting, *values], ["---"] * (len(table) + 1), ["mIoU %", *scores])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
