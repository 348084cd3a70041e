"""FDA: amplitudes inside the window are the target's, everything else is the image's."""

import math

import pytest
import torch
from torch import Tensor

from segadapt.translation import swap_amplitude


def noise(seed: int, size: tuple[int, int] = (24, 30), batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def window(size: tuple[int, int], beta: float) -> Tensor:
    """Eq. (3) of the paper, frequency by frequency: -beta H..beta H by -beta W..beta W around zero."""
    height, width = size
    inside = torch.zeros(size, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            frequency = (min(row, height - row), min(column, width - column))
            inside[row, column] = frequency[0] <= int(beta * height) and frequency[1] <= int(beta * width)
    return inside


def test_beta_0_returns_the_image() -> None:
    images = noise(0)
    assert torch.equal(swap_amplitude(images, noise(1), 0.0), images)


@pytest.mark.parametrize("size", [(24, 30), (25, 31), (24, 31)])
@pytest.mark.parametrize("beta", [0.01, 0.1, 0.3, 0.5])
def test_amplitudes_inside_are_the_references_and_phases_stay(size: tuple[int, int], beta: float) -> None:
    images, references = noise(0, size), noise(1, size)
    before, wanted = torch.fft.fft2(images), torch.fft.fft2(references)
    after = torch.fft.fft2(swap_amplitude(images, references, beta))
    inside = window(size, beta)
    torch.testing.assert_close(after.abs()[..., inside], wanted.abs()[..., inside], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(after[..., ~inside], before[..., ~inside], rtol=1e-4, atol=1e-3)
    turned = torch.angle(after / before)
    assert turned.abs().max() < 1e-2
    assert inside.sum() == (2 * int(beta * size[0]) + 1 - (2 * int(beta * size[0]) == size[0])) * (
        2 * int(beta * size[1]) + 1 - (2 * int(beta * size[1]) == size[1])
    )


@pytest.mark.parametrize(("beta", "rows"), [(0.29, 29), (0.07, 7), (0.01, 1)])
def test_the_window_is_as_wide_as_beta_says(beta: float, rows: int) -> None:
    images = torch.zeros(1, 3, 100, 4) + 0.5
    references = torch.cos(2 * math.pi * rows * torch.arange(100.0) / 100)[:, None].expand(1, 3, 100, 4)
    images = images + 0.1 * references  # as much of this frequency that its phase is known
    changed = torch.fft.rfft2(swap_amplitude(images, 10 * references, beta))[0, 0, rows, 0].abs()
    wanted = torch.fft.rfft2(10 * references)[0, 0, rows, 0].abs()
    torch.testing.assert_close(changed, wanted, rtol=1e-4, atol=1e-3)


def test_the_whole_spectrum_at_one_half_of_two_equal_images_changes_nothing() -> None:
    images = noise(0)
    torch.testing.assert_close(swap_amplitude(images, images, 0.5), images, rtol=0, atol=1e-5)


def test_a_constant_image_takes_the_mean_colour_and_nothing_else() -> None:
    images, references = torch.full((1, 3, 24, 30), 0.3), noise(1, batch=1)
    translated = swap_amplitude(images, references, 0.2)
    wanted = references.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(translated, wanted, rtol=0, atol=1e-5)


def test_images_of_a_batch_do_not_touch_one_another() -> None:
    images, references = noise(0), noise(1)
    together = swap_amplitude(images, references, 0.1)
    for index in range(2):
        alone = swap_amplitude(images[index : index + 1], references[index : index + 1], 0.1)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-6)


def test_a_black_image_stays_finite() -> None:
    translated = swap_amplitude(torch.zeros(1, 3, 8, 8), noise(1, (8, 8), 1), 0.25)
    assert translated.isfinite().all()
    assert math.isclose(float(translated.abs().max()), 0.0, abs_tol=1e-6)  # amplitude 0 has no phase to keep
