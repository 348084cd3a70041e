"""ResNet and VGG-16 against torchvision's, on the same state dict, where torchvision is installed.

torchvision's classification networks differ from ours on purpose: their stem pool rounds down, their ResNets dilate a
layer from its second block on and by half as much, their VGG pools are 2x2. For a ResNet the input size is one
where rounding makes no difference, and dilation and padding of every 3x3 convolution of `layer3` and `layer4` are set
to ours on torchvision's modules; then all layers are compared. VGG-16 is compared up to its first pool, and
each later stage of convolutions on the same input.
"""

import pytest
import torch

from segadapt.networks.resnet import ResNet
from segadapt.networks.vgg import VGG16

torchvision = pytest.importorskip("torchvision")

# Convolutions of a stage in `features`, its ReLUs included; pools stand between.
STAGES = ((0, 4), (5, 9), (10, 16), (17, 23), (24, 30))


def with_moved_statistics(network):
    """Batch norms whose statistics are not those of a new network, so that a wrong order would show."""
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.mark.parametrize("depth", [50, 101])
def test_resnet_is_that_of_torchvision_but_for_dilation_and_the_pool_of_the_stem(depth):
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        public = getattr(torchvision.models, f"resnet{depth}")(
            weights=None, replace_stride_with_dilation=[False, True, True]
        )
    with_moved_statistics(public)
    network = ResNet(depth).eval()
    network.load_state_dict(ResNet.from_classification(public.state_dict()))
    for layer, dilation in ((public.layer3, 2), (public.layer4, 4)):
        for block in layer:
            assert block.conv2.stride == (1, 1)
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))  # odd at the pool: 33x49
    with torch.no_grad():
        ours = torch.relu(network.bn1(network.conv1(images)))
        theirs = public.maxpool(public.relu(public.bn1(public.conv1(images))))
        ours = torch.nn.functional.max_pool2d(ours, 3, 2, 1, ceil_mode=True)
        torch.testing.assert_close(ours, theirs)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            ours, theirs = getattr(network, name)(ours), getattr(public, name)(theirs)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
        assert torch.equal(network(images), ours)


def test_vgg_has_the_convolutions_of_torchvision():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        public = with_moved_statistics(torchvision.models.vgg16(weights=None))
    network = VGG16().eval()
    network.load_state_dict(VGG16.from_classification(public.state_dict()))
    for index in STAGES[-1:]:
        for module in public.features[slice(*index)]:
            if isinstance(module, torch.nn.Conv2d):
                module.dilation = module.padding = (2, 2)  # ours: conv5 sees every second pixel
    features = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for begin, end in STAGES:
            ours, theirs = network.features[begin:end](features.clone()), public.features[begin:end](features.clone())
            torch.testing.assert_close(ours, theirs)
            features = network.features[end](ours)
