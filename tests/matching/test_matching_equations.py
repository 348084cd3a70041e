"""Eqs. (4) to (8) and Algorithm 1 together: several source batches, then a target batch, against plain loops.

The generated histories contain every awkward case on purpose; `properties` says which ones a history has, and each is
tested to occur both in a fixed history and in the generated ones.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from segadapt.data.label_spaces import CITYSCAPES, STREETS11, SYNTHIA13, LabelSpace
from segadapt.matching import (
    Distance,
    FeatureBank,
    correct_labels,
    matched,
    matching_losses,
    region_means,
)

CHANNELS = 3


def space_of(kinds: str) -> LabelSpace:
    """A class list from one letter a class: s for stuff, t for a thing."""
    return LabelSpace(
        name=kinds,
        names=tuple(f"class {k}" for k in range(len(kinds))),
        colours=tuple((k, 0, 0) for k in range(len(kinds))),
        ids=tuple((k,) for k in range(len(kinds))),
        stuff=tuple(k for k, kind in enumerate(kinds) if kind == "s"),
        things=tuple(k for k, kind in enumerate(kinds) if kind == "t"),
    )


SPACES = {
    space.name: space
    for space in (CITYSCAPES, SYNTHIA13, STREETS11, *map(space_of, ("s", "t", "ttsts", "tttt", "sss", "st" * 60)))
}


@dataclass(frozen=True)
class History:
    """Source batches of labels and predictions (B, h, w), and the target batch's labels; features from the seed."""

    space: str
    sources: tuple[tuple[np.ndarray, np.ndarray], ...]
    target: np.ndarray
    stuff_size: int = 3
    thing_size: int = 5
    max_instances: int = 10
    seed: int = 0

    def features(self, number: int) -> np.ndarray:
        labels = self.target if number == len(self.sources) else self.sources[number][0]
        batch, height, width = labels.shape
        return np.random.default_rng([self.seed, number]).normal(size=(batch, CHANNELS, height, width))


def with_oracle(history):
    """The oracle's bank after all sources, its target regions, and the names of all cases the history contains."""
    space = SPACES[history.space]
    bank = oracle.Bank(space.stuff, space.things, history.stuff_size, history.thing_size)
    cases = {f"space {history.space}"}
    seen = []
    for number, (labels, predicted) in enumerate(history.sources):
        correct = oracle.correct_labels(predicted, labels)
        if any((image == 255).all() for image in labels):
            cases.add("source image all ignored")
        if any((right == 255).all() and (image != 255).any() for right, image in zip(correct, labels, strict=True)):
            cases.add("source image all wrong")
        cases |= instance_cases("source", correct, space, history.max_instances)
        found = oracle.regions(history.features(number), correct, space.stuff, space.things, history.max_instances)
        seen.append({region.class_index for region in found})
        for k, ring in bank.slots.items():
            pushed, now = sum(region.class_index == k for region in found), bank.counter[k] % len(ring)
            if 0 < now < len(ring) < now + pushed and pushed <= len(ring):
                cases.add("wrapped in mid-push")
            if pushed > len(ring):
                cases.add("push larger than the ring")
        bank.store(found)
    if any(one - other for one in seen for other in seen):
        cases.add("class absent from a source")
    if any((image == 255).all() for image in history.target):
        cases.add("target image all ignored")
    if max(len(labels) for labels in (*(labels for labels, _ in history.sources), history.target)) > 1:
        cases.add("batch > 1")
    cases |= instance_cases("target", history.target, space, history.max_instances)
    target = history.features(len(history.sources))
    regions = oracle.regions(target, history.target, space.stuff, space.things, history.max_instances)
    for k in {region.class_index for region in regions}:
        kind = "thing" if k in space.things else "stuff"
        cases.add(f"{kind} bank {state_of(bank.counter[k], len(bank.slots[k]))}")
    return bank, regions, cases


def state_of(stored, size):
    if stored == 0:
        return "empty"
    if stored < size:
        return "partly filled"
    return "full" if stored == size else "overfilled"


def instance_cases(domain, maps, space, most):
    cases = set()
    for labels in maps:
        for k in set(np.unique(labels).tolist()) & set(space.things):
            areas = sorted(map(len, oracle.connected_regions(labels, k)), reverse=True)
            if 1 in areas:
                cases.add(f"{domain}: one-pixel instance")
            if len(areas) > 10 == most:
                cases.add(f"{domain}: more than ten instances")
            if len(areas) > most and areas[most - 1] == areas[most]:
                cases.add(f"{domain}: tie in area at the cut")
            if len(set(areas)) < len(areas):
                cases.add(f"{domain}: tie in area")
    return cases


