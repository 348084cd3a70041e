"""Pseudo-labels for step 2: Eq. (9) in constant memory, and Eq. (11).

In: a network and the unlabelled target images. Out: a folder of 8-bit PNGs at the network's input size, 255 = don't
care, and the thresholds. Two passes: the first writes each image's most likely labels and its confidences and counts
the confidences of each class in a histogram; the second applies the thresholds that the histogram gives.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer, UInt8, UInt16
from PIL import Image
from torch import Tensor

from segadapt.config import PseudoLabelConfig
from segadapt.data.label_spaces import IGNORE
from segadapt.data.loading import EvaluationBatch
from segadapt.evaluation.evaluate import predict_logits
from segadapt.networks.deeplab import DeepLab

BINS = 1 << 16  # a confidence is kept as one of 65,536 steps: the threshold is exact to half a step


@dataclass(frozen=True)
class LabellingReport:
    """What a labelling run did: thresholds (None: class never predicted) and shares of pixels kept, by class name."""

    thresholds: dict[str, float | None]
    coverage: dict[str, float]
    images: int


def class_thresholds(
    histogram: Integer[np.ndarray, "N bins"], quantile: float = 0.5, cap: float = 0.9
) -> Float[np.ndarray, " N"]:
    """Confidence threshold of each class, section 6.2: its median confidence, at most `cap`.

    Args:
        histogram: Counts of confidences of each class; bin k of K holds those in [k/K, (k+1)/K).
        quantile: 0.5 for the median; ranks are interpolated linearly, as numpy.quantile does.
        cap: Largest threshold.

    Returns:
        Thresholds within half a bin of the exact ones; NaN for a class without a pixel.
    """
    counts = np.asarray(histogram, dtype=np.int64)
    cumulative = counts.cumsum(1)
    total = cumulative[:, -1]
    rank = quantile * np.maximum(total - 1, 0)

    def value_at(ranks: np.ndarray) -> np.ndarray:
        bins = [np.searchsorted(row, r, side="right") for row, r in zip(cumulative, ranks, strict=True)]
        return (np.array(bins) + 0.5) / counts.shape[1]

    low, high = value_at(np.floor(rank)), value_at(np.ceil(rank))
    thresholds = np.minimum(low + (rank - np.floor(rank)) * (high - low), cap)
    return np.where(total > 0, thresholds, np.nan)


def override(predicted: Int[Tensor, "*size"], pseudo: Int[Tensor, "*size"], mode: str = "fill") -> Int[Tensor, "*size"]:
    """Eq. (11): labels by which target regions are formed in step 2.

    Args:
        predicted: Most likely classes now.
        pseudo: Pseudo-labels, 255 = don't care.
        mode: 'fill': the pseudo-label where there is one, else the prediction. 'literal': where they differ the
            pseudo-label, don't-cares included, so the result is `pseudo`. 'off': the prediction.

    Raises:
        ValueError: for another mode.
    """
    if mode == "fill":
        return torch.where(pseudo != IGNORE, pseudo, predicted)
    if mode == "literal":
        return pseudo
    if mode == "off":
        return predicted
    raise ValueError(f"mode {mode!r} is none of fill, literal, off")


def confident_prediction(
    logits: Float[Tensor, "N h w"], size: tuple[int, int]
) -> tuple[UInt8[Tensor, "H W"], Float[Tensor, "H W"]]:
    """Most likely class and its probability at `size`; softmax comes before upsampling, as in the authors' code."""
    probabilities = F.interpolate(logits.softmax(0)[None], size=size, mode="bilinear", align_corners=True)[0]
    confidence, labels = probabilities.max(0)
    return labels.to(torch.uint8), confidence


def confident_labels(
    classes: UInt8[np.ndarray, "H W"], confidence: Float[np.ndarray, "H W"], thresholds: Float[np.ndarray, " N"]
) -> UInt8[np.ndarray, "H W"]:
    """Eq. (9): the class where it is at least as confident as its threshold, else 255; none for a threshold of NaN.

    Paper: keeps what is above the threshold; of the pixels at the threshold itself there are next to none.
    """
    return np.where(confidence >= thresholds[classes], classes, IGNORE).astype(np.uint8)


def quantise(confidence: Float[Tensor, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """The histogram bin of each confidence."""
    return (confidence * BINS).clamp(0, BINS - 1).to(torch.int32).cpu().numpy().astype(np.uint16)


@torch.inference_mode()
def label_images(
    network: DeepLab,
    batches: Iterator[EvaluationBatch],
    options: PseudoLabelConfig,
    out: Path,
    progress: Callable[[], None] = lambda: None,
) -> LabellingReport:
    """Write `out/<name>.png` for each image: Eq. (9) with each class's own threshold, keeping confidence >= threshold.

    Memory does not grow with the number of images: confidences wait on disk, 2 bytes a pixel, until the second pass.

    Args:
        network: The model of step 1.
        batches: Target images at the network's input size, each once.
        options: Quantile and cap.
        out: Folder, made if missing; `thresholds.json` is written last and marks it complete.
        progress: Called after each image of each pass.
    """
    network.eval()
    names = network.label_space.names
    histogram = np.zeros((len(names), BINS), dtype=np.int64)
    written: list[Path] = []
    for batch in batches:
        size = (batch.images.shape[-2], batch.images.shape[-1])
        for logits, name in zip(predict_logits(network, batch.images), batch.names, strict=True):
            labels, confidence = confident_prediction(logits, size)
            classes, bins = labels.cpu().numpy(), quantise(confidence)
            # bincount would need N * 65,536 counters an image; add.at touches only those that are met
            np.add.at(histogram, (classes.ravel(), bins.ravel()), 1)
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(classes).save(path, compress_level=1)
            np.save(confidence_path(path), bins)
            written.append(path)
            progress()

    thresholds = class_thresholds(histogram, options.quantile, options.cap)
    kept = np.zeros(len(names), dtype=np.int64)
    for path in written:
        classes = np.array(Image.open(path))
        confidence = (np.load(confidence_path(path)).astype(np.float64) + 0.5) / BINS
        labels = confident_labels(classes, confidence, thresholds)
        kept += np.bincount(labels.ravel(), minlength=256)[: len(names)]
        Image.fromarray(labels).save(path)
        confidence_path(path).unlink()
        progress()

    report = LabellingReport(
        thresholds={n: None if np.isnan(t) else float(t) for n, t in zip(names, thresholds, strict=True)},
        coverage=dict(zip(names, (kept / np.maximum(histogram.sum(1), 1)).tolist(), strict=True)),
        images=len(written),
    )
    (out / "thresholds.json").write_text(json.dumps(asdict(report), indent=1))
    return report


def confidence_path(path: Path) -> Path:
    """Where the confidences of a label map wait between the passes."""
    return path.with_suffix(".confidence.npy")
