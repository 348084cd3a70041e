"""Eqs. (9) and (11) against plain loops over all confidences and the reference numbers, and the two passes on disk."""

import json
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import oracle
from segadapt.adaptation.pseudo_labels import (
    BINS,
    LabellingReport,
    class_thresholds,
    confident_labels,
    confident_prediction,
    label_images,
    override,
    quantise,
)
from segadapt.config import NetworkConfig, PseudoLabelConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import EvaluationBatch
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "ssl.npz")


def histogram_of(confidence: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    histogram = np.zeros((num_classes, BINS), dtype=np.int64)
    np.add.at(histogram, (classes, quantise(torch.from_numpy(confidence))), 1)
    return histogram


@st.composite
def confidences(draw: st.DrawFn) -> list[list[float]]:
    """All confidences of four classes; a class may have none, one, or many that are equal."""
    values = st.floats(0.0625, 1.0, width=32) | st.sampled_from([0.25, 0.5, 0.9, 0.90625, 1.0])
    return draw(st.lists(st.lists(values, max_size=20), min_size=4, max_size=4))


@settings(deadline=None, max_examples=80)
@given(confidences(), st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]), st.sampled_from([0.5, 0.9, 2.0]))
@example([[], [], [], []], 0.5, 0.9)
@example([[0.25], [0.25, 0.5], [0.25, 0.5, 0.75], [1.0] * 7], 0.5, 0.9)
def test_thresholds_are_those_of_full_lists(values: list[list[float]], quantile: float, cap: float) -> None:
    expected = oracle.class_thresholds(values, quantile, cap)
    found = class_thresholds(histogram_of_lists(values), quantile, cap)
    np.testing.assert_array_equal(np.isnan(found), [not of_class for of_class in values])
    np.testing.assert_allclose(found, expected, atol=1 / BINS, rtol=0)
    if quantile == 0.5:
        exact = [min(np.median(of_class), cap) if of_class else np.nan for of_class in values]
        np.testing.assert_allclose(expected, exact, rtol=1e-12)


def histogram_of_lists(values: list[list[float]]) -> np.ndarray:
    classes = np.array([[k for k, of_class in enumerate(values) for _ in of_class]], dtype=np.int64)
    confidence = np.array([[value for of_class in values for value in of_class]], dtype=np.float32)
    return histogram_of(confidence, classes, len(values))


def test_the_cap() -> None:
    histogram = histogram_of(np.full((1, 9), 0.99, np.float32), np.zeros((1, 9), np.int64), 1)
    assert class_thresholds(histogram) == 0.9


def golden_lists() -> list[np.ndarray]:
    """The reference set's confidences of each class."""
    classes, confidence = GOLDEN["pred_label"], GOLDEN["pred_prob"]
    return [confidence[classes == k] for k in range(19)]


def thresholds_of_the_package(cap: float) -> np.ndarray:
    classes, confidence = GOLDEN["pred_label"], GOLDEN["pred_prob"].astype(np.float32)
    histogram = histogram_of(confidence.reshape(1, -1), classes.reshape(1, -1).astype(np.int64), 19)
    return class_thresholds(histogram, cap=cap)


def test_thresholds_of_the_reference_set() -> None:
    """Ours are the exact medians; the released program takes element round(n / 2), which we do not offer.

    They differ where n / 2 is a half that round takes up, and for an even number of pixels.
    """
    np.testing.assert_allclose(thresholds_of_the_package(2.0), GOLDEN["paper_median"], atol=1 / BINS, rtol=0)
    np.testing.assert_allclose(thresholds_of_the_package(0.9), GOLDEN["paper_y"], atol=1 / BINS, rtol=0)
    lists = golden_lists()
    np.testing.assert_allclose(oracle.class_thresholds(lists, cap=2.0), GOLDEN["paper_median"], rtol=1e-12)
    np.testing.assert_allclose(oracle.class_thresholds(lists), GOLDEN["paper_y"], rtol=1e-12)

    released = oracle.class_thresholds(lists, cap=2.0, rank="rounded")
    absent = np.isnan(released)
    np.testing.assert_array_equal(released[~absent], GOLDEN["off_thres_raw"][~absent])
    np.testing.assert_array_equal(np.minimum(released, 0.9)[~absent], GOLDEN["off_thres"][~absent])
    assert absent.nonzero()[0].tolist() == [16]
    assert GOLDEN["off_thres_raw"][16] == GOLDEN["off_thres"][16] == 0, "0 there for a class without pixels, NaN here"
    # what remains equal: theirs is at most one element above the middle, never below the median
    for of_class, theirs in zip(lists, released, strict=True):
        if len(of_class):
            ranks = np.flatnonzero(np.sort(of_class) == theirs)
            assert min(abs(ranks - (len(of_class) - 1) / 2)) <= 1
    assert (released >= GOLDEN["paper_median"])[~absent].all()


