"""`segadapt translate apply`: a folder of images in the style of another, which a domain takes as `translated:`.

In: source images, target images, a `FolderTranslation`. Out: a file of the same name for each source image, and
`translation.json`, which says how they were made. Which target image goes with a source image depends on the seed and
the source image's name alone, so several processes, or a call that continues, write the same files.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from segadapt.adaptation.checkpoints import digest_of
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_folder import read_left, versions
from segadapt.config import SMALLEST, FolderTranslation, TranslationConfig
from segadapt.data.decoding import read_image
from segadapt.data.readers import IMAGE_SUFFIXES, UNREADABLE_SUFFIX, ImageSet, fingerprint
from segadapt.data.transforms import resize_image
from segadapt.errors import InputError, UnreadableFileError
from segadapt.networks.deeplab import DeepLab
from segadapt.translation.cyclegan import generate, load_generator
from segadapt.translation.cyclegan_step import semantic_loss
from segadapt.translation.online import translate
from segadapt.whole_file import whole_file

MADE_BY_FILE = "translation.json"

# images and references (B, 3, H, W) in 0..1 to images in 0..1
Translator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shard:
    """Which part of the images a call translates: every `count`-th, from `number` (0 the first) on."""

    number: int
    count: int


WHOLE = Shard(0, 1)


class _Pair(NamedTuple):
    name: str
    image: UInt8[np.ndarray, "H W 3"]
    reference: UInt8[np.ndarray, "H W 3"]


class _Unreadable(NamedTuple):
    name: str
    error: UnreadableFileError


def apply_translation(
    options: FolderTranslation,
    source: ImageSet,
    target: ImageSet | None,
    out: Path,
    machine: Machine,
    shard: Shard = WHOLE,
    segmenter: DeepLab | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Translate every image of `source` that `out` does not hold yet.

    Args:
        options: Method and settings.
        source: What is translated.
        target: Whose style; not needed for 'cyclegan'.
        out: Folder for the images, not within the source's or the target's.
        machine: Its processes share the shard.
        shard: Part of the images.
        segmenter: Measures the label drift, if given.
        skip_bad: Whether a source image that cannot be read is left out: in the place of its translation a file that
            ends in `.unreadable` says why, and a domain that reads the translations reads the image itself there.

    Returns:
        Images "translated", "skipped" (they were there) and "left_out", "out", and, with a segmenter, the "label_drift"
        of those translated now: the share of pixels, 0 to 1, whose predicted class changed.

    Raises:
        InputError: wrong input, or `out` holds images that were made in another way.
        Stopped: a signal asked to leave; the same call continues.
    """
    processes = machine.processes
    for name, images in (("source", source), ("target", target)):
        if images and images.root.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(f"out: {out} lies within the {name} {images.root}; choose a folder elsewhere")
    options, translator, model = _translator(options, target, machine.device)
    out.mkdir(parents=True, exist_ok=True)
    _keep_made_by(out, _made_by(options, source, target, model))

    part, parts = shard.number * processes.count + processes.rank, shard.count * processes.count
    indices = range(part, len(source), parts)
    left = [index for index in indices if not _path(out, source.image_name(index), options).exists()]
    machine.terminal.start_progress(options.method, len(indices), len(indices) - len(left))
    drift, done = 0.0, 0
    writing: list[Future[None]] = []
    # most of the time of a write is spent waiting for the disk to have it, so there are many
    with ThreadPoolExecutor(2 * options.batch_size) as pool:
        batches = _read_ahead(pool, left, source, target, options)
        # a process with fewer images than the others asks as often as they do whether to leave
        for _ in range(processes.largest(ceil(len(left) / options.batch_size))):
            machine.leave_if_stopped()
            pairs = []
            for pair in next(batches, []):
                if isinstance(pair, _Pair):
                    pairs.append(pair)
                elif skip_bad:
                    _note_unreadable(_path(out, pair.name, options), pair.error)
                    machine.terminal.say(f"left out: {pair.error}")
                else:
                    raise pair.error
            for group in _of_equal_size(pairs):
                images = _batch([pair.image for pair in group], machine.device)
                translated = translator(images, _batch([pair.reference for pair in group], machine.device)).clamp(0, 1)
                if segmenter is not None:
                    drift += _drift(segmenter, images, translated) * len(group)
                pixels = (translated * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                _wait(writing, machine)
                paths = [_path(out, pair.name, options) for pair in group]
                writing = [pool.submit(_write, *pair, options) for pair in zip(paths, pixels, strict=True)]
                done += len(group)
        _wait(writing, machine)
    machine.terminal.finish_progress()
    counts = torch.tensor([done, len(indices) - len(left), len(left) - done, drift], dtype=torch.float64)
    translated, skipped, left_out, drift = processes.sum(counts).tolist()
    result = {"out": str(out), "translated": int(translated), "skipped": int(skipped), "left_out": int(left_out)}
    if segmenter is not None and translated:
        result["label_drift"] = drift / translated
    return result


def _translator(
    options: FolderTranslation, target: ImageSet | None, device: torch.device
) -> tuple[FolderTranslation, Translator, str | None]:
    """Options with the size that is meant, what translates a batch, and the digest of its weights."""
    if options.method == "cyclegan":
        generator, metadata = load_generator(Path(options.model))
        generator.to(device)
        size = json.loads(metadata.get("input_size", "null"))
        if options.size is None and size:
            options = replace(options, size=tuple(size))
        return options, lambda images, _references: generate(generator, images), digest_of(Path(options.model))
    if target is None:
        raise InputError(f"target: method {options.method} needs a folder of target images")
    config = TranslationConfig(options.method, options.beta)
    return options, lambda images, references: translate(images, references, config), None


def _made_by(
    options: FolderTranslation, source: ImageSet, target: ImageSet | None, model: str | None
) -> dict[str, Any]:
    """What decides the pixels ("settings"), and where they come from."""
    return {
        "settings": {
            "method": options.method,
            "beta": options.beta if options.method == "fourier" else None,
            "model": model,
            "size": options.size and list(options.size),
            "seed": options.seed if target and options.method != "cyclegan" else None,
            "source": fingerprint(source),
            "target": fingerprint(target) if target and options.method != "cyclegan" else None,
            "jpeg_quality": options.jpeg_quality,
        },
        "source": str(source.root),
        "target": str(target.root) if target else None,
        "model": options.model or None,
        "versions": versions(),
    }


def _keep_made_by(out: Path, made_by: dict[str, Any]) -> None:
    path = out / MADE_BY_FILE
    # looked at before the file that another shard may be writing: it comes before the images
    strange = next((file for file in out.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES), None)
    if path.exists():
        earlier = read_left(path, json.loads).get("settings", {})
        for key, value in made_by["settings"].items():
            if earlier.get(key) != value:
                raise InputError(
                    f"{path}: the images there were made with {key} {earlier.get(key)}, not {value}; "
                    f"choose another --out, or delete the folder {out}"
                )
        return
    if strange:
        raise InputError(
            f"out: {out} holds images of which no {MADE_BY_FILE} says how they were made ({strange}); choose another"
        )
    # shards may start at once: each writes a file of its own, and any of them, renamed, is the file
    own = path.with_name(f"{MADE_BY_FILE}.{os.getpid()}")
    with whole_file(own) as file:
        file.write(json.dumps(made_by, indent=1).encode())
    own.replace(path)


def _read_ahead(
    pool: ThreadPoolExecutor, indices: list[int], source: ImageSet, target: ImageSet | None, options: FolderTranslation
) -> Iterator[list[_Pair | _Unreadable]]:
    """Batches of images with their references, the next one being read while one is translated."""
    waiting: list[Future[_Pair | _Unreadable]] = []
    for start in range(0, len(indices), options.batch_size):
        batch = indices[start : start + options.batch_size]
        following = [pool.submit(_read, source, index, target, options) for index in batch]
        if waiting:
            yield [future.result() for future in waiting]
        waiting = following
    if waiting:
        yield [future.result() for future in waiting]


def _read(source: ImageSet, index: int, target: ImageSet | None, options: FolderTranslation) -> _Pair | _Unreadable:
    name = source.image_name(index)
    try:
        image = read_image(source.file(index))
    except UnreadableFileError as error:
        return _Unreadable(name, error)
    image = resize_image(image, options.size or image.shape[:2])
    if options.method == "cyclegan" and min(image.shape[:2]) < SMALLEST:
        raise InputError(f"{source.file(index)}: is too small for a generator; resize it with size")
    if target is None or options.method == "cyclegan":
        return _Pair(name, image, image)
    random = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    reference = read_image(target.file(int(random.integers(len(target)))))
    return _Pair(name, image, resize_image(reference, image.shape[:2]))


def _note_unreadable(path: Path, error: UnreadableFileError) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path.with_suffix(UNREADABLE_SUFFIX)) as file:
        file.write(f"{error}\n".encode(errors="surrogateescape"))


def _of_equal_size(pairs: list[_Pair]) -> list[list[_Pair]]:
    groups: dict[tuple[int, ...], list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.image.shape, []).append(pair)
    return list(groups.values())


def _batch(images: list[UInt8[np.ndarray, "H W 3"]], device: torch.device) -> Float[Tensor, "B 3 H W"]:
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float().contiguous() / 255


@torch.inference_mode()
def _drift(segmenter: DeepLab, before: Tensor, after: Tensor) -> float:
    with torch.autocast(before.device.type, torch.bfloat16, enabled=before.device.type == "cuda"):
        return float(semantic_loss(segmenter, before * 2 - 1, after * 2 - 1)[1])


def _wait(writing: list[Future[None]], machine: Machine) -> None:
    for written in writing:
        written.result()
        machine.terminal.advance()


def _path(out: Path, name: str, options: FolderTranslation) -> Path:
    return (out / name).with_suffix(".png" if options.jpeg_quality is None else ".jpg")


def _write(path: Path, pixels: UInt8[np.ndarray, "H W 3"], options: FolderTranslation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    with whole_file(path) as file:
        if options.jpeg_quality is None:
            image.save(file, "PNG")
        else:
            image.save(file, "JPEG", quality=options.jpeg_quality, subsampling=0)
