"""The equations outside the matching room against the plain loops of oracle.py, and whole steps of a real network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from segadapt.adaptation.pseudo_labels import confident_prediction
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import (
    TrainState,
    adaptation_step,
    cross_entropy,
    domain_loss,
    learning_rate_factor,
    upsample,
)
from segadapt.adaptation.trainer import new_state
from segadapt.config import (
    ClassifierAgreement,
    Experiment,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    OptimiserConfig,
    PseudoLabelConfig,
    ScheduleConfig,
)
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import Batch
from segadapt.networks.deeplab import ASPP_DILATIONS, Classifier

SIDES = st.integers(1, 9)


def noise(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def label_batches(largest_class: int) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
    ids = st.sampled_from([*range(largest_class + 1), 255])
    return shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=ids))


@settings(deadline=None, max_examples=40)
@given(label_batches(3), st.integers(0, 99), st.sampled_from([0.1, 1.0, 10.0]))
@example(np.full((2, 3, 4), 255), 0, 1.0)  # all ignored
@example(np.stack([np.full((3, 4), 255), np.full((3, 4), 2)]), 1, 1.0)  # one image of two ignored
@example(np.array([[[255, 3], [255, 255]]]), 2, 10.0)  # one pixel
def test_cross_entropy_is_that_of_eqs_1_and_10(labels: np.ndarray, seed: int, scale: float) -> None:
    logits = noise((len(labels), 4, *labels.shape[1:]), seed, scale)
    found = float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    assert found == pytest.approx(oracle.cross_entropy_mean(logits, labels), rel=1e-10)
    total, counted = oracle.cross_entropy_sum(logits, labels)
    assert found * counted == pytest.approx(total, rel=1e-10), "the paper's sum is ours times the labelled pixels"


JUDGED = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.floats(-12, 12))


@settings(deadline=None, max_examples=40)
@given(JUDGED, JUDGED, st.sampled_from(["vanilla", "lsgan"]))
def test_domain_losses_are_those_of_eqs_2_and_3(source: np.ndarray, target: np.ndarray, gan: str) -> None:
    on_source, on_target = (torch.from_numpy(judged)[None, None] for judged in (source, target))
    fooling = domain_loss(on_target, is_target=False, gan=gan)
    halves = domain_loss(on_source, is_target=False, gan=gan), domain_loss(on_target, is_target=True, gan=gan)
    assert float(fooling) == pytest.approx(oracle.adversarial_loss(target, gan), rel=1e-9, abs=1e-15)
    assert [float(half) for half in halves] == pytest.approx(
        oracle.discriminator_halves(source, target, gan), rel=1e-9, abs=1e-15
    )
    assert float(sum(halves)) / 2 == pytest.approx(oracle.discriminator_loss(source, target, gan), rel=1e-9)
    assert float(fooling) * target.size == pytest.approx(
        oracle.adversarial_loss(target, gan, reduction="sum"), rel=1e-9, abs=1e-13
    )


@settings(deadline=None, max_examples=40)
@given(st.tuples(SIDES, SIDES), st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(0, 99))
@example((1, 1), (5, 7), 0)
@example((6, 8), (1, 1), 0)
@example((5, 9), (33, 65), 0)
@example((4, 4), (4, 4), 0)
def test_logits_are_resized_with_their_corners_on_the_labels_corners(
    small: tuple[int, int], full: tuple[int, int], seed: int
) -> None:
    logits = noise((2, 3, *small), seed)
    found = upsample(torch.from_numpy(logits), torch.zeros(2, *full, dtype=torch.int64))
    expected = np.stack([oracle.resize(image, full) for image in logits])
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.tuples(SIDES, SIDES), st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(0, 99))
@example((1, 1), (3, 3), 0)
def test_confidence_is_the_softmax_first_and_then_the_resize(
    small: tuple[int, int], full: tuple[int, int], seed: int
) -> None:
    logits = noise((4, *small), seed, 3.0)
    labels, confidence = confident_prediction(torch.from_numpy(logits), full)
    probabilities = oracle.resize(oracle.softmax_map(logits), full)
    np.testing.assert_allclose(confidence, probabilities.max(0), rtol=1e-6)
    first, second = np.sort(probabilities, axis=0)[[-1, -2]]
    decided = first - second > 1e-9
    assert np.array_equal(labels.numpy()[decided], oracle.prediction(probabilities)[decided])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 120), st.integers(1, 100), st.sampled_from([0.0, 0.5, 0.9, 1.0, 2.0]), st.integers(0, 30))
@example(0, 1, 0.9, 0)
@example(100, 100, 0.9, 10)  # the end
@example(120, 100, 0.9, 0)  # beyond it
@example(9, 100, 0.9, 10)  # the last step of the warm-up
@example(10, 100, 0.9, 10)
def test_the_schedule(step: int, decay_steps: int, power: float, warmup_steps: int) -> None:
    found = 2.5e-4 * learning_rate_factor(step, decay_steps, power, warmup_steps)
    expected = oracle.learning_rate(2.5e-4, step, decay_steps, power, warmup_steps)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("branches", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 14)])
def test_the_classifier_is_a_sum_of_dilated_convolutions(branches: int, size: tuple[int, int]) -> None:
    classifier, taps = classifier_and_taps(channels=3, num_classes=4, branches=branches)
    features = noise((2, 3, *size), seed=5)
    found = classifier(torch.from_numpy(features)).detach()
    for image in range(2):
        np.testing.assert_allclose(found[image], oracle.aspp(features[image], *taps), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("branches", [2, 4])
def test_a_mean_feature_is_classified_as_an_image_of_one_pixel(branches: int) -> None:
    classifier, taps = classifier_and_taps(channels=3, num_classes=4, branches=branches)
    features = noise((60, 3), seed=6)
    found = classifier.classify(torch.from_numpy(features)).argmax(1).tolist()
    assert found == [oracle.classify(feature, *taps) for feature in features]
    assert len(set(found)) >= 3


def taps_of(classifier: Classifier) -> tuple[list[np.ndarray], list[np.ndarray], tuple[int, ...]]:
    """Weights, biases and dilations as the oracle takes them."""
    weights, biases = ([b.get_parameter(n).detach().numpy() for b in classifier.branches] for n in ("weight", "bias"))
    return weights, biases, ASPP_DILATIONS[: len(weights)]


def classifier_and_taps(channels: int, num_classes: int, branches: int) -> tuple[Classifier, tuple]:
    classifier = Classifier(channels, num_classes, branches).double()
    for seed, parameter in enumerate(classifier.parameters()):
        parameter.data.copy_(torch.from_numpy(noise(tuple(parameter.shape), seed)))
    return classifier, taps_of(classifier)


@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_gradient_of_the_cross_entropy(ignored: str) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 3, 3)))
    if ignored != "none":
        labels[0 if ignored == "some" else slice(None)] = 255
    logits = torch.from_numpy(noise((2, 4, 3, 3), 1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits)
    cross_entropy(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).tolist() == (labels != 255).tolist()


@pytest.mark.parametrize("gan", ["vanilla", "lsgan"])
@pytest.mark.parametrize("is_target", [False, True])
def test_gradient_of_the_domain_losses(gan: str, is_target: bool) -> None:
    judged = torch.from_numpy(noise((2, 1, 2, 3), 2, 3.0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: domain_loss(x, is_target, gan), judged)


NETWORK = NetworkConfig("efficientnet_lite0", "random", batch_norm="source_target_separate")
BASE = Experiment(
    network=NETWORK,
    loss=LossConfig(adversarial=0.1, matching=0.1),
    optimiser=OptimiserConfig(learning_rate=0.001),
    schedule=ScheduleConfig(steps=10),
)
EXPERIMENTS = {
    "step 1": row_of(BASE, "sim"),
    "step 2": BASE,
    "equations as printed": replace(
        BASE,
        matching=MatchingConfig(
            distance="l1_squared",
            label_sampling="nearest",
            classifier_agreement=ClassifierAgreement(False, False, False),
        ),
        pseudo_labels=PseudoLabelConfig(override="literal"),
        loss=replace(BASE.loss, gan="lsgan"),
    ),
    "larger instances": replace(
        BASE, matching=MatchingConfig(min_area=2, classifier_agreement=ClassifierAgreement(False, True, False))
    ),
    "other options": replace(
        BASE,
        network=replace(NETWORK, aspp_branches=2, batch_norm="batch"),
        matching=MatchingConfig(
            stuff_size=2,
            thing_size=3,
            max_instances=2,
            connectivity=4,
            distance="cosine",
            min_fill=2,
            class_reduction="mean",
            classifier_agreement=ClassifierAgreement(True, False, True),
        ),
        pseudo_labels=PseudoLabelConfig(override="off"),
    ),
}


def options_of(experiment: Experiment) -> oracle.StepOptions:
    matching, agreement = experiment.matching, experiment.matching.classifier_agreement
    return oracle.StepOptions(
        gan=experiment.loss.gan,
        sampling=matching.label_sampling,
        max_instances=matching.max_instances,
        connectivity=matching.connectivity,
        min_area=matching.min_area,
        distance=matching.distance,
        min_fill=matching.min_fill,
        class_reduction=matching.class_reduction,
        agreement_source=agreement.source,
        agreement_target_stuff=agreement.target_stuff,
        agreement_target_things=agreement.target_things,
        override=experiment.pseudo_labels.override,
    )


def images_of(seed: int) -> torch.Tensor:
    """Two images of coloured blocks under noise, on which the features of a new network differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (2, 3, 3, 4), generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3)
    return (0.7 * blocks + 0.3 * torch.randint(0, 256, (2, 3, 48, 64), generator=generator)).to(torch.uint8)


