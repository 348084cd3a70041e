"""Recalibration: statistics against those taken by hand at each layer, and what else happens to the model: nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model_files import SIZE, network, write_model
from segadapt.cli import main
from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.data.transforms import resize_image
from segadapt.errors import InputError
from segadapt.networks.deeplab import DeepLab, set_batch_norm
from segadapt.networks.weights import build_network, load_network, read_metadata, save_network
from segadapt.prediction.recalibrate import recalibrate
from streets import ROOT, few


def layers_of(model: DeepLab) -> dict[str, nn.BatchNorm2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}


def statistics_by_hand(model: DeepLab, images: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over the images of the mean and the unbiased variance of what enters each layer, in float64."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers_of(model)}
    hooks = []
    for name, layer in layers_of(model).items():
        layer.train()

        def look(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            values = inputs[0].double().transpose(0, 1).flatten(1)
            seen[name].append((values.mean(1), values.var(1, correction=1)))

        hooks.append(layer.register_forward_pre_hook(look))
    with torch.no_grad():
        for image in images:
            model.backbone(model.normalisation(image))
    for hook in hooks:
        hook.remove()
    return {
        name: (torch.stack([mean for mean, _ in pairs]).mean(0), torch.stack([var for _, var in pairs]).mean(0))
        for name, pairs in seen.items()
    }


def test_statistics_are_the_mean_over_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = write_model(tmp_path / "model.safetensors"), tmp_path / "new.safetensors"
    (tmp_path / "data").mkdir()
    folder = few(tmp_path / "data", images=3) / "adverse/train/images"
    assert main(["recalibrate", str(model), str(folder), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"out": str(out), "images": 3}
    assert "worse" not in printed.err
    photos = [np.array(Image.open(file)) for file in sorted(folder.iterdir())]
    images = [torch.from_numpy(resize_image(photo, SIZE).transpose(2, 0, 1).copy())[None] for photo in photos]
    expected = statistics_by_hand(load_network(model), images)
    made = load_network(out)
    assert len(expected) > 40
    for name, layer in layers_of(made).items():
        mean, variance = expected[name]
        scale = variance.sqrt().max().item()
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-3, atol=1e-4 * scale**2)
    old_state = load_network(model).state_dict()
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, old_state[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    before, after = read_metadata(model), read_metadata(out)
    assert json.loads(after["provenance"]) == {"seed": 3, "recalibrated_on": {"folder": str(folder), "images": 3}}
    assert {**before, "provenance": ""} == {**after, "provenance": ""}


def test_the_network_is_left_ready_to_predict() -> None:
    model = network()
    momenta = [layer.momentum for layer in layers_of(model).values()]
    images = torch.randint(0, 256, (2, 1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert recalibrate(model, images) == 2
    assert not any(module.training for module in model.modules())
    assert [layer.momentum for layer in layers_of(model).values()] == momenta


def test_frozen_batch_norm_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = network()
    set_batch_norm(frozen, "frozen")
    save_network(tmp_path / "frozen.safetensors", frozen, {"input_size": json.dumps(SIZE)})
    Image.open(ROOT / "data/streets/adverse/val/images/50120.jpg").save(tmp_path / "1.png")
    options = [str(tmp_path / "frozen.safetensors"), str(tmp_path), "--out", str(tmp_path / "new.safetensors")]
    assert main(["recalibrate", *options]) == 0
    printed = capsys.readouterr()
    assert "make it worse" in " ".join(printed.err.split())
    assert "1 images" in printed.out
    made = load_network(tmp_path / "new.safetensors")
    assert made.config.batch_norm == "frozen"
    first = next(iter(layers_of(made)))
    assert not torch.equal(layers_of(made)[first].running_mean, layers_of(frozen)[first].running_mean)


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="vgg16_adaptsegnet has no batch norm"):
        recalibrate(build_network(NetworkConfig("vgg16_adaptsegnet", "random"), STREETS11, 0), [])
    model = write_model(tmp_path / "model.safetensors")
    for folder, out, named in (("nowhere", "new.safetensors", "nowhere"), ("", "new.pth", "new.pth")):
        assert main(["recalibrate", str(model), str(tmp_path / folder), "--out", str(tmp_path / out)]) == 2
        assert named in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "drive.mp4").write_text("")
    out = ["--out", str(tmp_path / "new.safetensors")]
    assert main(["recalibrate", str(model), str(videos), *out]) == 2
    assert f"{videos}: holds videos alone" in capsys.readouterr().err
    free = write_model(tmp_path / "free.safetensors", size=None)
    for name in ("1.png", "1.jpg"):  # nothing is named after them
        Image.new("RGB", (8, 8)).save(videos / name)
    assert main(["recalibrate", str(free), str(videos), *out]) == 2
    assert "1.jpg: 8x8 is too small" in capsys.readouterr().err
    assert not (tmp_path / "new.safetensors").exists()
    assert main(["recalibrate", str(model), str(videos), *out]) == 0  # at the size of the test
    assert "2 images" in capsys.readouterr().out
