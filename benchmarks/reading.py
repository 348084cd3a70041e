"""Times reading and transforming training pairs on one core beside decoding the same files alone.

    python benchmarks/reading.py

Street scenes of 2048x1024 (width x height) as PNG and as JPEG, resized to 1024x512, flipped at random and cropped, by
`training_batches` without worker processes. The peers are Pillow's decoding of image and labels, and its decoding and
resizing. Before, pairs without random transforms are verified to be what Pillow gives.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pictures import decode, decode_and_resize, write_streets
from segadapt.config import AugmentationConfig, DataConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import TrainingSet, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from timing import Entry, compared, options_of, paired_seconds, record, rounded

FILE_SIZE, NETWORK_SIZE, CROP = (1024, 2048), (512, 1024), (448, 896)
QUICK_FILE_SIZE, QUICK_NETWORK_SIZE, QUICK_CROP = (128, 256), (64, 128), (56, 112)
PAIRS, ROUNDS = 8, 5


def verify(images: ImageSet, data: DataConfig, small: DataConfig) -> None:
    """Raises if a pair differs from what Pillow decodes and resizes."""
    pairs = TrainingSet(images, STREETS11, small, AugmentationConfig(), seed=0, domain=0)
    by_hand = decode_and_resize(data, small.size)
    for position in range(len(by_hand)):
        sample = pairs[position]
        image, labels = by_hand[sample["index"]]
        np.testing.assert_array_equal(sample["image"].numpy(), image.transpose(2, 0, 1))
        np.testing.assert_array_equal(sample["labels"].numpy(), images.table[labels])


def read(images: ImageSet, data: DataConfig, augmentation: AugmentationConfig) -> None:
    """One epoch."""
    batches = training_batches(images, STREETS11, data, augmentation, 1, seed=0, domain=0, workers=0)
    for _ in range(len(images)):
        next(batches)


def main() -> None:
    options = options_of(__doc__)
    file_size, size, crop = (
        (QUICK_FILE_SIZE, QUICK_NETWORK_SIZE, QUICK_CROP) if options.quick else (FILE_SIZE, NETWORK_SIZE, CROP)
    )
    pairs, rounds = (2, 1) if options.quick else (PAIRS, ROUNDS)
    torch.set_num_threads(1)
    augmentation = AugmentationConfig(flip=0.5, crop=crop)
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
            data = write_streets(Path(folder) / name, pairs, file_size, suffix)
            images, small = find_pairs(data, labelled=True), replace(data, size=size)
            verify(images, data, small)
            peers = {
                "decoding image and labels alone, by Pillow": partial(decode, data),
                "decoding and resizing both, by Pillow": partial(decode_and_resize, data, size),
            }
            for peer, by_hand in peers.items():
                ours_s, peer_s = paired_seconds(partial(read, images, small, augmentation), by_hand, rounds)
                entry = compared("reading", name, (ours_s / pairs, peer_s / pairs), peer)
                rates = {
                    "images_per_second": rounded(pairs / ours_s),
                    "peer_images_per_second": rounded(pairs / peer_s),
                }
                entries.append(entry | rates | {"threads": 1})
    record(entries, options.result)


if __name__ == "__main__":
    main()
