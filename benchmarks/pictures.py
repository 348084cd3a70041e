"""Files to read for the benchmarks: the bundled street scenes, enlarged."""

from pathlib import Path

import numpy as np
from PIL import Image

from segadapt.config import DataConfig

Pair = tuple[np.ndarray, np.ndarray]  # image (H, W, 3), labels (H, W)

STREETS = Path(__file__).parent.parent / "data" / "streets" / "clear" / "train"


def write_streets(root: Path, pairs: int, size: tuple[int, int], suffix: str) -> DataConfig:
    """Write pairs of images and label PNGs.

    Args:
        root: Folder to make.
        pairs: How many.
        size: (height, width) of both.
        suffix: '.png' or '.jpg', the format of the images.

    Returns:
        How they are read, at their own size.
    """
    height, width = size
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    names = sorted(path.stem for path in (STREETS / "images").iterdir())
    for number in range(pairs):
        name = names[number % len(names)]
        with Image.open(STREETS / "images" / f"{name}.jpg") as image:
            large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        # noise of a camera: without it a PNG of an enlarged image is decoded faster than one of a photograph
        noisy = (large + random.integers(-3, 4, large.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "images" / f"{number:05}{suffix}", quality=90, compress_level=6)
        with Image.open(STREETS / "labels" / f"{name}.png") as labels:
            labels.resize((width, height), Image.Resampling.NEAREST).save(root / "labels" / f"{number:05}.png")
    return DataConfig(root=str(root), label_space="streets11")


def decode(data: DataConfig) -> list[Pair]:
    """Every image and its labels, decoded by Pillow and nothing more."""
    return decode_and_resize(data, None)


def decode_and_resize(data: DataConfig, size: tuple[int, int] | None) -> list[Pair]:
    """Every image and its labels, decoded and, if `size` (height, width) is given, resized by Pillow."""
    root = Path(data.root)
    pairs = []
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as image, Image.open(root / "labels" / f"{path.stem}.png") as labels:
            if size is None:
                pairs.append((np.asarray(image), np.asarray(labels)))
            else:
                resized = image.resize(size[::-1], Image.Resampling.BICUBIC)
                pairs.append((np.asarray(resized), np.asarray(labels.resize(size[::-1], Image.Resampling.NEAREST))))
    return pairs
