"""The segmentation network: feature extractor F (a backbone) and classifier C (ASPP), as in DeepLab-v2.

In: images normalised by `DeepLab.normalisation`. Out: features, which Eqs. (5) to (8) pool and match, and
logits, which Eqs. (1), (2), (4) and (10) read; both at output stride 8.

Names of the state dict are `backbone.` + the public names of the backbone, and `classifier.branches.N.`; what
other programs call them is in layouts.py.

Batch norm: scale and shift (`weight`, `bias`) of every backbone are frozen, as in the authors' code;
statistics follow `NetworkConfig.batch_norm`. One rule for all backbones, so that rows of results differ in
nothing else.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segadapt.config import BatchNorm, NetworkConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.errors import InputError
from segadapt.networks.efficientnet_lite import EfficientNetLite0
from segadapt.networks.normalisation import CAFFE_BGR, Normalisation
from segadapt.networks.resnet import ResNet
from segadapt.networks.vgg import VGG16, VGG16AdaptSegNet

ASPP_DILATIONS = (6, 12, 18, 24)
OUTPUT_STRIDE = 8


class SegmentationOutput(NamedTuple):
    """What the network says of a batch: features (B, C, h, w) and logits (B, N, h, w), both at stride 8."""

    features: Float[Tensor, "B C h w"]
    logits: Float[Tensor, "B N h w"]


class Classifier(nn.Module):
    """ASPP: the sum of parallel 3x3 convolutions with dilations 6, 12, 18, 24 (Chen et al., PAMI 2018).

    Paper: the authors' code returns after two branches; `branches=2` restores that.

    Args:
        channels: Channels of the features.
        num_classes: Channels of the logits.
        branches: How many of the dilations are used, the smallest first.
    """

    def __init__(self, channels: int, num_classes: int, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in ASPP_DILATIONS[:branches]
        )
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N h w"]:
        if torch.compiler.is_exporting():
            return self.by_convolutions(features)  # operations that every runtime has
        # One product for the taps of all branches, each of which is then added where it belongs. Convolutions to so few
        # channels leave most of a machine idle: forward and backward of 2048x65x129 take a CPU half the time so.
        size = (features.shape[-2], features.shape[-1])
        # turned round, because `fold` puts down where a convolution picks up
        taps = [branch.get_parameter("weight").flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2) for branch in self.branches]
        maps = F.conv2d(features, torch.cat(taps)[:, :, None, None]).flatten(2)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # what is added up is not rounded on the way
        logits = self._bias()[:, None, None]
        for of_branch, dilation in zip(maps.chunk(len(taps), 1), ASPP_DILATIONS, strict=False):
            logits = logits + F.fold(of_branch, size, 3, dilation=dilation, padding=dilation)
        return logits

    def by_convolutions(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N h w"]:
        """What `forward` returns, as it is defined."""
        return torch.stack([branch(features) for branch in self.branches]).sum(0)

    def _bias(self) -> Float[Tensor, " N"]:
        # not `stack(...).sum(0)`, which gives the biases views of one gradient, into which each then adds its next one
        return reduce(torch.add, [branch.get_parameter("bias") for branch in self.branches])

    def classify(self, features: Float[Tensor, "R C"]) -> Float[Tensor, "R N"]:
        """Returns the logits of pooled features, each as a 1x1 map, which only the centre taps see."""
        weight = torch.stack([branch.get_parameter("weight")[:, :, 1, 1] for branch in self.branches]).sum(0)
        return F.linear(features, weight, self._bias())


class DeepLab(nn.Module):
    """Backbone and classifier, with all that is needed to use them right.

    Args:
        config: Backbone, branches and batch norm; `weights` is not read here (`weights.build_network` does).
        label_space: The classes; the logits have a channel for each.
        normalisation: Of the images, as the weights want it. Those of Caffe also want the stride of a ResNet in
            its 1x1 convolutions: both are one fact about where weights come from, kept once.

    Attributes:
        channels: Channels of the features.
    """

    def __init__(self, config: NetworkConfig, label_space: LabelSpace, normalisation: Normalisation) -> None:
        super().__init__()
        self.config = config
        self.label_space = label_space
        self.normalisation = normalisation
        from_caffe = normalisation == CAFFE_BGR
        match config.backbone:
            case "resnet50":
                self.backbone = ResNet(50, stride_in_1x1=from_caffe)
            case "resnet101":
                self.backbone = ResNet(101, stride_in_1x1=from_caffe)
            case "vgg16":
                self.backbone = VGG16()
            case "vgg16_adaptsegnet":
                self.backbone = VGG16AdaptSegNet()
            case "efficientnet_lite0":
                self.backbone = EfficientNetLite0()
            case _:
                raise InputError(f"there is no backbone {config.backbone!r}")
        self.channels = self.backbone.channels
        self.classifier = Classifier(self.channels, label_space.num_classes, config.aspp_branches)
        set_batch_norm(self, config.batch_norm)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> SegmentationOutput:
        """Returns features and logits of normalised images.

        Raises:
            InputError: In training, batch norm would have one value a channel, which has no variance.
        """
        batch, _, height, width = images.shape
        if self.training and self.config.batch_norm != "frozen" and batch == 1 and max(height, width) <= OUTPUT_STRIDE:
            raise InputError(
                f"size: {height}x{width} is too small for the batch statistics of a single image; "
                "use a larger size or crop, more images a batch, or network.batch_norm frozen"
            )
        # Depthwise convolutions, and all of them on a GPU, are faster in this layout, and it lasts through the network.
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return SegmentationOutput(features, self.classifier(features))

    def classify(self, features: Float[Tensor, "R C"]) -> Float[Tensor, "R N"]:
        """Returns the classifier's logits of pooled features, for the agreement filter of docs/method.md."""
        return self.classifier.classify(features)

    def train(self, mode: bool = True) -> "DeepLab":
        """As any module, but with `batch_norm: frozen` the batch norms stay in evaluation mode."""
        super().train(mode)
        if self.config.batch_norm == "frozen":
            for layer in batch_norms(self):
                layer.eval()
        return self

    def update_running_statistics(self, update: bool) -> None:
        """Says whether forwards in training mode, from now on, update the running statistics of batch norm.

        Either way they normalise by the statistics of their batch; the running ones are read in evaluation
        mode only. With `batch_norm: source_target_separate` the training step passes False before the source
        forward and True before that of the target, so that test time sees target statistics alone.
        """
        for layer in batch_norms(self):
            # In training mode torch touches its running buffers only if this is set; evaluation ignores it.
            layer.track_running_stats = update


def batch_norms(network: DeepLab) -> Iterator[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """All of a network."""
    for module in network.backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            yield module


def set_batch_norm(network: DeepLab, mode: BatchNorm) -> None:
    """Puts batch norm in `mode` (see NetworkConfig) and freezes its scale and shift."""
    network.config = replace(network.config, batch_norm=mode)
    for layer in batch_norms(network):
        layer.requires_grad_(False)
    network.train(network.training)


def parameter_groups(network: DeepLab, lr: float, head_multiplier: float, weight_decay: float) -> list[dict[str, Any]]:
    """Returns optimiser groups with every trainable parameter exactly once.

    Paper: the authors list backbone parameters three to four times, which trains them at about 3x the rate.

    Args:
        network: Whose parameters.
        lr: Learning rate of the backbone.
        head_multiplier: Factor of the classifier's rate over `lr`.
        weight_decay: Of both groups.
    """
    rooms = (("backbone", network.backbone, lr), ("classifier", network.classifier, lr * head_multiplier))
    return [
        {
            "name": name,
            "params": [parameter for parameter in module.parameters() if parameter.requires_grad],
            "lr": rate,
            "weight_decay": weight_decay,
        }
        for name, module, rate in rooms
    ]
