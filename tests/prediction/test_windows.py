"""Windows: they cover the image, overlap, and their blend is the whole wherever the whole can be known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from segadapt.errors import InputError
from segadapt.prediction.segmenter import blended
from segadapt.prediction.windows import Canvas, canvas_of, ramp, starts

SIDES = st.integers(1, 90)


@given(SIDES, SIDES)
@example(1, 2)
def test_windows_cover_a_side_and_overlap_by_a_third(part: int, more: int) -> None:
    side = part + more - 1
    begin = starts(side, part)
    assert (begin[0], begin[-1]) == (0, side - part)
    assert all(0 < after - before <= part * 2 / 3 + 1 for before, after in pairwise(begin))
    assert len(begin) == 1 or len(begin) < 2 + (side - part) / (part * 2 / 3)


@pytest.mark.parametrize(
    ("image", "view", "size", "windows"),
    [
        ((288, 384), "auto", (96, 128), 1),  # of the tested shape
        ((288, 440), "auto", (96, 128), 1),  # 1.15 times as wide
        ((96, 512), "auto", (96, 512), 6),  # a panorama: its shape is kept
        ((192, 1024), "auto", (96, 512), 6),
        ((1024, 192), "auto", (683, 128), 11),
        ((10, 40), "auto", (96, 384), 4),
        ((96, 512), "whole", (96, 128), 1),
        ((288, 384), "windows", (288, 384), 16),
        ((96, 128), "windows", (96, 128), 1),
        ((48, 128), "windows", (96, 256), 3),
    ],
)
def test_canvas(image: tuple[int, int], view: str, size: tuple[int, int], windows: int) -> None:
    canvas = canvas_of(image, (96, 128), view)  # type: ignore[arg-type]
    assert (canvas.size, len(canvas.corners)) == (size, windows)
    assert canvas.window == (96, 128)


def test_a_network_without_a_size_sees_images_as_they_are() -> None:
    assert canvas_of((50, 70), None, "auto") == Canvas((50, 70), (50, 70), ((0, 0),))
    with pytest.raises(InputError, match="--view whole"):
        canvas_of((50, 70), None, "windows")


@given(st.integers(4, 12), st.integers(4, 12), st.integers(0, 30), st.integers(0, 30))
def test_what_each_pixel_says_alone_survives_blending(height: int, width: int, down: int, right: int) -> None:
    size = (height + down, width + right)
    canvas = canvas_of(size, (height, width), "windows")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    logits = (torch.from_numpy(part.copy()).permute(2, 0, 1).float() for part in canvas.cut(image))
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    torch.testing.assert_close(blended(canvas, logits), expected, rtol=1e-5, atol=1e-3)


def test_logits_of_one_window_stay_at_their_stride() -> None:
    logits = torch.rand(3, 6, 8)
    assert blended(canvas_of((48, 64), (48, 64), "auto"), iter([logits])) is logits


@given(SIDES)
def test_weights_fall_towards_both_edges_and_are_never_zero(part: int) -> None:
    weights = ramp(part)
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (part + 1) // 2]) >= 0).all()
