"""Transforms: labels stay labels, pairs stay aligned, randomness comes from the generator alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segadapt.config import AugmentationConfig
from segadapt.data.transforms import (
    PADDING_RGB,
    augment,
    crop,
    flip,
    resize_image,
    resize_labels,
    shift_colour,
)

EVERYTHING = AugmentationConfig(flip=0.5, scale=(0.5, 2.0), crop=(24, 32), colour_jitter=0.4)


def pair(seed: int, height: int = 30, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = random.choice(np.array([2, 5, 11, 255], np.uint8), (height, width))
    return image, labels


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.one_of(st.none(), st.tuples(st.integers(1, 50), st.integers(1, 50))),
    scale=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 2.5)),
    crop_size=st.one_of(st.none(), st.tuples(st.integers(1, 60), st.integers(1, 60))),
)
def test_no_transform_makes_a_label_that_was_not_there(seed, size, scale, crop_size):
    image, labels = pair(seed)
    augmentation = AugmentationConfig(flip=0.5, scale=scale, crop=crop_size, colour_jitter=0.3)
    new_image, new_labels = augment(image, labels, size, augmentation, np.random.default_rng(seed))
    assert set(np.unique(new_labels)) <= set(np.unique(labels)) | {255}
    assert new_image.shape[:2] == new_labels.shape
    if crop_size is not None:
        assert new_labels.shape == crop_size


def test_defaults_change_nothing():
    image, labels = pair(0)
    new_image, new_labels = augment(image, labels, None, AugmentationConfig(), np.random.default_rng(0))
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_labels, labels)


def test_flip_twice_is_the_identity():
    image, labels = pair(1)
    once = flip(image, labels)
    np.testing.assert_array_equal(once[0][:, 0], image[:, -1])
    twice = flip(*once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], labels)


def test_labels_follow_the_image_through_scale_crop_and_flip():
    # Smooth regions, the label written into the image: after every transform the image must still say it.
    rows, columns = np.mgrid[0:60, 0:80]
    labels = ((rows // 20) * 4 + columns // 20).astype(np.uint8)
    image = np.repeat((labels * 20)[:, :, None], 3, axis=2)
    augmentation = AugmentationConfig(flip=0.5, scale=(0.8, 2.0), crop=(40, 40))
    flipped = 0
    for seed in range(20):
        new_image, new_labels = augment(image, labels, (66, 88), augmentation, np.random.default_rng(seed))
        known = new_labels != 255
        told = np.rint(new_image[:, :, 0] / 20)
        assert (told == new_labels)[known].mean() > 0.9
        flipped += int(new_labels[0, 0] > new_labels[0, -1])
    assert 3 < flipped < 17


@pytest.mark.parametrize("size", [(14, 16), (60, 80), (30, 80), (7, 5), (1, 1)])
def test_resized_labels_are_the_nearest_by_pixel_centres(size):
    _, labels = pair(2)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(labels.shape, size, strict=True)
    )
    np.testing.assert_array_equal(resize_labels(labels, size), labels[np.ix_(rows, columns)])


def test_resize_gives_height_and_width_in_this_order():
    image, labels = pair(3)
    assert resize_image(image, (12, 50)).shape == (12, 50, 3)
    assert resize_labels(labels, (12, 50)).shape == (12, 50)


def test_a_crop_beyond_the_image_is_padded_with_ignore():
    image, labels = pair(4, 6, 5)
    labels[:] = 3
    new_image, new_labels = crop(image, labels, 0, 0, (8, 9))
    assert (new_labels[:6, :5] == 3).all()
    assert (new_labels[6:] == 255).all()
    assert (new_labels[:, 5:] == 255).all()
    np.testing.assert_array_equal(new_image[:6, :5], image)
    assert (new_image[7, 8] == PADDING_RGB).all()


def test_random_crops_reach_every_corner():
    rows, columns = np.mgrid[0:6, 0:7]
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8)
    seen = set()
    for seed in range(200):
        augmentation = AugmentationConfig(crop=(5, 5))
        new_image, _ = augment(image, rows.astype(np.uint8), None, augmentation, np.random.default_rng(seed))
        seen.add(tuple(new_image[0, 0, :2].tolist()))
    assert seen == {(top, left) for top in (0, 1) for left in (0, 1, 2)}


def test_neutral_colour_change_is_the_identity():
    image, _ = pair(5)
    np.testing.assert_array_equal(shift_colour(image, 1.0, 1.0, 1.0, 0.0), image)


def test_each_colour_change_does_what_its_name_says():
    image, _ = pair(6)
    image = image // 4 + 80  # away from both ends, where values are clipped
    grey = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(shift_colour(image, 1.2, 1.0, 1.0, 0.0), image * 1.2, atol=0.51)
    mean = (image @ grey).mean()
    np.testing.assert_allclose(shift_colour(image, 1.0, 0.5, 1.0, 0.0), (image + mean) / 2, atol=1.1)
    without = shift_colour(image, 1.0, 1.0, 0.0, 0.0)
    np.testing.assert_allclose(without, np.repeat((image @ grey)[:, :, None], 3, axis=2), atol=0.51)
    turned = shift_colour(image, 1.0, 1.0, 1.0, 0.05)
    assert np.abs(turned.astype(int) - image).max() > 5
    np.testing.assert_allclose(turned @ grey, image @ grey, atol=0.6)
    np.testing.assert_allclose(shift_colour(turned, 1.0, 1.0, 1.0, -0.05), image, atol=1.5)


def test_jitter_leaves_labels_and_moves_every_image_differently():
    image, labels = pair(7)
    results = []
    for seed in range(3):
        jitter = AugmentationConfig(colour_jitter=0.5)
        new_image, new_labels = augment(image, labels, None, jitter, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_labels, labels)
        results.append(new_image.mean())
    assert len(set(results)) == 3


def test_the_generator_decides_everything():
    image, labels = pair(8)
    first = augment(image, labels, (40, 50), EVERYTHING, np.random.default_rng(9))
    again = augment(image, labels, (40, 50), EVERYTHING, np.random.default_rng(9))
    other = augment(image, labels, (40, 50), EVERYTHING, np.random.default_rng(10))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
