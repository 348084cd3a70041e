"""IoU against the reference numbers, and what must hold of any confusion matrix."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segadapt.data.label_spaces import CITYSCAPES
from segadapt.evaluation.metrics import ConfusionMatrix

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "iou.npz")


def filled() -> ConfusionMatrix:
    matrix = ConfusionMatrix(19)
    table = CITYSCAPES.lookup()
    for ids, predicted in zip(GOLDEN["gt_id"], GOLDEN["pred"], strict=True):
        matrix.update(torch.from_numpy(predicted), torch.from_numpy(table[ids]))
    return matrix


def test_counts_and_scores_are_the_reference_ones() -> None:
    matrix = filled()
    np.testing.assert_array_equal(matrix.counts.numpy(), GOLDEN["off_hist"])
    np.testing.assert_allclose(matrix.iou().numpy(), GOLDEN["off_iou"], rtol=1e-12, equal_nan=True)
    assert matrix.miou() == pytest.approx(float(GOLDEN["off_miou_nanmean"]), abs=1e-12)


def test_counts_of_each_image_are_the_reference_ones() -> None:
    table = CITYSCAPES.lookup()
    for ids, predicted, expected in zip(GOLDEN["gt_id"], GOLDEN["pred"], GOLDEN["off_hist_each"], strict=True):
        matrix = ConfusionMatrix(19)
        matrix.update(torch.from_numpy(predicted), torch.from_numpy(table[ids]))
        np.testing.assert_array_equal(matrix.counts.numpy(), expected)


def test_the_13_classes_of_synthia() -> None:
    subset = CITYSCAPES.subset_ids("synthia13")
    assert list(subset) == GOLDEN["synthia13"].tolist()
    assert filled().miou(subset) == pytest.approx(float(GOLDEN["miou13_nanmean"]), abs=1e-12)


def test_a_prediction_outside_the_subset_is_an_error_of_the_true_class() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 2, 1, 1]), torch.tensor([0, 0, 1, 1]))
    assert matrix.miou([0, 1]) == pytest.approx((0.5 + 1.0) / 2)


def test_a_class_met_nowhere_is_nan_and_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert math.isnan(matrix.iou()[2])
    assert matrix.miou() == 1.0


def test_ignored_pixels_count_nowhere() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 1, 0]), torch.tensor([255, 255, 0]))
    assert int(matrix.counts.sum()) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("classes", [2, 19, 200])
def test_counts_are_those_of_pixel_by_pixel(classes: int, dtype: torch.dtype) -> None:
    """Labels that are no class, and what is predicted there, count nowhere, however far from the classes they are."""
    generator = torch.Generator().manual_seed(0)
    far = {torch.uint8: (0, 255), torch.int16: (-(2**15), 2**15 - 1), torch.int64: (-(2**40), 2**40 + 3)}[dtype]
    near = (far[0], -1, classes - 1, classes, classes + 1, 255, 256, far[1])
    no_class = [value for value in near if far[0] <= value <= far[1] and not 0 <= value < classes]
    labels = torch.randint(classes, (20, 30), generator=generator).to(dtype)
    predicted = torch.randint(classes, (20, 30), generator=generator).to(dtype)
    for column, value in enumerate(no_class):
        labels[:, column], predicted[:, column] = value, no_class[-1 - column]
    expected = torch.zeros(classes, classes, dtype=torch.int64)
    for label, prediction in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if 0 <= label < classes:
            expected[label, prediction] += 1
    matrix = ConfusionMatrix(classes)
    matrix.update(predicted, labels)
    assert torch.equal(matrix.counts, expected)
    assert expected.sum() == 20 * (30 - len(no_class))


@pytest.mark.parametrize("predicted", [[2, 0], [255, 0], [0, -1]])
def test_a_prediction_that_is_no_class_is_refused(predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        ConfusionMatrix(2).update(torch.tensor(predicted), torch.tensor([0, 1]))


def test_the_order_and_grouping_of_images_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (6, 7, 9), generator=generator)
    predicted = torch.randint(0, 5, (6, 7, 9), generator=generator)
    together, apart = ConfusionMatrix(5), ConfusionMatrix(5)
    together.update(predicted, labels)
    for index in reversed(range(6)):
        apart.update(predicted[index], labels[index])
    assert torch.equal(together.counts, apart.counts)
