"""VGG-16 with output stride 8, the second feature extractor of the paper.

In: normalised images. Out: the 1024 channels of `fc7`. Simonyan and Zisserman, ICLR 2015, as DeepLab (Chen
et al., PAMI 2018) uses it: pools are 3x3 and round up (1280x720 gives 161x91 features), the last two keep
the resolution, `conv5` is dilated by 2, and the fully connected layers are kept as convolutions.

`fc6` and `fc7` are kept because regions are matched on these features, and without them they would lack the
most semantic layers that ImageNet trained and most of the receptive field. As in DeepLab they are thinned:
every fourth channel, and of the 7x7 taps of `fc6` those at 0, 3 and 6. At output stride 8 instead of 32
neighbouring taps stand 4 pixels apart, so the kept ones stand 12 apart. They start from the ImageNet file
like everything else. Key names are torchvision's (`features.N`).

`VGG16AdaptSegNet` is the variant that the published VGG-16 checkpoint of AdaptSegNet needs.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# (convolutions, channels, dilation, stride of the pool) of the five stages.
_STAGES = ((2, 64, 1, 2), (2, 128, 1, 2), (3, 256, 1, 2), (3, 512, 1, 1), (3, 512, 2, 1))


def _features() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for convolutions, channels, dilation, stride in _STAGES:
        for _ in range(convolutions):
            layers.append(nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            inputs = channels
        layers.append(nn.MaxPool2d(3, stride, padding=1, ceil_mode=True))
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """VGG-16 up to `fc7`, output stride 8, without dropout; it has no batch norm."""

    channels = 1024

    def __init__(self) -> None:
        super().__init__()
        self.features = _features()
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=12, dilation=12)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1024 h w"]:
        """Returns features of size H // 8 + 1 x W // 8 + 1 for multiples of 8."""
        features = F.relu(self.fc6(self.features(images)), inplace=True)
        return F.relu(self.fc7(features), inplace=True)

    @staticmethod
    def from_classification(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns torchvision's ImageNet state dict, its linear layers thinned to `fc6` and `fc7`."""
        kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        if "classifier.0.weight" in state:
            kept["fc6.weight"] = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
            kept["fc6.bias"] = state["classifier.0.bias"][::4]
            kept["fc7.weight"] = state["classifier.3.weight"][::4, ::4, None, None]
            kept["fc7.bias"] = state["classifier.3.bias"][::4]
        return kept


class VGG16AdaptSegNet(nn.Module):
    """VGG-16 as AdaptSegNet (Tsai et al., CVPR 2018) has it, for its checkpoint; output stride 8, no batch norm.

    Pools are 2x2 and round down, the last two are gone, `conv5` is dilated by 2; `features.29` and `features.31` are
    3x3 convolutions dilated by 4 in the place of `fc6` and `fc7`. Key names are those of the checkpoint.
    """

    channels = 1024

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for convolutions, channels, dilation, stride in _STAGES:
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
                inputs = channels
            if stride == 2:
                layers.append(nn.MaxPool2d(2))
        for inputs in (512, 1024):
            layers += [nn.Conv2d(inputs, 1024, 3, padding=4, dilation=4), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1024 h w"]:
        """Returns features of size H // 8 x W // 8."""
        return self.features(images)
