"""What run folders hold, read for tables and report: the rows of the method, each with a training for every seed.

In: folders that `train`, `adapt`, `ablate` or `sweep` left, finished or not. Out: `Row`s in the order of the paper's
Table 2.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from segadapt.adaptation.run_folder import CONFIG_FILE, MODEL_FILE, RESULT_FILE, Check, check_of, read_left
from segadapt.adaptation.run_log import lines_until
from segadapt.errors import InputError

WARM_UP, GENERATOR = "warm_up", "generator"
SHARED = (WARM_UP, GENERATOR)  # folders that the trainings of a table begin with
TITLES = {
    "source_only": "source only",
    "adabn": "AdaBN (target statistics)",
    "adversarial": "+ AA",
    "translation": "+ IT",
    "sim": "+ SIM",
    "sim_ssl": "+ SSL",
    "target_only": "target only",
}
ADAPTED = ("sim_ssl", "sim", "translation", "adversarial", "adabn")  # the most complete first


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        folder: Its run folder.
        config: The content of config.yaml.
        metrics: The lines of metrics.jsonl.
        result: The content of result.json; None: not finished.
    """

    folder: Path
    config: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    result: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.config.get("seed", 0)

    @property
    def model(self) -> Path | None:
        """The last model, if it is there."""
        path = self.folder / MODEL_FILE
        return path if path.exists() else None

    @property
    def checks(self) -> tuple[Check, ...]:
        """What was found at each evaluation."""
        return tuple(check_of(line) for line in self.metrics if "evaluation" in line or "label_free" in line)

    def curve(self, key: str) -> dict[int, int | float]:
        """A number of metrics.jsonl by step; 'evaluation' is the mIoU of the test images in percent."""
        if key == "evaluation":
            return {line["step"]: line[key]["miou"] for line in self.metrics if key in line}
        return {line["step"]: line[key] for line in self.metrics if key in line}


@dataclass(frozen=True)
class Row:
    """One row of the tables, one line of the charts.

    Args:
        name: As `row_of` knows it, and sim_ssl; empty where it is something else.
        title: What the report calls it.
        runs: A training for each seed.
    """

    name: str
    title: str
    runs: tuple[Run, ...]

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """The trainings that have a score."""
        return tuple(run for run in self.runs if run.result and run.result["miou"] is not None)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of the finished trainings."""
        return [run.result for run in self.finished if run.result]

    def miou(self) -> float | None:
        """Mean over seeds, percent."""
        return statistics.fmean(result["miou"] for result in self.results) if self.results else None

    def deviation(self) -> float | None:
        """Sample deviation of the mIoU over seeds; None for one seed."""
        scores = [result["miou"] for result in self.results]
        return statistics.stdev(scores) if len(scores) > 1 else None

    def iou(self, class_name: str) -> float | None:
        """Mean IoU of a class over the seeds that have one, percent."""
        scores = [result["iou"][class_name] for result in self.results if result["iou"].get(class_name) is not None]
        return statistics.fmean(scores) if scores else None


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of all folders; where there are several folders, titles begin with the folder's name.

    Raises:
        InputError: A folder holds no run.
    """
    if len(folders) == 1:
        return rows_of(folders[0])
    return [
        replace(row, title=f"{name}: {row.title}")
        for name, folder in zip(names_of(folders), folders, strict=True)
        for row in rows_of(folder)
    ]


def finished_rows(folders: Sequence[Path]) -> list[Row]:
    """`read_rows`, of which each has a score.

    Raises:
        InputError: A folder holds no run, or no row has a score.
    """
    rows = [row for row in read_rows(folders) if row.finished]
    if not rows:
        raise InputError(
            f"{', '.join(map(str, folders))}: no training there is finished and scored; nothing to compare"
        )
    return rows


def names_of(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart: one by its name, several by their paths from where these part."""
    resolved = [folder.resolve() for folder in folders]
    if len(folders) == 1:
        return [resolved[0].name]
    common = os.path.commonpath(resolved)
    return [folder.name if folder == Path(common) else folder.relative_to(common).as_posix() for folder in resolved]


def rows_of(folder: Path) -> list[Row]:
    """The rows of one folder: of a training, of the procedure's two steps, or of a table over seeds.

    Raises:
        InputError: It holds no run.
    """
    if (folder / CONFIG_FILE).exists():
        run = read_run(folder)
        if (folder / "step1" / CONFIG_FILE).exists():
            step1 = read_run(folder / "step1")
            return [Row("sim", TITLES["sim"], (step1,)), Row("sim_ssl", TITLES["sim_ssl"], (run,))]
        name = kind_of(run.config)
        return [Row(name, TITLES[name], (run,))]
    seeds = {
        child.name: tuple(read_run(seed) for seed in sorted(child.glob("seed*")) if (seed / CONFIG_FILE).exists())
        for child in sorted(folder.glob("*/"))
        if child.name not in SHARED
    }
    rows = {
        name: Row(name if name in TITLES else "", TITLES.get(name, name), runs) for name, runs in seeds.items() if runs
    }
    if "sim_ssl" in rows and "sim" not in rows:
        folders = [run.folder / "step1" for run in rows["sim_ssl"].runs]
        step1 = tuple(read_run(path) for path in folders if (path / CONFIG_FILE).exists())
        rows["sim"] = Row("sim", TITLES["sim"], step1)
    elif not rows and (folder / "step1" / CONFIG_FILE).exists():  # the procedure, stopped before step 2
        rows["sim"] = Row("sim", TITLES["sim"], (read_run(folder / "step1"),))
    if not rows:
        raise InputError(
            f"{folder}: holds no run ({CONFIG_FILE}, or ROW/seed0/{CONFIG_FILE}); give the folder of --run_dir"
        )
    order = [*TITLES, *_order_of(folder), *rows]
    return sorted(rows.values(), key=lambda row: order.index(row.name or row.title))


def _order_of(folder: Path) -> list[str]:
    # a sweep's values stand in table.json as they were given
    table = folder / "table.json"
    return list(read_left(table, lambda text: {row["name"]: row for row in json.loads(text)})) if table.exists() else []


def read_run(folder: Path) -> Run:
    """One training, finished or not.

    Raises:
        InputError: A file of it cannot be read.
    """
    result = folder / RESULT_FILE
    try:
        return Run(
            folder=folder,
            config=yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")),
            metrics=tuple(lines_until(folder / "metrics.jsonl")),
            result=json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
        )
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder}: {CONFIG_FILE} or {RESULT_FILE} is not what a training writes ({error})") from error


def kind_of(config: dict[str, Any]) -> str:
    """The row that a training's configuration is."""
    loss = config["loss"]
    if loss["matching"] > 0:
        return "sim"
    if loss["adversarial"] > 0:
        return "adversarial"
    if config["network"]["batch_norm"] == "source_target_separate":
        return "adabn"
    return "target_only" if config["source"] == config["target"] else "source_only"


def baseline_of(rows: Sequence[Row]) -> Row:
    """The row that gains are counted from: source only, or else the first."""
    return next((row for row in rows if row.name == "source_only"), rows[0])


def adapted_of(rows: Sequence[Row]) -> Row:
    """The row that the report is about: the last of the most complete adaptations, or else the last row."""
    found = [row for name in ADAPTED for row in reversed(rows) if row.name == name and row.results]
    return found[0] if found else rows[-1]
