"""What run folders hold, read for tables and report: the rows of the method, each with a training for every seed.

In: folders that `train`, `adapt`, `ablate` or `sweep` left, finished or not. Out: `Row`s in the order of the paper's
Table 2.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

from segadapt.adaptation.run_folder import (
    CONFIG_FILE,
    MODEL_FILE,
    NUMBER,
    RESULT_FILE,
    Check,
    Kinds,
    checks_of,
    read_left,
    refuse_damaged,
)
from segadapt.adaptation.run_log import METRICS_FILE, lines_until
from segadapt.errors import InputError
from segadapt.yaml_text import read_yaml

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
# what tables and report read of a run folder, as `refuse_damaged` reads keys
CONFIG_KEYS: dict[str, Kinds] = {
    "seed": (int,),
    "source.translated": (str,),
    "target": (dict,),
    "test": (dict,),
    "translation.method": (str,),
    "network.batch_norm": (str,),
    "loss.adversarial": NUMBER,
    "loss.matching": NUMBER,
    "matching.stuff_size": (int,),
    "matching.thing_size": (int,),
}
RESULT_KEYS: dict[str, Kinds] = {"miou": (*NUMBER, NoneType), "seconds": NUMBER, "label_free.*": NUMBER}
SCORED_KEYS: dict[str, Kinds] = {
    "iou": (dict,),
    "iou.*": (*NUMBER, NoneType),
    "subsets": (dict,),
    "subsets.*": NUMBER,
    "best.miou": NUMBER,
    "selected.*.miou": NUMBER,
    "data.test.name": (str,),
    "data.test.images": (int,),
    "data.test.fingerprint": (str,),
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
        return self.config["seed"]

    @property
    def model(self) -> Path | None:
        """The last model, if it is there."""
        path = self.folder / MODEL_FILE
        return path if path.exists() else None

    @property
    def tested_on(self) -> tuple[str, ...]:
        """The fingerprint of the images it was scored on, and the classes; empty where it has no score."""
        if not self.result or self.result["miou"] is None:
            return ()
        return (self.result["data"]["test"]["fingerprint"], *sorted(self.result["iou"]))

    @property
    def checks(self) -> tuple[Check, ...]:
        """What was found at each evaluation."""
        return tuple(checks_of(self.metrics, self.folder / METRICS_FILE))

    def curve(self, key: str) -> dict[int, int | float]:
        """A number of metrics.jsonl by step; 'evaluation' is the mIoU of the test images in percent."""
        if key == "evaluation":
            return {line["step"]: line[key]["miou"] for line in self.metrics if key in line}
        return {line["step"]: line[key] for line in self.metrics if key in line}


@dataclass(frozen=True)
class Row:
    """One row of the tables, one line of the charts: trainings that differ in nothing but the seed.

    Args:
        name: As `row_of` knows it, and sim_ssl; empty where it is something else.
        title: What the report calls it.
        runs: A training for each seed.

    Raises:
        InputError: Two of them have one seed, or were scored on different test images or classes.
    """

    name: str
    title: str
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        of_seed: dict[int, Run] = {}
        for run in self.runs:
            other = of_seed.setdefault(run.seed, run)
            if other is not run:
                raise InputError(f"{other.folder} and {run.folder}: both are of seed {run.seed}; take one of them away")
        for run in self.finished:
            if run.tested_on != self.finished[0].tested_on:
                raise InputError(
                    f"{self.finished[0].folder} and {run.folder}: were scored on different test images or "
                    "classes, so they have no mean; train both on the same data, in another folder"
                )

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


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of all folders; where there are several folders, titles begin with the folder's name.

    Raises:
        InputError: A folder holds no run, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if resolved[number] in resolved[:number]:
            raise InputError(f"{folder}: is given twice; name each folder once")
    if len(folders) == 1:
        return rows_of(folders[0])
    return [
        replace(row, title=f"{name}: {row.title}")
        for name, folder in zip(names_of(folders), folders, strict=True)
        for row in rows_of(folder)
    ]


def rows_to_compare(folders: Sequence[Path]) -> list[Row]:
    """`read_rows`, of which one has a score at least.

    Raises:
        InputError: A folder holds no run, or no row has a score.
    """
    rows = read_rows(folders)
    if not any(row.finished for row in rows):
        raise InputError(
            f"{', '.join(map(str, folders))}: no training there is finished and scored; nothing to compare"
        )
    return rows


def unfinished(rows: Iterable[Row]) -> list[str]:
    """What tables leave out: the trainings without a score, as 'title (seed N)'."""
    return [f"{row.title} (seed {run.seed})" for row in rows for run in row.runs if run not in row.finished]


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
    rows = table_rows(folder)
    if not rows and (folder / "step1" / CONFIG_FILE).exists():  # the procedure, stopped before step 2
        return [Row("sim", TITLES["sim"], (read_run(folder / "step1"),))]
    if not rows:
        raise InputError(
            f"{folder}: holds no run ({CONFIG_FILE}, or ROW/seed0/{CONFIG_FILE}); give the folder of --run_dir"
        )
    return rows


def table_rows(folder: Path) -> list[Row]:
    """The rows of a table over seeds, with the trainings that have begun; none in a new folder."""
    seeds = {
        child.name: {seed.name: seed for seed in seeds_in(child) if (seed / CONFIG_FILE).exists()}
        for child in sorted(folder.glob("*/"))
        if child.name not in SHARED
    }
    steps = {seed.name: seed / "step1" for seed in seeds_in(folder / "sim_ssl")}
    begun = {name: step for name, step in steps.items() if (step / CONFIG_FILE).exists()}
    seeds["sim"] = seeds.get("sim", {}) | begun
    rows = []
    for name, folders in seeds.items():
        runs = sorted((read_run(path) for path in folders.values()), key=lambda run: run.seed)
        if runs:
            rows.append(Row(name if name in TITLES else "", TITLES.get(name, name), tuple(runs)))
    order = [*TITLES, *_order_of(folder), *seeds]
    return sorted(rows, key=lambda row: order.index(row.name or row.title))


def seeds_in(folder: Path) -> list[Path]:
    """The folders of a row's seeds, `seed0` and so on; `seed0_old` is none."""
    numbers = {path: int(path.name[4:]) for path in folder.glob("seed*") if re.fullmatch(r"seed[0-9]+", path.name)}
    return sorted(numbers, key=lambda path: numbers[path])


