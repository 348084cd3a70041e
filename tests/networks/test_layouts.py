"""Files of other programs: written here from their key lists, read by us, compared with a plain evaluation of them.

Most tensors are the same for every input channel and expanded, so that the files are small.
"""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from segadapt.cli import main
from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, STREETS11, SYNTHIA13, SYNTHIA16
from segadapt.errors import InputError
from segadapt.networks.known_files import KNOWN_FILES, known_file
from segadapt.networks.layouts import recognise
from segadapt.networks.normalisation import CAFFE_BGR, IMAGENET_RGB
from segadapt.networks.weights import build_network, identify, load_network, read_metadata, save_network

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "network_shapes.json").read_text())["state_dict"]
TWO, SEVEN = (CITYSCAPES.restrict(CITYSCAPES.names[:number]) for number in (2, 7))


def values(key, shape, generator):
    """Something for the tensor `key` of a backbone that keeps features of moderate size."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if len(shape) == 4:
        inputs = shape[1] if shape[1] == 3 else 1
        kernel = torch.randn(shape[0], inputs, *shape[2:], generator=generator) / (shape[1] * shape[2])
        return kernel.expand(shape)
    spread = torch.rand(shape, generator=generator)
    return 0.5 + spread if key.endswith(("weight", "running_var")) else spread - 0.5


def head(prefix, channels, classes, trained, generator):
    """Four branches as after training: of the first `trained` each class has its own spread; the rest as drawn."""
    state = {}
    for branch in range(4):
        spread = torch.linspace(0.01, 0.03, classes)[:, None, None, None] if branch < trained else 0.01
        draw = torch.randn(classes, channels, 3, 3, generator=generator)
        state[f"{prefix}.conv2d_list.{branch}.weight"] = draw * spread
        state[f"{prefix}.conv2d_list.{branch}.bias"] = torch.rand(classes, generator=generator)
    return state


def resnet(blocks=23, seed=0):
    """The backbone of the authors' checkpoint, with fewer blocks in layer3 if wanted."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in GOLDEN:
        layer, block, *_ = key.split(".")
        if layer in ("layer5", "layer6") or (layer == "layer3" and int(block) >= blocks):
            continue
        state[key] = values(key, shape, generator)
    return state


def two_levels(classes, trained, blocks=23):
    generator = torch.Generator().manual_seed(1)
    auxiliary = head("layer5", 1024, classes, trained, generator)
    return resnet(blocks) | auxiliary | head("layer6", 2048, classes, trained, generator)


def one_level(classes, trained, blocks=6):
    return resnet(blocks) | head("layer5", 2048, classes, trained, torch.Generator().manual_seed(1))


def vgg(classes, trained):
    """AdaptSegNet's VGG-16."""
    generator = torch.Generator().manual_seed(2)
    state, inputs = {}, 3
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]
    channels = [64, 64, 128, 128, 256, 256, 256, *[512] * 6, 1024, 1024]
    for index, outputs in zip(convolutions, channels, strict=True):
        state[f"features.{index}.weight"] = values("", (outputs, inputs, 3, 3), generator) * 4
        state[f"features.{index}.bias"] = torch.rand(outputs, generator=generator)
        inputs = outputs
    return state | head("classifier", 1024, classes, trained, generator)


def caffe_resnet(state, x):
    """Features of `layer4` straight from the tensors: stride in the 1x1, pool that rounds up, dilation 2 and 4."""

    def norm(x, name):
        mean, variance, weight, bias = (
            state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    x = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for layer, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        for block in sorted({int(key.split(".")[1]) for key in state if key.startswith(f"layer{layer}.")}):
            name, step = f"layer{layer}.{block}", stride if block == 0 else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=step), f"{name}.bn1").relu()
            y = F.conv2d(y, state[f"{name}.conv2.weight"], padding=dilation, dilation=dilation)
            y = norm(y, f"{name}.bn2").relu()
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step), f"{name}.downsample.1")
            x = (x + y).relu()
    return x


def adaptsegnet_vgg(state, x):
    for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31):
        if index in (5, 10, 17):
            x = F.max_pool2d(x, 2)
        dilation = 4 if index >= 29 else 2 if index >= 23 else 1
        weight, bias = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation).relu()
    return x


def aspp(state, prefix, features, dilations):
    return sum(
        F.conv2d(
            features,
            state[f"{prefix}.conv2d_list.{branch}.weight"],
            state[f"{prefix}.conv2d_list.{branch}.bias"],
            padding=dilation,
            dilation=dilation,
        )
        for branch, dilation in enumerate(dilations)
    )


