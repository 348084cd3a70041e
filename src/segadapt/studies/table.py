"""What a set of trainings says: means over seeds, paired gains with their confidence intervals, label-free scores.

In: rows of run folders. Out: the content of table.json and label_free.json, and both as text. A gain is the mean, over
the seeds that both rows have, of the difference of two trainings of the same seed; its interval is that of the t
distribution, 95 %: what lies outside it is more than chance. Trainings that were scored on different test images or
classes are not compared. Every score is said three times: of the last model, of the one chosen without labels, of the
best, which was chosen on labels.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from scipy import stats

from segadapt.errors import InputError
from segadapt.evaluation.label_free import HIGHER_IS_BETTER
from segadapt.studies.runs import Row, unfinished
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
        rows: In the order of the table; one without a finished training is left out.
        baseline: The row that gains are counted from; None: each from the row above it.

    Returns:
        For each row: name, title, seeds; test: name, images and fingerprint of the test images; miou and miou_std
        (percent, of the last models, over seeds; the deviation of one seed is null) and miou_each; gain (null where
        there is nothing to compare with): over, seeds, mean, low, high (null for one seed), each; selected, for each
        label-free score, and best: miou, miou_std and miou_each of the checkpoints chosen so; label_free: mean scores
        of the last models; seconds (a seed's mean, of all steps).
    """
    shown = [row for row in rows if row.finished]
    above = [None, *shown] if baseline is None else [baseline if row is not baseline else None for row in shown]
    return [line_of(row, before) for row, before in zip(shown, above, strict=False)]


def line_of(row: Row, before: Row | None) -> dict[str, Any]:
    """One row of table.json; `before` is what its gain is counted from."""
    results = row.results
    # trainings whose label-free scores were off have none
    chosen, label_free = (
        [score for score in HIGHER_IS_BETTER if all(score in result.get(key, {}) for result in results)]
        for key in ("selected", "label_free")
    )
    return {
        "name": row.name or row.title,
        "title": row.title,
        "seeds": [run.seed for run in row.finished],
        "test": results[0]["data"]["test"],
        **over_seeds([result["miou"] for result in results]),
        "gain": gain(row, before) if before else None,
        "selected": {score: over_seeds([r["selected"][score]["miou"] for r in results]) for score in chosen},
        "best": {**over_seeds([r["best"]["miou"] for r in results]), "chosen_on": "test labels"},
        "label_free": {score: statistics.fmean(r["label_free"][score] for r in results) for score in label_free},
        "seconds": statistics.fmean(r["seconds"] + r.get("step1", {}).get("seconds", 0.0) for r in results),
    }


def over_seeds(mious: list[float]) -> dict[str, Any]:
    """Mean, sample deviation (None for one seed), and each."""
    deviation = statistics.stdev(mious) if len(mious) > 1 else None
    return {"miou": statistics.fmean(mious), "miou_std": deviation, "miou_each": mious}


def last_miou(result: dict[str, Any]) -> float | None:
    """The score of the last model, percent."""
    return result["miou"]


def differences(row: Row, over: Row, score: Callable[[dict[str, Any]], float | None] = last_miou) -> dict[int, float]:
    """By how much a row is above another, training by training: what all gains are made of.

    Args:
        row: Whose gain it is.
        over: What it is counted from.
        score: Of a training, from the content of its result.json; None: it has none.

    Returns:
        The differences by seed, of the seeds at which both rows have the score; none where the rows were scored on
        different test images or classes.
    """
    if len(test_sets((row, over))) > 1:
        return {}
    before = {run.seed: score(result) for run, result in zip(over.finished, over.results, strict=True)}
    pairs = {run.seed: (score(r), before.get(run.seed)) for run, r in zip(row.finished, row.results, strict=True)}
    return {seed: ours - theirs for seed, (ours, theirs) in pairs.items() if ours is not None and theirs is not None}


