"""Eq. (4), and the two ways of shrinking labels to the size of the features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from segadapt.matching import correct_labels, shrink_labels

IDS = st.sampled_from([0, 1, 5, 255])
SAMPLING = st.sampled_from(["aligned", "nearest"])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_correct_labels_are_those_of_equation_4(data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    predicted, labels = (data.draw(hnp.arrays(np.uint8, shape, elements=IDS)) for _ in range(2))
    result = correct_labels(torch.from_numpy(predicted).long(), torch.from_numpy(labels))
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), oracle.correct_labels(predicted, labels))


def test_correct_labels_of_different_sizes_are_refused():
    with pytest.raises((ValueError, TypeError)):  # TypeError: the shape annotation, where it is checked
        correct_labels(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 3, dtype=torch.int64))


@settings(deadline=None, max_examples=100)
@given(st.tuples(*[st.integers(1, 1400)] * 2), st.tuples(*[st.integers(1, 180)] * 2))
def test_nearest_is_torchs_legacy_nearest(full, small):
    row = torch.arange(full[0], dtype=torch.int64)
    column = torch.arange(full[1], dtype=torch.int64)
    for axis, values in ((0, row), (1, column)):
        labels = values[None, :, None] if axis == 0 else values[None, None, :]
        size = (small[0], 1) if axis == 0 else (1, small[1])
        expected = torch.nn.functional.interpolate(labels[None].float(), size=size, mode="nearest")[0].long()
        assert torch.equal(shrink_labels(labels, size, "nearest"), expected)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 1400), st.integers(2, 180))
def test_aligned_takes_the_pixel_nearest_to_the_align_corners_grid(full, small):
    picked = shrink_labels(torch.arange(full)[None, :, None], (small, 1))[0, :, 0].numpy()
    grid = np.arange(small) * (full - 1) / (small - 1)
    assert np.abs(picked - grid).max() <= 0.5 + 1e-9
    assert picked[0] == 0
    assert picked[-1] == full - 1


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 20)] * 2), st.tuples(*[st.integers(1, 9)] * 2), st.sampled_from(["aligned", "nearest"])
)
def test_shrunk_labels_are_those_of_plain_loops(full, small, sampling):
    labels = np.random.default_rng(0).integers(0, 256, (2, *full)).astype(np.uint8)
    found = shrink_labels(torch.from_numpy(labels), small, sampling)
    expected = np.stack([oracle.shrink_labels(image, small, sampling) for image in labels])
    np.testing.assert_array_equal(found, expected)


def test_aligned_rounds_halves_up_and_puts_a_single_feature_over_the_first_pixel():
    assert shrink_labels(torch.arange(4)[None, None], (1, 3)).tolist() == [[[0, 2, 3]]]
    assert shrink_labels(torch.arange(4)[None, None], (1, 1)).tolist() == [[[0]]]


@pytest.mark.parametrize("sampling", ["aligned", "nearest"])
def test_labels_that_have_the_size_stay_as_they_are(sampling):
    labels = torch.arange(60, dtype=torch.uint8).view(2, 5, 6)
    assert torch.equal(shrink_labels(labels, (5, 6), sampling), labels)


def test_shrinking_refuses_an_unknown_sampling_and_an_empty_size():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises((ValueError, TypeError)):
        shrink_labels(labels, (1, 1), "bilinear")
    with pytest.raises(ValueError, match="at least"):
        shrink_labels(labels, (0, 1))
