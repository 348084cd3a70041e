"""Pseudo-labels for step 2: Eq. (9) in constant memory, and Eq. (11).

In: a network and the unlabelled target images. Out: a folder of 8-bit PNGs at the network's input size, 255 = don't
care, and the thresholds. Predictions are written first, then the confidences of each class are counted in a histogram,
then the thresholds that it gives are applied. A call that was stopped anywhere goes on where it was.
"""

import json
from collections.abc import Callable, Container, Iterable, Sequence
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
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import predict_logits
from segadapt.networks.deeplab import DeepLab
from segadapt.processes import ONE_PROCESS, Processes
from segadapt.whole_file import whole_file

THRESHOLDS_FILE = "thresholds.json"
COUNTED_FILE = "counted.npz"  # the thresholds, before the labels are written
PREDICTION = np.dtype([("label", np.uint8), ("bin", np.uint16)])
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
    names: Sequence[str],
    batches_without: Callable[[Container[str]], Iterable[EvaluationBatch]],
    options: PseudoLabelConfig,
    out: Path,
    processes: Processes = ONE_PROCESS,
    progress: Callable[[], None] = lambda: None,
    may_lack: bool = False,
) -> LabellingReport:
    """Write `out/<name>.png` for each image: Eq. (9) with each class's own threshold, keeping confidence >= threshold.

    Memory does not grow with the number of images: predictions wait on disk, 3 bytes a pixel, until the thresholds are
    known. What a stopped call has left there is used by the next one.

    Args:
        network: The model of step 1.
        names: Of the images that this process labels.
        batches_without: Their batches at the network's input size, but for images that need no prediction any more.
        options: Quantile and cap.
        out: Folder, made if missing; `thresholds.json` is written last and marks it complete.
        processes: That share the images; one histogram is merged from theirs.
        progress: Called after each image of each pass.
        may_lack: Whether the batches may lack images, of which there is then no label map.

    Returns:
        The content of thresholds.json, of the images of all processes.
    """
    network.eval()
    classes = network.label_space.names
    counted = out / COUNTED_FILE
    if not processes.share(counted.exists()):
        predicted = {name for name in names if read_prediction(prediction_path(out, name)) is not None}
        for _ in predicted:
            progress()
        for batch in batches_without(predicted):
            size = (batch.images.shape[-2], batch.images.shape[-1])
            for logits, name in zip(predict_logits(network, batch.images), batch.names, strict=True):
                labels, confidence = confident_prediction(logits, size)
                save_prediction(prediction_path(out, name), labels.cpu().numpy(), quantise(confidence))
                progress()
        if may_lack:
            names = [name for name in names if prediction_path(out, name).exists()]
        histogram = np.zeros((len(classes), BINS), dtype=np.int64)
        for name in names:
            labels, bins = whole_prediction(out, name)
            # bincount would need N * 65,536 counters an image; add.at touches only those that are met
            np.add.at(histogram, (labels.ravel(), bins.ravel()), 1)
        histogram = processes.sum(torch.from_numpy(histogram)).numpy()
        thresholds = class_thresholds(histogram, options.quantile, options.cap)
        if processes.is_first:
            with whole_file(counted) as file:
                np.savez(file, thresholds=thresholds, pixels=histogram.sum(1))
        processes.wait()
    with np.load(counted) as known:
        thresholds, pixels = known["thresholds"], known["pixels"]

    kept = np.zeros(len(classes), dtype=np.int64)
    if may_lack:
        names = [name for name in names if prediction_path(out, name).exists() or (out / name).exists()]
    for name in names:
        path = out / name
        if prediction_path(out, name).exists():
            labels, bins = whole_prediction(out, name)
            confidence = (bins.astype(np.float64) + 0.5) / BINS
            with whole_file(path) as file:
                Image.fromarray(confident_labels(labels, confidence, thresholds)).save(file, "PNG")
            prediction_path(out, name).unlink()
        kept += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)[: len(classes)]
        progress()

    kept, images = processes.sum(torch.from_numpy(kept)).numpy(), int(processes.sum(torch.tensor(len(names))))
    report = LabellingReport(
        thresholds={n: None if np.isnan(t) else float(t) for n, t in zip(classes, thresholds, strict=True)},
        coverage=dict(zip(classes, (kept / np.maximum(pixels, 1)).tolist(), strict=True)),
        images=images,
    )
    if processes.is_first:
        with whole_file(out / THRESHOLDS_FILE) as file:
            file.write(json.dumps(asdict(report), indent=1).encode())
        counted.unlink()
    processes.wait()
    return report


def prediction_path(out: Path, name: str) -> Path:
    """Where the prediction of an image waits for the thresholds."""
    return (out / name).with_suffix(".prediction.npy")


def save_prediction(path: Path, labels: UInt8[np.ndarray, "H W"], bins: UInt16[np.ndarray, "H W"]) -> None:
    """Write most likely classes and the bins of their confidences, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prediction = np.empty(labels.shape, PREDICTION)
    prediction["label"], prediction["bin"] = labels, bins
    with whole_file(path) as file:
        np.save(file, prediction)


def read_prediction(path: Path) -> tuple[UInt8[np.ndarray, "H W"], UInt16[np.ndarray, "H W"]] | None:
    """What `save_prediction` wrote; None where nothing, or something else, is."""
    try:
        prediction = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    if prediction.dtype != PREDICTION or prediction.ndim != 2:
        return None
    return np.ascontiguousarray(prediction["label"]), np.ascontiguousarray(prediction["bin"])


def whole_prediction(out: Path, name: str) -> tuple[UInt8[np.ndarray, "H W"], UInt16[np.ndarray, "H W"]]:
    """The prediction of an image that has one.

    Raises:
        InputError: it was changed from outside since.
    """
    prediction = read_prediction(prediction_path(out, name))
    if prediction is None:
        raise InputError(f"{prediction_path(out, name)}: damaged; delete it and {out / COUNTED_FILE} and label again")
    return prediction
