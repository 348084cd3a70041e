"""Intersection over union from one confusion matrix.

In: predicted and true train ids. Out: IoU a class and its mean over all classes or a subset (19, 16 or 13 classes).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

# What is done in one go on a CPU: it fits the cache, and torch does not share out so little among threads, which would
# wait for one another at each of some thousand operations.
PIXELS_AT_ONCE = 2**15


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
        device, n = self.counts.device, self.num_classes
        at_once = PIXELS_AT_ONCE if device.type == "cpu" else max(1, labels.numel())
        # No mask, which would cost more than the counting: what is no class has a row and a column of its own.
        table = torch.zeros((n + 1) ** 2, dtype=torch.int64, device=device)
        parts = (ids.to(device).flatten().split(at_once) for ids in (labels, predicted))
        for rows, columns in zip(*parts, strict=True):
            codes = torch.add(_or_no_class(columns, n), _or_no_class(rows, n), alpha=n + 1)
            table += torch.bincount(codes, minlength=(n + 1) ** 2)
        table = table.reshape(n + 1, n + 1)[:n]
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


def _or_no_class(ids: Integer[Tensor, " pixels"], n: int) -> Integer[Tensor, " pixels"]:
    """A copy with n for all that are outside 0..n-1, in the smaller of the types that hold (n + 1) ** 2."""
    small = torch.int16 if (n + 1) ** 2 <= 2**15 else torch.int32
    if ids.dtype == torch.uint8:
        return ids.to(small).clamp_(max=n)
    return ids.where((ids >= 0) & (ids < n), n).to(small)
