"""`segadapt predict`: a folder of label maps, and of pictures beside them.

In: a `Segmenter` and what to label. Out, below one folder: `labels/NAME.png`, and as wanted `overlays/NAME.png`,
`confidence/NAME.png`, `probabilities/NAME/CLASS.png`, and `made_by.json`, which says what made them. Files are written
whole or not at all, and what is there is not made again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segadapt.data.label_spaces import LabelSpace
from segadapt.errors import InputError
from segadapt.prediction.pictures import grey_picture, overlay, read_srgb
from segadapt.prediction.segmenter import Prediction, Segmenter
from segadapt.prediction.sources import Source, count_frames, find_sources, read_frames
from segadapt.whole_file import whole_file

MADE_BY_FILE = "made_by.json"
RESULT_FOLDERS = ("labels", "overlays", "confidence", "probabilities")  # below `out`


@dataclass(frozen=True)
class Wanted:
    """What is written beside label maps: overlays, the probability of the predicted class, those of all classes."""

    overlay: bool = False
    confidence: bool = False
    probabilities: bool = False


@dataclass(frozen=True)
class Summary:
    """What a prediction run did.

    Args:
        images: Images and frames named.
        predicted: Of them, those labelled now; the others were there.
        windowed: Of those labelled now, how many were seen through several windows.
        pixels: Share of pixels labelled now of each class.
    """

    images: int
    predicted: int
    windowed: int
    pixels: dict[str, float]


def predict_folder(
    model: Path,
    segmenter: Segmenter,
    inputs: Sequence[str],
    out: Path,
    wanted: Wanted,
    start_progress: Callable[[str, int], None],
    advance: Callable[[], None],
    say: Callable[[str], None],
) -> Summary:
    """Label all that `inputs` name (see `find_sources`) into `out`. A stopped call continues.

    Args:
        model: The file that the segmenter is from.
        segmenter: Labels the images.
        inputs: Files, folders, patterns.
        out: Folder for the results.
        wanted: What else to write.
        start_progress: Called with a title and the number of images.
        advance: Called after each image.
        say: Called with a line about images that are seen through windows.

    Raises:
        InputError: An input is wrong, or `out` holds predictions of another model, or what is no prediction.
    """
    sources = find_sources(inputs, [out / name for name in RESULT_FOLDERS])
    frames = sum(count_frames(source.path) if source.is_video else 1 for source in sources)
    keep_maker(out, maker_of(model, segmenter))
    start_progress("predict", frames)
    space = segmenter.label_space
    images = predicted = windowed = 0
    counts = np.zeros(space.num_classes, np.int64)

    def is_missing(name: str) -> bool:
        nonlocal images
        images += 1
        missing = not all(path.exists() for path in result_files(out, name, wanted, space))
        if not missing:
            advance()
        return missing

    for batch in batches_of(photographs(sources, is_missing), segmenter.batch_size):
        names, photos = zip(*batch, strict=True)
        for name, photo, prediction in zip(names, photos, segmenter.predict_batch(photos), strict=True):
            if not prediction.canvas.whole:
                if not windowed:
                    say(windows_message(name, photo.shape[:2], prediction))
                windowed += 1
            write_results(out, name, photo, prediction, wanted)
            counts += np.bincount(prediction.labels.ravel(), minlength=space.num_classes)
            predicted += 1
            advance()
    shares = counts / max(1, counts.sum())
    return Summary(images, predicted, windowed, dict(zip(space.names, shares.tolist(), strict=True)))


def windows_message(name: str, size: tuple[int, ...], prediction: Prediction) -> str:
    """What to say of the first image that is seen through windows."""
    canvas = prediction.canvas
    by = [f"{height}x{width}" for height, width in (size, canvas.size, canvas.window)]
    return (
        f"{name} ({by[0]}) and others like it are seen at {by[1]} through {len(canvas.corners)} windows of {by[2]}, "
        "which overlap by a third or more and are blended"
    )


def photographs(
    sources: Sequence[Source], is_missing: Callable[[str], bool]
) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
    """Name and pixels of each image and frame whose name is missing among the results, asked once for each."""
    for source in sources:
        if source.is_video:
            for number, frame in enumerate(read_frames(source.path)):
                name = f"{source.name}/{number:06}"
                if is_missing(name):
                    yield name, frame
        elif is_missing(source.name):
            yield source.name, read_srgb(source.path)


def batches_of(
    images: Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]], size: int
) -> Iterator[list[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]]:
    """Images in lists of `size`, the last may be shorter."""
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def result_files(out: Path, name: str, wanted: Wanted, space: LabelSpace) -> list[Path]:
    """The files of one image: probabilities, then confidence, overlay, labels, as far as they are wanted."""
    files = []
    if wanted.probabilities:
        # a class may be called 'road/path'
        plain = (re.sub(r"[^\w-]", "_", class_name) for class_name in space.names)
        files += [out / "probabilities" / name / f"{number:02}_{text}.png" for number, text in enumerate(plain)]
    if wanted.confidence:
        files.append(out / "confidence" / f"{name}.png")
    if wanted.overlay:
        files.append(out / "overlays" / f"{name}.png")
    return [*files, out / "labels" / f"{name}.png"]


def write_results(
    out: Path, name: str, photo: UInt8[np.ndarray, "H W 3"], prediction: Prediction, wanted: Wanted
) -> None:
    """Write the files of one image."""
    pictures: list[Image.Image] = []
    if wanted.probabilities or wanted.confidence:
        probabilities = prediction.probabilities()
        if wanted.probabilities:
            pictures += [grey_picture(values) for values in probabilities]
        if wanted.confidence:
            pictures.append(grey_picture(probabilities.max(0)))
    if wanted.overlay:
        pictures.append(overlay(photo, prediction.picture()))
    pictures.append(prediction.picture())
    files = result_files(out, name, wanted, prediction.label_space)
    for path, picture in zip(files, pictures, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            picture.save(file, format="PNG")


def maker_of(model: Path, segmenter: Segmenter) -> dict[str, object]:
    """What decides the predictions besides the images."""
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model_sha256": digest,
        "view": segmenter.view,
        "input_size": list(segmenter.tested_size) if segmenter.tested_size else None,
        "classes": list(segmenter.label_space.names),
        "colours": [list(colour) for colour in segmenter.label_space.colours],
    }


def keep_maker(out: Path, maker: dict[str, object]) -> None:
    """Write `out/made_by.json`.

    Raises:
        InputError: It is there and says something else, or is not there and results are: of whom nobody knows, perhaps
            the labels of a data set.
    """
    path = out / MADE_BY_FILE
    # looked at before the file that another call may be writing: it comes before the results
    strange = next((file for name in RESULT_FOLDERS for file in (out / name).rglob("*")), None)
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: damaged ({error}); choose another --out, or delete the folder {out}") from None
        if known != maker:
            raise InputError(f"{out}: holds predictions of another model or view ({path.name}); choose another --out")
        return
    if strange:
        raise InputError(f"{out}: no {path.name} says what made {strange}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(maker, indent=1).encode())
