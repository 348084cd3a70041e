"""What a set of trainings says: means over seeds, paired gains with their confidence intervals, label-free scores.

In: rows of finished run folders. Out: the content of table.json and label_free.json, and both as text. A gain is the
mean, over the seeds that both rows have, of the difference of two trainings of the same seed; its interval is that of
the t distribution, 95 %: what lies outside it is more than chance. Every score is said three times: of the last model,
of the one chosen without labels, of the best, which was chosen on labels.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from segadapt.errors import InputError
from segadapt.evaluation.label_free import HIGHER_IS_BETTER
from segadapt.studies.runs import Row
from segadapt.whole_file import whole_file

CONFIDENCE = 0.95
SHORT = {
    "entropy": "entropy",
    "soft_neighbourhood_density": "SND",
    "information_maximisation": "IM",
    "source_validation": "source",
}
FEWEST_CHECKPOINTS = 3  # of a training whose own rank correlation says anything


def table_of(rows: Sequence[Row], baseline: Row | None = None) -> list[dict[str, Any]]:
    """The content of table.json.

    Args:
        rows: In the order of the table; each has a finished training at least.
        baseline: The row that gains are counted from; None: each from the row above it.

    Returns:
        For each row: name, title, seeds; miou and miou_std (percent, of the last models, over seeds; the deviation of
        one seed is null) and miou_each; gain (null where there is nothing to compare with): over, seeds, mean, low,
        high (null for one seed), each; selected, for each label-free score, and best: miou and miou_each of the
        checkpoints chosen so; label_free: mean scores of the last models; seconds (a seed's mean, of all steps).
    """
    above = [None, *rows] if baseline is None else [baseline if row is not baseline else None for row in rows]
    return [line_of(row, before) for row, before in zip(rows, above, strict=False)]


def line_of(row: Row, before: Row | None) -> dict[str, Any]:
    """One row of table.json; `before` is what its gain is counted from."""
    results = row.results
    scores = [result["miou"] for result in results]
    # trainings whose label-free scores were off have none
    chosen, label_free = (
        [score for score in HIGHER_IS_BETTER if all(score in result.get(key, {}) for result in results)]
        for key in ("selected", "label_free")
    )
    return {
        "name": row.name or row.title,
        "title": row.title,
        "seeds": [run.seed for run in row.finished],
        "miou": statistics.fmean(scores),
        "miou_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "miou_each": scores,
        "gain": gain(row, before) if before else None,
        "selected": {score: mean_and_each(results, lambda r, s=score: r["selected"][s]["miou"]) for score in chosen},
        "best": {**mean_and_each(results, lambda r: r["best"]["miou"]), "chosen_on": "test labels"},
        "label_free": {score: statistics.fmean(r["label_free"][score] for r in results) for score in label_free},
        "seconds": statistics.fmean(r["seconds"] + r.get("step1", {}).get("seconds", 0.0) for r in results),
    }


def mean_and_each(results: Sequence[dict[str, Any]], score: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """Mean over the trainings, and each of them."""
    each = [score(result) for result in results]
    return {"miou": statistics.fmean(each), "miou_each": each}


def gain(row: Row, over: Row) -> dict[str, Any] | None:
    """The paired difference of two rows' last models, on the seeds that both have; None where they share none."""
    ours, theirs = ({run.seed: run.result["miou"] for run in r.finished if run.result} for r in (row, over))
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    each = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = confidence_interval(each)
    return {
        "over": over.title, "seeds": seeds, "mean": statistics.fmean(each), "low": low, "high": high, "each": each,
    }  # fmt: skip


def confidence_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Where the mean of such values lies with 95 %, by the t distribution; nothing is known of a single value."""
    if len(values) < 2:
        return None, None
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return float(mean - reach), float(mean + reach)


def row_titled(rows: Sequence[Row], title: str) -> Row:
    """The row of a title, or of a name where only one has it.

    Raises:
        InputError: there is none.
    """
    found = [row for row in rows if row.title == title] or [row for row in rows if row.name == title]
    if len(found) != 1:
        raise InputError(f"--baseline: '{title}' is not one of the rows; use one of {[row.title for row in rows]}")
    return found[0]


def gap_closed(table: Iterable[dict[str, Any]]) -> float | None:
    """Percent of the gap between source only and target only that the whole method closes; None where there is none."""
    scores = {row["name"]: row["miou"] for row in table}
    if not {"source_only", "sim_ssl", "target_only"} <= scores.keys():
        return None
    gap = scores["target_only"] - scores["source_only"]
    return 100 * (scores["sim_ssl"] - scores["source_only"]) / gap if gap > 0 else None


# ---- label-free scores


def rank_correlations(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The content of label_free.json: how each score that needs no labels follows the true one (Spearman).

    +1: it orders as the labels do, whichever way it counts. Target only, which has seen labels, is left out.

    Returns:
        For each score, `between_trainings`, of the last models of all rows and seeds, with their number `trainings`;
        `within_trainings`, the mean over trainings of the correlation of their checkpoints, with `checkpoints`, their
        number, of trainings with three or more; null where there are too few, or where one of both never changes.
    """
    trainings = [run.checks for row in rows if row.name != "target_only" for run in row.finished]
    correlations = {}
    for score, higher in HIGHER_IS_BETTER.items():
        sign = 1 if higher else -1
        courses = [
            [(sign * check.label_free[score], check.evaluation.miou) for check in checks
             if check.evaluation and score in check.label_free]
            for checks in trainings
        ]  # fmt: skip
        lasts = [course[-1] for course in courses if course]
        long = [course for course in courses if len(course) >= FEWEST_CHECKPOINTS]
        within = [value for course in long if (value := spearman(course)) is not None]
        if lasts:
            correlations[score] = {
                "between_trainings": spearman(lasts),
                "trainings": len(lasts),
                "within_trainings": statistics.fmean(within) if within else None,
                "checkpoints": sum(map(len, long)),
            }
    return correlations


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation; None for fewer than three pairs, or where a side has one value only."""
    if len(pairs) < FEWEST_CHECKPOINTS or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    scores, mious = np.array(pairs).T
    # Pearson's correlation of the ranks; equal values share the mean of theirs
    return float(np.corrcoef(stats.rankdata(scores), stats.rankdata(mious))[0, 1])


# ---- as text


def header_and_lines(table: Sequence[dict[str, Any]], selection: str) -> tuple[list[str], list[list[str]]]:
    """The table as text: methods, scores, gains; checkpoints that were chosen, where there was a choice.

    Args:
        table: The content of table.json.
        selection: The label-free score whose choice is shown.
    """
    several = any(any(a != b for a, b in zip(r["best"]["miou_each"], r["miou_each"], strict=True)) for r in table)
    header = ["method", "mIoU %", "gain", *(["selected", "best on labels"] if several else []), "seconds"]
    lines = []
    for row in table:
        chosen = row["selected"].get(selection)
        choices = [f"{chosen['miou']:.1f}" if chosen else "", f"{row['best']['miou']:.1f}"] if several else []
        lines.append([row["title"], score_text(row), gain_text(row["gain"]), *choices, f"{row['seconds']:.0f}"])
    return header, lines


def score_text(row: dict[str, Any]) -> str:
    """Mean and deviation."""
    return f"{row['miou']:.1f}" + ("" if row["miou_std"] is None else f" ± {row['miou_std']:.1f}")


def gain_text(found: dict[str, Any] | None) -> str:
    """A gain and its interval."""
    if found is None:
        return ""
    interval = "" if found["low"] is None else f" ({found['low']:+.1f} to {found['high']:+.1f})"
    return f"{found['mean']:+.1f}{interval}"


def label_free_lines(
    table: Sequence[dict[str, Any]], correlations: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """The label-free scores of the last models beside the true one, their rank correlations below."""
    scores = list(correlations)
    lines = [
        [row["title"], f"{row['miou']:.1f}", *(_number(row["label_free"].get(score), ".3f") for score in scores)]
        for row in table
    ]
    for kind in ("between_trainings", "within_trainings"):
        values = [_number(correlations[score][kind], "+.2f") for score in scores]
        if any(values):
            lines.append([f"rank correlation {kind.replace('_', ' ')}", "", *values])
    return ["method", "mIoU %", *(SHORT[score] for score in scores)], lines


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def markdown(
    table: Sequence[dict[str, Any]], correlations: dict[str, dict[str, Any]] | None = None, selection: str = ""
) -> str:
    """The tables for a document."""
    text = markdown_table(*header_and_lines(table, selection))
    closed = gap_closed(table)
    if closed is not None:
        text += f"\nGap closed: {closed:.0f} %\n"
    if any(len(row["seeds"]) > 1 for row in table):
        text += "\n" + GAIN_NOTE + "\n"
    if correlations:
        text += "\n" + markdown_table(*label_free_lines(table, correlations))
    return text


GAIN_NOTE = "Gain: mean of the differences seed by seed, with its 95 % confidence interval (t distribution)."


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a document."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def print_study(rows: Sequence[Row], selection: str, as_json: bool, baseline: Row | None = None) -> None:
    """The tables for the terminal, or the content of table.json."""
    table = table_of(rows, baseline)
    if as_json:
        print(json.dumps(table, indent=1))
        return
    correlations, console = rank_correlations(rows), Console()
    seeds = sorted({seed for row in table for seed in row["seeds"]})
    parts = [(f"seeds {seeds}", header_and_lines(table, selection))]
    if correlations:
        parts.append(("scores that need no target labels", label_free_lines(table, correlations)))
    for title, (header, lines) in parts:
        view = Table(*header, title=title)
        for line in lines:
            view.add_row(*line)
        console.print(view)
    closed = gap_closed(table)
    if closed is not None:
        console.print(f"gap between source only and target only closed: {closed:.0f} %", highlight=False)


def write_tables(rows: Sequence[Row], out: Path, selection: str, baseline: Row | None = None, head: str = "") -> None:
    """Write `table.json`, `label_free.json` and `table.md`, which begins with the table `head`, into a folder."""
    table, correlations = table_of(rows, baseline), rank_correlations(rows)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.json", json.dumps(table, indent=1)),
        ("label_free.json", json.dumps(correlations, indent=1)),
        ("table.md", (head and f"{head}\n") + markdown(table, correlations, selection)),
    ):
        with whole_file(out / name) as file:
            file.write(text.encode())