def labels_of(classes: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Eq. (9) by the package, image by image."""
    pairs = zip(classes.astype(np.uint8), confidence, strict=True)
    return np.stack([confident_labels(of_image, sure, thresholds) for of_image, sure in pairs])


def test_labels_of_the_reference_set() -> None:
    classes, confidence = GOLDEN["pred_label"], GOLDEN["pred_prob"].astype(np.float32)
    thresholds = thresholds_of_the_package(0.9)
    labels = labels_of(classes, confidence, thresholds)
    near = np.abs(confidence - thresholds[classes]) <= 1 / BINS
    assert near.mean() < 0.001
    # the paper keeps what is above the median, we what reaches it: only pixels on the threshold itself may differ
    assert (labels == GOLDEN["paper_label_argmax_only"])[~near].all()
    # the released program: only pixels between the two readings of the median may differ
    between = near | ((confidence >= thresholds[classes]) & (confidence < GOLDEN["off_thres"][classes]))
    assert (labels == GOLDEN["off_label"])[~between].all()
    assert between.mean() < 0.001
    rebuilt = np.where(confidence.astype(np.float64) >= GOLDEN["off_thres"][classes], classes, 255)
    np.testing.assert_array_equal(rebuilt, GOLDEN["off_label"])


def golden_predictions() -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences of the reference logits, as the package makes them."""
    size = tuple(GOLDEN["up_size"].tolist())
    pairs = [confident_prediction(torch.from_numpy(each.astype(np.float32)), size) for each in GOLDEN["logits"]]
    labels, confidence = zip(*pairs, strict=True)
    return torch.stack(labels).numpy().astype(np.int64), torch.stack(confidence).numpy()


def test_confidences_of_the_reference_set() -> None:
    """Softmax, then resize, then arg max. The stored maps are edited afterwards to make five classes rare."""
    classes, confidence = golden_predictions()
    rare = [12, 15, 16, 17, 18]
    edited = np.isin(classes, rare) | np.isin(GOLDEN["pred_label"], rare)
    assert edited.mean() < 0.06
    same = classes == GOLDEN["pred_label"]
    assert same[~edited].mean() > 0.9999, "the rest are ties within rounding"
    np.testing.assert_allclose(confidence[~edited], GOLDEN["pred_prob"][~edited], rtol=2e-6)
    assert np.bincount(GOLDEN["pred_label"].ravel(), minlength=19)[rare].tolist() == [3, 5, 0, 1, 2]

    softmax = oracle.resize(oracle.softmax_map(GOLDEN["logits"][0]), tuple(GOLDEN["up_size"]))
    np.testing.assert_allclose(softmax[:, ::8, ::8], GOLDEN["softmax_up_0"], atol=3e-6)
    np.testing.assert_allclose(confidence[0], softmax.max(0), atol=3e-6)


def test_eq_9_takes_the_most_likely_class_or_none() -> None:
    """The paper's formula, word by word, lets an unsure pixel fall to its second class; we leave it unlabelled."""
    classes, confidence = golden_predictions()
    thresholds = GOLDEN["paper_y"]  # of the edited maps; the labels are of the unedited ones
    strictly = np.where(confidence.astype(np.float64) > thresholds[classes], classes, 255)
    np.testing.assert_array_equal(strictly, GOLDEN["paper_label_argmax_only_unedited"])
    labels = labels_of(classes, confidence, thresholds)
    assert 0 < (labels != strictly).mean() < 0.0001, "only pixels on the threshold itself"
    literal = GOLDEN["paper_label_literal"]
    assert (strictly == literal)[strictly != 255].all(), "where the arg max is sure, both say the same"
    fell = (strictly == 255) & (literal != 255)
    assert 0 < fell.mean() < 0.01
    assert (literal != classes)[fell].all()

    # plain loops say both, on every fourth pixel of an image
    probabilities = oracle.resize(oracle.softmax_map(GOLDEN["logits"][0]), tuple(GOLDEN["up_size"]))[:, ::4, ::4]
    clear = ~(np.abs(probabilities - thresholds[:, None, None]) <= 1e-5).any(0)
    assert clear.mean() > 0.99
    for row, column in np.argwhere(clear):
        pixel, where = probabilities[:, row, column], (0, 4 * row, 4 * column)
        assert oracle.pseudo_label_literal(pixel, thresholds) == literal[where]
        assert oracle.pseudo_label(pixel, thresholds) == labels[where]


LABEL_MAPS = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 255]))] * 2)
)


