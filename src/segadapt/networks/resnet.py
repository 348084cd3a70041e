"""ResNet-50 and ResNet-101 with output stride 8, the main feature extractor of the paper.

In: normalised images. Out: the 2048 channels of `layer4`. He et al., CVPR 2016, as DeepLab-v2 uses it:
`layer3` and `layer4` keep the resolution of `layer2` and are dilated by 2 and 4 (in all their blocks; no
multi-grid), and the pool of the stem rounds up, so that 1280x720 gives 161x91 features and 1024x512 gives
129x65. Key names are torchvision's.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

# Keys of the classification file that have no place in a feature extractor.
_HEAD_KEYS = ("fc.weight", "fc.bias")


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a skip connection; `width` channels inside, 4 x `width` outside."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, project: bool, stride_in_1x1: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width * 4, 1, stride=stride, bias=False), nn.BatchNorm2d(width * 4)
            )

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        inner = F.relu(self.bn1(self.conv1(features)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        inner = self.bn3(self.conv3(inner))
        skip = features if self.downsample is None else self.downsample(features)
        return F.relu(inner + skip, inplace=True)


def _layer(inputs: int, width: int, blocks: int, stride: int, dilation: int, in_1x1: bool) -> nn.Sequential:
    first = _Bottleneck(inputs, width, stride, dilation, project=True, stride_in_1x1=in_1x1)
    rest = [_Bottleneck(width * 4, width, 1, dilation, False, in_1x1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """ResNet up to `layer4`, output stride 8.

    Args:
        depth: 50 or 101.
        stride_in_1x1: Whether a block strides in its first convolution, as weights that come from Caffe
            expect; torchvision's stride in the 3x3 convolution.
    """

    channels = 2048

    def __init__(self, depth: Literal[50, 101], stride_in_1x1: bool = False) -> None:
        super().__init__()
        blocks = _BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(64, 64, blocks[0], 1, 1, stride_in_1x1)
        self.layer2 = _layer(256, 128, blocks[1], 2, 1, stride_in_1x1)
        self.layer3 = _layer(512, 256, blocks[2], 1, 2, stride_in_1x1)
        self.layer4 = _layer(1024, 512, blocks[3], 1, 4, stride_in_1x1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048 h w"]:
        """Returns features of size H // 8 + 1 x W // 8 + 1 for multiples of 8."""
        features = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features = F.max_pool2d(features, 3, stride=2, padding=1, ceil_mode=True)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
        return features

    @staticmethod
    def from_classification(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the part of torchvision's ImageNet state dict that this backbone uses."""
        return {key: value for key, value in state.items() if key not in _HEAD_KEYS}
