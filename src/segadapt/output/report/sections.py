"""The sections of the report, one function each: from rows and measurements to HTML.

In: `Row`s, and what `measure` counted. Out: text of HTML; an empty text where there is nothing to show.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import yaml

from segadapt.data.label_spaces import LabelSpace
from segadapt.output.report.charts import (
    Line,
    Number,
    fill_chart,
    ink,
    legend,
    line_chart,
    reliability_chart,
    shade,
    thinned,
)
from segadapt.output.report.measure import Measured
from segadapt.output.report.tables import Cell, Table, as_csv, copy_buttons
from segadapt.studies.runs import Row, Run, adapted_of, baseline_of
from segadapt.studies.table import (
    GAIN_NOTE,
    cautions,
    differences,
    gap_closed,
    header_and_lines,
    label_free_lines,
    last_miou,
    rank_correlations,
    table_of,
    test_sets,
)

Score = Callable[[dict[str, Any]], float | None]  # of a training, from the content of its result.json

LOSSES = {
    "loss/segmentation": "source cross-entropy, Eq. (1)",
    "loss/target_segmentation": "cross-entropy with pseudo-labels, Eq. (10)",
    "loss/adversarial": "adversarial loss, Eq. (2)",
    "loss/discriminator": "discriminator loss, Eq. (3)",
    "loss/stuff": "distance of stuff to its bank, Eq. (6)",
    "loss/instance": "distance of instances to their banks, Eq. (8)",
}
MEANINGS = {
    "adversarial": "AA: adversarial adaptation",
    "translation": "IT: with source images in the style of the target",
    "sim": "SIM: with stuff-and-instance matching (step 1)",
    "sim_ssl": "SSL: with self-training on pseudo-labels (step 2)",
}
COUNTS = {"matched/stuff": "stuff regions matched in a batch", "matched/instances": "instances matched in a batch"}


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a heading, an explanation in a sentence or two, the content."""

    anchor: str
    heading: str
    explanation: str
    content: str

    def html(self) -> str:
        """The section."""
        explanation = f"<p>{self.explanation}</p>" if self.explanation else ""
        return (
            f'<section aria-labelledby="{self.anchor}"><h2 id="{self.anchor}">{escape(self.heading)}</h2>'
            f"{explanation}{self.content}</section>\n"
        )


# ---- scores


def summary(rows: Sequence[Row]) -> str:
    """The few numbers that a reader looks for first."""
    baseline, adapted = baseline_of(rows), adapted_of(rows)
    cards = [(f"{adapted.title}", _score(adapted), "mIoU %")]
    if baseline is not adapted:
        cards.append((baseline.title, _score(baseline), "mIoU %"))
        gain = _gain_over(baseline, adapted, last_miou)
        if gain is not None:
            cards.append((f"gain over {baseline.title}", f"{gain:+.1f}", "points"))
    best = next((row for row in rows if row.name == "target_only" and row.results), None)
    if best:
        cards.append((best.title, _score(best), "mIoU %, trained on the target's labels"))
    closed = gap_closed(rows)
    if closed is not None:
        cards.append(("gap closed", f"{closed:.0f} %", "of that between source only and target only"))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> {escape(unit)}</dd></div>"
        for name, value, unit in cards
    )
    return f'<dl class="cards">{shown}</dl>\n{_scope(rows)}'


def _scope(rows: Sequence[Row]) -> str:
    """What the scores are of, in a sentence; what is not compared and what is not finished in others."""
    results = [result for row in rows for result in row.results]
    lines = []
    if results:
        tests = sorted({f"{r['data']['test']['images']} images of {r['data']['test']['name']}" for r in results})
        lines.append(
            f"Scores of the last models, never of the best, on {escape('; '.join(tests))}. {escape(_seeds(rows))}. A "
            "row of several shows their mean ± their standard deviation; gains are counted seed by seed, on the seeds "
            "that both rows have."
        )
    lines += [f"<strong>{escape(note)}</strong>" for note in cautions(rows)]
    return "".join(f"<p>{line}</p>" for line in lines)


def _seeds(rows: Sequence[Row]) -> str:
    by_row = {row.title: ", ".join(str(run.seed) for run in row.finished) for row in rows if row.finished}
    if len(set(by_row.values())) == 1:
        return f"Seeds: {next(iter(by_row.values()))}"
    return "Seeds: " + "; ".join(f"{title} {seeds}" for title, seeds in by_row.items())


