"""Colours of one image take on the distribution of another's: mean and deviation in Lab, or the whole histogram.

In and out: batches (B, 3, H, W) of sRGB in 0..1, float32, on any device. References may have another size. A pixel's
new colour depends on its old colour alone, so labels keep their meaning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "B 3 H W"]
References = Float[Tensor, "B 3 h w"]

# sRGB primaries, IEC 61966-2-1, divided by its white (D65), so that white is (1, 1, 1)
_RGB_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
# CIE 1976: L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z))
_F_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_DELTA = 6 / 29
HISTOGRAM_BINS = 256


def to_lab(images: Images) -> Images:
    """sRGB in 0..1 as CIE Lab: L in 0..100, a and b around 0."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = _mix(linear, _RGB_TO_XYZ)
    f = torch.where(xyz > _DELTA**3, xyz.clamp(min=1e-8) ** (1 / 3), xyz / (3 * _DELTA**2) + 4 / 29)
    lab = _mix(f, _F_TO_LAB)
    return lab - lab.new_tensor([16.0, 0.0, 0.0])[:, None, None]


def to_rgb(lab: Images) -> Images:
    """CIE Lab as sRGB, the inverse of `to_lab`; outside 0..1 where a colour is none that sRGB has."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    xyz = torch.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29))
    inverse = torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).tolist()
    linear = _mix(xyz, inverse)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def match_lab(images: Images, references: References) -> Images:
    """Lab channels of each image shifted and scaled to its reference's mean and deviation (Reinhard et al. 2001).

    Reinhard et al. work in the l-alpha-beta space; Lab serves the same end, channels that vary almost independently.

    Returns:
        sRGB, not cut to 0..1; a channel without any deviation is only shifted.
    """
    lab, wanted = to_lab(images), to_lab(references)
    mean, deviation = lab.mean((2, 3), keepdim=True), lab.std((2, 3), keepdim=True, unbiased=False)
    wanted_mean = wanted.mean((2, 3), keepdim=True)
    wanted_deviation = wanted.std((2, 3), keepdim=True, unbiased=False)
    factor = torch.where(deviation > 1e-3, wanted_deviation / deviation.clamp(min=1e-3), 1.0)
    return to_rgb((lab - mean) * factor + wanted_mean)


def match_histogram(images: Images, references: References) -> Images:
    """Each RGB channel's values replaced by the reference's at the same rank, in 256 steps (Gonzalez and Woods, 3.3).

    Equal values stay equal: a constant image becomes the reference's value at that rank, its median.
    """
    batch, channels = images.shape[:2]
    own, others = _levels(images).reshape(batch * channels, -1), _levels(references).reshape(batch * channels, -1)
    # The rank of a value is the middle of those its pixels hold, so that a constant image has rank 1/2. Both sides are
    # multiplied by both numbers of pixels: whole numbers compare alike on every device.
    counts = _counts(own)
    ranks = (2 * counts.cumsum(1) - counts) * others.shape[1]
    cumulative = 2 * _counts(others).cumsum(1) * own.shape[1]
    table = torch.searchsorted(cumulative, ranks)
    return table.gather(1, own).reshape(images.shape) / (HISTOGRAM_BINS - 1.0)


def _mix(images: Images, matrix: object) -> Images:
    return torch.einsum("oc,bchw->bohw", images.new_tensor(matrix), images)


def _levels(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * (HISTOGRAM_BINS - 1)).round().long()


def _counts(levels: Tensor) -> Tensor:
    counts = torch.zeros(len(levels), HISTOGRAM_BINS, dtype=torch.int64, device=levels.device)
    return counts.scatter_add_(1, levels, torch.ones_like(levels))
