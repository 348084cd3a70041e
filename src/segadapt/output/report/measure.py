"""What the report measures anew from the models: confusions, reliability, pictures; and the pseudo-labels' precision.

In: model files, the labelled test images, a folder of pseudo-labels. Out: counts, and label maps of a few images.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segadapt.config import DataConfig
from segadapt.data.decoding import read_labels, read_raw_ids
from segadapt.data.label_spaces import IGNORE, LabelSpace, remap
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.data.transforms import resize_labels
from segadapt.evaluation.evaluate import predict_logits
from segadapt.evaluation.label_maps import resize_logits
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.networks.weights import load_network

BINS = 15  # of confidence, as in Guo et al. (ICML 2017)
MOST_PSEUDO_LABELS = 500  # maps that are compared with labels: more change no digit


@dataclass
class Reliability:
    """Pixels by the confidence of their prediction: how many, their confidences summed, how many are right."""

    pixels: Int[Tensor, " bins"] = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    confidence: Float[Tensor, " bins"] = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    right: Int[Tensor, " bins"] = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    def update(self, confidence: Float[Tensor, " n"], right: Tensor) -> None:
        """Add pixels: the probability of the predicted class, and whether it is the true one."""
        index = (confidence * BINS).long().clamp(max=BINS - 1)
        self.pixels += torch.bincount(index, minlength=BINS).cpu()
        self.right += torch.bincount(index[right], minlength=BINS).cpu()
        self.confidence += torch.bincount(index, weights=confidence.double(), minlength=BINS).cpu()

    def bins(self) -> list[tuple[float, float, float]]:
        """(mean confidence, share of right pixels, share of all pixels) of each bin that has pixels."""
        total, met = int(self.pixels.sum()), self.pixels > 0
        pixels = self.pixels[met].double()
        columns = (self.confidence[met] / pixels, self.right[met] / pixels, pixels / max(total, 1))
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def error(self) -> float:
        """Expected calibration error, 0 to 1: how far accuracy is from confidence, mean over pixels."""
        return sum(share * abs(confidence - right) for confidence, right, share in self.bins())


@dataclass(frozen=True)
class Measured:
    """A model on the test images: confusions (rows = labels), reliability, label maps of chosen images by index."""

    space: LabelSpace
    confusion: Int[np.ndarray, "N N"]
    reliability: Reliability
    predicted: dict[int, UInt8[np.ndarray, "H W"]]


@torch.inference_mode()
def measure(
    model: Path, data: DataConfig, chosen: Collection[int], device: torch.device, advance: Callable[[], None]
) -> Measured:
    """Run a model over the labelled images of `data`.

    Args:
        model: model.safetensors of a run.
        data: The test images at the size the model was tested at.
        chosen: Indices of the images whose label maps are kept.
        device: Where to predict.
        advance: Is called after each image.

    Raises:
        InputError: The images or their labels are not there.
    """
    network = load_network(model).to(device).eval()
    space, images = network.label_space, find_pairs(data, labelled=True)
    matrix, reliability = ConfusionMatrix(space.num_classes, device), Reliability()
    predicted_maps = {}
    for index, batch in enumerate(evaluation_batches(images, space, data, 1, workers=0)):
        labels = batch.labels[0].to(device)
        logits = resize_logits(predict_logits(network, batch.images)[0], (labels.shape[0], labels.shape[1]))
        confidence, predicted = logits.softmax(0).max(0)
        matrix.update(predicted, labels)
        counted = labels != IGNORE
        reliability.update(confidence[counted], predicted[counted] == labels[counted])
        if index in chosen:
            predicted_maps[index] = predicted.to(torch.uint8).cpu().numpy()
        advance()
    return Measured(space, matrix.counts.cpu().numpy(), reliability, predicted_maps)


def pseudo_label_precision(
    folder: Path, data: DataConfig, space: LabelSpace
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], int]:
    """How often the pseudo-labels of each class are right, where the target has labels; nothing else reads them.

    Args:
        folder: Of the pseudo-labels.
        data: The target.
        space: The trained classes.

    Returns:
        For each class the pseudo-labelled pixels whose true class is known and how many are right; images compared:
        those that could not be read when the pseudo-labels were made have none.

    Raises:
        InputError: The target has no labels.
    """
    images: ImageSet = find_pairs(data, labelled=True)
    table = remap(images.space, space)[images.table]
    kept, right = (np.zeros(space.num_classes, np.int64) for _ in range(2))
    indices = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST_PSEUDO_LABELS)).round().astype(int))
    compared = [index for index in indices.tolist() if (folder / images.image_name(index)).exists()]
    for index in compared:
        path = images.labels[index]
        assert path is not None
        pseudo = read_raw_ids(folder / images.image_name(index)).astype(np.uint8)
        labels = resize_labels(read_labels(path, table), (pseudo.shape[0], pseudo.shape[1]))
        known = (pseudo != IGNORE) & (labels != IGNORE)
        kept += np.bincount(pseudo[known], minlength=space.num_classes)
        right += np.bincount(pseudo[known & (pseudo == labels)], minlength=space.num_classes)
    return kept, right, len(compared)


def data_config(content: dict[str, Any]) -> DataConfig:
    """A domain of config.yaml; keys of another version of the program are left out."""
    known = {entry.name: content[entry.name] for entry in fields(DataConfig) if entry.name in content}
    if known.get("size"):
        known["size"] = tuple(known["size"])
    return DataConfig(**known)