def _gain_over(baseline: Row, row: Row, score: Score) -> float | None:
    """The mean of the differences seed by seed; None where there is no pair to compare."""
    found = differences(row, baseline, score)
    return statistics.fmean(found.values()) if found else None


def _mean(row: Row, score: Score) -> float | None:
    """Over the seeds that have the score."""
    scores = [value for result in row.results if (value := score(result)) is not None]
    return statistics.fmean(scores) if scores else None


def _score(row: Row) -> str:
    score, deviation = row.miou(), row.deviation()
    if score is None:
        return "–"
    return f"{score:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def class_table(rows: Sequence[Row]) -> Section:
    """The layout of the paper's Table 1, and below each row what it gains over the baseline."""
    baseline = baseline_of(rows)
    classes = list(dict.fromkeys(name for row in rows for result in row.results for name in result["iou"]))
    subsets = list(dict.fromkeys(name for row in rows for result in row.results for name in result["subsets"]))
    columns: list[tuple[str, Score]] = [(name, lambda r, name=name: r["iou"].get(name)) for name in classes]
    columns.append(("mIoU", last_miou))
    columns += [(f"mIoU {name}", lambda r, name=name: r["subsets"].get(name)) for name in subsets]
    contenders = [row for row in rows if row.name != "target_only"] or list(rows)
    # scores on different images or classes have no best
    contenders = contenders if len(test_sets(contenders)) == 1 else []
    lines, kinds = [], []
    for row in rows:
        cells: list[Cell | str] = [row.title]
        for name, score in columns:
            value, best = _mean(row, score), max((_mean(other, score) or 0 for other in contenders), default=0)
            is_best = value is not None and row in contenders and len(contenders) > 1 and value >= best > 0
            text = "–" if value is None else f"{value:.1f}"
            shown = escape(_score(row)) if name == "mIoU" else text
            cells.append(Cell(text, shown=f"<b>{shown}</b>" if is_best else shown))
        lines.append(tuple(cells))
        kinds.append("")
        if row is not baseline and differences(row, baseline):
            gains = [_gain(_gain_over(baseline, row, score)) for _, score in columns]
            lines.append((Cell(f"{row.title}: gain", shown="gain"), *gains))
            kinds.append("gain")
    table = Table(
        "IoU of each class in percent; best adaptation of each column in bold",
        ("method", *(name for name, _ in columns)),
        tuple(lines),
        tuple(kinds),
        kind="scores",
    )
    known = [MEANINGS[row.name] for row in rows if row.name in MEANINGS]
    explanation = (
        f"Gains are points over “{escape(baseline.title)}”: ▲ and blue where it is better, ▼ and orange where it is "
        "worse, the stronger the larger; of the seeds that both rows have."
        if len(rows) > 1
        else ""
    ) + (f" {'; '.join(dict.fromkeys(known))}." if known else "")
    return Section("classes", "Scores of the classes", explanation, table.html())


def _gain(gain: float | None) -> Cell:
    if gain is None:
        return Cell("–")
    text, shown = f"{gain:+.1f}", f"{gain:+.1f}".replace("-", "−")
    if text in ("+0.0", "-0.0"):
        return Cell("0.0")
    strength = min(abs(gain) / 15, 1) * 0.55 + 0.12
    colour = f"rgba(0,114,178,{strength:.2f})" if gain > 0 else f"rgba(230,140,0,{strength:.2f})"
    mark = "▲" if gain > 0 else "▼"
    return Cell(text, shown=f'<span aria-hidden="true">{mark}</span>{shown}', style=f"background:{colour}")


def study(rows: Sequence[Row]) -> Section | None:
    """Paired gains with their intervals, chosen checkpoints, label-free scores; None for a single row."""
    finished = [row for row in rows if row.results]
    if len(finished) < 2:
        return None
    # the rows of the method build on one another; values of a setting, or several folders, do not
    one_table = all(row.name for row in finished) and len({row.name for row in finished}) == len(finished)
    selection = finished[0].runs[0].config.get("selection", {}).get("score", "")
    table, correlations = table_of(finished, None if one_table else finished[0]), rank_correlations(finished)
    header, lines = header_and_lines(table, selection)
    over = "the row above" if one_table else f"“{finished[0].title}”"
    caption = f"Last models, gains over {over}"
    shown = Table(caption, tuple(header), tuple(map(tuple, lines))).html()
    explanation = escape(f"{GAIN_NOTE} An interval that holds 0 is no evidence of a gain.")
    if "selected" in header:
        explanation += f" Selected: the checkpoint with the best {escape(selection.replace('_', ' '))}, without labels."
    if correlations:
        header, lines = label_free_lines(table, correlations)
        caption = "Scores that need no target labels: SND, soft neighbourhood density; IM, information maximisation"
        shown += Table(caption, tuple(header), tuple(map(tuple, lines))).html()
    return Section("study", "Gains and their certainty", explanation, shown)