def batch_near_the_prediction(state: TrainState, seed: int, unlabelled: float) -> tuple[Batch, oracle.Domain]:
    """Labels that the network mostly predicts, some of them wrong and a share of 255 in blocks.

    Also what the network says of the images in the state that a step finds, without moving any running statistics.
    """
    images = images_of(seed)
    segmenter = copy.deepcopy(state.segmenter).train()
    with torch.no_grad():
        features, logits = segmenter(segmenter.normalisation(images))
    generator = torch.Generator().manual_seed(seed + 1000)
    labels = logits.argmax(1)
    wrong = torch.rand(labels.shape, generator=generator) < 0.15
    labels[wrong] = (labels[wrong] + 1) % STREETS11.num_classes
    labels[torch.rand(labels.shape, generator=generator) < unlabelled] = 255
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Batch(images, labels, ("a.png", "b.png")), oracle.Domain(features.numpy(), logits.numpy(), labels.numpy())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_whole_steps_of_a_network_are_those_of_plain_loops(name: str) -> None:
    experiment = EXPERIMENTS[name]
    state = new_state(experiment, STREETS11, torch.device("cpu"))
    for parameter in state.discriminator.parameters():
        parameter.data.mul_(2)  # a new one answers nearly 0 everywhere
    sizes = experiment.matching.stuff_size, experiment.matching.thing_size
    slow = oracle.Bank(STREETS11.stuff, STREETS11.things, *sizes)
    unlabelled = 1.0 if name == "step 1" else 0.4
    for step in range(2):
        source, source_domain = batch_near_the_prediction(state, step, 0.1)
        target, target_domain = batch_near_the_prediction(state, step + 50, unlabelled)
        discriminator = copy.deepcopy(state.discriminator)
        taps = taps_of(copy.deepcopy(state.segmenter.classifier))

        expected = oracle.step_terms(
            source_domain,
            target_domain,
            STREETS11.stuff,
            STREETS11.things,
            slow,
            lambda feature, taps=taps: oracle.classify(feature, *taps),
            lambda maps, d=discriminator: d(torch.from_numpy(maps).float()).detach().numpy(),
            options_of(experiment),
        )
        report = adaptation_step(state, source, target)

        if name == "step 1":
            assert expected.pop("loss/target_segmentation") == 0
        assert report.keys() == expected.keys()
        for term, value in expected.items():
            assert float(report[term]) == pytest.approx(value, rel=2e-5, abs=1e-7), (term, step)
            assert value > 0, "a term that is nothing would hide a mistake"
        assert state.bank.pushed.tolist() == [slow.counter[k] for k in range(STREETS11.num_classes)]
        for k in range(STREETS11.num_classes):
            held = np.array(slow.entries(k)).reshape(-1, state.segmenter.channels)
            np.testing.assert_allclose(state.bank.entries(k).numpy(), held, rtol=1e-5, atol=1e-5)
    if name == "other options":
        assert any(slow.counter[k] > len(slow.slots[k]) for k in slow.slots), "rings wrapped"
