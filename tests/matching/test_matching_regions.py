"""Regions and their mean features, Eqs. (5) and (7), against flood fill and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from segadapt.data.label_spaces import CITYSCAPES
from segadapt.data.label_spaces import STREETS11 as SPACE
from segadapt.matching import region_means

STUFF, THINGS = SPACE.stuff, SPACE.things


@st.composite
def label_maps(draw, largest=9):
    """Label maps (B, h, w) of two stuff and two thing classes, ignored pixels and ids outside the space."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    ids = draw(st.sampled_from([[THINGS[0], 255], [*STUFF[:2], *THINGS[:2], 255], [THINGS[-1], STUFF[0], 200]]))
    return draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(ids)))


def random_features(shape, channels=3, seed=0):
    batch, height, width = shape
    return np.random.default_rng(seed).normal(size=(batch, channels, height, width))


def assert_equals_oracle(regions, expected, tolerance=1e-12):
    assert len(regions) == len(expected)
    assert regions.class_index.tolist() == [region.class_index for region in expected]
    assert regions.image_index.tolist() == [region.image for region in expected]
    assert regions.area.tolist() == [region.area for region in expected]
    assert regions.is_thing.tolist() == [region.is_thing for region in expected]
    for feature, region in zip(regions.features.detach().numpy(), expected, strict=True):
        np.testing.assert_allclose(feature, region.feature, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(label_maps(), st.integers(1, 12), st.sampled_from([4, 8]), st.integers(1, 3))
def test_region_means_are_those_of_plain_loops(labels, max_instances, connectivity, min_area):
    features = random_features(labels.shape)
    regions = region_means(
        torch.from_numpy(features), torch.from_numpy(labels), SPACE, max_instances, connectivity, min_area
    )
    assert regions.features.dtype == torch.float64
    expected = oracle.regions(features, labels, STUFF, THINGS, max_instances, connectivity, min_area)
    assert_equals_oracle(regions, expected)


def test_of_more_than_ten_instances_the_largest_ten_are_taken_and_ties_go_to_the_first_pixel():
    labels = np.full((1, 9, 29), 255, dtype=np.uint8)
    labels[0, ::4, ::2] = THINGS[1]  # 45 single pixels
    labels[0, 1:3, 28] = THINGS[1]  # one of three
    labels[0, 7, 0] = THINGS[1]  # one of two
    features = random_features(labels.shape)
    regions = region_means(torch.from_numpy(features), torch.from_numpy(labels), SPACE)
    assert regions.area.tolist() == [3, 2] + [1] * 8
    assert_equals_oracle(regions, oracle.regions(features, labels, STUFF, THINGS))


def test_a_noise_map_with_thousands_of_regions():
    labels = np.random.default_rng(1).integers(0, 19, (1, 60, 90)).astype(np.uint8)
    features = random_features(labels.shape)
    regions = region_means(torch.from_numpy(features), torch.from_numpy(labels), CITYSCAPES, max_instances=10_000)
    expected = oracle.regions(features, labels, CITYSCAPES.stuff, CITYSCAPES.things, 10_000)
    assert len(expected) > 1_000
    assert_equals_oracle(regions, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_and_values_outside_the_space(dtype):
    labels = torch.tensor([[[0, 0, 100], [-1, 11, 2]]]).to(dtype)  # -1 is 255 in uint8
    regions = region_means(torch.ones(1, 2, 2, 3), labels, SPACE)
    assert sorted(zip(regions.class_index.tolist(), regions.area.tolist(), strict=True)) == [(0, 2), (2, 1)]


def test_an_image_without_labels_has_no_regions_and_its_batch_keeps_its_numbers():
    labels = torch.full((3, 4, 5), 255)
    features = torch.randn(3, 2, 4, 5, requires_grad=True)
    nothing = region_means(features, labels, SPACE)
    assert len(nothing) == 0
    assert nothing.features.shape == (0, 2)
    nothing.features.sum().backward()
    assert features.grad is not None
    assert torch.count_nonzero(features.grad) == 0
    labels[2, 0, 0] = STUFF[0]
    assert region_means(features, labels, SPACE).image_index.tolist() == [2]


def test_a_one_pixel_region_has_the_feature_of_its_pixel():
    labels = torch.full((1, 4, 5), 255)
    labels[0, 1, 3] = THINGS[0]
    features = torch.randn(1, 7, 4, 5)
    assert torch.equal(region_means(features, labels, SPACE).features[0], features[0, :, 1, 3])


@settings(deadline=None, max_examples=20)
@given(label_maps())
def test_a_flipped_image_has_the_same_regions(labels):
    features = random_features(labels.shape)
    features[:, 0] = 1  # sorted by what does not depend on the order of equal areas
    plain, flipped = (
        region_means(torch.from_numpy(f.copy()), torch.from_numpy(x.copy()), SPACE, max_instances=100)
        for f, x in ((features, labels), (features[..., ::-1], labels[..., ::-1]))
    )
    assert torch.equal(plain.class_index, flipped.class_index)
    assert torch.equal(plain.area, flipped.area)
    rows = [
        np.array(sorted(np.c_[r.image_index, r.class_index, r.area, r.features.numpy().round(9)].tolist()))
        for r in (plain, flipped)
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(label_maps(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_memory_layout_precision_and_autocast_change_nothing(labels, dtype):
    features = torch.from_numpy(random_features(labels.shape, channels=5)).to(dtype)
    plain = region_means(features.float(), torch.from_numpy(labels), SPACE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = region_means(features.to(memory_format=torch.channels_last), torch.from_numpy(labels), SPACE)
    assert cast.features.dtype == torch.float32
    torch.testing.assert_close(cast.features, plain.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_mean_is_one_over_the_area_on_its_pixels(layout):
    labels = torch.from_numpy(np.random.default_rng(3).choice([*STUFF[:2], THINGS[0], 255], (2, 4, 5)))
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: region_means(f, labels, SPACE).features, features, fast_mode=True)
    region_means(features, labels, SPACE, max_instances=100).features.sum().backward()
    assert features.grad is not None
    assert features.grad.is_contiguous(memory_format=layout)
    assert bool((features.grad.sum(1)[labels == 255] == 0).all())
    stuff = labels[0] == STUFF[0]
    np.testing.assert_allclose(features.grad[0, 0][stuff], 1 / int(stuff.sum()))


def test_select_keeps_rows_by_mask_or_by_index_and_their_gradient():
    labels = torch.tensor([[[STUFF[0], THINGS[0], 255, THINGS[0]]]])
    features = torch.arange(4.0).view(1, 1, 1, 4).requires_grad_()
    regions = region_means(features, labels, SPACE)
    assert regions.select(regions.is_thing).features.flatten().tolist() == [1, 3]
    backwards = regions.select(torch.tensor([2, 1]))
    assert backwards.features.flatten().tolist() == [3, 1]
    backwards.features[0].sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0, 0, 0, 1]
    assert len(regions.select(torch.zeros(3, dtype=torch.bool))) == 0


def test_what_does_not_fit_is_refused():
    features, labels = torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4, dtype=torch.int64)
    with pytest.raises((ValueError, TypeError)):  # TypeError: the annotation, where it is checked
        region_means(features, labels[:, :2], SPACE)
    with pytest.raises((ValueError, TypeError)):
        region_means(features, labels, SPACE, connectivity=6)
    with pytest.raises(ValueError, match="at least 1"):
        region_means(features, labels, SPACE, max_instances=0)
    with pytest.raises(ValueError, match="at least 1"):
        region_means(features, labels, SPACE, min_area=0)