# ---- curves


def curves(rows: Sequence[Row]) -> Section:
    """mIoU of the test images, as Figure 2, and every loss; rows over one another, seeds as bands."""
    evaluations = chart(rows, "evaluation", "mIoU of the test images, percent", "mIoU %", least=2)
    known = dict.fromkeys(key for row in rows for run in row.runs for line in run.metrics for key in line)
    losses = [key for key in (*LOSSES, *known) if key in known and key.startswith("loss/")]
    charts = [chart(rows, key, LOSSES.get(key, key), "loss") for key in dict.fromkeys(losses)]
    explanation = (
        "Losses before weighting. A line is the mean of the seeds, its band reaches from the lowest to the highest."
    )
    if not evaluations:
        explanation += (
            " The models were scored at the end only. With <code>schedule.evaluate_every</code> above 0 the curve of "
            "Figure 2 stands here, too."
        )
    names = legend(dict(enumerate(row.title for row in rows)))
    content = f'{names}<div class="charts">{evaluations}{"".join(charts)}</div>'
    return Section("curves", "Curves", explanation, content)


def chart(rows: Sequence[Row], key: str, title: str, y_name: str, least: int = 1) -> str:
    """One number of metrics.jsonl against the step, a line for each row; empty where no line has `least` points."""
    lines = [line_of(row, key, style) for style, row in enumerate(rows)]
    lines = [line for line in lines if len(line.points) >= least]
    if not lines:
        return ""
    data = [("row", "step", y_name), *((line.title, x, y) for line in lines for x, y in line.points)]
    table = Table(
        title,
        ("row", "step", y_name),
        tuple((line.title, f"{x:g}", f"{y:g}") for line in lines for x, y in line.points),
    )
    buttons = copy_buttons(as_csv(data), table.markdown(), title)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{line_chart(lines, title, 'step', y_name)}{buttons}</figure>"
    )


def line_of(row: Row, key: str, style: int) -> Line:
    """The mean over seeds at the steps that all of them have, and its band."""
    curves = [curve for run in row.runs if (curve := run.curve(key))]
    if not curves:
        return Line(row.title, (), style=style)
    steps = sorted(set.intersection(*map(set, curves)))
    means = thinned([(step, statistics.fmean(curve[step] for curve in curves)) for step in steps])
    band: tuple[tuple[Number, Number, Number], ...] = ()
    if len(curves) > 1:
        low = thinned([(step, min(curve[step] for curve in curves)) for step in steps])
        high = thinned([(step, max(curve[step] for curve in curves)) for step in steps])
        band = tuple((step, lowest, highest) for (step, lowest), (_, highest) in zip(low, high, strict=True))
    return Line(row.title, means, band, style)


# ---- what the models do on the test images


def confusion(measured: Mapping[str, Measured]) -> Section:
    """Where pixels of each class go, for each measured model, and the largest confusions in words."""
    parts = []
    for title, result in measured.items():
        names, counts = result.space.names, result.confusion
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        lines = tuple(
            (names[row], *(_share_cell(shares[row, column], row == column) for column in range(len(names))))
            for row in range(len(names))
        )
        table = Table(
            f"{title}: percent of the pixels of a class (row) that are predicted as another (column)",
            ("label", *names), lines, kind="confusion",
        )  # fmt: skip
        parts.append(f"<div><h3>{escape(title)}</h3>{_largest(names, counts, shares)}{table.html()}</div>")
    explanation = "A row is what is in the labels, a column what was predicted. On the diagonal pixels are right."
    least = max((2.2 * len(result.space.names) + 8 for result in measured.values()), default=0)
    content = f'<div class="pair" style="--least:{least:.0f}rem">{"".join(parts)}</div>'
    return Section("confusion", "Confusions", explanation, content)


def _share_cell(share: float, on_diagonal: bool) -> Cell:
    text = f"{100 * share:.0f}"
    if text == "0":
        return Cell("0", shown="·" if not on_diagonal else "0", kind="right" if on_diagonal else "")
    return Cell(text, style=f"background:{shade(share)};color:{ink(share)}", kind="right" if on_diagonal else "")


