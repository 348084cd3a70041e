"""Source images beside what translation made of them and beside the target: the report's check by eye.

In: rows whose trainings read translated images. Out: a figure for each of a few source images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from segadapt.config import TranslationConfig
from segadapt.data.decoding import read_image
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.data.transforms import resize_image
from segadapt.errors import InputError
from segadapt.output.report.measure import data_config
from segadapt.output.report.pictures import photographs
from segadapt.output.report.sections import Section
from segadapt.studies.runs import GENERATOR, Row, Run
from segadapt.translation import StyleTransfer

Image = UInt8[np.ndarray, "H W 3"]


def translations(rows: Sequence[Row], count: int) -> Section | None:
    """The section; None where no row translates, or the images are gone.

    Args:
        rows: All rows.
        count: Source images to show.
    """
    ways = {name: run for row in rows for run in row.runs[:1] if (name := way_of(run.config))}
    if not ways or not count:
        return None
    first = next(iter(ways.values()))
    try:
        source = find_pairs(replace(data_config(first.config["source"]), translated=""), labelled=False).spread(count)
        target = find_pairs(data_config(first.config["target"]), labelled=False)
        figures = [_figure(source, index, target, ways) for index in range(len(source))]
    except InputError:
        return None
    explanation = (
        "Source images, what each way of translation makes of them, and the target image that lab, histogram and "
        "fourier took as their model (a generator has none). Labels stay those of the source: what is seen in the "
        "translation must still be what is there in the source."
    )
    return Section("translated", "Translated images", explanation, f'<div class="pictures">{"".join(figures)}</div>')


def way_of(config: Mapping[str, Any]) -> str:
    """How a training's source images were translated; empty: they were not."""
    method = config.get("translation", {}).get("method", "off")
    if method != "off":
        return method
    return Path(config["source"].get("translated") or "").name


def _figure(source: ImageSet, index: int, target: ImageSet, ways: Mapping[str, Run]) -> str:
    original = read_image(source.images[index])
    # one number decides which target image a source image meets, so that all ways meet the same
    reference = target.images[int(np.random.default_rng(index).integers(len(target)))]
    panels = {"source": original}
    for name, run in ways.items():
        translated = _translated(source, index, reference, run)
        if translated is not None:
            panels[name] = resize_image(translated, original.shape[:2])
    panels["target"] = resize_image(read_image(reference), original.shape[:2])
    return photographs(source.images[index].relative_to(source.root).as_posix(), panels)


def _translated(source: ImageSet, index: int, reference: Path, run: Run) -> Image | None:
    """The image as the training read it, at the training's size; None where the folder of a generator is gone."""
    config = run.config
    data, translation = data_config(config["source"]), TranslationConfig(**config.get("translation", {}))
    if translation.method in ("lab", "histogram", "fourier"):
        image = read_image(source.images[index])
        whole = replace(translation, share=1.0)
        return StyleTransfer(whole, [reference])(
            resize_image(image, data.size or image.shape[:2]), np.random.default_rng(0)
        )
    for folder in (data.translated, *_generated(run.folder)):
        try:
            named = find_pairs(replace(data, translated=str(folder)), labelled=False)
        except InputError:
            continue
        path = named.translations.get(source.image_name(index))
        if path is not None:
            return read_image(path)
    return None


def _generated(run_dir: Path) -> tuple[Path, ...]:
    """Where the generator's images of a training may lie: beside it, beside its step 1, in the folder of its table."""
    table = run_dir.parent.parent / GENERATOR / run_dir.name / "images"
    return run_dir / "translation/images", run_dir.parent / "translation/images", table
