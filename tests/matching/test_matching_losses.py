"""Eqs. (6) and (8) from feature map to loss, against plain loops; and where gradients must not go."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from segadapt.data.label_spaces import STREETS11 as SPACE
from segadapt.matching import Distance, FeatureBank, matched, matching_losses, region_means

STUFF, THINGS = SPACE.stuff, SPACE.things
IDS = st.sampled_from([*STUFF[:2], *THINGS[:2], 255])
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7))


def random_features(labels, seed):
    return np.random.default_rng(seed).normal(size=(labels.shape[0], 3, *labels.shape[1:]))


def both_regions(labels, seed):
    features = random_features(labels, seed)
    fast = region_means(torch.from_numpy(features), torch.from_numpy(labels), SPACE)
    return fast, oracle.regions(features, labels, STUFF, THINGS)


def both_banks(sources, stuff_size=2, thing_size=4):
    bank = FeatureBank(SPACE, 3, stuff_size, thing_size).double()
    slow = oracle.Bank(STUFF, THINGS, stuff_size, thing_size)
    for seed, labels in enumerate(sources):
        regions, rows = both_regions(labels, seed)
        bank.store(regions)
        slow.store(rows)
    return bank, slow


def street():
    """Two images, the first with a thing class of three instances."""
    labels = np.full((2, 5, 6), STUFF[0], dtype=np.uint8)
    labels[0, 0] = STUFF[1]
    labels[0, 2, ::2] = THINGS[0]
    labels[0, 4, 1] = THINGS[1]
    labels[1, 3, 3:] = THINGS[1]
    return labels


@settings(deadline=None, max_examples=60)
@given(
    st.lists(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=IDS)), max_size=3),
    SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=IDS)),
    st.sampled_from(get_args(Distance)),
    st.sampled_from([1, 2, 3, "full"]),
    st.sampled_from(["sum", "mean"]),
)
def test_losses_are_those_of_plain_loops(sources, target, distance, min_fill, class_reduction):
    bank, slow = both_banks(sources)
    regions, rows = both_regions(target, seed=50)
    found = matching_losses(regions, bank, distance, min_fill, class_reduction)
    expected = oracle.matching_losses(rows, slow, distance, min_fill, class_reduction)
    np.testing.assert_allclose([float(loss) for loss in found], expected, rtol=1e-9, atol=1e-12)
    assert matched(regions, bank, min_fill).tolist() == [slow.is_matched(row.class_index, min_fill) for row in rows]


def test_each_image_and_class_is_one_term_however_many_instances_it_has():
    bank, slow = both_banks([street()])
    regions, rows = both_regions(street(), seed=8)
    distances = [slow.nearest(row.feature, row.class_index) for row in rows]
    counts = [sum((r.image, r.class_index) == (q.image, q.class_index) for q in rows) for r in rows]
    things = [d / n for d, n, row in zip(distances, counts, rows, strict=True) if row.is_thing]
    assert max(counts) == 3
    assert matching_losses(regions, bank)[1].item() == pytest.approx(sum(things))


def test_the_order_of_instances_does_not_matter():
    bank, _ = both_banks([street()])
    regions, _ = both_regions(street(), seed=8)
    shuffled = regions.select(torch.from_numpy(np.random.default_rng(0).permutation(len(regions))))
    for reduction in ("sum", "mean"):
        np.testing.assert_allclose(
            matching_losses(regions, bank, class_reduction=reduction),
            matching_losses(shuffled, bank, class_reduction=reduction),
            rtol=1e-12,
        )


def test_a_flipped_target_has_the_same_losses():
    bank, _ = both_banks([street()])
    labels = torch.from_numpy(street())
    features = torch.from_numpy(random_features(labels, seed=8))
    plain = matching_losses(region_means(features, labels, SPACE), bank)
    flipped = matching_losses(region_means(features.flip(3), labels.flip(2), SPACE), bank)
    np.testing.assert_allclose(plain, flipped, rtol=1e-12)


def test_losses_of_a_batch_are_the_sums_over_its_images():
    bank, _ = both_banks([street()])
    regions, _ = both_regions(street(), seed=8)
    for reduction in ("sum", "mean"):
        whole = matching_losses(regions, bank, class_reduction=reduction)
        images = [
            matching_losses(regions.select(regions.image_index == image), bank, class_reduction=reduction)
            for image in (0, 1)
        ]
        np.testing.assert_allclose(whole, np.sum(images, axis=0), rtol=1e-12)


@pytest.mark.parametrize("class_reduction", ["sum", "mean"])
def test_regions_that_are_not_among_those_asked_for_are_as_if_they_were_not_there(class_reduction):
    bank, _ = both_banks([street()])
    regions, _ = both_regions(street(), seed=8)
    for seed in range(10):
        among = torch.from_numpy(np.random.default_rng(seed).random(len(regions)) < 0.5)
        masked = matching_losses(regions, bank, class_reduction=class_reduction, among=among)
        np.testing.assert_allclose(
            masked, matching_losses(regions.select(among), bank, class_reduction=class_reduction), rtol=1e-12
        )


@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize("class_reduction", ["sum", "mean"])
def test_gradient_of_the_losses_in_the_feature_map(distance, class_reduction):
    bank, _ = both_banks([street()])
    labels = torch.from_numpy(street())
    features = torch.from_numpy(random_features(labels, seed=8)).requires_grad_()

    def losses(f):
        return matching_losses(region_means(f, labels, SPACE), bank, distance, 1, class_reduction)

    assert torch.autograd.gradcheck(losses, features, fast_mode=True)


def test_stuff_loss_reaches_stuff_pixels_and_instance_loss_thing_pixels():
    bank, _ = both_banks([street()])
    labels = torch.from_numpy(street())
    is_thing = torch.isin(labels, torch.tensor(THINGS))
    for which, reached in ((0, ~is_thing), (1, is_thing)):
        features = torch.from_numpy(random_features(labels, seed=8)).requires_grad_()
        matching_losses(region_means(features, labels, SPACE), bank)[which].backward()
        assert features.grad is not None
        assert torch.equal(features.grad.abs().sum(1) > 0, reached)


@pytest.mark.parametrize("distance", get_args(Distance))
def test_nothing_to_match_is_zero_with_a_zero_gradient(distance):
    labels = torch.from_numpy(street())
    for bank, seen in ((both_banks([])[0], labels), (both_banks([street()])[0], labels * 0 + 255)):
        features = torch.from_numpy(random_features(labels, seed=8)).requires_grad_()
        regions = region_means(features, seen, SPACE)
        stuff_loss, instance_loss = matching_losses(regions, bank, distance)
        assert (stuff_loss.item(), instance_loss.item()) == (0, 0)
        assert not bool(matched(regions, bank).any())
        (stuff_loss + instance_loss).backward()
        assert features.grad is not None
        assert torch.count_nonzero(features.grad) == 0


def test_a_class_below_min_fill_adds_neither_value_nor_gradient():
    labels = np.full((1, 2, 2), STUFF[0], dtype=np.uint8)
    both = labels.copy()
    both[0, 0] = STUFF[1]
    bank, _ = both_banks([labels, both])  # two entries of the first class, one of the second
    features = torch.from_numpy(random_features(both, seed=8)).requires_grad_()
    regions = region_means(features, torch.from_numpy(both), SPACE)
    assert matched(regions, bank, 2).tolist() == matched(regions, bank, "full").tolist() == [True, False]
    matching_losses(regions, bank, min_fill=2)[0].backward()
    assert features.grad is not None
    assert torch.count_nonzero(features.grad[0, :, 0]) == 0
    assert torch.count_nonzero(features.grad[0, :, 1]) == 6


def test_what_does_not_fit_is_refused():
    bank, _ = both_banks([])
    regions, _ = both_regions(street(), seed=8)
    with pytest.raises(ValueError, match="min_fill"):
        matching_losses(regions, bank, min_fill=0)
    with pytest.raises((ValueError, TypeError)):  # TypeError: the annotation, where it is checked
        matching_losses(regions, bank, class_reduction="max")
