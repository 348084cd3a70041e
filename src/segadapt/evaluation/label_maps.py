"""From a network's logits to the most likely class of each pixel of an image of any size.

In: logits at the stride of the network. Out: those resized bilinearly (align_corners), or their argmax. On a CPU the
resized logits, 160 MB for 19 classes at 2048x1024, never exist as a whole.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

# What is done in one go: it fits the cache, and torch does not share out so little among threads, which would wait for
# one another at each of some thousand operations.
PIXELS_AT_ONCE = 2**15
# Of the largest logit: classes that are closer than this are told apart pixel by pixel, whatever rounding does.
MARGIN = 1e-5


def resize_logits(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """Logits at `size` (height, width), bilinear with align_corners."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=True)[0]


@torch.inference_mode()  # a fifth faster: the thousands of small operations are not looked at by autograd
def predict_labels(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Most likely class of each pixel at `size` (height, width), the first of several: argmax of `resize_logits`."""
    _, rows, columns = logits.shape
    if logits.device.type == "cpu" and size[0] >= 4 * rows >= 8 and size[1] >= columns >= 2:
        return _labels_in_strips(logits.contiguous(), size)
    return resize_logits(logits, size).argmax(0).to(torch.uint8)


def _labels_in_strips(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """As `predict_labels`: what lies between two rows of logits is done at once, in the cache.

    Between four logits of each class a class is possible only if its largest is not below the largest of all smallest;
    where one class alone is possible, in most of an image, there is nothing to compute. Elsewhere each logit has the
    bits that F.interpolate gives it: rows are resized first, and in above * (1 - w) + below * w the second product
    alone is rounded.
    """
    (_, rows, columns), (height, width) = logits.shape, size
    possible = _possible_classes(logits.numpy())
    undecided = possible.sum(0) != 1
    row_above, share_below = _places(height, rows)
    column_before, _ = _places(width, columns)
    labels = possible.argmax(0).astype(np.uint8).take(column_before, 1).take(row_above, 0)

    where = undecided.take(column_before, 1)
    contenders = (possible & undecided).any(2).T
    resized = resize_logits(logits, (rows, width)).numpy().swapaxes(0, 1)
    starts = np.searchsorted(row_above, np.arange(rows))  # of the pixel rows below each row of logits
    for row, (first, end) in enumerate(pairwise(starts)):
        ids, pixels = np.flatnonzero(contenders[row]), np.flatnonzero(where[row])
        if not len(ids):
            continue
        above, below = (torch.from_numpy(line[ids].take(pixels, 1)) for line in resized[row : row + 2])
        at_once = max(1, PIXELS_AT_ONCE // len(pixels))
        for top in range(first, end, at_once):
            part = slice(top, min(top + at_once, end))
            labels[part, pixels] = _labels_between(above, below, share_below[part], ids)
    return torch.from_numpy(labels)


def _possible_classes(logits: Float[np.ndarray, "N h w"]) -> Bool[np.ndarray, "N h-1 w-1"]:
    """Which classes can be the most likely one somewhere between four neighbouring logits."""

    def of_corners(extreme: np.ufunc) -> np.ndarray:
        of_rows = extreme(logits[:, :-1], logits[:, 1:])
        return extreme(of_rows[..., :-1], of_rows[..., 1:])

    reached = of_corners(np.minimum).max(0)  # by one class in the whole of the cell
    return of_corners(np.maximum) >= reached - MARGIN * np.abs(logits).max()


def _places(size: int, grid: int) -> tuple[Int[np.ndarray, " size"], Float[np.ndarray, " size"]]:
    """Of each pixel along a side the grid point before it, and the share of the one after it; as F.interpolate."""
    position = np.arange(size, dtype=np.float32) * (np.float32(grid - 1) / np.float32(size - 1))
    before = np.minimum(position.astype(np.int32), grid - 2)
    return before, np.minimum(position - before, 1, dtype=np.float32)


def _labels_between(
    above: Float[Tensor, "K W"],
    below: Float[Tensor, "K W"],
    shares: Float[np.ndarray, " H"],
    ids: Int[np.ndarray, " K"],
) -> UInt8[np.ndarray, "H W"]:
    """The most likely of the classes `ids` (rising) in pixel rows between two rows of logits.

    `shares` are those of the lower one.
    """
    of_below = torch.from_numpy(shares)[:, None]
    of_above = (1 - of_below).expand(len(of_below), above.shape[1]).contiguous()
    logits = torch.addcmul(below[0] * of_below, above[0], of_above)
    # torch rounds as F.interpolate does; numpy costs less to call, and compares floats into bytes
    best, values = logits.numpy().copy(), logits.numpy()
    labels, better = np.full(best.shape, ids[0], np.uint8), np.empty(best.shape, np.uint8)
    for index, here, there in zip(ids[1:], above[1:].unbind(), below[1:].unbind(), strict=True):
        torch.mul(there, of_below, out=logits).addcmul_(here, of_above)
        np.greater(values, best, out=better.view(bool))
        np.maximum(values, best, out=best)
        np.multiply(better, np.uint8(index), out=better)
        np.maximum(labels, better, out=labels)
    return labels