def dots(k, kept=None, background=255):
    """Twenty one-pixel instances of a class, or those of them that are kept."""
    labels = np.full((8, 9), background, dtype=np.uint8)
    cells = [(row, column) for row in range(0, 8, 2) for column in range(0, 9, 2)]
    for number, cell in enumerate(cells):
        if kept is None or kept[number]:
            labels[cell] = k
    return labels


@st.composite
def label_maps(draw, ids, shape):
    """One map: noise, a few rectangles, isolated pixels, or nothing but 255."""
    ids_or_none = st.sampled_from([*ids, 255])
    kind = draw(st.sampled_from(["noise", "rectangles", "dots", "ignored"]))
    if kind == "noise":
        return draw(hnp.arrays(np.uint8, shape, elements=ids_or_none))
    labels = np.full(shape, 255, dtype=np.uint8)
    if kind == "rectangles":
        labels[:] = draw(ids_or_none)
        for _ in range(draw(st.integers(1, 4))):
            top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
            labels[top : top + draw(st.integers(1, 4)), left : left + draw(st.integers(1, 4))] = draw(ids_or_none)
    elif kind == "dots":
        labels[:] = draw(ids_or_none)
        labels[::2, ::2] = draw(st.sampled_from(ids))
    return labels


@st.composite
def histories(draw):
    space = SPACES[draw(st.sampled_from(sorted(SPACES)))]
    ids = draw(st.lists(st.integers(0, space.num_classes - 1), min_size=1, max_size=4, unique=True))
    if draw(st.booleans()):  # ids of no class are as good as ignored
        ids.append(min(space.num_classes, 254))
    sizes = st.tuples(st.integers(4, 8), st.integers(5, 9))

    def batch(largest=2):
        shape = draw(sizes)
        return np.stack([draw(label_maps(ids, shape)) for _ in range(draw(st.integers(1, largest)))])

    sources = []
    for _ in range(draw(st.sampled_from([0, 1, 2, 3, 3]))):
        labels = batch()
        wrong_one_in = draw(st.sampled_from([1, 2, 10, 1000]))
        wrong = np.random.default_rng(draw(st.integers(0, 99))).integers(0, wrong_one_in, labels.shape) == 0
        predicted = np.where(wrong, (labels.astype(int) + 1) % space.num_classes, labels).astype(np.uint8)
        predicted[labels == 255] = draw(st.sampled_from(ids))
        sources.append((labels, predicted))
    return History(
        space.name,
        tuple(sources),
        batch(),
        stuff_size=draw(st.integers(1, 3)),
        thing_size=draw(st.sampled_from([1, 3, 6, 12, 30])),
        max_instances=draw(st.sampled_from([10, 10, 1, 3])),
        seed=draw(st.integers(0, 9)),
    )


def right(labels):
    return labels, labels


ROAD, SKY, CAR, PERSON = STREETS11.stuff[0], STREETS11.stuff[-1], STREETS11.things[0], STREETS11.things[-1]
NOTHING = np.full((1, 8, 9), 255, dtype=np.uint8)
CARS = dots(CAR, background=ROAD)[None]
FEW = [number in (0, 7, 13) for number in range(20)]
THREE_CARS = dots(CAR, FEW, ROAD)[None]
LARGE_AND_SMALL = np.stack([dots(CAR, background=SKY), dots(PERSON, FEW, CAR)])
LARGE_AND_SMALL[0, 1, :2] = CAR  # one instance of more than a pixel among equal ones
FIXED = [
    History("streets11", (), CARS),
    History("streets11", (right(NOTHING), right(THREE_CARS)), np.concatenate([NOTHING, CARS])),
    History("streets11", (right(CARS), (CARS, CARS * 0 + SKY)), LARGE_AND_SMALL, thing_size=10, stuff_size=1),
    History("streets11", (right(THREE_CARS),) * 2, THREE_CARS, stuff_size=2, thing_size=6),
    History("streets11", (right(THREE_CARS), right(LARGE_AND_SMALL)), LARGE_AND_SMALL, thing_size=12),
    History("streets11", (right(CARS),) * 2, CARS, stuff_size=1, thing_size=4),
    *(History(name, (right(np.zeros((2, 4, 5), np.uint8)),), np.zeros((1, 5, 4), np.uint8)) for name in sorted(SPACES)),
]
ALL_CASES = {f"space {name}" for name in SPACES} | {
    "class absent from a source",
    "source image all ignored",
    "source image all wrong",
    "target image all ignored",
    "batch > 1",
    "wrapped in mid-push",
    "push larger than the ring",
    *(
        f"{domain}: {case}"
        for domain in ("source", "target")
        for case in ("one-pixel instance", "more than ten instances", "tie in area", "tie in area at the cut")
    ),
    *(
        f"{kind} bank {state}"
        for kind in ("stuff", "thing")
        for state in ("empty", "partly filled", "full", "overfilled")
    ),
}