@settings(deadline=None, max_examples=40)
@given(LABEL_MAPS)
@example((np.array([[0, 1, 2]]), np.array([[255, 255, 255]])))  # all ignored
def test_eq_11_is_that_of_plain_loops(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, pseudo = maps
    for mode in ("fill", "literal", "off"):
        found = override(torch.from_numpy(predicted), torch.from_numpy(pseudo), mode)
        np.testing.assert_array_equal(found, oracle.override(predicted, pseudo, mode))


def test_eq_11() -> None:
    predicted, pseudo = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 255, 5, 255])
    assert override(predicted, pseudo, "fill").tolist() == [0, 1, 5, 3]
    assert override(predicted, pseudo, "literal").tolist() == [0, 255, 5, 255]
    assert override(predicted, pseudo, "off").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="fill, literal, off"):
        override(predicted, pseudo, "both")


def test_eq_11_of_the_reference_set() -> None:
    predicted, pseudo = (torch.from_numpy(GOLDEN[f"eqn11_{name}"]).long() for name in ("L_P", "y_hat"))
    for mode, name in (("literal", "literal"), ("fill", "valid_only")):
        np.testing.assert_array_equal(override(predicted, pseudo, mode), GOLDEN[f"eqn11_{name}"])
    assert not np.array_equal(GOLDEN["eqn11_literal"], GOLDEN["eqn11_valid_only"])


@pytest.fixture
def network() -> DeepLab:
    network = build_network(NetworkConfig(backbone="efficientnet_lite0"), STREETS11, 0).eval()
    with torch.no_grad():  # far from the even predictions of a new classifier, so that confidences spread
        for branch in network.classifier.branches:
            branch.weight.mul_(20)
    return network


def batches_of(images: torch.Tensor) -> list[EvaluationBatch]:
    empty = torch.full(images.shape[-2:], 255, dtype=torch.uint8)
    names = tuple(f"city/{index}.png" for index in range(len(images)))
    return [
        EvaluationBatch(images[i : i + 2], (empty,) * len(images[i : i + 2]), names[i : i + 2])
        for i in range(0, len(images), 2)
    ]


def labelled(
    network: DeepLab,
    images: torch.Tensor,
    options: PseudoLabelConfig,
    out: Path,
    progress: Callable[[], None] = lambda: None,
) -> LabellingReport:
    def without(known: Container[str]) -> Iterator[EvaluationBatch]:
        return (batch for batch in batches_of(images) if not all(name in known for name in batch.names))

    names = [name for batch in batches_of(images) for name in batch.names]
    return label_images(network, names, without, options, out, progress=progress)


@pytest.mark.parametrize("moment", range(10))
def test_labelling_that_was_stopped_goes_on_where_it_was(moment: int, network: DeepLab, tmp_path: Path) -> None:
    """Five images, two passes: it is stopped after each of the ten, and once more with a torn file beside."""
    images = torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = labelled(network, images, PseudoLabelConfig(), tmp_path / "whole")
    done = 0

    def stop() -> None:
        nonlocal done
        if done == moment:
            raise InterruptedError
        done += 1

    with pytest.raises(InterruptedError):
        labelled(network, images, PseudoLabelConfig(), tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "thresholds.json").exists()
    waiting = sorted((tmp_path / "stopped").rglob("*.prediction.npy"))
    if 0 < moment < 5:
        waiting[0].write_bytes(waiting[0].read_bytes()[:100])
    assert labelled(network, images, PseudoLabelConfig(), tmp_path / "stopped") == whole
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "stopped") for path in (tmp_path / "stopped").rglob("*.*"))
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_both_passes_keep_what_the_exact_thresholds_keep(network: DeepLab, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    options = PseudoLabelConfig(quantile=0.5, cap=0.9)
    report = labelled(network, images, options, tmp_path)

    with torch.inference_mode():
        logits = network(network.normalisation(images)).logits.numpy()
    probabilities = np.stack([oracle.resize(oracle.softmax_map(each), (48, 64)) for each in logits])
    classes = np.stack([oracle.prediction(each) for each in probabilities])
    confidence = probabilities.max(1)
    exact_threshold = oracle.class_thresholds([confidence[classes == index] for index in range(11)])
    for name, exact in zip(STREETS11.names, exact_threshold, strict=True):
        reported = report.thresholds[name]
        assert (reported is None) == np.isnan(exact)
        assert reported is None or abs(reported - exact) <= 1 / BINS
    maps = np.stack([np.array(Image.open(tmp_path / "city" / f"{index}.png")) for index in range(5)])
    kept = maps != 255
    assert (maps[kept] == classes[kept]).all()
    margin = confidence - exact_threshold[classes]
    assert (kept == (margin >= 0))[np.abs(margin) > 1 / BINS].all()
    assert 0.45 < kept.mean() < 0.95
    assert json.loads((tmp_path / "thresholds.json").read_text())["images"] == 5
    assert not [*tmp_path.rglob("*.npy"), *tmp_path.rglob("*.npz")], "predictions are gone after the second pass"
