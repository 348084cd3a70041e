"""Times evaluation at 2048x1024 (width x height) beside the usual numpy way, and beside decoding the files alone.

    python benchmarks/evaluation.py

Three comparisons, each on one thread and verified to give the same counts first: counting the pixels of a prediction;
all that follows the network (logits of 19 classes to the size of the labels, most likely class, counts); and a whole
evaluation of PNG files by a small network that sees them at 128x256, so that reading and counting are most of it. The
first two are timed with the C library's own handling of memory, as in a program that does only this, and then, as the
third, with freed memory kept, as in our commands; on the labels of a bundled street with logits that are right but for
noise, and on noise alone, where nearly every pixel is a boundary: the worst case.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pictures import decode, write_streets
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.config import DataConfig, NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, IGNORE, STREETS11
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.evaluation.evaluate import evaluate, predict_logits
from segadapt.evaluation.label_maps import predict_labels
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network
from timing import Entry, compared, options_of, paired_seconds, record, rounded

CLASSES = CITYSCAPES.num_classes
SIZE, QUICK_SIZE = (1024, 2048), (128, 256)
STREET = Path(__file__).parent.parent / "data/streets/adverse/val/labels/50157.png"
NETWORK_SIZE, BLOCK = (128, 256), 16
PAIRS = 4
HISTOGRAM = "np.bincount(n * label[mask].astype(int) + prediction[mask], minlength=n ** 2)"


def our_counts(predicted: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(predicted, labels)
    return matrix.counts.numpy()


def usual_counts(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The histogram that evaluation programs have copied from one another since FCN."""
    mask = (labels >= 0) & (labels < CLASSES)
    pairs = CLASSES * labels[mask].astype(int) + predicted[mask]
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def usual_labels(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    resized = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=True)[0]
    return np.argmax(resized.numpy().transpose(1, 2, 0), axis=2)


def street(size: tuple[int, int], random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (H, W) uint8 of a rendered street; logits (N, h, w) at stride 16, 8 x the share of each class and noise."""
    with Image.open(STREET) as picture:
        labels = torch.from_numpy(np.array(picture.resize(size[::-1], Image.Resampling.NEAREST)))
    of_class = F.one_hot(labels.long().clamp(max=CLASSES), CLASSES + 1)[..., :CLASSES].movedim(2, 0).float()
    shares = F.adaptive_avg_pool2d(of_class, (size[0] // BLOCK, size[1] // BLOCK))
    return labels, 8 * shares + torch.randn(shares.shape, generator=random)


def noise(size: tuple[int, int], random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of blocks of random classes, a tenth of them without label, and logits that are mostly right."""
    grid = torch.randint(CLASSES, (size[0] // BLOCK, size[1] // BLOCK), generator=random)
    logits = torch.randn(CLASSES, *grid.shape, generator=random) + 3 * F.one_hot(grid, CLASSES).movedim(2, 0)
    grid[torch.rand(grid.shape, generator=random) < 0.1] = IGNORE
    return grid.to(torch.uint8).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1), logits


def evaluated(network: DeepLab, images: ImageSet, data: DataConfig) -> dict[str, float | None]:
    """IoU of each class of all files."""
    batches = evaluation_batches(images, STREETS11, data, batch_size=4, workers=0)
    return evaluate(network, batches).iou


def usually_evaluated(network: DeepLab, images: ImageSet, data: DataConfig) -> dict[str, float | None]:
    """The same, one file after another: the network's logits, and then the usual way."""
    counts = np.zeros((CLASSES, CLASSES), int)
    batches = evaluation_batches(images, STREETS11, data, batch_size=4, workers=0)
    with torch.inference_mode():
        for batch in batches:
            for logits, labels in zip(predict_logits(network, batch.images), batch.labels, strict=True):
                counts += usual_counts(usual_labels(logits, tuple(labels.shape)), labels.numpy())
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return {name: None if union[k] == 0 else 100 * counts[k, k] / union[k] for k, name in enumerate(STREETS11.names)}


def main() -> None:
    options = options_of(__doc__)
    size, pairs, rounds = (QUICK_SIZE, 2, 1) if options.quick else (SIZE, PAIRS, 9)
    torch.set_num_threads(1)
    entries = []
    for kept in (False, True):
        if kept:
            keep_freed_memory()
        for picture in (street, noise):
            case = f"{size[1]}x{size[0]}, {picture.__name__}{', memory kept' * kept}"
            entries += of_a_prediction(case, *picture(size, torch.Generator().manual_seed(0)), rounds)

    with tempfile.TemporaryDirectory() as folder:
        data = replace(write_streets(Path(folder) / "data", pairs, size, ".png"), size=NETWORK_SIZE)
        images = find_pairs(data, labelled=True)
        network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0).eval()
        found, expected = evaluated(network, images, data), usually_evaluated(network, images, data)
        assert found.keys() == expected.keys()
        for name, iou in found.items():
            assert iou == expected[name] or abs(iou - expected[name]) < 1e-9, name
        peers = {
            "decoding the image and label PNGs alone, by Pillow": partial(decode, data),
            "the same reading and network, and then the usual numpy way": partial(
                usually_evaluated, network, images, data
            ),
        }
        for peer, run in peers.items():
            seconds = paired_seconds(partial(evaluated, network, images, data), run, max(1, rounds // 3))
            case = f"{size[1]}x{size[0]}, PNG, memory kept"
            entries.append(per_pair(compared("evaluation", case, seconds, peer), pairs))
    record(entries, options.result)


def of_a_prediction(case: str, labels: torch.Tensor, logits: torch.Tensor, rounds: int) -> list[Entry]:
    """Counting a prediction, and all that follows the network; each side counts its prediction as it comes."""
    as_array, size = labels.numpy(), (labels.shape[0], labels.shape[1])
    ours, usual = predict_labels(logits, size), usual_labels(logits, size)
    np.testing.assert_array_equal(ours.numpy(), usual)
    np.testing.assert_array_equal(our_counts(ours, labels), usual_counts(usual, as_array))
    of_counts = paired_seconds(lambda: our_counts(ours, labels), lambda: usual_counts(usual, as_array), 3 * rounds)
    of_all = paired_seconds(
        lambda: our_counts(predict_labels(logits, size), labels),
        lambda: usual_counts(usual_labels(logits, size), as_array),
        rounds,
    )
    all_usual = f"F.interpolate, numpy, transpose, np.argmax, {HISTOGRAM}"
    return [
        per_pair(compared("evaluation_counts", case, of_counts, HISTOGRAM), 1),
        per_pair(compared("evaluation_logits", case, of_all, all_usual), 1),
    ]


def per_pair(entry: Entry, pairs: int) -> Entry:
    """The entry with pairs a second of both."""
    ours, peer = rounded(pairs / entry["ours_s"]), rounded(pairs / entry["peer_s"])
    return entry | {"pairs_per_second": ours, "peer_pairs_per_second": peer, "threads": 1}


if __name__ == "__main__":
    main()
