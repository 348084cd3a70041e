"""Which parts of an image the network sees, each at the size it was tested at.

In: the size of an image, the size of the test, a `View`. Out: a `Canvas`. Sizes are (height, width). Does not import
torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float, UInt8

from segadapt.data.transforms import resize_image
from segadapt.errors import InputError
from segadapt.prediction import View

# A network tested on squeezed or stretched images saw up to this much of it: 16:9 resized to 2:1 is 1.125.
SHAPE_CHANGE = 1.25
OVERLAP = 1 / 3  # of a window's side that it shares with its neighbour, at least


@dataclass(frozen=True)
class Canvas:
    """An image as the network will see it: resized, then cut into windows that overlap.

    Args:
        size: What the image is resized to.
        window: Of each window; `size` where the whole image is one.
        corners: (top, left) of each window, row by row.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    corners: tuple[tuple[int, int], ...]

    @property
    def whole(self) -> bool:
        """Whether the image is seen in one piece."""
        return len(self.corners) == 1

    def cut(self, image: UInt8[np.ndarray, "H W 3"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The windows of the image, in the order of `corners`."""
        image = resize_image(image, self.size)
        height, width = self.window
        for top, left in self.corners:
            yield image[top : top + height, left : left + width]


def canvas_of(image: tuple[int, int], tested: tuple[int, int] | None, view: View) -> Canvas:
    """How an image of some size is shown to a network.

    'whole': resized to the tested size, as `evaluate` does. 'windows': at its own scale (enlarged if it does not fill a
    window), in windows of the tested size. 'auto': whole, unless that would change the image's shape by more than
    SHAPE_CHANGE; then its shape is kept, one side gets the tested length and windows run along the other.

    Args:
        image: Size of the image.
        tested: Size the network was tested at; None: each image at its own, so every image is seen whole.
        view: See above.

    Raises:
        InputError: windows are asked for and the network has no tested size.
    """
    if tested is None:
        if view == "windows":
            raise InputError("--view windows: the model was tested on whole images of any size; use --view whole")
        return Canvas(image, image, ((0, 0),))
    fill = max(tested[0] / image[0], tested[1] / image[1])  # the factor at which the image just covers a window
    shape_change = fill / min(tested[0] / image[0], tested[1] / image[1])
    if view == "whole" or (view == "auto" and shape_change <= SHAPE_CHANGE):
        return Canvas(tested, tested, ((0, 0),))
    factor = max(fill, 1.0) if view == "windows" else fill
    height, width = (max(part, round(side * factor)) for part, side in zip(tested, image, strict=True))
    rows, columns = starts(height, tested[0]), starts(width, tested[1])
    return Canvas((height, width), tested, tuple((top, left) for top in rows for left in columns))


def starts(side: int, part: int) -> tuple[int, ...]:
    """Where windows of length `part` begin on a side: the fewest that overlap by OVERLAP, evenly spaced."""
    steps = ceil((side - part) / (part * (1 - OVERLAP)))
    begin = (round(step * (side - part) / max(steps, 1)) for step in range(steps + 1))
    return tuple(dict.fromkeys(begin))  # windows of a pixel or two would begin twice at the same place


def ramp(part: int) -> Float[np.ndarray, " part"]:
    """Weight of a window's pixels along one side: 1 in the middle, falling towards both edges, never 0."""
    rising = np.arange(1, part + 1)
    return np.minimum(np.minimum(rising, rising[::-1]) / max(1, round(part * OVERLAP)), 1.0)