def _order_of(folder: Path) -> list[str]:
    # a sweep's values stand in table.json as they were given
    table = folder / "table.json"
    return list(read_left(table, _lines_by_name)) if table.exists() else []


def _lines_by_name(text: str) -> dict[str, Any]:
    """The lines of a table.json by the name of their rows."""
    lines = json.loads(text)
    if not isinstance(lines, list) or not all(isinstance(line, dict) and "name" in line for line in lines):
        raise InputError("it is no list of rows, each with a name")
    return {line["name"]: line for line in lines}


def read_run(folder: Path) -> Run:
    """One training, finished or not.

    Raises:
        InputError: A file of it is not what a training writes; the message names file and key.
    """
    config_file, result_file, metrics_file = (folder / name for name in (CONFIG_FILE, RESULT_FILE, METRICS_FILE))
    config = read_left(config_file, read_yaml)
    refuse_damaged(config, CONFIG_KEYS, config_file)
    result = read_left(result_file, json.loads) if result_file.exists() else None
    if result is not None:
        refuse_damaged(result, RESULT_KEYS, result_file)
        if result["miou"] is not None:
            refuse_damaged(result, SCORED_KEYS, result_file)
    metrics = lines_until(metrics_file)
    checks_of(metrics, metrics_file)
    return Run(folder, config, tuple(metrics), result)


def kind_of(config: dict[str, Any]) -> str:
    """The row that a training's configuration is."""
    loss = config["loss"]
    if loss["matching"] > 0:
        return "sim"
    if loss["adversarial"] > 0:
        translates = config["translation"]["method"] != "off" or config["source"]["translated"]
        return "translation" if translates else "adversarial"
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