def blue_first(images):
    """As the foreign programs: BGR minus the mean, nothing divided."""
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    return images[:, [2, 1, 0]].float() - mean


def difference(found, expected):
    """The largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture
def images():
    return torch.randint(256, (1, 3, 61, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


CASES = {
    # AdaptSegNet and SIM: the released list of names, two branches used; as parallel training and a trainer keep it
    "SIM": (
        lambda: two_levels(19, trained=2),
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "iter": 120000},
        caffe_resnet, "layer6", (6, 12), CITYSCAPES, "resnet101",
    ),
    "ADVENT": (
        lambda: two_levels(19, trained=4), dict, caffe_resnet, "layer6", (6, 12, 18, 24), CITYSCAPES, "resnet101",
    ),
    "ADVENT, one level": (
        lambda: {k: v for k, v in two_levels(16, trained=4, blocks=6).items() if not k.startswith("layer5.")},
        dict, caffe_resnet, "layer6", (6, 12, 18, 24), SYNTHIA16, "resnet50",
    ),
    "BDL": (
        lambda: one_level(16, trained=4), lambda state: {"ResNet101": state}, caffe_resnet, "layer5", (6, 12, 18, 24),
        SYNTHIA16, "resnet50",
    ),
    "AdaptSegNet, one level, without counters": (
        lambda: {k: v for k, v in one_level(13, trained=2).items() if not k.endswith("tracked")},
        lambda state: {"model": state, "optimizer": {"state": {}}}, caffe_resnet, "layer5", (6, 12), SYNTHIA13,
        "resnet50",
    ),
    "AdaptSegNet, VGG-16": (
        lambda: vgg(13, trained=2), dict, adaptsegnet_vgg, "classifier", (6, 12), SYNTHIA13, "vgg16_adaptsegnet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_program_that_wrote_the_file(case, images, tmp_path):
    build, wrap, backbone, prefix, dilations, space, name = CASES[case]
    state = build()
    path = saved(tmp_path / "foreign.pth", wrap(state))
    network = load_network(path)
    assert not network.training
    assert (network.label_space, network.normalisation) == (space, CAFFE_BGR)
    assert (network.config.backbone, network.config.aspp_branches) == (name, len(dilations))
    with torch.no_grad():
        output = network(network.normalisation(images))
        features = backbone(state, blue_first(images))
        expected = aspp(state, prefix, features, dilations)
        other = aspp(state, prefix, features, (6, 12, 18, 24) if len(dilations) == 2 else (6, 12))
    assert difference(output.features, features) < 1e-5
    assert difference(output.logits, expected) < 1e-5
    assert difference(output.logits, other) > 0.1


def test_a_converted_checkpoint_stays_the_same_network(images, tmp_path):
    """Its own file must keep colours, strides in the 1x1 and branches."""
    network = load_network(saved(tmp_path / "foreign.pth", one_level(2, trained=2)), TWO)
    save_network(tmp_path / "model.safetensors", network)
    again = load_network(tmp_path / "model.safetensors")
    assert (again.config, again.normalisation, again.label_space.names) == (network.config, CAFFE_BGR, TWO.names)
    with torch.no_grad():
        first, second = (net(net.normalisation(images)).logits for net in (network, again))
    assert torch.equal(first, second)


def test_a_safetensors_file_of_another_program_is_read(tmp_path):
    state = {key: value.contiguous() for key, value in vgg(19, trained=2).items()}
    save_file(state, tmp_path / "foreign.safetensors")
    network = load_network(tmp_path / "foreign.safetensors")
    assert torch.equal(network.backbone.features[31].weight, state["features.31.weight"])


def test_half_precision_files_are_read_as_float32(tmp_path):
    state = {key: value.half() for key, value in vgg(2, trained=2).items()}
    network = load_network(saved(tmp_path / "foreign.pth", state), TWO)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.config.aspp_branches == 2


def by_class(draw):
    return draw * torch.linspace(0.5, 1.5, len(draw))[:, None, None, None]


def uniform(draw):
    return torch.rand(draw.shape, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(
    ("change", "layer5", "layer6"),
    [
        (lambda draw: draw, 2, 2),
        (by_class, 4, 4),  # what training leaves
        # neither: as the layout's own program
        (lambda draw: draw * 1.04, 4, 2),
        (lambda draw: draw.sign() * 0.01, 4, 2),
        (uniform, 4, 2),
        (torch.zeros_like, 4, 2),
    ],
)
def test_branches_that_were_never_trained_are_not_used(change, layer5, layer6, tmp_path):
    for layer, branches in (("layer5", layer5), ("layer6", layer6)):
        state = {"layer4.x": torch.zeros(1)} | {f"layer3.{block}.x": torch.zeros(1) for block in range(6)}
        state |= head(layer, 2048, 2, trained=2, generator=torch.Generator().manual_seed(1))
        for branch in (2, 3):
            key = f"{layer}.conv2d_list.{branch}.weight"
            state[key] = change(state[key])
        assert recognise(state, tmp_path / "foreign.pth").branches == branches, layer


def test_the_caller_may_say_how_many_branches_are_used(tmp_path):
    path = saved(tmp_path / "foreign.pth", vgg(2, trained=2))
    assert load_network(path, TWO, aspp_branches=4).config.aspp_branches == 4


def test_a_number_of_classes_without_names_needs_a_label_space(tmp_path):
    path = saved(tmp_path / "foreign.pth", vgg(7, trained=2))
    with pytest.raises(InputError, match=r"has 7 classes and no names for them.*LabelSpace\.from_yaml"):
        load_network(path)
    with pytest.raises(InputError, match="has 7 classes, and the label space has 2"):
        load_network(path, TWO)
    assert load_network(path, SEVEN).label_space == SEVEN


def test_the_documented_conversion_keeps_classes_origin_and_input_size(tmp_path, monkeypatch):
    path = saved(tmp_path / "foreign.pth", vgg(7, trained=2))
    (tmp_path / "label_space.yaml").write_text(SEVEN.to_yaml())
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "weights.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(code, {})
    assert load_network("model.safetensors").label_space == SEVEN
    metadata = read_metadata("model.safetensors")
    assert {key: metadata[key] for key in ("provenance", "input_size")} == read_metadata(path)


@pytest.mark.parametrize("prefix", ["Scale.", "", "module.Scale."])
def test_a_start_that_comes_from_caffe(prefix, images, tmp_path):
    """Another number of classes in the file is no reason to stop."""
    state = one_level(21, trained=4)
    path = saved(tmp_path / "init.pth", {prefix + key: value for key, value in state.items()})
    network = build_network(NetworkConfig("resnet50", str(path)), STREETS11, seed=0)
    assert network.normalisation == CAFFE_BGR
    assert network.training
    with torch.no_grad():
        features = network.eval()(network.normalisation(images)).features
        assert difference(features, caffe_resnet(state, blue_first(images))) < 1e-5
    drawn = build_network(NetworkConfig("resnet50", "random"), STREETS11, seed=0)
    for name, parameter in network.classifier.named_parameters():
        assert torch.equal(parameter, drawn.classifier.get_parameter(name))
    with pytest.raises(InputError, match=r"start of a training .* --network\.backbone resnet50 --network\.weights"):
        load_network(path)


def test_a_start_of_torchvision_vgg(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {key: value for key, value in vgg(2, trained=2).items() if key.startswith("features.")}
    for ours, theirs in ((23, 24), (25, 26), (27, 28)):  # torchvision keeps pool4
        for kind in ("weight", "bias"):
            state[f"features.{theirs}.{kind}"] = state.pop(f"features.{ours}.{kind}")
    state = {key: value for key, value in state.items() if key.split(".")[1] not in ("29", "31")}
    for layer, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        state[f"classifier.{layer}.weight"] = torch.randn(shape[0], 1, generator=generator).expand(shape)
        state[f"classifier.{layer}.bias"] = torch.randn(shape[0], generator=generator)
    path = saved(tmp_path / "vgg16.pth", state)
    network = build_network(NetworkConfig("vgg16", str(path)), TWO, seed=0)
    assert network.normalisation == IMAGENET_RGB
    assert torch.equal(network.backbone.features[28].weight, state["features.28.weight"])
    assert torch.equal(network.backbone.fc6.bias, state["classifier.0.bias"][::4])
    del state["classifier.3.bias"]
    with pytest.raises(InputError, match=r"lacks classifier\.3\.bias"):
        build_network(NetworkConfig("vgg16", str(saved(path, state))), TWO, seed=0)


def test_fine_tuning_takes_the_classifier_of_a_checkpoint_that_fits(tmp_path, caplog):
    state = vgg(13, trained=2)
    config = NetworkConfig("vgg16_adaptsegnet", str(saved(tmp_path / "foreign.pth", state)), aspp_branches=2)
    network = build_network(config, SYNTHIA13, seed=0)
    assert network.training
    for branch in range(2):
        weight = network.classifier.branches[branch].weight
        assert torch.equal(weight, state[f"classifier.conv2d_list.{branch}.weight"])
    assert not caplog.records


@pytest.mark.parametrize(
    ("classes", "branches", "space", "reason"),
    [
        (13, 4, SYNTHIA13, "its classifier uses 2 branches"),
        (13, 2, CITYSCAPES, "its classifier has 13 classes (synthia13), not those of this training"),
        (13, 2, CITYSCAPES.restrict(CITYSCAPES.names[:13]), "13 classes (synthia13), not those of this training"),
        (7, 2, TWO, "its classifier has 7 classes, not those of this training"),
    ],
)
def test_fine_tuning_says_when_the_classifier_is_not_taken(classes, branches, space, reason, tmp_path, caplog):
    state = vgg(classes, trained=2)
    path = saved(tmp_path / "foreign.pth", state)
    with caplog.at_level(logging.WARNING):
        network = build_network(NetworkConfig("vgg16_adaptsegnet", str(path), branches), space, seed=0)
    assert reason in caplog.text
    assert str(path) in caplog.text
    assert torch.equal(network.backbone.features[31].weight, state["features.31.weight"])
    assert network.classifier.branches[0].weight.std().item() == pytest.approx(0.01, rel=0.05)


def refused(path, content):
    """What is said of a file; each message is one line and names the file."""
    with pytest.raises(InputError) as error:
        load_network(saved(path, content))
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "features.29.bias"), r"lacks features\.29\.bias"),
        (lambda s: s | {"features.29.bias": torch.zeros(3)}, r"shape for features\.29\.bias \(3,\) \(not \(1024,\)\)"),
        (lambda s: s | {"features.33.bias": torch.zeros(3)}, r"unknown keys features\.33\.bias"),
        (lambda s: without(s, "classifier.conv2d_list.1.bias"), r"lacks classifier\.conv2d_list\.1\.bias"),
        (lambda s: without(s, "classifier.conv2d_list.0.bias"), r"lacks classifier\.conv2d_list\.0\.bias"),
        (
            lambda s: s | {"classifier.conv2d_list.2.bias": torch.zeros(5)},
            r"wrong shape for classifier\.conv2d_list\.2\.bias: \(5,\), not \(13,\)",
        ),
        (
            lambda s: s | {"classifier.conv2d_list.0.weight": torch.zeros(13, 512, 3, 3)},
            r"wrong shape for classifier\.conv2d_list\.0\.weight: \(13, 512, 3, 3\), not \(13, 1024, 3, 3\)",
        ),
        (
            lambda s: without(s, "classifier.conv2d_list.3.weight", "classifier.conv2d_list.3.bias"),
            "has the branches 0, 1, 2 in classifier.conv2d_list, not 0 to 3",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole_is_refused_by_key(change, message, tmp_path):
    assert re.search(message, refused(tmp_path / "foreign.pth", change(vgg(13, trained=2))))


class _Stranger:
    """What an unpickler must not build."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(64, 19, 4, 4), "classifier.bias": torch.zeros(1)}, "none of the layouts"),
        ({"conv1_1.weight": torch.zeros(1), "score_fr.weight": torch.zeros(1)}, "FCN-8s"),
        ({f"layer{n}.0.conv1.weight": torch.zeros(1) for n in (1, 2, 3, 4)}, "has 1 blocks in layer3"),
        ({"layer3.0.a": torch.zeros(1), "layer4.0.a": torch.zeros(1)}, "has 1 blocks in layer3"),
        ({"Scale.layer3.0.a": torch.zeros(1), "other": torch.zeros(1)}, "unknown keys other"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, r"lacks classifier.0.weight"),
        ({"generator": {"a": torch.zeros(1)}, "discriminator": {"b": torch.zeros(1)}}, "generator, discriminator"),
        ({"epoch": 3}, "something else than a state dict"),
        ([torch.zeros(1)], "holds list"),
        ({"model": _Stranger()}, r"more than plain tensors \(.*_Stranger\)"),
    ],
)
def test_a_wrong_file_is_refused(content, message, tmp_path):
    assert re.search(message, refused(tmp_path / "wrong.pth", content))


