"""Scores of a network against a slow count, pixel by pixel, at the labels' own sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import EvaluationBatch
from segadapt.evaluation.evaluate import evaluate, predict_logits
from segadapt.evaluation.label_maps import predict_labels
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network

SPACE = replace(STREETS11, subsets={"ground": ("road", "pavement"), "movers": ("car", "bicyclist")})
LABEL_SIZES = ((48, 64), (30, 50), (96, 40))


@pytest.fixture
def network() -> DeepLab:
    return build_network(NetworkConfig("efficientnet_lite0"), SPACE, 0)


@pytest.fixture
def batches() -> list[EvaluationBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8, generator=generator)
    # class 10 stands in no label, so its IoU counts predictions alone
    labels = tuple(torch.randint(0, 10, size, generator=generator).to(torch.uint8) for size in LABEL_SIZES)
    labels[1][:10] = 255
    return [EvaluationBatch(images[:2], labels[:2], ("a", "b")), EvaluationBatch(images[2:], labels[2:], ("c",))]


def test_scores_are_those_of_a_slow_count(network: DeepLab, batches: list[EvaluationBatch]) -> None:
    scores = evaluate(network, batches)
    hits, union = np.zeros(11), np.zeros(11)
    with torch.no_grad():
        for batch in batches:
            for image, labels in zip(batch.images, batch.labels, strict=True):
                logits = network.eval()(network.normalisation(image[None])).logits
                size = (labels.shape[0], labels.shape[1])
                full = functional.interpolate(logits, size, mode="bilinear", align_corners=True)
                predicted, true = full[0].argmax(0).numpy(), labels.numpy()
                for index in range(11):
                    counted = true != 255
                    hits[index] += ((predicted == index) & (true == index))[counted].sum()
                    union[index] += ((predicted == index) | (true == index))[counted].sum()
    iou = {name: 100 * hits[i] / union[i] if union[i] else None for i, name in enumerate(SPACE.names)}
    assert scores.images == 3
    for name, value in iou.items():
        assert scores.iou[name] == (None if value is None else pytest.approx(value, abs=0.05)), name
    assert sum(value is None for value in scores.iou.values()) < 11
    known = [value for value in iou.values() if value is not None]
    assert scores.miou == pytest.approx(np.mean(known), abs=0.05)
    assert scores.subsets["ground"] == pytest.approx((scores.iou["road"] + scores.iou["pavement"]) / 2)
    assert set(scores.subsets) == {"ground", "movers"}


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(network: DeepLab, batches: list[EvaluationBatch], training: bool) -> None:
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = evaluate(network, batches)
    assert network.training == training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert evaluate(network, batches) == first


def test_logits_of_a_batch_are_those_of_its_images(network: DeepLab, batches: list[EvaluationBatch]) -> None:
    images = batches[0].images
    with torch.no_grad():
        together = predict_logits(network.eval(), images)
        alone = torch.cat([predict_logits(network, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_labels_of_a_grid_keep_its_corners() -> None:
    logits = functional.one_hot(torch.tensor([[0, 1], [2, 3]]), 4).permute(2, 0, 1).float()
    labels = predict_labels(logits, (7, 9))
    assert [labels[row, column].item() for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1))] == [0, 1, 2, 3]
    assert (labels[:3, :4] == 0).all()


@pytest.mark.parametrize("size", [(512, 1024), (64, 37), (200, 300), (33, 129), (16, 40)])
@pytest.mark.parametrize("grid", [(16, 33), (2, 2), (1, 1), (2, 300), (1, 5)])
def test_labels_are_those_of_whole_resized_logits(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """On every pixel, by whichever way."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(7, *grid, generator=generator)
    # mostly one class between four logits, as in predictions of a network
    smooth = functional.interpolate(5 * random[None, :, ::6, ::6], grid, mode="bicubic", align_corners=True)[0]
    for logits in (random, 30 * random - 1000, random[:1], smooth, 0 * random):
        whole = functional.interpolate(logits[None], size, mode="bilinear", align_corners=True)[0].argmax(0)
        for laid_out in (logits, logits[None].contiguous(memory_format=torch.channels_last)[0]):
            assert torch.equal(predict_labels(laid_out, size).long(), whole)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_of_equally_likely_classes_the_first_is_taken(steps: int) -> None:
    """Whole numbers between which the pixels lie at binary fractions: nothing is rounded, and many are equal."""
    logits = torch.randint(3, (9, 17, 33), generator=torch.Generator().manual_seed(0)).float()
    size = (16 * steps + 1, 32 * steps + 1)
    whole = functional.interpolate(logits[None], size, mode="bilinear", align_corners=True)[0]
    assert ((whole == whole.amax(0)).sum(0) > 1).float().mean() > 0.1
    assert torch.equal(predict_labels(logits, size).long(), whole.argmax(0))


def test_a_restricted_argmax_asks_among_the_classes_of_a_subset(
    network: DeepLab, batches: list[EvaluationBatch]
) -> None:
    plain, restricted = evaluate(network, batches), evaluate(network, batches, restricted_argmax=True)
    assert (restricted.iou, restricted.miou) == (plain.iou, plain.miou)
    for name, members in SPACE.subsets.items():
        ids = [SPACE.names.index(member) for member in members]
        hits, union = np.zeros(11), np.zeros(11)
        with torch.no_grad():
            for batch in batches:
                for image, labels in zip(batch.images, batch.labels, strict=True):
                    logits = predict_logits(network.eval(), image[None])
                    full = functional.interpolate(logits, tuple(labels.shape), mode="bilinear", align_corners=True)[0]
                    predicted, true = np.array(ids)[full[ids].argmax(0).numpy()], labels.numpy()
                    for index in ids:
                        counted = np.isin(true, ids)
                        hits[index] += ((predicted == index) & (true == index))[counted].sum()
                        union[index] += ((predicted == index) | (true == index))[counted].sum()
        known = [hits[i] / union[i] for i in ids if union[i]]
        assert restricted.subsets[name] == pytest.approx(100 * np.mean(known), abs=0.05), name
        assert restricted.subsets[name] != pytest.approx(plain.subsets[name], abs=0.5), name
