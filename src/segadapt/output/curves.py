"""The score of the test images against the training step, as in Figure 2, of several trainings over one another.

In: run folders whose `schedule.evaluate_every` is above 0. Out: `curves.csv`, a line for each evaluation, and
`curves.svg`, one line for each row of the table, the mean of its seeds.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path

from segadapt.adaptation.run_log import lines_until

WIDTH, HEIGHT, MARGIN = 720, 400, 48  # of the picture, in pixels
# Okabe and Ito: told apart with any colour vision
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#000000")

Curve = dict[int, float]


def evaluations_of(run_dir: Path) -> Curve:
    """mIoU in percent by step, from the metrics of a run folder."""
    lines = lines_until(run_dir / "metrics.jsonl")
    return {line["step"]: line["evaluation"]["miou"] for line in lines if "evaluation" in line}


def save_curves(runs: Mapping[tuple[str, int], Path], out: Path) -> None:
    """Write `out/curves.csv` and `out/curves.svg`; nothing where no run was evaluated more than once.

    Args:
        runs: Run folders by title and seed.
        out: Folder of both files.
    """
    curves = {key: evaluations_of(run_dir) for key, run_dir in runs.items()}
    if all(len(curve) < 2 for curve in curves.values()):
        return
    with (out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("row", "seed", "step", "miou"))
        table.writerows((*key, step, f"{miou:.3f}") for key, curve in curves.items() for step, miou in curve.items())
    (out / "curves.svg").write_text(picture(mean_of_seeds(curves)))


def mean_of_seeds(curves: Mapping[tuple[str, int], Curve]) -> dict[str, Curve]:
    """For each title the mean over its seeds, at the steps at which all of them were evaluated."""
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
    """The curves as SVG: steps to the right, mIoU upwards."""
    steps = [step for curve in curves.values() for step in curve]
    scores = [miou for curve in curves.values() for miou in curve.values()]
    lowest, highest, last = min(scores), max(scores), max(steps)
    span = max(highest - lowest, 1e-9)

    def point(step: int, miou: float) -> str:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (miou - lowest) / span * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    bottom = HEIGHT - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN},{MARGIN} V{bottom} H{WIDTH - MARGIN}" fill="none" stroke="#555"/>',
        f'<text x="{MARGIN}" y="{bottom + 18}">0</text>',
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end">step {last}</text>',
        f'<text x="{MARGIN - 6}" y="{bottom}" text-anchor="end">{lowest:.1f}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN}" text-anchor="end">{highest:.1f}</text>',
        f'<text x="6" y="{MARGIN - 20}">mIoU %</text>',
    ]
    for index, (title, curve) in enumerate(curves.items()):
        colour, x = COLOURS[index % len(COLOURS)], MARGIN + 70 + index * 110
        points = " ".join(point(step, miou) for step, miou in curve.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x}" y="{MARGIN - 20}" fill="{colour}">{escape(title)}</text>')
    return "\n".join((*parts, "</svg>\n"))
