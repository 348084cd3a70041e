"""Colours: the one place where 0..255 RGB images become what a set of weights was trained on.

In: uint8 RGB images as the readers give them. Out: float32 images for the network. Which normalisation is
right belongs to the weights, never to the data set, so it travels with the network (`DeepLab.normalisation`)
and with its file.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Channel order, mean and standard deviation of the images that a set of weights was trained on.

    Args:
        mean: Subtracted, in 0..255 units, in the channel order that the network sees.
        std: Divided by, in 0..255 units, in the same order.
        bgr: Whether the network sees blue first; images always come in as RGB.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool

    def __call__(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Returns `images` (RGB, 0..255) as float32 in the channel order and scale of the weights."""
        values = images.float()
        if self.bgr:
            values = values.flip(1)
        # what an export traces is no tensor to keep
        constants = _constants if torch.compiler.is_compiling() else _kept_constants
        mean, std = constants(self.mean, self.std, images.device)
        return (values - mean) / std


def _constants(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    both = torch.tensor([mean, std]).to(device).view(2, 1, 3, 1, 1)
    return both[0], both[1]


@lru_cache  # sending them anew would wait for the device at every step
def _kept_constants(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    with torch.inference_mode(False):  # what an evaluation is the first to ask for must serve a training too
        return _constants(mean, std, device)


# torchvision's ImageNet files: mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) of images in 0..1.
IMAGENET_RGB = Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False)
# Files converted from Caffe, and the authors' own: the mean image is subtracted, nothing is divided.
CAFFE_BGR = Normalisation(mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0), bgr=True)
# EfficientNet-Lite (its TensorFlow release): (x - 127) / 128.
CENTRED_RGB = Normalisation(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0), bgr=False)
