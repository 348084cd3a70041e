"""Low frequencies of one image take on the amplitudes of another's (FDA, Yang and Soatto 2020).

In and out: batches (B, 3, H, W) in 0..1, float32, on any device; images and references have the same size.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def swap_amplitude(
    images: Float[Tensor, "B 3 H W"], references: Float[Tensor, "B 3 H W"], beta: float
) -> Float[Tensor, "B 3 H W"]:
    """Amplitudes of the lowest frequencies from the references, everything else from the images.

    Args:
        images: What to change; their phases, and so their contours, stay.
        references: Of the target's style.
        beta: Half the window's side as a share of the image's (Eq. 3 of the paper); 0 returns the images. A window
            that is not 0 holds at least the mean colour.

    Returns:
        Images, not cut to 0..1. A frequency that an image has none of (amplitude 0, so no phase) stays 0.
    """
    if beta == 0:
        return images
    height, width = images.shape[-2:]
    # 0.29 * 100 is 28.999...: a little is added, so that rounding takes no frequency away
    rows, columns = int(beta * height + 1e-9), int(beta * width + 1e-9)
    spectrum = torch.fft.rfft2(images)
    # rfft2 keeps columns 0..W/2; rows -r..-1 stand at the end
    kept_rows = torch.arange(-rows, rows + 1, device=images.device) % height
    window = spectrum[..., kept_rows, : columns + 1]
    wanted = torch.fft.rfft2(references)[..., kept_rows, : columns + 1].abs()
    amplitude = window.abs()
    smallest = 1e-6 * height * width  # of rounding, not of the image
    factor = torch.where(amplitude > smallest, wanted / amplitude.clamp(min=smallest), 1.0)
    spectrum[..., kept_rows, : columns + 1] = window * factor
    return torch.fft.irfft2(spectrum, s=(height, width))
