"""Style transfer while training: each source image with a target image drawn for it.

In: an 8-bit source image and the position in the stream. Out: the image in the style of one target image. No labels of
the target are read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from segadapt.config import TranslationConfig
from segadapt.data.decoding import read_image
from segadapt.data.transforms import resize_image
from segadapt.errors import UnreadableFileError
from segadapt.translation.colour import match_histogram, match_lab
from segadapt.translation.fourier import swap_amplitude


class StyleTransfer:
    """Translates images, each towards a reference that is drawn at random.

    Args:
        config: Method and its settings; not 'off'.
        references: Target images.
        skip_bad: Whether the next reference takes the place of one that cannot be read.
    """

    def __init__(self, config: TranslationConfig, references: Sequence[Path], skip_bad: bool = False) -> None:
        self.config = config
        self.references = references
        self.skip_bad = skip_bad

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], random: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """`image` in the style of one of the references, or, for `1 - share` of the images, as it is.

        Raises:
            InputError: the reference cannot be read.
        """
        if random.random() >= self.config.share:
            return image
        reference = self._read(int(random.integers(len(self.references))))
        reference = resize_image(reference, image.shape[:2])
        translated = translate(_batch(image), _batch(reference), self.config)
        return (translated[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()

    def _read(self, first: int) -> UInt8[np.ndarray, "h w 3"]:
        """The reference at `first`, or the next one that can be read."""
        for number in range(len(self.references)):
            try:
                return read_image(self.references[(first + number) % len(self.references)])
            except UnreadableFileError:
                if not self.skip_bad or number == len(self.references) - 1:
                    raise
        raise AssertionError  # there is at least one reference


def translate(images: Tensor, references: Tensor, config: TranslationConfig) -> Tensor:
    """A batch (B, 3, H, W) in 0..1 in the style of its references, by the method of `config`."""
    match config.method:
        case "lab":
            return match_lab(images, references)
        case "histogram":
            return match_histogram(images, references)
        case "fourier":
            return swap_amplitude(images, references, config.beta)
        case "off" | "cyclegan":  # the images of a generator are read, not made here
            return images


def _batch(image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))[None].float() / 255
