"""Colour statistics: Lab against published values, means and deviations reached, histograms against plain loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from segadapt.translation import match_histogram, match_lab, to_lab, to_rgb


def noise(seed: int, size: tuple[int, int] = (12, 15), low: float = 0.0, high: float = 1.0) -> Tensor:
    values = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * values


def one_pixel(*rgb: float) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "lab"),  # D65, 2 degrees, as colour-science tables give them
    [
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 0.0), (97.14, -21.55, 94.48)),
        ((119 / 255, 119 / 255, 119 / 255), (50.03, 0.0, 0.0)),
    ],
)
def test_published_values(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    assert to_lab(one_pixel(*rgb)).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_there_and_back() -> None:
    images = torch.cat([noise(0), noise(1, high=0.01), torch.zeros(1, 3, 12, 15), torch.ones(1, 3, 12, 15)])
    torch.testing.assert_close(to_rgb(to_lab(images)), images, rtol=0, atol=1e-5)


def test_there_and_back_where_srgb_has_no_such_colour() -> None:
    lab = torch.tensor([[20.0, 60.0, -60.0], [90.0, -80.0, 90.0], [110.0, 0.0, 0.0], [-3.0, 1.0, 2.0]])
    lab = lab.view(4, 3, 1, 1)
    torch.testing.assert_close(to_lab(to_rgb(lab)), lab, rtol=0, atol=1e-2)


def test_statistics_reach_the_references() -> None:
    images, references = noise(0, low=0.2, high=0.9), noise(1, (20, 9), 0.1, 0.5)
    reached, wanted = to_lab(match_lab(images, references)), to_lab(references)
    torch.testing.assert_close(reached.mean((2, 3)), wanted.mean((2, 3)), rtol=0, atol=1e-3)
    deviation = [values.std((2, 3), unbiased=False) for values in (reached, wanted)]
    torch.testing.assert_close(*deviation, rtol=0, atol=1e-3)


def test_equal_statistics_change_nothing_and_a_constant_image_takes_the_mean() -> None:
    images = noise(0)
    torch.testing.assert_close(match_lab(images, images), images, rtol=0, atol=1e-4)
    constant = torch.full((2, 3, 12, 15), 0.4)
    reached = to_lab(match_lab(constant, images))
    assert reached.flatten(2).std(2).max() < 1e-3
    torch.testing.assert_close(reached.mean((2, 3)), to_lab(images).mean((2, 3)), rtol=0, atol=1e-2)


def plain_histogram_matching(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """One channel of bytes: a value gets the smallest one of the reference whose share of pixels reaches its rank."""
    matched = np.zeros_like(image)
    for value in np.unique(image):
        rank = (np.sum(image < value) + np.sum(image == value) / 2) / image.size
        for candidate in range(256):
            if np.sum(reference <= candidate) / reference.size >= rank:
                matched[image == value] = candidate
                break
    return matched


@pytest.mark.parametrize("size", [(12, 15), (7, 9)])
def test_histograms_against_plain_loops(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (3, 12, 15)).astype(np.uint8) // 16 * 16
    reference = random.normal(100, 30, (3, *size)).clip(0, 255).astype(np.uint8)
    wanted = [plain_histogram_matching(*channels) for channels in zip(image, reference, strict=True)]
    matched = match_histogram(torch.from_numpy(image)[None] / 255.0, torch.from_numpy(reference)[None] / 255.0)
    np.testing.assert_array_equal((matched[0] * 255).round().byte().numpy(), np.stack(wanted))


def test_an_equal_histogram_changes_nothing_and_a_constant_image_becomes_the_median() -> None:
    images = (noise(0) * 255).round() / 255
    shuffled = images.flatten(2)[:, :, torch.randperm(180, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(match_histogram(images, shuffled.view_as(images)), images, rtol=0, atol=1e-6)
    constant = match_histogram(torch.full((2, 3, 5, 5), 0.7), images)
    wanted = images.flatten(2).sort(2).values[:, :, 89]  # the lower of the two in the middle of 180
    torch.testing.assert_close(constant, wanted[:, :, None, None].expand_as(constant), rtol=0, atol=1e-6)


@pytest.mark.parametrize("match", [match_lab, match_histogram])
def test_equal_colours_stay_equal_so_labels_keep_their_meaning(match) -> None:
    images = noise(0).round(decimals=1)
    images[..., 6:, :] = images[..., :6, :]
    matched = match(images, noise(1, (9, 9)))
    torch.testing.assert_close(matched[..., 6:, :], matched[..., :6, :], rtol=0, atol=1e-5)