def test_our_own_file_needs_no_label_space(tmp_path):
    save_network(tmp_path / "model.safetensors", build_network(NetworkConfig("efficientnet_lite0"), TWO, seed=0))
    with pytest.raises(InputError, match="says itself"):
        load_network(tmp_path / "model.safetensors", TWO)


def test_another_backbone_than_that_of_the_file_is_refused(tmp_path):
    path = saved(tmp_path / "foreign.pth", vgg(13, trained=2))
    with pytest.raises(InputError, match=r"holds vgg16_adaptsegnet .*, not resnet101; pass --network\.backbone"):
        build_network(NetworkConfig("resnet101", str(path)), SYNTHIA13, seed=0)
    with pytest.raises(InputError, match="no ImageNet weights of vgg16_adaptsegnet"):
        build_network(NetworkConfig("vgg16_adaptsegnet"), SYNTHIA13, seed=0)


def test_the_table_of_public_files_is_whole(capsys):
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    for file in KNOWN_FILES:
        assert file.name in out
        assert file.source in out
        # By the convention of torch's model zoo the name carries the checksum.
        assert bool(file.checksum) == bool(re.search(r"-[0-9a-f]{8}\.pth$", file.name))
    assert len({file.name for file in KNOWN_FILES}) == len(KNOWN_FILES)