def _largest(names: Sequence[str], counts: np.ndarray, shares: np.ndarray, most: int = 5) -> str:
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    items = []
    for flat in np.argsort(-wrong, axis=None)[:most]:
        row, column = divmod(int(flat), len(names))
        if wrong[row, column]:
            of_all = 100 * wrong[row, column] / max(counts.sum(), 1)
            items.append(
                f"<li>{escape(names[row])} taken for {escape(names[column])}: {100 * shares[row, column]:.0f} % of its "
                f"pixels, {of_all:.1f} % of all</li>"
            )
    return f"<p>Confusions that cost most pixels:</p><ol>{''.join(items)}</ol>" if items else ""


def reliability(measured: Mapping[str, Measured]) -> Section:
    """How often a pixel is right at the confidence that the network gives it."""
    parts = []
    for title, result in measured.items():
        bins, error = result.reliability.bins(), result.reliability.error()
        caption = f"{title}: expected calibration error {100 * error:.1f} %"
        columns = ("confidence %", "right %", "pixels %")
        lines = tuple(tuple(f"{100 * value:.1f}" for value in entry) for entry in bins)
        table = Table(caption, columns, lines)
        buttons = copy_buttons(table.csv(), table.markdown(), caption)
        shown = reliability_chart(bins, caption, error)
        parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{shown}{buttons}</figure>")
    explanation = (
        "Below the dashed line a network is surer than it is right, which is what pseudo-labels suffer from. The grey "
        "bars say where the pixels are."
    )
    return Section("reliability", "Reliability", explanation, f'<div class="charts">{"".join(parts)}</div>')


# ---- matching


def matching(rows: Sequence[Row], spaces: Mapping[str, LabelSpace]) -> Section | None:
    """How the banks fill, and how much is matched; None where no row matches.

    Args:
        rows: All rows.
        spaces: Label space by the title of a row, where its model is at hand.
    """
    fills = []
    for row in rows:
        run = next((run for run in row.runs if any("bank_fill" in line for line in run.metrics)), None)
        if run is None or not run.config["loss"]["matching"]:
            continue
        lines = [line for line in run.metrics if "bank_fill" in line]
        filled = {name: [(line["step"], line["bank_fill"][name]) for line in lines] for name in lines[0]["bank_fill"]}
        sizes = ring_sizes(run, spaces.get(row.title), tuple(filled))
        title = f"{row.title}, seed {run.seed}: share of each bank that is filled"
        data = [("step", *filled), *((line["step"], *line["bank_fill"].values()) for line in lines)]
        table = Table(title, ("step", *filled), tuple(tuple(map(str, entry)) for entry in data[1:]))
        buttons = copy_buttons(as_csv(data), table.markdown(), title)
        fills.append(
            f"<figure><figcaption>{escape(title)}</figcaption>{fill_chart(filled, sizes, title)}{buttons}</figure>"
        )
    if not fills:
        return None
    counts = [chart(rows, key, title, "regions") for key, title in COUNTS.items()]
    explanation = (
        "Source regions that are classified right enter the bank of their class, and target regions are matched with "
        "the nearest entry. A class whose strip stays light has little to be matched with. The distances are among the "
        "losses above."
    )
    matching_rows = {
        n: row.title for n, row in enumerate(rows) if any("matched/stuff" in m for m in row.runs[0].metrics)
    }
    content = f'{legend(matching_rows)}<div class="charts">{"".join(fills)}{"".join(counts)}</div>'
    return Section("matching", "Matching", explanation, content)


def ring_sizes(run: Run, space: LabelSpace | None, names: Sequence[str]) -> dict[str, int]:
    """Entries that the ring of each class holds; without a label space, the most that any entry of it was."""
    options = run.config["matching"]
    if space is None:
        fills = [line["bank_fill"] for line in run.metrics if "bank_fill" in line]
        return {name: max(max(fill[name] for fill in fills), options["stuff_size"]) for name in names}
    things = {space.names[train_id] for train_id in space.things}
    return {name: options["thing_size" if name in things else "stuff_size"] for name in names}


