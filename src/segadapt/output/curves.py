"""The score of the test images against the training step, as in Figure 2, of several trainings over one another.

In: the evaluations of trainings whose `schedule.evaluate_every` is above 0. Out: `curves.csv`, a line for each
evaluation, and `curves.svg`, one line for each row of the table, the mean of its seeds.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path

from segadapt.output.report.charts import stroke

WIDTH, HEIGHT, MARGIN = 720, 400, 48  # of the chart, in pixels; the legend is below it
LINE, LONGEST = 20, 80  # pixels from one line of the legend to the next; letters of a title that it has room for

Curve = Mapping[int, float]  # mIoU in percent by step


def save_curves(curves: Mapping[tuple[str, int], Curve], out: Path) -> None:
    """Write `out/curves.csv` and `out/curves.svg`; nothing where no training was evaluated more than once.

    Args:
        curves: mIoU in percent by step, of each title and seed.
        out: Folder of both files.
    """
    if all(len(curve) < 2 for curve in curves.values()):
        return
    with (out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("row", "seed", "step", "miou"))
        table.writerows((*key, step, f"{miou:.3f}") for key, curve in curves.items() for step, miou in curve.items())
    means = mean_of_seeds(curves)
    if any(means.values()):
        (out / "curves.svg").write_text(picture(means))


def mean_of_seeds(curves: Mapping[tuple[str, int], Curve]) -> dict[str, Curve]:
    """For each title the mean over its seeds, at the steps at which all of them were evaluated; there may be none."""
    by_title: dict[str, list[Curve]] = defaultdict(list)
    for (title, _), curve in curves.items():
        by_title[title].append(curve)
    return {
        title: {
            step: statistics.fmean(curve[step] for curve in each) for step in sorted(set.intersection(*map(set, each)))
        }
        for title, each in by_title.items()
    }


def picture(curves: Mapping[str, Curve]) -> str:
    """The curves as SVG, of which one has a point at least: steps to the right, mIoU upwards, titles below."""
    steps = [step for curve in curves.values() for step in curve]
    scores = [miou for curve in curves.values() for miou in curve.values()]
    lowest, highest, last = min(scores), max(scores), max(steps)
    span = max(highest - lowest, 1e-9)

    def point(step: int, miou: float) -> str:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (miou - lowest) / span * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    bottom, height = HEIGHT - MARGIN, HEIGHT + LINE * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<path d="M{MARGIN},{MARGIN} V{bottom} H{WIDTH - MARGIN}" fill="none" stroke="#555"/>',
        f'<text x="{MARGIN}" y="{bottom + 18}">0</text>',
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end">step {last}</text>',
        f'<text x="{MARGIN - 6}" y="{bottom}" text-anchor="end">{lowest:.1f}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN}" text-anchor="end">{highest:.1f}</text>',
        f'<text x="6" y="{MARGIN - 20}">mIoU %</text>',
    ]
    for index, (title, curve) in enumerate(curves.items()):
        colour, dash = stroke(index)
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        points = " ".join(point(step, miou) for step, miou in curve.items())
        y = HEIGHT + LINE * index
        # what tells long titles apart is at their end
        shown = title if len(title) <= LONGEST else f"…{title[1 - LONGEST :]}"
        if curve:
            parts.append(f'<polyline points="{points}" {style}/>')
        else:
            shown += " (no step that all seeds were scored at)"
        parts.append(f'<path d="M{MARGIN},{y - 4}H{MARGIN + 34}" {style}/>')
        parts.append(f'<text x="{MARGIN + 42}" y="{y}">{escape(shown)}</text>')
    return "\n".join((*parts, "</svg>\n"))
