"""Times evaluation at 2048x1024 (width x height) beside the usual numpy way, and beside decoding the files alone.

    python benchmarks/evaluation.py

Three comparisons, each on one thread and verified to give the same counts first: counting the pixels of a prediction;
all that follows the network (logits of 19 classes to the size of the labels, most likely class, counts); and a whole
evaluation of PNG files by a small network that sees them at 128x256, so that reading and counting are most of it.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pictures import decode, write_streets
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.config import DataConfig, NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, IGNORE, STREETS11
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.evaluation.evaluate import evaluate, predict_labels
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network
from timing import Entry, compared, options_of, paired_seconds, record, rounded

CLASSES = CITYSCAPES.num_classes
SIZE, QUICK_SIZE = (1024, 2048), (128, 256)
NETWORK_SIZE, STRIDE = (128, 256), 8
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


def our_scoring(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return our_counts(predict_labels(logits, (labels.shape[0], labels.shape[1])), labels)


def usual_scoring(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    resized = F.interpolate(logits[None], size=tuple(labels.shape), mode="bilinear", align_corners=True)[0]
    return usual_counts(np.argmax(resized.numpy().transpose(1, 2, 0), axis=2), labels.numpy())


def blocks(size: tuple[int, int], block: int, random: torch.Generator) -> torch.Tensor:
    """Train ids in blocks, a tenth of which have no label."""
    grid = torch.randint(CLASSES, (size[0] // block, size[1] // block), generator=random, dtype=torch.uint8)
    grid[torch.rand(grid.shape, generator=random) < 0.1] = IGNORE
    return grid.repeat_interleave(block, 0).repeat_interleave(block, 1)


def evaluated(network: DeepLab, data: DataConfig) -> dict[str, float | None]:
    """IoU of each class of all files."""
    batches = evaluation_batches(find_pairs(data, labelled=True), STREETS11, data, batch_size=4, workers=0)
    return evaluate(network, batches).iou


def usually_evaluated(network: DeepLab, data: DataConfig) -> dict[str, float | None]:
    """The same, one file after another: the network's logits, and then the usual way."""
    images, counts = find_pairs(data, labelled=True), np.zeros((CLASSES, CLASSES), int)
    batches = evaluation_batches(images, STREETS11, data, batch_size=4, workers=0)
    with torch.inference_mode():
        for batch in batches:
            for logits, labels in zip(network(network.normalisation(batch.images)).logits, batch.labels, strict=True):
                counts += usual_scoring(logits, labels)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return {name: None if union[k] == 0 else 100 * counts[k, k] / union[k] for k, name in enumerate(STREETS11.names)}


def main() -> None:
    options = options_of(__doc__)
    size, pairs, rounds = (QUICK_SIZE, 2, 2) if options.quick else (SIZE, PAIRS, 9)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command does; both have it
    case = f"{size[1]}x{size[0]}"
    random = torch.Generator().manual_seed(0)
    labels = blocks(size, 16, random)
    predicted = labels.long().where(torch.rand(size, generator=random) < 0.9, 0).clamp(max=CLASSES - 1)
    logits = torch.randn(CLASSES, size[0] // (2 * STRIDE), size[1] // (2 * STRIDE), generator=random)

    np.testing.assert_array_equal(our_counts(predicted, labels), usual_counts(predicted.numpy(), labels.numpy()))
    np.testing.assert_array_equal(our_scoring(logits, labels), usual_scoring(logits, labels))

    seconds = paired_seconds(
        lambda: our_counts(predicted, labels), lambda: usual_counts(predicted.numpy(), labels.numpy()), rounds
    )
    entries = [per_pair(compared("evaluation_counts", case, seconds, HISTOGRAM), 1)]
    seconds = paired_seconds(lambda: our_scoring(logits, labels), lambda: usual_scoring(logits, labels), rounds)
    peer = f"F.interpolate, numpy, transpose, np.argmax, {HISTOGRAM}"
    entries.append(per_pair(compared("evaluation_logits", case, seconds, peer), 1))

    with tempfile.TemporaryDirectory() as folder:
        data = write_streets(Path(folder) / "data", pairs, size, ".png")
        data = DataConfig(root=data.root, label_space=data.label_space, size=NETWORK_SIZE)
        network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0).eval()
        found, expected = evaluated(network, data), usually_evaluated(network, data)
        assert found.keys() == expected.keys()
        for name, iou in found.items():
            assert iou == expected[name] or abs(iou - expected[name]) < 1e-9, name
        seconds = paired_seconds(lambda: evaluated(network, data), lambda: decode(data), 1 if options.quick else 3)
        peer = "decoding the image and label PNGs alone, by Pillow"
        entries.append(per_pair(compared("evaluation", f"{case}, PNG", seconds, peer), pairs))
        seconds = paired_seconds(
            lambda: evaluated(network, data), lambda: usually_evaluated(network, data), 1 if options.quick else 3
        )
        peer = "the same reading and network, and then the usual numpy way"
        entries.append(per_pair(compared("evaluation", f"{case}, PNG", seconds, peer), pairs))
    record(entries, options.result)


def per_pair(entry: Entry, pairs: int) -> Entry:
    """The entry with pairs a second of both."""
    ours, peer = rounded(pairs / entry["ours_s"]), rounded(pairs / entry["peer_s"])
    return entry | {"pairs_per_second": ours, "peer_pairs_per_second": peer, "threads": 1}


if __name__ == "__main__":
    main()
