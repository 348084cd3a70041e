"""Intersection over union from one confusion matrix.

In: predicted and true train ids. Out: IoU a class and its mean over all classes or a subset (19, 16 or 13 classes).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
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

    def update(self, predicted: Integer[Tensor, "*size"], labels: Integer[Tensor, "*size"]) -> None:
        """Add the pixels of one or more images.

        Raises:
            ValueError: if the shapes differ or a counted pixel is predicted outside 0..N-1.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
        device, n = self.counts.device, self.num_classes
        # No mask, which would cost more than the counting: what is no class has rows and columns of its own at the
        # edges of the table, below 0 the first ones, n and more the last.
        codes = _clamped(labels.to(device), n).mul_(n + 2).add_(_clamped(predicted.to(device), n)).add_(n + 3)
        table = torch.bincount(codes.flatten(), minlength=(n + 2) ** 2).reshape(n + 2, n + 2)[1:-1]
        if table[:, [0, -1]].any():
            raise ValueError(f"a predicted class lies outside 0..{n - 1}")
        self.counts += table[:, 1:-1]

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


def _clamped(ids: Integer[Tensor, "*size"], n: int) -> Integer[Tensor, "*size"]:
    """A copy with -1 for all below 0 and n for all above, in the smaller of the types that hold (n + 2) ** 2."""
    small = torch.int16 if (n + 2) ** 2 <= 2**15 else torch.int32
    return ids.to(small).clamp_(max=n) if ids.dtype == torch.uint8 else ids.clamp(-1, n).to(small)
