"""Thresholds of Eq. (9) against numpy on the exact confidences, Eq. (11), and the two passes on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from segadapt.adaptation.pseudo_labels import BINS, class_thresholds, label_images, override, quantise
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


@given(
    st.lists(st.floats(0.0625, 1.0, width=32), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]),
)
def test_a_threshold_is_within_a_bin_of_the_exact_quantile(values: list[float], quantile: float) -> None:
    confidence = np.array([values], dtype=np.float32)
    histogram = histogram_of(confidence, np.zeros_like(confidence, dtype=np.int64), 2)
    thresholds = class_thresholds(histogram, quantile, cap=2.0)
    assert abs(thresholds[0] - np.quantile(confidence.astype(np.float64), quantile)) <= 1 / BINS
    assert np.isnan(thresholds[1])


def test_the_cap() -> None:
    histogram = histogram_of(np.full((1, 9), 0.99, np.float32), np.zeros((1, 9), np.int64), 1)
    assert class_thresholds(histogram) == 0.9


def test_medians_of_the_reference_set() -> None:
    classes, confidence = GOLDEN["pred_label"], GOLDEN["pred_prob"].astype(np.float32)
    histogram = histogram_of(confidence.reshape(1, -1), classes.reshape(1, -1).astype(np.int64), 19)
    medians = class_thresholds(histogram, cap=2.0)
    np.testing.assert_allclose(medians, GOLDEN["paper_median"], atol=1 / BINS, equal_nan=True)
    capped = class_thresholds(histogram)
    labels = np.where(confidence >= capped[classes], classes, 255)
    expected = GOLDEN["paper_label_argmax_only"]
    # only pixels within a bin of the threshold, or exactly on it (>= here, > there), may differ
    near = np.abs(confidence - capped[classes]) <= 1 / BINS
    assert (labels == expected)[~near].all()
    assert near.mean() < 0.001


def test_eq_11() -> None:
    predicted, pseudo = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 255, 5, 255])
    assert override(predicted, pseudo, "fill").tolist() == [0, 1, 5, 3]
    assert override(predicted, pseudo, "literal").tolist() == [0, 255, 5, 255]
    assert override(predicted, pseudo, "off").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="fill, literal, off"):
        override(predicted, pseudo, "both")


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


def test_both_passes_keep_what_the_exact_thresholds_keep(network: DeepLab, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    options = PseudoLabelConfig(quantile=0.5, cap=0.9)
    report = label_images(network, iter(batches_of(images)), options, tmp_path)

    with torch.inference_mode():
        logits = network(network.normalisation(images)).logits
        probabilities = nn.functional.interpolate(logits.softmax(1), (48, 64), mode="bilinear", align_corners=True)
    confidence, classes = (part.numpy() for part in probabilities.max(1))
    exact_threshold = np.full(11, np.nan)
    for index in range(11):
        exact = np.median(confidence[classes == index]) if (classes == index).any() else None
        reported = report.thresholds[STREETS11.names[index]]
        assert (exact is None) == (reported is None)
        if exact is not None:
            exact_threshold[index] = min(exact, 0.9)
            assert abs(reported - exact_threshold[index]) <= 1 / BINS
    maps = np.stack([np.array(Image.open(tmp_path / "city" / f"{index}.png")) for index in range(5)])
    kept = maps != 255
    assert (maps[kept] == classes[kept]).all()
    margin = confidence - exact_threshold[classes]
    assert (kept == (margin >= 0))[np.abs(margin) > 1 / BINS].all()
    assert 0.45 < kept.mean() < 0.95
    assert json.loads((tmp_path / "thresholds.json").read_text())["images"] == 5
    assert not list(tmp_path.rglob("*.npy")), "confidences are gone after the second pass"
