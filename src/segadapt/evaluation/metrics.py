"""Intersection over union from one confusion matrix.

In: predicted and true train ids. Out: IoU a class and its mean over all classes or a subset (19, 16 or 13 classes).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor


class ConfusionMatrix:
    """Pixel counts, rows = labels, columns = predictions, summed over a whole set of images.

    Args:
        num_classes: Number N of classes; labels outside 0..N-1 (255 = ignore) are not counted.
        device: Where the counts are held.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def update(self, predicted: Integer[Tensor, "*size"], labels: Integer[Tensor, "*size"]) -> None:
        """Add the pixels of one or more images.

        Raises:
            ValueError: if the shapes differ or a counted pixel is predicted outside 0..N-1.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
        n = self.num_classes
        count = _counts_by_runs if self.counts.device.type == "cpu" else _counts_by_pixels
        # No mask, which would cost more than the counting: what is no class has a row and a column of its own.
        table = count(*(ids.to(self.counts.device).flatten() for ids in (labels, predicted)), n)[:n]
        if table[:, n].any():
            raise ValueError(f"a predicted class lies outside 0..{n - 1}")
        self.counts += table[:, :n]

    def iou(self) -> Float[Tensor, " N"]:
        """IoU of each class in 0..1; NaN for a class that is in neither labels nor predictions."""
        counts = self.counts.double()
        hit = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hit
        return torch.where(union > 0, hit / union.clamp(min=1), torch.nan)

    def miou(self, subset: Sequence[int] | None = None) -> float:
        """Mean IoU in 0..1 over the classes met, or over those of `subset` (train ids).

        Pixels predicted as a class outside the subset still count as errors of their true class.
        """
        iou = self.iou()
        return float(iou.nanmean() if subset is None else iou[list(subset)].nanmean())


def _counts_by_pixels(
    labels: Integer[Tensor, " pixels"], predicted: Integer[Tensor, " pixels"], n: int
) -> Int64[Tensor, "M M"]:
    """Pixels of each pair of classes, (n + 1, n + 1); n stands for whatever is outside 0..n-1."""
    rows, columns = (ids.long().where((ids >= 0) & (ids < n), n) for ids in (labels, predicted))
    return torch.bincount(rows * (n + 1) + columns, minlength=(n + 1) ** 2).reshape(n + 1, n + 1)


def _counts_by_runs(
    labels: Integer[Tensor, " pixels"], predicted: Integer[Tensor, " pixels"], n: int
) -> Int64[Tensor, "M M"]:
    """As above, on a CPU, where a run of equal pairs is one entry: label maps have few runs."""
    arrays = labels.numpy(), predicted.numpy()
    label_differs, prediction_differs = (array[1:] != array[:-1] for array in arrays)
    differs = np.logical_or(label_differs, prediction_differs, out=label_differs)
    starts = np.append(np.zeros(min(len(labels), 1), int), np.flatnonzero(differs) + 1)
    lengths = np.diff(starts, append=len(labels))
    rows, columns = (array[starts].astype(np.int64) for array in arrays)
    for ids in (rows, columns):
        ids[(ids < 0) | (ids >= n)] = n
    # weights are float64, in which every count of pixels is exact
    counts = np.bincount(rows * (n + 1) + columns, weights=lengths, minlength=(n + 1) ** 2)
    return torch.from_numpy(counts).long().reshape(n + 1, n + 1)