def pseudo_labels(report: Mapping[str, Any], precision: Mapping[str, tuple[int, int]] | None, note: str) -> Section:
    """Threshold, coverage and, where the target has labels, precision of the pseudo-labels.

    Args:
        report: The content of thresholds.json.
        precision: Compared and right pixels by class; None without labels.
        note: What was compared, or why nothing was.
    """
    lines = []
    for name, threshold in report["thresholds"].items():
        compared, right = (precision or {}).get(name, (0, 0))
        lines.append(
            (
                name,
                "–" if threshold is None else f"{threshold:.2f}",
                _bar(report["coverage"].get(name) if threshold is not None else None),
                _bar(right / compared if compared else None),
            )
        )
    if precision:
        compared, right = (sum(column) for column in zip(*precision.values(), strict=True))
        lines.append(("all pixels", "–", "–", _bar(right / compared if compared else None)))
    table = Table(
        "Pseudo-labels of each class", ("class", "threshold", "coverage %", "precision %"), tuple(lines), kind="bars"
    )
    explanation = (
        f"Eq. (9), over {report['images']} target images. Coverage: of the pixels predicted as a class, those above "
        f"its threshold. Precision: of these, those that are right. {note}"
    )
    return Section("pseudo-labels", "Pseudo-labels", explanation, table.html())


def _bar(share: float | None) -> Cell | str:
    if share is None:
        return "–"
    text = f"{100 * share:.0f}"
    return Cell(text, shown=f'{text}<span class="bar"><i style="width:{text}%"></i></span>')


# ---- how it was made


def provenance(rows: Sequence[Row], report_command: str) -> Section:
    """Commands, versions, data, times, and the configurations with what differs between them."""
    parts = [_commands(rows, report_command), _facts(rows)]
    if len(rows) > 1:
        parts.append(_differences(rows))
    for row in rows:
        run = row.runs[0]
        text = yaml.safe_dump(run.config, sort_keys=False)
        parts.append(
            f"<details><summary>Configuration of {escape(row.title)}, seed {run.seed}</summary>"
            f'<pre tabindex="0">{escape(text)}</pre></details>'
        )
    return Section("made", "How it was made", "", "".join(parts))


def _commands(rows: Sequence[Row], report_command: str) -> str:
    known = dict.fromkeys(
        run.result["command"] for row in rows for run in row.runs if run.result and "command" in run.result
    )
    commands = [*known, report_command]
    missing = (
        ""
        if known
        else "<p>The run folders do not say the command that made them; the configurations below say what it ran.</p>"
    )
    return f'<h3>Commands</h3>{missing}<pre tabindex="0">{escape(chr(10).join(commands))}</pre>'


def _facts(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for run in row.runs:
            result = run.result or {}
            data, versions = result.get("data", {}), result.get("versions", {})
            rates = [line["images_per_second"] for line in run.metrics if "images_per_second" in line]
            memory = [line["memory_mib"] for line in run.metrics if "memory_mib" in line]
            lines.append(
                (
                    row.title,
                    str(run.seed),
                    str(result.get("step", max((line["step"] for line in run.metrics), default=0))),
                    f"{result['seconds']:.0f}" if "seconds" in result else "–",
                    f"{statistics.fmean(rates):.1f}" if rates else "–",
                    f"{max(memory):.0f}" if memory else "–",
                    result.get("initial_weights", "–"),
                    *(
                        f"{data[name]['images']} × {data[name]['name']}" if name in data else "–"
                        for name in ("source", "target", "test")
                    ),
                    ", ".join(f"{name} {version}" for name, version in versions.items()) or "–",
                    str(run.folder),
                )
            )
    header = (
        "method", "seed", "steps", "seconds", "images/s", "memory MiB", "initial weights", "source", "target", "test",
        "versions", "folder",
    )  # fmt: skip
    return f"<h3>Trainings</h3>{Table('Every training', header, tuple(lines), kind='facts').html()}"


def _differences(rows: Sequence[Row]) -> str:
    """Keys of the configuration that are not the same everywhere; seeds apart."""
    flat = [flattened(row.runs[0].config) for row in rows]
    keys = [key for key in dict.fromkeys(key for config in flat for key in config) if key != "seed"]
    different = [key for key in keys if len({config.get(key, "–") for config in flat}) > 1]
    if not different:
        return ""
    lines = tuple((_key_cell(key), *(config.get(key, "–") for config in flat)) for key in different)
    table = Table("Keys of the configuration that differ", ("key", *(row.title for row in rows)), lines, kind="facts")
    return f"<h3>What differs</h3>{table.html()}"


def _key_cell(key: str) -> Cell:
    """A key that a narrow screen breaks at its dots and underscores."""
    return Cell(key, shown=escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Values of a nested configuration as text, by dotted key."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
