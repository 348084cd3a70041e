"""Charts of the report as inline SVG, small enough that their text is readable on a phone.

In: numbers. Out: text of SVG elements, each with a title and a description for those who do not see it. Lines differ
in colour and in dashes, so that neither colour vision nor colour print is needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

# after Okabe and Ito, the light ones darkened to a contrast of 3 and more on white
COLOURS = ("#0072b2", "#d55e00", "#00795a", "#a3307f", "#111111", "#8a6d00")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 38
MOST_POINTS = 240  # of a line: more cannot be told apart
_LIGHT, _DARK = (236, 241, 246), (8, 69, 126)  # of shares from 0 to 1
_numbers = count()

Number = int | float
Point = tuple[Number, Number]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        title: What it is.
        points: (x, y), ascending in x.
        band: (x, lowest, highest) over seeds; empty for one seed.
        style: Number of its colour and dashes.
    """

    title: str
    points: tuple[Point, ...]
    band: tuple[tuple[Number, Number, Number], ...] = ()
    style: int = 0


def stroke(style: int) -> tuple[str, str]:
    """Colour and dashes of a line by its number; 24 of them differ, and neighbours in both."""
    return COLOURS[style % len(COLOURS)], DASHES[(style + style // len(COLOURS)) % len(DASHES)]


def line_chart(lines: Sequence[Line], title: str, x_name: str, y_name: str) -> str:
    """Lines over one another."""
    lines = [line for line in lines if line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *both in line.band for y in both]
    lowest, highest = _range(min(ys), max(ys))
    last = max(x for line in lines for x, _ in line.points) or 1

    def place(x: Number, y: Number) -> str:
        across = LEFT + x / last * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{TOP + (highest - y) / (highest - lowest) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = []
    for y in ticks(lowest, highest, 5):
        at = place(0, y).split(",")[1]
        parts.append(f'<path class="grid" d="M{LEFT},{at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{number(y)}</text>')
    for x in ticks(0, last, 4):
        at = place(x, lowest).split(",")[0]
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_name)}</text>')
    for line in lines:
        colour, dash = stroke(line.style)
        if line.band:
            around = [place(x, high) for x, _, high in line.band] + [place(x, low) for x, low, _ in reversed(line.band)]
            parts.append(f'<polygon points="{" ".join(around)}" fill="{colour}" fill-opacity="0.13"/>')
        points = " ".join(place(*point) for point in line.points)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        if len(line.points) <= 12:
            for point in line.points:
                x, y = place(*point).split(",")
                label = f"{escape(line.title)}: {number(point[1])} at {number(point[0])}"
                parts.append(f'<circle cx="{x}" cy="{y}" r="3.2" fill="{colour}"><title>{label}</title></circle>')
    ends = "; ".join(f"{line.title} ends at {number(line.points[-1][1])}" for line in lines)
    return svg(parts, WIDTH, HEIGHT, title, f"{y_name} against {x_name}. {ends}.")


def legend(titles: Mapping[int, str]) -> str:
    """Names of the lines, by the number of their style, with their colours and dashes."""
    items = []
    for style, title in titles.items():
        colour, dash = stroke(style)
        sample = f'<path d="M0,4H34" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        items.append(f'<li><svg width="34" height="8" aria-hidden="true">{sample}</svg>{escape(title)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def fill_chart(filled: Mapping[str, Sequence[Point]], sizes: Mapping[str, int], title: str) -> str:
    """How the bank of each class fills: a strip for each class, darker where more of its ring is filled.

    Args:
        filled: (step, entries) of each class.
        sizes: Entries that each ring can hold.
        title: Of the chart.
    """
    row, left, right = 19, 92, 68
    last = max((step for points in filled.values() for step, _ in points), default=1)
    height = row * len(filled) + 22
    parts = []
    for number_of_row, (name, points) in enumerate(filled.items()):
        top = number_of_row * row
        parts.append(f'<text x="{left - 6}" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
        previous: Number = 0
        for step, entries in thinned(points, 60):
            x, width = (
                left + previous / last * (WIDTH - left - right),
                (step - previous) / last * (WIDTH - left - right),
            )
            colour = shade(entries / max(sizes[name], 1))
            parts.append(
                f'<rect x="{x:.1f}" y="{top + 2}" width="{width + 0.3:.1f}" height="{row - 4}" fill="{colour}"/>'
            )
            previous = step
        entries = points[-1][1] if points else 0
        parts.append(f'<text x="{WIDTH - right + 6}" y="{top + 14}">{entries:.0f}/{sizes[name]}</text>')
    parts.append(f'<text x="{left}" y="{height - 5}">0</text>')
    parts.append(f'<text x="{WIDTH - right}" y="{height - 5}" text-anchor="end">step {number(last)}</text>')
    ends = "; ".join(f"{name} {points[-1][1]:.0f} of {sizes[name]}" for name, points in filled.items() if points)
    return svg(parts, WIDTH, height, title, f"Entries held at the end: {ends}.")


def reliability_chart(bins: Sequence[tuple[Number, Number, Number]], title: str, error: float) -> str:
    """Accuracy against confidence; on the diagonal a network knows how often it is right.

    Args:
        bins: (mean confidence, share of right pixels, share of all pixels) of each bin that has pixels.
        title: Of the chart.
        error: Expected calibration error, 0 to 1.
    """
    side, left, top = 270, 76, 12
    width, height = WIDTH, top + side + 40

    def place(x: Number, y: Number) -> Point:
        return left + x * side, top + (1 - y) * side

    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(value, value)
        parts.append(f'<path class="grid" d="M{left},{y}H{left + side}"/>')
        parts.append(f'<text x="{left - 6}" y="{y}" dy="4" text-anchor="end">{100 * value:.0f}</text>')
        parts.append(f'<text x="{x}" y="{top + side + 17}" text-anchor="middle">{100 * value:.0f}</text>')
    most = max((share for *_, share in bins), default=1)
    for confidence, _, share in bins:
        x, _ = place(confidence, 0)
        tall = share / most * side * 0.25
        parts.append(
            f'<rect x="{x - 6:.1f}" y="{top + side - tall:.1f}" width="12" height="{tall:.1f}" fill="#c9d3dc">'
            f"<title>{100 * share:.1f} % of the pixels</title></rect>"
        )
    start, end = place(0, 0), place(1, 1)
    parts.append(f'<path d="M{start[0]},{start[1]}L{end[0]},{end[1]}" stroke="#555" stroke-dasharray="4 4"/>')
    parts.append(f'<path class="axis" d="M{left},{top}V{top + side}H{left + side}"/>')
    points = [place(confidence, right) for confidence, right, _ in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>')
    for (x, y), (confidence, right, _) in zip(points, bins, strict=True):
        label = f"confidence {100 * confidence:.0f} %: {100 * right:.0f} % right"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[0]}"><title>{label}</title></circle>')
    parts.append(f'<text x="{left + side}" y="{height - 4}" text-anchor="end">confidence %</text>')
    parts.append(f'<text x="{left + 8}" y="{top + 12}">right %</text>')
    said = "; ".join(f"{100 * confidence:.0f} %: {100 * right:.0f} % right" for confidence, right, _ in bins)
    return svg(parts, width, height, title, f"Expected calibration error {100 * error:.1f} %. Confidence {said}.")


def svg(parts: Sequence[str], width: Number, height: Number, title: str, description: str) -> str:
    """An image with a name and a description."""
    name = f"chart{next(_numbers)}"
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name} {name}d">'
        f'<title id="{name}">{escape(title)}</title><desc id="{name}d">{escape(description)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """At most `most` points: neighbours are averaged, and a mean stands at the last of its steps."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return tuple(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((group[-1][0], sum(y for _, y in group) / len(group)) for group in groups)


def ticks(lowest: Number, highest: Number, most: int) -> list[Number]:
    """Round numbers within a range, at most `most` + 1."""
    rough = (highest - lowest) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(lowest / step - 1e-9)
    return [number_of * step for number_of in range(first, math.floor(highest / step + 1e-9) + 1)]


def number(value: Number) -> str:
    """Three significant digits, whole thousands as they are."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def shade(share: Number) -> str:
    """A colour for a share from 0 to 1: the larger the darker."""
    red, green, blue = _shade(share)
    return f"rgb({red},{green},{blue})"


def ink(share: Number) -> str:
    """Black or white, whichever is better read on `shade(share)`: its contrast is 4.5 or more (WCAG 2)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in _shade(share)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def _shade(share: Number) -> tuple[int, int, int]:
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_LIGHT, _DARK, strict=True))
    return red, green, blue


def _range(lowest: Number, highest: Number) -> Point:
    """A little more than the values take; of positive values zero is the lowest where it is near."""
    if highest - lowest < 1e-9:
        return lowest - 0.5, highest + 0.5
    room = 0.05 * (highest - lowest)
    return (0.0 if 0 <= lowest < 0.35 * highest else lowest - room), highest + room
