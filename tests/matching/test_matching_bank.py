"""The rings of Algorithm 1 and the search for the nearest entry, against a bank that writes one by one."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from segadapt.data.label_spaces import STREETS11 as SPACE
from segadapt.matching import Distance, FeatureBank, Regions

CHANNELS = 3
CLASSES = st.integers(0, SPACE.num_classes - 1)
FEW_CLASSES = st.sampled_from([SPACE.stuff[0], SPACE.things[0], SPACE.things[-1]])
PUSHES = st.lists(st.lists(FEW_CLASSES, max_size=12), max_size=6)
DISTANCES = st.sampled_from(get_args(Distance))


def make_regions(classes, seed=0):
    """Regions of one image with random features, and the oracle's own list of them."""
    class_index = torch.tensor(classes, dtype=torch.int64)
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(classes), CHANNELS)))
    is_thing = torch.tensor([k in SPACE.things for k in classes], dtype=torch.bool)
    zeros = torch.zeros_like(class_index)
    regions = Regions(features, class_index, zeros, zeros + 1, is_thing)
    rows = zip(classes, features.numpy(), strict=True)
    return regions, [oracle.Region(0, k, k in SPACE.things, [(0, 0)], feature) for k, feature in rows]


def make_banks(pushes, stuff_size=3, thing_size=5):
    """Both banks after the same pushes (lists of classes)."""
    bank = FeatureBank(SPACE, CHANNELS, stuff_size, thing_size).double()
    slow = oracle.Bank(SPACE.stuff, SPACE.things, stuff_size, thing_size)
    for number, classes in enumerate(pushes):
        regions, rows = make_regions(classes, seed=number)
        bank.store(regions)
        slow.store(rows)
    return bank, slow


@settings(deadline=None, max_examples=80)
@given(PUSHES)
def test_store_is_sequential_writing(pushes):
    bank, slow = make_banks(pushes)
    assert bank.pushed.tolist() == [slow.counter[k] for k in range(SPACE.num_classes)]
    assert bank.filled.tolist() == [len(slow.entries(k)) for k in range(SPACE.num_classes)]
    for k in range(SPACE.num_classes):
        expected = np.array(slow.entries(k)).reshape(-1, CHANNELS)
        np.testing.assert_array_equal(bank.entries(k).numpy(), expected)


def test_a_push_that_wraps_keeps_every_entry():
    bank, _ = make_banks([[SPACE.things[0]] * 4])
    regions, _ = make_regions([SPACE.things[0]] * 3, seed=9)
    before = bank.entries(SPACE.things[0]).clone()
    bank.store(regions)
    expected = torch.stack([*regions.features[1:], *before[2:], regions.features[0]])
    assert torch.equal(bank.entries(SPACE.things[0]), expected)


@settings(deadline=None, max_examples=60)
@given(PUSHES, st.lists(CLASSES, max_size=15), DISTANCES)
def test_nearest_is_the_minimum_over_the_written_slots(pushes, classes, distance):
    bank, slow = make_banks(pushes)
    regions, rows = make_regions(classes, seed=99)
    found = bank.nearest(regions.features, regions.class_index, distance)
    expected = [slow.nearest(row.feature, row.class_index, distance) for row in rows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_class_without_entries_is_infinitely_far_and_sends_no_gradient():
    bank, _ = make_banks([[SPACE.stuff[0]]])
    features = torch.randn(2, CHANNELS, dtype=torch.float64, requires_grad=True)
    for distance in get_args(Distance):
        features.grad = None
        found = bank.nearest(features, torch.tensor([SPACE.stuff[0], SPACE.stuff[1]]), distance)
        assert found.isinf().tolist() == [False, True]
        found.sum().backward()
        assert features.grad is not None
        assert bool(features.grad.isfinite().all())
        assert features.grad.abs().sum(1).gt(0).tolist() == [True, False]


@pytest.mark.parametrize("distance", get_args(Distance))
def test_a_feature_on_its_entry_has_distance_zero_and_a_finite_gradient(distance):
    bank, _ = make_banks([[SPACE.stuff[0]]])
    features = bank.entries(SPACE.stuff[0]).clone().requires_grad_()
    found = bank.nearest(features, torch.tensor([SPACE.stuff[0]]), distance)
    assert found.item() == pytest.approx(0, abs=1e-12)
    found.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("distance", get_args(Distance))
def test_gradients_flow_to_the_features_and_not_to_the_bank(distance):
    bank, _ = make_banks([[SPACE.stuff[0], SPACE.things[0], SPACE.things[0]]])
    class_index = torch.tensor([SPACE.things[0], SPACE.stuff[0], SPACE.things[0]])
    features = torch.randn(3, CHANNELS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: bank.nearest(f, class_index, distance), features)
    assert not any(buffer.requires_grad for buffer in bank.buffers())
    assert not list(bank.parameters())


def test_storing_detaches_and_later_stores_do_not_disturb_a_pending_backward():
    bank, _ = make_banks([[SPACE.stuff[0]]])
    regions, _ = make_regions([SPACE.stuff[0]] * 2, seed=5)
    regions.features.requires_grad_()
    loss = bank.nearest(regions.features, regions.class_index, "l2").sum()
    bank.store(regions)
    assert bank.features.grad_fn is None
    assert not bank.features.requires_grad
    loss.backward()
    assert regions.features.grad is not None
    np.testing.assert_allclose(torch.linalg.vector_norm(regions.features.grad, dim=1), 1)


@settings(deadline=None, max_examples=25)
@given(PUSHES, PUSHES)
def test_a_bank_that_was_saved_continues_as_one_that_was_not(before, after):
    bank, _ = make_banks(before)
    resumed = FeatureBank(SPACE, CHANNELS, 3, 5).double()
    resumed.load_state_dict(bank.state_dict())
    for number, classes in enumerate(after):
        regions, _ = make_regions(classes, seed=1000 + number)
        bank.store(regions)
        resumed.store(regions)
    assert set(bank.state_dict()) == {"features", "pushed"}
    for name, value in bank.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_the_bank_is_float32_whatever_autocast_says():
    bank = FeatureBank(SPACE, CHANNELS)
    regions, _ = make_regions([SPACE.stuff[0], SPACE.things[0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bank.store(regions)
        low = regions.features.to(torch.bfloat16)
        found = [bank.nearest(low, regions.class_index, distance) for distance in get_args(Distance)]
    assert bank.features.dtype == torch.float32
    assert all(each.dtype == torch.float32 for each in found)
    assert found[0].tolist() == pytest.approx((low.float() - regions.features.float()).abs().mean(1).tolist())


def test_counts_stay_on_the_host_and_are_whole_numbers():
    bank = FeatureBank(SPACE, CHANNELS).half().to("meta")
    assert (bank.features.device.type, bank.features.dtype) == ("meta", torch.float16)
    assert {(each.device.type, each.dtype) for each in (bank.pushed, bank.filled, bank.ring_start)} == {
        ("cpu", torch.int64)
    }


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        FeatureBank(SPACE, CHANNELS, stuff_size=0)
    bank, _ = make_banks([])
    with pytest.raises((ValueError, TypeError)):  # TypeError: the annotation, where it is checked
        bank.nearest(torch.zeros(1, CHANNELS), torch.zeros(1, dtype=torch.int64), "l3")
