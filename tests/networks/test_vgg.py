import pytest
import torch

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES
from segadapt.networks.deeplab import DeepLab, parameter_groups
from segadapt.networks.normalisation import IMAGENET_RGB
from segadapt.networks.vgg import VGG16, VGG16AdaptSegNet

# Positions of the convolutions in torchvision's `features`.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.mark.parametrize(
    ("size", "expected"), [((720, 1280), (91, 161)), ((512, 1024), (65, 129)), ((760, 1280), (96, 161))]
)
def test_sizes_are_those_of_the_resnet(size, expected):
    with torch.device("meta"):
        features = VGG16()(torch.empty(1, 3, *size))
    assert features.shape == (1, 1024, *expected)


def test_keys_are_those_of_torchvision():
    with torch.device("meta"):
        keys = set(VGG16().state_dict())
    modules = [f"features.{index}" for index in CONVOLUTIONS] + ["fc6", "fc7"]
    assert keys == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def test_linear_layers_are_thinned():
    """Each weight holds its own input index, each bias its output index."""
    state = {
        "features.0.weight": torch.zeros(64, 3, 3, 3),
        "classifier.0.weight": torch.arange(512.0 * 49).expand(4096, -1),
        "classifier.0.bias": torch.arange(4096.0),
        "classifier.3.weight": torch.arange(4096.0).expand(4096, -1),
        "classifier.3.bias": torch.arange(4096.0),
        "classifier.6.weight": torch.zeros(1000, 4096),
        "classifier.6.bias": torch.zeros(1000),
    }
    kept = VGG16.from_classification(state)
    assert set(kept) == {"features.0.weight", "fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert kept["fc6.weight"].shape == (1024, 512, 3, 3)
    assert kept["fc6.weight"][7, 2].tolist() == [[98, 101, 104], [119, 122, 125], [140, 143, 146]]
    assert kept["fc7.weight"].shape == (1024, 1024, 1, 1)
    assert kept["fc7.weight"][3, :3, 0, 0].tolist() == [0, 4, 8]
    assert kept["fc6.bias"][:3].tolist() == kept["fc7.bias"][:3].tolist() == [0, 4, 8]


def test_dilation_of_thinned_fc6_is_that_of_its_taps():
    """Three undilated taps of the 7x7 at output stride 32 are 3 * 4 features apart at output stride 8."""
    with torch.device("meta"):
        network = VGG16()
    assert network.fc6.dilation == (12, 12)
    assert [network.features[index].dilation for index in (21, 24, 28)] == [(1, 1), (2, 2), (2, 2)]


def test_full_size_network():
    """Sizes, parameters, trainable set and rates at 1280x720 and 1024x512 (width x height)."""
    with torch.device("meta"):
        network = DeepLab(NetworkConfig("vgg16", "random"), CITYSCAPES, IMAGENET_RGB)
        for size, expected in (((720, 1280), (91, 161)), ((512, 1024), (65, 129))):
            output = network(torch.empty(1, 3, *size))
            assert output.features.shape == (1, 1024, *expected)
            assert output.logits.shape == (1, 19, *expected)
    # 14,714,688: the convolutions of VGG-16; then fc6 of 3x3 taps, fc7, and four branches
    thinned = 512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024
    assert sum(parameter.numel() for parameter in network.backbone.parameters()) == 14_714_688 + thinned
    assert sum(parameter.numel() for parameter in network.classifier.parameters()) == 4 * (19 * 1024 * 9 + 19)
    assert all(parameter.requires_grad for parameter in network.parameters())
    backbone, classifier = parameter_groups(network, lr=2.5e-4, head_multiplier=10.0, weight_decay=5e-4)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in network.backbone.parameters()}
    assert {id(p) for p in classifier["params"]} == {id(p) for p in network.classifier.parameters()}
    assert (backbone["lr"], classifier["lr"]) == (2.5e-4, 2.5e-3)


@pytest.mark.parametrize(("size", "expected"), [((720, 1280), (90, 160)), ((512, 1024), (64, 128)), ((65, 71), (8, 8))])
def test_sizes_of_the_variant_of_adaptsegnet(size, expected):
    with torch.device("meta"):
        assert VGG16AdaptSegNet()(torch.empty(1, 3, *size)).shape == (1, 1024, *expected)