def fixed_examples(test):
    """The fixed histories as examples of a test, under the default options."""
    for history in FIXED:
        test = example(history, "l1_mean", 1, "sum")(test)
    return test


def test_the_fixed_histories_contain_every_case():
    assert set().union(*(with_oracle(history)[2] for history in FIXED)) == ALL_CASES


@pytest.mark.parametrize("case", sorted(ALL_CASES))
def test_the_generated_histories_contain_every_case(case):
    options = settings(max_examples=2000, derandomize=True, database=None, phases=[Phase.generate], deadline=None)
    assert case in with_oracle(find(histories(), lambda history: case in with_oracle(history)[2], settings=options))[2]


@settings(deadline=None, max_examples=100)
@given(
    histories(),
    st.sampled_from(get_args(Distance)),
    st.sampled_from([1, 2, 3, "full"]),
    st.sampled_from(["sum", "mean"]),
)
@fixed_examples
def test_a_history_ends_as_in_plain_loops(history, distance, min_fill, class_reduction):
    slow, expected_regions, _ = with_oracle(history)
    space = SPACES[history.space]
    bank = FeatureBank(space, CHANNELS, history.stuff_size, history.thing_size).double()
    for number, (labels, predicted) in enumerate(history.sources):
        right_labels = correct_labels(torch.from_numpy(predicted).long(), torch.from_numpy(labels))
        features = torch.from_numpy(history.features(number))
        bank.store(region_means(features, right_labels, space, history.max_instances))

    for k in range(space.num_classes):
        assert int(bank.pushed[k]) == slow.counter[k]
        held = np.array(slow.entries(k)).reshape(-1, CHANNELS)
        np.testing.assert_allclose(bank.entries(k).numpy(), held, rtol=1e-12, atol=1e-14)

    features = torch.from_numpy(history.features(len(history.sources)))
    regions = region_means(features, torch.from_numpy(history.target), space, history.max_instances)
    assert regions.class_index.tolist() == [region.class_index for region in expected_regions]
    assert regions.image_index.tolist() == [region.image for region in expected_regions]
    assert regions.area.tolist() == [region.area for region in expected_regions]
    used = [slow.is_matched(region.class_index, min_fill) for region in expected_regions]
    assert matched(regions, bank, min_fill).tolist() == used
    losses = matching_losses(regions, bank, distance, min_fill, class_reduction)
    expected = oracle.matching_losses(expected_regions, slow, distance, min_fill, class_reduction)
    np.testing.assert_allclose([float(loss) for loss in losses], expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(histories())
def test_the_gradient_of_a_history_is_the_sign_of_each_difference(history):
    """With the default distance: weight / (area * channels) * sign on the pixels of a region, 0 elsewhere.

    And it ends there: source features and the bank get none.
    """
    slow, expected_regions, _ = with_oracle(history)
    space = SPACES[history.space]
    bank = FeatureBank(space, CHANNELS, history.stuff_size, history.thing_size).double()
    sources = []
    for number, (labels, predicted) in enumerate(history.sources):
        features = torch.from_numpy(history.features(number)).requires_grad_()
        right_labels = correct_labels(torch.from_numpy(predicted).long(), torch.from_numpy(labels))
        bank.store(region_means(features, right_labels, space, history.max_instances))
        sources.append(features)
    stored = bank.features.clone()

    features = torch.from_numpy(history.features(len(history.sources))).requires_grad_()
    regions = region_means(features, torch.from_numpy(history.target), space, history.max_instances)
    sum(matching_losses(regions, bank)).backward()

    expected = np.zeros(features.shape)
    for region in expected_regions:
        slot = slow.nearest_slot(region.feature, region.class_index)
        if slot < 0:
            continue
        same = [r for r in expected_regions if (r.image, r.class_index) == (region.image, region.class_index)]
        sign = np.sign(region.feature - slow.slots[region.class_index][slot])
        for row, column in region.pixels:
            expected[region.image, :, row, column] = sign / (len(same) * region.area * CHANNELS)
    assert features.grad is not None
    np.testing.assert_allclose(features.grad.numpy(), expected, rtol=1e-9, atol=1e-14)
    assert all(source.grad is None for source in sources)
    assert not bank.features.requires_grad
    assert torch.equal(bank.features, stored)
