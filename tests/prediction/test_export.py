"""Exported programs: they label images of any size as the network does, and none that does not is written."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from model_files import SIZE, network, write_model
from segadapt import Segmenter
from segadapt.cli import main
from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.errors import InputError
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network, save_network
from segadapt.prediction.export import agreement, describe, export, refuse_disagreement, run_of
from streets import ROOT, few

PHOTO = ROOT / "data/streets/adverse/val/images/50120.jpg"


def photo(size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.open(PHOTO).resize((size[1], size[0])))


def exported(model: Path, target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The file that `segadapt export` writes, after a look at what it says."""
    (folder / "data").mkdir()
    images = few(folder / "data", images=2) / "adverse/val/images"
    out = folder / "exported"
    assert main(["export", str(model), "--to", target, "--out", str(out), "--images", str(images), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == out.stat().st_size
    assert said["agreement"]["images"] == 2
    assert 0.999 <= said["agreement"]["worst"] <= said["agreement"]["mean"] <= 1
    return out


def test_onnx_labels_images_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model.safetensors")
    out = exported(model, "onnx", tmp_path, capsys)
    session = onnxruntime.InferenceSession(out.read_bytes())
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["input_size"]) == list(SIZE)
    assert json.loads(about["classes"]) == list(STREETS11.names)
    whole = Segmenter(network(), None)  # any size as it is
    for size, count in (((48, 64), 1), ((47, 65), 3), ((121, 50), 1), ((64, 96), 2)):
        images = np.stack([np.roll(photo(size), shift, 1) for shift in range(count)])
        (labels,) = session.run(["labels"], {"images": images})
        assert labels.dtype == np.uint8
        expected = np.stack([whole.predict(image).labels for image in images])
        assert len(np.unique(expected)) > 2
        assert (labels == expected).mean() > 0.999

    # the example that does without segadapt
    orientation = Image.Exif()
    orientation[0x0112] = 3  # the camera was held upside down
    Image.fromarray(photo(SIZE)).save(tmp_path / "photo.png", exif=orientation)
    command = [sys.executable, str(ROOT / "examples/run_onnx.py"), out, tmp_path / "photo.png", tmp_path / "labels.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "labels.png")
    expected = Segmenter.load(model).predict(tmp_path / "photo.png")
    assert (np.array(picture) == expected.labels).mean() > 0.999
    assert (np.array(picture.convert("RGB")) == np.array(expected.picture().convert("RGB"))).mean() > 0.999
    assert "segadapt" not in (ROOT / "examples/run_onnx.py").read_text().split('"""')[2]


@pytest.fixture(scope="module")
def vgg() -> DeepLab:
    return build_network(NetworkConfig("vgg16_adaptsegnet", "random"), STREETS11, 0).eval()


def test_torch_export_labels_images_of_any_size(
    vgg: DeepLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(tmp_path / "vgg.safetensors", vgg, {"input_size": json.dumps(SIZE)})
    out = exported(tmp_path / "vgg.safetensors", "torch-export", tmp_path, capsys)
    extra = {"segadapt.json": ""}
    program = torch.export.load(str(out), extra_files=extra).module()
    assert json.loads(json.loads(extra["segadapt.json"])["classes"]) == list(STREETS11.names)
    whole = Segmenter(vgg, None)
    for size in ((47, 65), (64, 40)):
        labels = program(torch.from_numpy(photo(size))[None])[0].numpy()
        assert (labels == whole.predict(photo(size)).labels).mean() > 0.999


def test_a_program_that_is_not_the_network_is_refused(vgg: DeepLab) -> None:
    other = deepcopy(vgg)
    with torch.no_grad():
        for branch in other.classifier.branches:
            branch.get_parameter("weight").neg_()
    program = run_of(export(vgg, "torch-export", describe(vgg, SIZE)), "torch-export")
    images = [photo(SIZE), photo(SIZE)[::-1]]
    refuse_disagreement(agreement(vgg, program, images), "torch-export")
    found = agreement(other, program, images)
    assert found.worst < 0.9
    with pytest.raises(InputError, match="nothing was written"):
        refuse_disagreement(found, "torch-export")


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model.safetensors")
    out = ["--out", str(tmp_path / "m.onnx")]
    assert main(["export", str(model), "--to", "onnx", *out, "--images", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "drive.mp4").write_text("")
    assert main(["export", str(model), "--to", "onnx", *out, "--images", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds videos alone" in capsys.readouterr().err
    (tmp_path / "drive.mp4").unlink()
    assert main(["export", str(model), "--to", "onnx", "--out", str(model), "--images", str(PHOTO.parent)]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert main(["export", str(model), "--to", "tflite", *out]) == 2
    assert "tflite" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert main(["export", str(model), "--to", "onnx", *out, "--images", str(PHOTO.parent)]) == 2
    assert "segadapt[export]" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
