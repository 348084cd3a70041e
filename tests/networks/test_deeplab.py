import copy
from dataclasses import replace

import pytest
import torch

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.networks.deeplab import ASPP_DILATIONS, Classifier, DeepLab, parameter_groups, set_batch_norm
from segadapt.networks.normalisation import CENTRED_RGB

CONFIG = NetworkConfig(backbone="efficientnet_lite0", weights="random")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepLab(CONFIG, STREETS11, CENTRED_RGB)


def running_statistics(network):
    return {key: value.clone() for key, value in network.state_dict().items() if "running" in key or "num_b" in key}


def equal(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("branches", [2, 4])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (31, 27)], ids=str)  # below and above the dilations
def test_classifier_is_the_sum_of_its_branches(branches, size):
    classifier = Classifier(8, 5, branches).double()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter)
    assert [branch.dilation[0] for branch in classifier.branches] == list(ASPP_DILATIONS[:branches])
    features = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    logits, expected = classifier(features), sum(branch(features) for branch in classifier.branches)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(classifier.by_convolutions(features), expected)
    assert logits.shape == (2, 5, *size)
    wanted = (features, *classifier.parameters())
    weights = torch.randn_like(logits)
    for ours, plain in zip(
        *(torch.autograd.grad(y, wanted, weights, retain_graph=True) for y in (logits, expected)), strict=True
    ):
        torch.testing.assert_close(ours, plain)
    for _ in range(2):
        classifier(features).backward(weights)
    for parameter, plain in zip(wanted[1:], torch.autograd.grad(expected, wanted[1:], weights), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * plain)


def test_classifier_starts_small():
    classifier = Classifier(320, 11, 4)
    for branch in classifier.branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert branch.bias.abs().max() == 0


@pytest.mark.parametrize("branches", [2, 4])
def test_classify_is_the_classifier_on_a_map_of_one_pixel(branches):
    classifier = Classifier(8, 5, branches)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(7, 8)
    torch.testing.assert_close(classifier.classify(features), classifier(features[:, :, None, None])[:, :, 0, 0])
    assert classifier.classify(torch.empty(0, 8)).shape == (0, 5)


def test_output(network, images):
    features, logits = network(images)
    assert features.shape == (2, network.channels, 8, 12)
    assert logits.shape == (2, STREETS11.num_classes, 8, 12)
    pooled = features.mean((2, 3))
    torch.testing.assert_close(network.classify(pooled), network.classifier.classify(pooled))


def test_every_trainable_parameter_stands_in_one_group(network):
    backbone, classifier = parameter_groups(network, lr=1e-3, head_multiplier=10.0, weight_decay=5e-4)
    assert (backbone["lr"], classifier["lr"]) == (1e-3, pytest.approx(1e-2))
    assert backbone["weight_decay"] == classifier["weight_decay"] == 5e-4
    grouped = [id(parameter) for group in (backbone, classifier) for parameter in group["params"]]
    trainable = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert {id(parameter) for parameter in classifier["params"]} == {id(p) for p in network.classifier.parameters()}
    torch.optim.SGD([backbone, classifier], momentum=0.9).step()


def test_only_scale_and_shift_of_batch_norm_are_frozen(network):
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, parameter in network.named_parameters() if "backbone" in name and parameter.dim() == 1
    }


def test_batch_mode_uses_and_keeps_statistics_of_batches(network, images):
    before = running_statistics(network)
    with torch.no_grad():
        alone, together = network(images[:1]).features, network(images).features[:1]
    assert not torch.allclose(alone, together)
    assert not equal(before, running_statistics(network))


def test_frozen_mode_is_evaluation_mode_whatever_train_says(network, images):
    set_batch_norm(network, "frozen")
    assert network.config == replace(CONFIG, batch_norm="frozen")
    before = running_statistics(network)
    with torch.no_grad():
        training, evaluation = network.train()(images).logits, network.eval()(images).logits
    assert network.train().training
    assert torch.equal(training, evaluation)
    assert equal(before, running_statistics(network))
    set_batch_norm(network, "batch")
    with torch.no_grad():
        network(images)
    assert not equal(before, running_statistics(network))


def test_frozen_mode_of_the_configuration(images):
    network = DeepLab(replace(CONFIG, batch_norm="frozen"), STREETS11, CENTRED_RGB).train()
    before = running_statistics(network)
    network(images)
    assert equal(before, running_statistics(network))


def test_separate_statistics_are_those_of_the_target_alone(network, images):
    """As if the source had never been seen, while its forward normalises by its own batch."""
    set_batch_norm(network, "source_target_separate")
    source, target = images, images.flip(0) * 2 + 1
    reference = copy.deepcopy(network)
    with torch.no_grad():
        network.update_running_statistics(False)
        features = network(source).features
        network.update_running_statistics(True)
        network(target)
        reference(target)
        assert equal(running_statistics(network), running_statistics(reference))
        assert torch.equal(features, copy.deepcopy(reference)(source).features)


def test_evaluation_reads_running_statistics_even_while_they_are_not_updated(network, images):
    with torch.no_grad():
        expected = network.eval()(images).logits
        network.update_running_statistics(False)
        assert torch.equal(network(images).logits, expected)
