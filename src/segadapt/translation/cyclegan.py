"""The networks of CycleGAN (Zhu et al. 2017, appendix 7.2), and the file that a trained generator is kept in.

In and out of a generator: images (B, 3, H, W) in -1..1, of any size. Into a discriminator the same, out of it one
judgement for each patch of 70x70 pixels: 1 is real, 0 generated.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segadapt.errors import InputError
from segadapt.whole_file import whole_file

FORMAT, FORMAT_VERSION = "segadapt generator", "1"
_INITIAL_DEVIATION = 0.02


class Generator(nn.Module):
    """c7s1-64, d128, d256, residual blocks R256, u128, u64, c7s1-3, with instance normalisation.

    Args:
        filters: Channels of the first convolution.
        blocks: Residual blocks.
    """

    def __init__(self, filters: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.filters, self.blocks = filters, blocks
        self.layers = nn.Sequential(
            ReflectedConv2d(3, filters, 7),
            *_normalised(filters),
            nn.Conv2d(filters, 2 * filters, 3, stride=2, padding=1),
            *_normalised(2 * filters),
            nn.Conv2d(2 * filters, 4 * filters, 3, stride=2, padding=1),
            *_normalised(4 * filters),
            *(ResidualBlock(4 * filters) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * filters, 2 * filters, 3, stride=2, padding=1, output_padding=1),
            *_normalised(2 * filters),
            nn.ConvTranspose2d(2 * filters, filters, 3, stride=2, padding=1, output_padding=1),
            *_normalised(filters),
            ReflectedConv2d(filters, 3, 7),
            nn.Tanh(),
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Images in -1..1 in the style of the other domain, at the same size."""
        height, width = images.shape[-2:]
        # halved twice and doubled twice, a size that four does not divide would come out larger
        return self.layers(mirrored(images, (0, -width % 4), (0, -height % 4)))[..., :height, :width]


class ReflectedConv2d(nn.Conv2d):
    """A convolution that keeps the size: what lies beyond an edge is the mirror image of what lies within.

    Args:
        channels: Of the input.
        filters: Of the output.
        side: Of the window; odd.
    """

    def __init__(self, channels: int, filters: int, side: int) -> None:
        super().__init__(channels, filters, side)
        self.beyond = side // 2

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F H W"]:
        """A map of the same height and width."""
        return super().forward(mirrored(input, (self.beyond, self.beyond), (self.beyond, self.beyond)))


def mirrored(
    values: Float[Tensor, "B C H W"], columns: tuple[int, int], rows: tuple[int, int]
) -> Float[Tensor, "B C H2 W2"]:
    """`values` with so many more columns left and right, and rows above and below: mirror images of those inside."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.pad(values, (*columns, *rows), mode="reflect")
    for dimension, (before, after) in ((3, columns), (2, rows)):  # a GPU's gradient of `pad` is not deterministic
        size = values.shape[dimension]
        first, last = values.narrow(dimension, 1, before), values.narrow(dimension, size - 1 - after, after)
        values = torch.cat([first.flip(dimension), values, last.flip(dimension)], dimension)
    return values


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ReflectedConv2d(channels, channels, 3),
            *_normalised(channels),
            ReflectedConv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, values: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Same shape as `values`."""
        return values + self.layers(values)


class PatchDiscriminator(nn.Module):
    """C64-C128-C256-C512 and a last convolution to one channel: each output sees 70x70 pixels.

    Args:
        filters: Channels of the first convolution.
    """

    def __init__(self, filters: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            layers += [
                nn.Conv2d(factor * filters // 2, factor * filters, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(factor * filters),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * filters, 1, 4, padding=1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """One judgement for each patch, not limited to 0..1."""
        return self.layers(images)


def _normalised(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)


def draw_weights(network: nn.Module, seed: int) -> None:
    """Initial weights from a normal distribution of deviation 0.02, biases 0; a function of the seed."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, _INITIAL_DEVIATION, generator=random)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.inference_mode()
def generate(generator: Generator, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images in 0..1 translated to 0..1; bf16 arithmetic where the device is a GPU."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        translated = generator(images * 2 - 1)
    return (translated.float() + 1) / 2


def save_generator(path: Path, generator: Generator, extra: Mapping[str, str]) -> None:
    """Write a generator to one file, whole or not at all; its shape goes into the metadata, beside `extra`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()}
    metadata = {
        **extra,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generator": json.dumps({"filters": generator.filters, "blocks": generator.blocks}),
    }
    with whole_file(path) as file:
        file.write(save(tensors, metadata))


def load_generator(path: Path) -> tuple[Generator, dict[str, str]]:
    """The generator in a file of `save_generator`, in evaluation mode on the CPU, and the metadata.

    Raises:
        InputError: The file is absent or something else.
    """
    if not path.is_file():
        raise InputError(f"model: {path} is missing; make it with 'segadapt translate fit'")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
            raise InputError(f"model: {path} is no generator of 'segadapt translate fit' (format {FORMAT_VERSION})")
        with torch.device("meta"):
            generator = Generator(**json.loads(metadata["generator"]))
        generator.load_state_dict(load_file(path), assign=True)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"model: {path} cannot be read as a generator ({error}); make it again") from None
    return generator.eval(), metadata