def test_sets(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """The rows that have a score, by the test images and the classes they were scored on."""
    sets: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.finished:
            sets.setdefault(row.finished[0].tested_on, []).append(row)
    return sets


def gain(row: Row, over: Row) -> dict[str, Any] | None:
    """The paired difference of two rows' last models; None where they have no common seed or test images."""
    found = differences(row, over)
    if not found:
        return None
    each = list(found.values())
    low, high = confidence_interval(each)
    return {
        "over": over.title,
        "seeds": list(found),
        "mean": statistics.fmean(each),
        "low": low,
        "high": high,
        "each": each,
    }


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
        InputError: there is none, there are several, or it has no score.
    """
    titles = [row.title for row in rows if row.finished]
    found = [row for row in rows if row.title == title] or [row for row in rows if row.name == title]
    if len(found) != 1:
        said = "is several of the rows" if found else "is not one of the rows"
        raise InputError(f"--baseline: '{title}' {said}; use one of {titles}")
    if not found[0].finished:
        raise InputError(f"--baseline: no training of '{title}' is finished and scored; use one of {titles}")
    return found[0]


def gap_closed(rows: Sequence[Row]) -> float | None:
    """Percent of the gap between source only and target only that the whole method closes, on the seeds of all three.

    None where one of them has no such seed, where there is no gap, and where a row's name stands twice: of several
    tables nobody knows which rows belong together.
    """
    found = [[row for row in rows if row.name == name] for name in ("source_only", "sim_ssl", "target_only")]
    if any(len(each) != 1 for each in found):
        return None
    (source,), (ours,), (target,) = found
    gains, gaps = differences(ours, source), differences(target, source)
    gap = sum(gaps[seed] for seed in gaps if seed in gains)
    return 100 * sum(gains[seed] for seed in gains if seed in gaps) / gap if gap > 0 else None


# ---- label-free scores


def rank_correlations(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The content of label_free.json: how each score that needs no labels follows the true one (Spearman).

    +1: it orders as the labels do, whichever way it counts. Target only, which has seen labels, is left out.

    Returns:
        For each score, `between_trainings`, of the last models of all rows and seeds, with their number `trainings`;
        `within_trainings`, the mean over trainings of the correlation of their checkpoints, with `checkpoints`, their
        number, of trainings with three or more; null where there are too few, or where one of both never changes.
        Between trainings that were scored on different test images or classes there is none.
    """
    unlabelled = [row for row in rows if row.name != "target_only"]
    trainings = [run.checks for row in unlabelled for run in row.finished]
    comparable = len(test_sets(unlabelled)) == 1
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
                "between_trainings": spearman(lasts) if comparable else None,
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
    # a choice can also be worse than the last model
    choices = [[row["best"], *row["selected"].values()] for row in table]
    several = any(c["miou_each"] != row["miou_each"] for row, each in zip(table, choices, strict=True) for c in each)
    columns = ["selected", "best on labels"] if several else []
    header = ["method", "seeds", "mIoU %", "gain", *columns, "seconds"]
    lines = []
    for row in table:
        chosen = row["selected"].get(selection)
        scores = [score_text(chosen) if chosen else "", score_text(row["best"])] if several else []
        seeds = " ".join(map(str, row["seeds"]))
        lines.append([row["title"], seeds, score_text(row), gain_text(row), *scores, f"{row['seconds']:.0f}"])
    return header, lines


def score_text(found: dict[str, Any]) -> str:
    """Mean and deviation."""
    return f"{found['miou']:.1f}" + ("" if found["miou_std"] is None else f" ± {found['miou_std']:.1f}")


def gain_text(row: dict[str, Any]) -> str:
    """A row's gain and its interval, and the seeds where they are not all of the row's."""
    found = row["gain"]
    if found is None:
        return ""
    interval = "" if found["low"] is None else f" ({found['low']:+.1f} to {found['high']:+.1f})"
    seeds = "" if found["seeds"] == row["seeds"] else f", seeds {' '.join(map(str, found['seeds']))}"
    return f"{found['mean']:+.1f}{interval}{seeds}"


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


def notes_on(rows: Sequence[Row]) -> list[str]:
    """How to read the table, in sentences: the gap that is closed, what a gain is."""
    notes = []
    closed = gap_closed(rows)
    if closed is not None:
        notes.append(f"Gap between source only and target only closed: {closed:.0f} %.")
    if any(len(row.finished) > 1 for row in rows):
        notes.append(GAIN_NOTE)
    return notes


def cautions(rows: Sequence[Row]) -> list[str]:
    """What the table cannot say of the trainings, in sentences: what is not compared, what is left out."""
    notes = []
    sets = test_sets(rows)
    if len(sets) > 1:
        said = [f"{_images_of(found[0])}: {', '.join(row.title for row in found)}" for found in sets.values()]
        notes.append(
            "Scored on different test images or classes, so that between them there is neither a gain nor a rank "
            f"correlation: {'; '.join(said)}."
        )
    if missing := unfinished(rows):
        notes.append(f"Not finished, or without a score, and so left out: {', '.join(missing)}.")
    return notes


def _images_of(row: Row) -> str:
    # sets of one name and number differ in the fingerprint alone
    result = row.results[0]
    test, classes = result["data"]["test"], len(result["iou"])
    return f"{test['images']} images of {test['name']} (fingerprint {test['fingerprint'][:8]}, {classes} classes)"


def markdown(rows: Sequence[Row], selection: str, baseline: Row | None = None) -> str:
    """The tables for a document; arguments as of `write_tables`."""
    table, correlations = table_of(rows, baseline), rank_correlations(rows)
    text = markdown_table(*header_and_lines(table, selection))
    text += "".join(f"\n{note}\n" for note in (*notes_on(rows), *cautions(rows)))
    if correlations:
        text += "\n" + markdown_table(*label_free_lines(table, correlations))
    return text


GAIN_NOTE = "Gain: mean of the differences seed by seed, with its 95 % confidence interval (t distribution)."


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a document; `|` within a cell is no border."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (header, *lines)]
    rows.insert(1, ["---"] * len(header))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def print_study(rows: Sequence[Row], selection: str, as_json: bool, baseline: Row | None = None) -> None:
    """The tables for the terminal, or the content of table.json; then the cautions are on standard error."""
    table = table_of(rows, baseline)
    if as_json:
        print(json.dumps(table, indent=1))
        for note in cautions(rows):
            print(note, file=sys.stderr)
        return
    correlations, console = rank_correlations(rows), Console()
    parts = [("last models", header_and_lines(table, selection))]
    if correlations:
        parts.append(("scores that need no target labels", label_free_lines(table, correlations)))
    for title, (header, lines) in parts:
        view = Table(Column(header[0], overflow="fold"), *header[1:], title=title)
        for line in lines:
            view.add_row(*map(Text, line))  # [brackets] in a title are no colours
        console.print(view)
    for note in (*notes_on(rows), *cautions(rows)):
        console.print(Text(note))


def write_tables(rows: Sequence[Row], out: Path, selection: str, baseline: Row | None = None, head: str = "") -> None:
    """Write `table.json`, `label_free.json` and `table.md`, which begins with the table `head`, into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.json", json.dumps(table_of(rows, baseline), indent=1)),
        ("label_free.json", json.dumps(rank_correlations(rows), indent=1)),
        ("table.md", (head and f"{head}\n") + markdown(rows, selection, baseline)),
    ):
        with whole_file(out / name) as file:
            file.write(text.encode())
