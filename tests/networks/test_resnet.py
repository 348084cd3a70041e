import json
import math
from pathlib import Path

import pytest
import torch

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES
from segadapt.networks.deeplab import DeepLab, parameter_groups
from segadapt.networks.normalisation import IMAGENET_RGB
from segadapt.networks.resnet import ResNet

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "network_shapes.json").read_text())


@pytest.fixture(scope="module")
def network():
    config = NetworkConfig(backbone="resnet101", weights="random", aspp_branches=2)
    with torch.device("meta"):
        return DeepLab(config, CITYSCAPES, IMAGENET_RGB)


@pytest.mark.parametrize("size", [(720, 1280), (512, 1024), (760, 1280), (1024, 2048)])
def test_sizes_are_those_of_the_released_network(network, size):
    output = network(torch.empty(1, 3, *size, device="meta"))
    features, logits = GOLDEN["shapes"][f"G {size[0]}x{size[1]}"]
    assert list(output.features.shape) == features
    assert list(output.logits.shape) == logits


def test_names_and_shapes_convert_from_the_released_network(network):
    released = {}
    for key, shape in GOLDEN["state_dict"]:
        layer, *_ = key.split(".")
        if layer == "layer6":
            # Its third and fourth branches are never reached.
            if int(key.split(".")[2]) < 2:
                released[key.replace("layer6.conv2d_list", "classifier.branches")] = shape
        elif layer != "layer5":
            released[f"backbone.{key}"] = shape
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == released


def released_parameters():
    """Shapes of the released network's parameters by our names: no buffers, no first-level or unreachable branches."""
    shapes = {}
    for key, shape in GOLDEN["state_dict"]:
        layer, _, branch, *_ = (*key.split("."), "", "")
        if layer == "layer5" or (layer == "layer6" and int(branch) > 1) or key.split(".")[-1] not in ("weight", "bias"):
            continue
        ours = key.replace("layer6.conv2d_list", "classifier.branches")
        shapes[ours if ours != key else f"backbone.{key}"] = shape
    return shapes


def test_parameters_trainable_set_and_rates_are_those_of_the_released_network(network):
    """The released program freezes scale and shift of batch norm, and trains the classifier at ten times the rate."""
    shapes = released_parameters()
    assert {name: list(parameter.shape) for name, parameter in network.named_parameters()} == shapes
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(counts[name] for name in counts if name.startswith("backbone.")) == 42_500_160
    assert sum(counts[name] for name in counts if name.startswith("classifier.")) == 2 * (19 * 2048 * 9 + 19)
    # of the backbone, exactly the convolutions have four dimensions
    trainable = {name for name, shape in shapes.items() if len(shape) == 4 or name.startswith("classifier.")}
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == trainable
    backbone, classifier = parameter_groups(network, lr=2.5e-4, head_multiplier=10.0, weight_decay=5e-4)
    assert (backbone["lr"], classifier["lr"]) == (2.5e-4, 2.5e-3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group, room in ((backbone, "backbone."), (classifier, "classifier.")):
        listed = [names[id(parameter)] for parameter in group["params"]]
        assert sorted(listed) == sorted(name for name in trainable if name.startswith(room))


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_stride_stands_in_one_convolution_of_a_block(stride_in_1x1):
    with torch.device("meta"):
        network = ResNet(50, stride_in_1x1)
    block = network.layer2[0]
    assert (block.conv1.stride == (2, 2)) == stride_in_1x1
    assert (block.conv2.stride == (1, 1)) == stride_in_1x1
    assert network(torch.empty(1, 3, 512, 1024, device="meta")).shape == (1, 2048, 65, 129)


def test_layers_after_the_removed_strides_are_dilated():
    with torch.device("meta"):
        network = ResNet(50)
    for layer, dilation in ((network.layer2, 1), (network.layer3, 2), (network.layer4, 4)):
        assert {block.conv2.dilation for block in layer} == {(dilation, dilation)}


def test_head_of_the_classification_file_is_left_out():
    state = {"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    assert set(ResNet.from_classification(state)) == {"conv1.weight"}
