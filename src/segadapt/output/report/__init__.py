"""`segadapt report`: one HTML page about one or several run folders, to look at, to print and to send.

In: run folders, and the test images where they still are. Out: a file that loads nothing from anywhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch

from segadapt.adaptation.run_folder import NUMBER, Kinds, read_left, refuse_damaged
from segadapt.adaptation.run_log import Terminal, command_line
from segadapt.data.decoding import read_image, read_labels
from segadapt.data.label_spaces import LabelSpace, remap
from segadapt.data.readers import find_pairs
from segadapt.errors import InputError
from segadapt.networks.weights import read_metadata
from segadapt.output.report import sections
from segadapt.output.report.measure import Measured, data_config, measure, pseudo_label_precision
from segadapt.output.report.page import page
from segadapt.output.report.pictures import class_legend, figure
from segadapt.output.report.sections import Section
from segadapt.output.report.translations import translations
from segadapt.studies.runs import Row, Run, adapted_of, baseline_of, names_of, read_rows

TRANSLATED = 3  # source images that are shown with their translations
PSEUDO_LABELS, THRESHOLDS = "pseudo_labels", "thresholds.json"
# what the page reads of the latter, as `refuse_damaged` reads keys
LABELLING_KEYS: dict[str, Kinds] = {
    "thresholds": (dict,),
    "thresholds.*": (*NUMBER, NoneType),
    "coverage": (dict,),
    "coverage.*": NUMBER,
    "images": (int,),
}


def write_report(
    run_dirs: Sequence[Path], out: Path, device: torch.device, terminal: Terminal, pictures: int = 4
) -> Path:
    """Read the runs, measure their models where the test images are at hand, write the page.

    Args:
        run_dirs: Folders that `train`, `adapt`, `ablate` or `sweep` wrote.
        out: The page.
        device: Where the models predict.
        terminal: Shows progress, and says what is left out of the page.
        pictures: Test images that are shown; 0 leaves out all that needs the models.

    Returns:
        `out`.

    Raises:
        InputError: A folder holds no run.
    """
    rows = read_rows(run_dirs)
    shown = _measured(rows, device, terminal, pictures)
    parts = [part for part in (sections.class_table(rows), sections.study(rows)) if part]
    if shown:
        parts.append(_pictures(rows, shown))
    parts += [part for part in (translations(rows, TRANSLATED),) if part]
    parts.append(sections.curves(rows))
    if shown:
        parts += [sections.confusion(shown), sections.reliability(shown)]
    spaces = {row.title: space for row in rows if (space := _space_of(row.runs[0]))}
    parts += [part for part in (sections.matching(rows, spaces), _pseudo_labels(rows, spaces)) if part]
    parts.append(sections.provenance(rows, command_line()))
    names = ", ".join(names_of(run_dirs))
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(f"Adaptation report: {names}", sections.summary(rows), parts)
    out.write_text(text, encoding="utf-8", errors="replace")  # names of files need not be UTF-8
    return out


def _models(rows: Sequence[Row]) -> dict[str, Run]:
    """The models that are looked at closely, by title: of the baseline and of the adapted row, first seed."""
    pair = dict.fromkeys(row.title for row in (baseline_of(rows), adapted_of(rows)))
    by_title = {row.title: row for row in rows}
    return {title: run for title in pair if (run := next((r for r in by_title[title].finished if r.model), None))}


def _measured(rows: Sequence[Row], device: torch.device, terminal: Terminal, pictures: int) -> dict[str, Measured]:
    """The models on their test images, by title; nothing where the images are gone."""
    models = _models(rows)
    if not models or not pictures:
        return {}
    measured = {}
    try:
        for title, run in models.items():
            data = data_config(run.config["test"])
            total = len(find_pairs(data, labelled=True))
            terminal.start_progress(f"{title} on the test images", total)
            assert run.model is not None
            measured[title] = measure(run.model, data, _spread(total, pictures), device, terminal.advance)
    except InputError as error:
        terminal.say(f"without pictures, confusions and reliability: {error}")
        return {}
    finally:
        terminal.finish_progress()
    return measured


def _spread(total: int, count: int) -> list[int]:
    """Indices spread evenly over a set."""
    return np.unique(np.linspace(0, total - 1, count + 2)[1:-1].round().astype(int)).tolist()


def _pictures(rows: Sequence[Row], measured: Mapping[str, Measured]) -> Section:
    models = _models(rows)
    groups = _side_by_side({title: run.tested_on for title, run in models.items()}, measured)
    content = "".join(_figures(models[next(iter(group))], group) for group in groups)
    explanation = (
        "Test images spread evenly over the set. Move the divider with the slider, its arrow keys or on the picture; "
        "the lists choose what stands on either side."
    )
    if len(groups) > 1:
        explanation += " Models of other test images or other classes have pictures of their own."
    return Section("pictures", "Pictures", explanation, content)


def _side_by_side(
    tested_on: Mapping[str, tuple[str, ...]], measured: Mapping[str, Measured]
) -> list[dict[str, Measured]]:
    """The models, by title, in groups that have their test images and their classes in common."""
    groups: dict[tuple[object, ...], dict[str, Measured]] = {}
    for title, result in measured.items():
        groups.setdefault((tested_on[title], result.space.colours), {})[title] = result
    return list(groups.values())


def _figures(run: Run, measured: Mapping[str, Measured]) -> str:
    """The pictures of one group, on the test images of one of its runs."""
    images = find_pairs(data_config(run.config["test"]), labelled=True)
    first = next(iter(measured.values()))
    table = remap(images.space, first.space)[images.table]
    figures = []
    for index in first.predicted:
        path = images.labels[index]
        assert path is not None
        label_maps = {title: result.predicted[index] for title, result in measured.items()}
        label_maps["labels"] = read_labels(path, table)
        name = images.images[index].relative_to(images.root).as_posix()
        figures.append(figure(name, read_image(images.images[index]), label_maps, first.space))
    return f'{class_legend(first.space)}<div class="pictures">{"".join(figures)}</div>'


def _space_of(run: Run) -> LabelSpace | None:
    if run.model is None:
        return None
    return LabelSpace.from_yaml_text(read_metadata(run.model)["label_space"], str(run.model))


def _pseudo_labels(rows: Sequence[Row], spaces: Mapping[str, LabelSpace]) -> Section | None:
    """The pseudo-labels of the adapted row's first seed."""
    for row in (adapted_of(rows), *rows):
        run = row.runs[0]
        report = run.folder / PSEUDO_LABELS / THRESHOLDS
        if not report.exists():
            continue
        precision, note = None, "The target has no labels that could be compared."
        if space := spaces.get(row.title):
            try:
                data = data_config(run.config["target"])
                compared, right, images = pseudo_label_precision(report.parent, data, space)
                precision = dict(zip(space.names, zip(compared.tolist(), right.tolist(), strict=True), strict=True))
                note = f"It compares {images} images with the target's labels, which nothing but this table reads."
            except InputError:
                precision = None
        return sections.pseudo_labels(_labelling(report), precision, f"{note} ({row.title}, seed {run.seed})")
    return None


def _labelling(path: Path) -> dict[str, Any]:
    """The content of a thresholds.json.

    Raises:
        InputError: It was changed since.
    """
    content = read_left(path, json.loads)
    refuse_damaged(content, LABELLING_KEYS, path)
    return content