def test_known_files_are_found_by_content_first():
    assert known_file("renamed.pth", "63fe2227" + 56 * "0").name == "resnet101-63fe2227.pth"
    assert known_file("resnet50-0676ba61.pth", "63fe2227" + 56 * "0").name == "resnet101-63fe2227.pth"
    assert known_file("resnet50-0676ba61.pth", 64 * "0").name == "resnet50-0676ba61.pth"
    assert known_file("renamed.pth", 64 * "0") is None


def test_files_are_identified(tmp_path, capsys):
    foreign = saved(tmp_path / "GTA2Cityscapes_vgg-ac4ac9f6.pth", vgg(13, trained=2))
    start = saved(tmp_path / "init.pth", {f"Scale.{key}": value for key, value in resnet(6).items()})
    own = tmp_path / "model.safetensors"
    save_network(own, build_network(NetworkConfig("efficientnet_lite0"), TWO, seed=0))
    assert main(["weights", str(foreign), str(start), str(own)]) == 0
    out = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert out[:6] == [
        str(foreign),
        "layout AdaptSegNet's VGG-16",
        "backbone vgg16_adaptsegnet",
        "classes 13 (synthia13)",
        "branches 2",
        "colour BGR",
    ]
    assert out[6].endswith("(NOT the checksum of GTA2Cityscapes_vgg-ac4ac9f6.pth)")
    assert out[7] == f"pass as --model {foreign}"
    assert out[9:14] == [
        "layout Caffe's DeepLab", "backbone resnet50", "classes none that are kept", "branches -", "colour BGR",
    ]  # fmt: skip
    assert out[15] == f"pass as --network.backbone resnet50 --network.weights {start}"
    assert out[17:22] == [
        "layout segadapt", "backbone efficientnet_lite0", "classes 2 (cityscapes19[2])", "branches 4", "colour RGB",
    ]  # fmt: skip
    assert len(identify(own).sha256) == 64
    assert main(["weights", str(tmp_path / "absent.pth")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_metadata_of_a_foreign_file_say_where_it_comes_from(tmp_path):
    path = saved(tmp_path / "foreign.pth", vgg(13, trained=2))
    metadata = read_metadata(path)
    weights = json.loads(metadata["provenance"])["weights"]
    assert weights == {"file": "foreign.pth", "layout": "AdaptSegNet's VGG-16", "sha256": identify(path).sha256}
    assert json.loads(metadata["input_size"]) == [512, 1024]


def test_a_foreign_checkpoint_is_evaluated_at_the_command_line(tmp_path, capsys):
    data = tmp_path / "data"
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "images" / "a.png")
    Image.fromarray(np.full((64, 96), 3, np.uint8)).save(data / "labels" / "a.png")
    path = saved(tmp_path / "foreign.pth", vgg(13, trained=2))
    arguments = ["evaluate", "--model", str(path), "--data.root", str(data), "--data.label_space", "synthia13"]
    assert main([*arguments, "--data.size", "[64, 96]", "--json", "true"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["iou"]) == list(SYNTHIA13.names)
    assert result["weights"]["layout"] == "AdaptSegNet's VGG-16"
