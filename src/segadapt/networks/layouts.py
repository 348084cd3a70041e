"""The layouts in which other programs keep weights: recognised from names and shapes, brought into ours.

In: a state dict of torchvision, of Caffe's DeepLab, or of the code of SIM (the paper), AdaptSegNet, BDL or ADVENT.
Out: the tensors under the names of our backbone and of our classifier, with all that the file says of its network.

| names in the file                                          | what it is                                   |
| ---------------------------------------------------------- | -------------------------------------------- |
| `layer1.` to `layer4.`, `fc.`                              | ImageNet ResNet of torchvision               |
| `features.N`, `classifier.0`, `.3`, `.6`                   | ImageNet VGG-16 of torchvision               |
| `Scale.layer1.` ..., `Scale.layer5.conv2d_list.N`          | start that comes from Caffe, ResNet          |
| `layer1.` ..., `layer5.conv2d_list.N` of 21 classes        | the same without the prefix                  |
| `layer1.` ..., `layer6.conv2d_list.N` (`layer5.` beside it) | SIM, AdaptSegNet, ADVENT                     |
| `layer1.` ..., `layer5.conv2d_list.N` on 2048 channels     | BDL, and AdaptSegNet with one level          |
| `features.0` to `features.31`, `classifier.conv2d_list.N`  | AdaptSegNet, VGG-16                          |
| `_blocks.`                                                 | ImageNet EfficientNet-Lite0 of its package   |

Everything but torchvision's and EfficientNet's files goes back to Caffe: blue first, mean subtracted, and in a ResNet
the stride in the 1x1 convolutions.

`layer5` beside `layer6` classifies the 1024 channels of `layer3` and served training alone; it is left out.

All these programs store four ASPP branches, of which some use two: in SIM and AdaptSegNet the forward pass returns
early, in BDL and ADVENT it does not, and names and shapes are the same. The values tell: a branch that is never reached
has no gradient and keeps what it was drawn with, N(0, 0.01**2), to the end of training, while a trained one has heavy
tails. Values that say neither are read as the programs of their layout do: `layer6` with two branches, as the paper's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segadapt.config import Backbone
from segadapt.errors import InputError
from segadapt.networks.efficientnet_lite import EfficientNetLite0
from segadapt.networks.normalisation import CAFFE_BGR, CENTRED_RGB, IMAGENET_RGB, Normalisation
from segadapt.networks.resnet import ResNet
from segadapt.networks.vgg import VGG16

# Classes of PASCAL VOC with background: the classifier of the Caffe starts, which no street scene has.
_VOC_CLASSES = 21
_ALL_BRANCHES, _EARLY_RETURN = 4, 2
_INITIAL_STD = 0.01


@dataclass(frozen=True)
class ForeignWeights:
    """What a foreign file holds.

    Args:
        layout: In words.
        backbone: As in `network.backbone`.
        normalisation: Of the images its network sees.
        backbone_state: Names and tensors of our backbone.
        classifier_state: Names and tensors of our classifier, only of branches that are in use; empty if there is none.
        num_classes: Of the classifier; 0 if there is none.
        branches: ASPP branches in use; 0 if there is no classifier.
        adapted: Whether it is a complete network for street scenes, not the start of a training.
    """

    layout: str
    backbone: Backbone
    normalisation: Normalisation
    backbone_state: dict[str, Tensor]
    classifier_state: dict[str, Tensor]
    num_classes: int
    branches: int
    adapted: bool


def recognise(state: dict[str, Tensor], path: Path, aspp_branches: int | None = None) -> ForeignWeights:
    """Tells what a state dict is. Names and shapes of the backbone are left to be checked when it is loaded.

    Args:
        state: Of the file, names without `module.`.
        path: Of the file, for messages.
        aspp_branches: Branches in use, where the caller knows better than the values.

    Raises:
        InputError: The layout is unknown, or its classifier is not whole.
    """
    if _has(state, "_blocks."):
        kept = EfficientNetLite0.from_classification(state)
        return _start("EfficientNet-Lite0 of its package", "efficientnet_lite0", CENTRED_RGB, kept)
    if _has(state, "Scale."):
        others = [key for key in state if not key.startswith("Scale.")]
        if others:
            raise InputError(f"{path} has unknown keys {_some(others)} beside those of Scale.")
        inner = {key.removeprefix("Scale."): value for key, value in state.items()}
        return _start("Caffe's DeepLab", _depth(inner, path), CAFFE_BGR, _without(inner, ("layer5.", "fc.")))
    if _has(state, "layer4."):
        return _resnet(state, path, aspp_branches)
    if _has(state, "features."):
        return _vgg(state, path, aspp_branches)
    if _has(state, "score_fr."):
        raise InputError(f"{path} holds an FCN-8s (VGG-16 of SIM and BDL), which is no DeepLab and cannot be read")
    raise InputError(
        f"{path} has none of the layouts that are known (its keys: {_some(sorted(state))}); "
        "'segadapt weights' lists the files that are"
    )


def _resnet(state: dict[str, Tensor], path: Path, aspp_branches: int | None) -> ForeignWeights:
    backbone = _depth(state, path)
    kept = _without(state, ("layer5.", "layer6.", "fc."))
    if _has(state, "layer6."):
        head = _classifier(state, "layer6", ResNet.channels, path, aspp_branches, _EARLY_RETURN)
        return _adapted("AdaptSegNet, ADVENT or SIM", backbone, kept, head)
    if not _has(state, "layer5."):
        return _start("torchvision", backbone, IMAGENET_RGB, ResNet.from_classification(state))
    head = _classifier(state, "layer5", ResNet.channels, path, aspp_branches, _ALL_BRANCHES)
    if len(head["branches.0.bias"]) == _VOC_CLASSES:
        return _start("Caffe's DeepLab", backbone, CAFFE_BGR, kept)
    return _adapted("BDL or single-level AdaptSegNet", backbone, kept, head)


def _vgg(state: dict[str, Tensor], path: Path, aspp_branches: int | None) -> ForeignWeights:
    if _has(state, "classifier.conv2d_list."):
        head = _classifier(state, "classifier", VGG16.channels, path, aspp_branches, _EARLY_RETURN)
        return _adapted("AdaptSegNet's VGG-16", "vgg16_adaptsegnet", _without(state, ("classifier.",)), head)
    for key, shape in (("classifier.0.weight", (4096, 25088)), ("classifier.3.weight", (4096, 4096))):
        _require_shape(state, key, shape, path)
        _require_shape(state, key.replace("weight", "bias"), shape[:1], path)
    return _start("torchvision", "vgg16", IMAGENET_RGB, VGG16.from_classification(state))


def _start(layout: str, backbone: Backbone, colours: Normalisation, state: dict[str, Tensor]) -> ForeignWeights:
    return ForeignWeights(layout, backbone, colours, state, {}, num_classes=0, branches=0, adapted=False)


def _adapted(
    layout: str, backbone: Backbone, state: dict[str, Tensor], classifier: dict[str, Tensor]
) -> ForeignWeights:
    num_classes, branches = len(classifier["branches.0.bias"]), len(classifier) // 2
    return ForeignWeights(layout, backbone, CAFFE_BGR, state, classifier, num_classes, branches, adapted=True)


def _depth(state: dict[str, Tensor], path: Path) -> Backbone:
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer3.")})
    match blocks:
        case 6:
            return "resnet50"
        case 23:
            return "resnet101"
    raise InputError(f"{path} has {blocks} blocks in layer3; ResNet-50 has 6 and ResNet-101 has 23")


def _classifier(
    state: dict[str, Tensor], layer: str, channels: int, path: Path, aspp_branches: int | None, usual: int
) -> dict[str, Tensor]:
    """The branches in use of an ASPP, under the names of our classifier; `usual` many where the values do not tell."""
    prefix = f"{layer}.conv2d_list."
    stored = sorted({key.split(".")[2] for key in state if key.startswith(prefix)})
    if stored not in (["0", "1"], ["0", "1", "2", "3"]):
        found = ", ".join(stored) or "none"
        raise InputError(f"{path} has the branches {found} in {prefix[:-1]}, not 0 to 3")
    _require_shape(state, f"{prefix}0.bias", None, path)
    classes = len(state[f"{prefix}0.bias"])
    if not classes:
        raise InputError(f"{path} has a classifier without classes ({prefix}0.bias is empty)")
    for branch in stored:
        _require_shape(state, f"{prefix}{branch}.weight", (classes, channels, 3, 3), path)
        _require_shape(state, f"{prefix}{branch}.bias", (classes,), path)
    later = [state[f"{prefix}{branch}.weight"] for branch in stored[2:]]
    if not later or all(_never_trained(weight) for weight in later):
        told = _EARLY_RETURN
    elif all(_has_heavy_tails(weight) for weight in later):
        told = _ALL_BRANCHES
    else:
        told = usual
    used = aspp_branches or told
    if used > len(stored):
        raise InputError(f"{path} has {len(stored)} branches, not {used}")
    return {
        f"branches.{branch}.{kind}": state[f"{prefix}{branch}.{kind}"]
        for branch in stored[:used]
        for kind in ("weight", "bias")
    }


def _never_trained(weight: Tensor) -> bool:
    """Whether `weight` is a draw from N(0, 0.01**2): mean, variance and fourth moment within five standard errors.

    Training with weight decay moves the variance of 350,000 weights by more than that in a few hundred steps.
    """
    draw = weight.double() / _INITIAL_STD
    count = draw.numel()
    moments = ((draw, 0.0, 1.0), (draw**2, 1.0, 2.0), (draw**4, 3.0, 96.0))  # each with its mean and variance
    return all(abs(float(torch.mean(x)) - mean) < 5 * math.sqrt(variance / count) for x, mean, variance in moments)


def _has_heavy_tails(weight: Tensor) -> bool:
    """Whether the kurtosis of `weight` is above that of any normal draw, by more than five standard errors.

    Classes and channels learn at different rates, so what was one draw becomes a mixture of narrow and wide ones.
    """
    centred = weight.double() - weight.double().mean()
    variance = float((centred**2).mean())
    kurtosis = float((centred**4).mean()) / variance**2 if variance > 0 else 0.0
    return kurtosis > 3 + 5 * math.sqrt(24 / weight.numel())


def _require_shape(state: dict[str, Tensor], key: str, shape: tuple[int, ...] | None, path: Path) -> None:
    if key not in state:
        raise InputError(f"{path} lacks {key}")
    found = tuple(state[key].shape)
    if shape is None:
        if len(found) != 1:
            raise InputError(f"{path} has the wrong shape for {key}: {found}, not one number a class")
    elif found != shape:
        raise InputError(f"{path} has the wrong shape for {key}: {found}, not {shape}")


def _has(state: dict[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state)


def _without(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
