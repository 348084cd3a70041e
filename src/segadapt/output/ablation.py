"""The rows of the paper's Table 2, trained one after another over seeds, as a table and as pictures.

In: one experiment, whole. Out: `RUN_DIR/<row>/seed<N>/` run folders, `table.json`, `table.md`, `pictures/` and, where
`schedule.evaluate_every` asks for scores on the way, Figure 2 as `curves.csv` and `curves.svg`. A finished run is read,
not trained again; the row `sim` is the first step of `sim_ssl` and is trained once for both.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt, find_domain, row_of, run_training, warm_up
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.output.curves import save_curves
from segadapt.output.pictures import save_comparison

TITLES = {
    "source_only": "source only",
    "adabn": "AdaBN (target statistics)",
    "adversarial": "+ AA",
    "sim": "+ SIM",
    "sim_ssl": "+ SSL",
    "target_only": "target only",
}


def ablate(
    experiment: Experiment,
    run_dir: Path,
    seeds: Sequence[int],
    rows: Sequence[str],
    machine: Machine,
) -> list[dict[str, Any]]:
    """Train `rows` for each of `seeds`, save the table and the pictures.

    Args:
        experiment: The whole method; its own seed is not used.
        run_dir: Folder of all runs.
        seeds: One training of each row each.
        rows: Names, as `procedure.row_of` knows them, and sim_ssl.
        machine: Where to train.

    Returns:
        The content of `run_dir/table.json`: for each row name, miou and miou_std (percent, over seeds; the deviation of
        one seed is null), the mIoU of each seed, seconds (a seed's mean).

    Raises:
        InputError: wrong input, or a row or seed that stands twice.
    """
    refuse_repeats(seeds=seeds, rows=rows)
    refuse_no_test(experiment)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    for seed in seeds:
        for name in sorted(rows, key=tuple(TITLES).index):
            folder = folder_of(run_dir, name, seed, rows)
            results[name].append(run_row(replace(experiment, seed=seed), name, run_dir, folder, machine))
            machine.terminal.say(f"{TITLES[name]}, seed {seed}: mIoU {results[name][-1]['miou']:.1f}")
    table = [row_summary(name, results[name], seeds) for name in rows]
    if not machine.processes.is_first:
        return table
    (run_dir / "table.json").write_text(json.dumps(table, indent=1))
    (run_dir / "table.md").write_text(markdown(table))
    save_curves(
        {(TITLES[name], seed): folder_of(run_dir, name, seed, rows) for name in rows for seed in seeds}, run_dir
    )
    if "source_only" in rows and "sim_ssl" in rows:
        models = {
            "source only": folder_of(run_dir, "source_only", seeds[0], rows) / "model.safetensors",
            "adapted": folder_of(run_dir, "sim_ssl", seeds[0], rows) / "model.safetensors",
        }
        for path in save_comparison(models, experiment.test, run_dir / "pictures", machine.device):
            machine.terminal.say(f"picture: {path}")
    return table


def run_row(experiment: Experiment, name: str, run_dir: Path, folder: Path, machine: Machine) -> dict[str, Any]:
    """Train one row of one seed into `folder`, or read its result; adapted rows share a warm-up in `run_dir`."""
    start = None
    if name in ("adversarial", "sim", "sim_ssl"):
        start = warm_up(experiment, run_dir / "warm_up" / f"seed{experiment.seed}", machine)
    if name == "sim_ssl":
        return adapt(experiment, folder, machine, start)
    title = f"{TITLES[name]} (seed {experiment.seed})"
    return run_training(row_of(experiment, name), folder, machine, title, start)


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


def row_summary(name: str, results: list[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One line of table.json."""
    scores = [result["miou"] for result in results]
    return {
        "name": name,
        "miou": statistics.fmean(scores),
        "miou_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "miou_each": scores,
        "seeds": list(seeds),
        # of the whole procedure, where it has two steps
        "seconds": statistics.fmean(
            result["seconds"] + result.get("step1", {}).get("seconds", 0.0) for result in results
        ),
    }


def gap_closed(table: list[dict[str, Any]]) -> float | None:
    """Percent of the gap between source only and target only that the whole method closes; None where there is none."""
    scores = {row["name"]: row["miou"] for row in table}
    if not {"source_only", "sim_ssl", "target_only"} <= scores.keys():
        return None
    gap = scores["target_only"] - scores["source_only"]
    return 100 * (scores["sim_ssl"] - scores["source_only"]) / gap if gap > 0 else None


def lines_of(table: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Row, mIoU with deviation, gain over the row above it, seconds; as text."""
    lines = []
    for above, row in zip([None, *table], table, strict=False):
        deviation = "" if row["miou_std"] is None else f" ± {row['miou_std']:.1f}"
        gain = "" if above is None else f"{row['miou'] - above['miou']:+.1f}"
        lines.append((TITLES[row["name"]], f"{row['miou']:.1f}{deviation}", gain, f"{row['seconds']:.0f}"))
    return lines


def markdown(table: list[dict[str, Any]]) -> str:
    """The table for a document."""
    text = "| method | mIoU % | gain | seconds |\n| --- | --- | --- | --- |\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines_of(table))
    closed = gap_closed(table)
    return text if closed is None else text + f"\nGap closed: {closed:.0f} %\n"


def print_table(table: list[dict[str, Any]]) -> None:
    """The table for the terminal."""
    view = Table("method", "mIoU %", "gain", "seconds", title=f"seeds {table[0]['seeds']}")
    for line in lines_of(table):
        view.add_row(*line)
    console = Console()
    console.print(view)
    closed = gap_closed(table)
    if closed is not None:
        console.print(f"gap between source only and target only closed: {closed:.0f} %", highlight=False)
