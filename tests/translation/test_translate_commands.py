"""`segadapt translate fit` and `segadapt translate apply` as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from occupied import occupied
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.cli import main
from segadapt.config import DataConfig, NetworkConfig
from segadapt.data.decoding import read_image
from segadapt.data.label_spaces import STREETS11
from segadapt.data.readers import find_pairs
from segadapt.networks.weights import build_network, load_network, save_network
from segadapt.translation import match_lab
from segadapt.translation.cyclegan import load_generator
from streets import ROOT, few

IMAGES = 6
FIT = [
    "--size=[48, 64]", "--crop=[32, 48]", "--filters=4", "--blocks=1", "--steps=4", "--log_every=2", "--save_every=2",
    "--workers=0", "--pool_size=2", "--ema=0.5", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each domain, small, in folders of their own."""
    folder = few(tmp_path_factory.mktemp("streets"), IMAGES)
    small = tmp_path_factory.mktemp("pair")
    for domain in ("clear", "adverse"):
        for file in sorted((folder / domain / "train/images").iterdir()):
            path = small / domain / "images" / file.relative_to(folder / domain / "train/images")
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                image.resize((64, 48)).save(path.with_suffix(".png"))
        shutil.copytree(folder / domain / "train/labels", small / domain / "labels")
    (small / "clear/images/sub").mkdir()
    first = sorted((small / "clear/images").glob("*.png"))[0]
    first.rename(small / "clear/images/sub" / first.name)
    return small


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_network(path, build_network(NetworkConfig("efficientnet_lite0", "imagenet"), STREETS11, 0))
    return path


@pytest.fixture(scope="module")
def fitted(pair: Path, segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("fit")
    assert fit(pair, run_dir, f"--segmenter={segmenter}") == 0
    return run_dir


def fit(pair: Path, run_dir: Path, *others: str) -> int:
    return main(
        [
            "translate",
            "fit",
            f"--source={pair}/clear",
            f"--target={pair}/adverse",
            f"--run_dir={run_dir}",
            *FIT,
            *others,
        ]
    )


def apply(pair: Path, out: Path, method: str, *others: str) -> int:
    target = [] if method == "cyclegan" else [f"--target={pair}/adverse"]
    command = ["translate", "apply", f"--method={method}", f"--source={pair}/clear", f"--out={out}", "--quiet"]
    return main([*command, *target, *others])


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix != ".json")


def same_files(one: Path, other: Path) -> bool:
    return names(one) == names(other) and all((one / n).read_bytes() == (other / n).read_bytes() for n in names(one))


def said(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert code == 2
    line = capsys.readouterr().err
    assert line.startswith("segadapt: error: ")
    assert line.count("\n") == 1
    return line


def test_the_run_folder(fitted: Path) -> None:
    lines = [json.loads(line) for line in (fitted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["learning_rate"] for line in lines] == [2e-4, pytest.approx(2e-4 / 3)]
    wanted = {"loss/adversarial_target", "loss/adversarial_source", "loss/cycle", "loss/identity", "loss/semantic"}
    wanted |= {"loss/discriminator_target", "loss/discriminator_source", "label_drift", "learning_rate"}
    assert wanted | {"images_per_second", "memory_mib"} <= lines[-1].keys()
    result = json.loads((fitted / "result.json").read_text())
    assert {"seed", "versions", "data", "segmenter", "command", "seconds"} <= result.keys()
    assert result["data"]["source"]["images"] == IMAGES
    assert not list(fitted.rglob("*.part"))


def test_the_label_drift_is_the_share_of_positions_whose_class_changes(
    pair: Path, fitted: Path, segmenter: Path
) -> None:
    network = load_network(segmenter)
    generator, _ = load_generator(fitted / "generator.safetensors")
    drifts = []
    for path in (pair / "clear/images").rglob("*.png"):
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            after = (generator(image / 127.5 - 1) + 1) * 127.5
            before, after = (network(network.normalisation(each)).logits.argmax(1) for each in (image, after))
        drifts.append((before != after).float().mean().item())
    assert len(drifts) == IMAGES
    assert 0 < sum(drifts) / IMAGES < 1
    result = json.loads((fitted / "result.json").read_text())
    assert result["label_drift"] == pytest.approx(sum(drifts) / IMAGES, abs=1e-3)


def test_images_are_flipped_as_asked(pair: Path, tmp_path: Path) -> None:
    losses = []
    for flip in (0, 1):
        assert fit(pair, tmp_path / f"flip{flip}", f"--flip={flip}", "--crop=null", "--steps=1") == 0
        losses.append(json.loads((tmp_path / f"flip{flip}/result.json").read_text())["loss/cycle"])
    assert losses[0] != losses[1]


def test_two_processes_fit_and_apply_as_one(pair: Path, tmp_path: Path) -> None:
    once = ["--steps=1", "--ema=0", "--pool_size=0"]
    assert fit(pair, tmp_path / "one", "--batch_size=2", *once) == 0
    common = [f"--source={pair}/clear", f"--target={pair}/adverse", "--quiet"]
    torchrun("translate", "fit", *common, f"--run_dir={tmp_path}/two", *FIT, *once)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    for loss in (name for name in one if name.startswith("loss/")):
        assert two[loss] == pytest.approx(one[loss], rel=1e-4), loss

    assert apply(pair, tmp_path / "alone", "lab") == 0
    torchrun("translate", "apply", "--method=lab", *common, f"--out={tmp_path}/together", "--batch_size=1")
    assert same_files(tmp_path / "alone", tmp_path / "together")


def torchrun(*words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "segadapt"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_segmenter_is_known_by_its_content(
    pair: Path, fitted: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted, tmp_path / "run")
    replaced = tmp_path / "model.safetensors"
    save_network(replaced, build_network(NetworkConfig("efficientnet_lite0", "imagenet"), STREETS11, 1))
    config = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(config.replace(str(segmenter), str(replaced)))
    assert "segmenter_digest" in said(fit(pair, tmp_path / "run", f"--segmenter={replaced}"), capsys)


def test_images_that_are_too_small_are_refused(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(fit(pair, tmp_path / "run", "--size=null", "--crop=[64, 64]"), capsys)
    assert "64x48" in line
    assert "crop" in line
    assert not (tmp_path / "run").exists()
    for domain in ("clear", "adverse"):
        (tmp_path / domain).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / domain / "0.png")
    assert "32x32" in said(fit(tmp_path, tmp_path / "run", "--size=null", "--crop=null"), capsys)


def test_a_stopped_run_continues_bit_by_bit(pair: Path, fitted: Path, segmenter: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path / "run")
    (newest,) = (tmp_path / "run/checkpoints").glob("*4-*.pt")
    newest.unlink()
    for name in ("generator.safetensors", "result.json"):
        (tmp_path / "run" / name).unlink()
    assert fit(pair, tmp_path / "run", f"--segmenter={segmenter}") == 0
    ours, theirs = (load_file(folder / "generator.safetensors") for folder in (fitted, tmp_path / "run"))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    first, second = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (fitted, tmp_path / "run"))
    for one, other in zip(first, second, strict=True):
        one, other = (json.loads(line) for line in (one, other))
        assert [one[key] for key in one if "loss" in key] == [other[key] for key in one if "loss" in key]


def test_two_commands_do_not_train_in_one_folder(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with occupied(tmp_path):
        assert "another command is training there" in said(fit(pair, tmp_path), capsys)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"], "nothing is written"


def test_a_finished_run_is_only_read_and_another_refused(
    pair: Path, fitted: Path, segmenter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in fitted.rglob("*") if path.is_file()}
    assert fit(pair, fitted, f"--segmenter={segmenter}") == 0
    assert "label drift" in capsys.readouterr().out
    assert str(fitted) in said(fit(pair, fitted, "--steps=5"), capsys)
    assert {path: path.stat().st_mtime_ns for path in fitted.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("method", ["lab", "histogram", "fourier", "cyclegan"])
def test_apply_writes_every_image_and_a_domain_reads_them(
    method: str, pair: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [f"--model={fitted}/generator.safetensors"] if method == "cyclegan" else []
    assert apply(pair, tmp_path / "out", method, *model, "--batch_size=4", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["translated"], result["skipped"]) == (IMAGES, 0)
    assert names(tmp_path / "out") == names(pair / "clear/images")
    data = DataConfig(root=str(pair / "clear"), label_space="streets11", translated=str(tmp_path / "out"))
    images = find_pairs(data, labelled=False)
    for index in range(IMAGES):
        original, translated = read_image(images.images[index]), read_image(images.file(index))
        assert translated.shape == original.shape
        assert np.abs(translated.astype(int) - original).mean() > 1
    made_by = json.loads((tmp_path / "out/translation.json").read_text())
    assert made_by["settings"]["method"] == method
    assert {"segadapt", "torch", "python"} == made_by["versions"].keys()


def test_apply_does_what_the_transform_does(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "clear/images", tmp_path / "source")
    one = sorted((pair / "adverse/images").iterdir())[0]
    (tmp_path / "target").mkdir()
    shutil.copy(one, tmp_path / "target")
    command = ["translate", "apply", "--method=lab", f"--source={tmp_path}/source", f"--target={tmp_path}/target"]
    assert main([*command, f"--out={tmp_path}/out", "--quiet"]) == 0
    reference = torch.from_numpy(read_image(one)).permute(2, 0, 1)[None].float() / 255
    for name in names(tmp_path / "source"):
        image = torch.from_numpy(read_image(tmp_path / "source" / name)).permute(2, 0, 1)[None].float() / 255
        wanted = (match_lab(image, reference).clamp(0, 1) * 255).round()[0].permute(1, 2, 0)
        difference = np.abs(read_image(tmp_path / "out" / name).astype(float) - wanted.numpy())
        assert difference.max() <= 1


def test_shards_resume_and_batches_write_the_same_files(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(pair, tmp_path / "whole", "fourier", "--beta=0.05") == 0
    for part in ("1/3", "2/3", "3/3"):
        assert apply(pair, tmp_path / "parts", "fourier", "--beta=0.05", f"--shard={part}", "--batch_size=1") == 0
        assert len(names(tmp_path / "parts")) == 2 * int(part[0])
    assert same_files(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / names(tmp_path / "parts")[3]).unlink()
    kept = tmp_path / "parts" / names(tmp_path / "parts")[0]
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert apply(pair, tmp_path / "parts", "fourier", "--beta=0.05") == 0
    assert f"1 images translated, {IMAGES - 1} were there" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert same_files(tmp_path / "whole", tmp_path / "parts")
    assert apply(pair, tmp_path / "other", "fourier", "--beta=0.05", "--seed=1") == 0
    assert not same_files(tmp_path / "whole", tmp_path / "other")


def test_size_quality_and_drift(
    pair: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size=[32, 40]", "--jpeg_quality=90", f"--segmenter={segmenter}", "--json"]
    assert apply(pair, tmp_path / "out", "lab", *options) == 0
    assert 0 < json.loads(capsys.readouterr().out)["label_drift"] < 1
    for name in names(tmp_path / "out"):
        assert name.endswith(".jpg")
        assert read_image(tmp_path / "out" / name).shape == (32, 40, 3)


def test_mistakes_are_one_line(pair: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "model" in said(apply(pair, out, "cyclegan"), capsys)
    assert "nothing.safetensors" in said(
        apply(pair, out, "cyclegan", f"--model={tmp_path}/nothing.safetensors"), capsys
    )
    model = fitted / "generator.safetensors"
    assert "model" in said(apply(pair, out, "lab", f"--model={model}"), capsys)
    assert "shard: '4/3'" in said(apply(pair, out, "lab", "--shard=4/3"), capsys)
    assert "translate.beta" in said(apply(pair, out, "fourier", "--beta=0.7"), capsys)
    command = ["translate", "apply", "--method=lab", f"--source={pair}/clear", f"--out={out}"]
    assert "target" in said(main(command), capsys)
    assert "target: " in said(main([*command, "--target=/no/such/folder"]), capsys)
    assert "out" in said(apply(pair, pair / "clear/images/new", "lab"), capsys)
    assert "translate fit" in said(main(["translate"]), capsys)
    assert "size: [0, 10]" in said(apply(pair, out, "lab", "--size=[0, 10]"), capsys)
    assert "size: [4, 40]" in said(apply(pair, out, "cyclegan", f"--model={model}", "--size=[4, 40]"), capsys)
    assert "labels" in said(main([*command, f"--target={ROOT}/data/streets/adverse"]), capsys)
    assert "source: is empty" in said(main([*command[:3], "--source=", f"--out={out}"]), capsys)
    assert not out.exists()
    assert apply(pair, out, "lab") == 0
    assert "method lab, not histogram" in said(apply(pair, out, "histogram"), capsys)


def test_only_what_was_made_here_counts_as_translated(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert apply(pair, out, "lab") == 0
    shutil.copytree(pair, tmp_path / "other")
    first = sorted((tmp_path / "other/clear/images").glob("*.png"))[0]
    Image.new("RGB", (64, 48)).save(first)
    assert "source" in said(apply(tmp_path / "other", out, "lab"), capsys), "of equal names, and others"
    (out / "translation.json").write_text("{")
    assert "translation.json: damaged" in said(apply(pair, out, "lab"), capsys)
    (out / "translation.json").unlink()
    assert "holds images" in said(apply(pair, out, "histogram"), capsys), "those of lab"
    target = tmp_path / "other/adverse"
    assert "within the target" in said(apply(tmp_path / "other", target / "images", "lab"), capsys)
    assert not (target / "images/translation.json").exists()


def test_a_damaged_source_image_is_named(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pair / "clear", tmp_path / "clear")
    shutil.copytree(pair / "adverse", tmp_path / "adverse")
    broken = tmp_path / "clear/images" / names(pair / "clear/images")[2]
    broken.write_bytes(b"no image")
    assert broken.name in said(apply(tmp_path, tmp_path / "out", "lab", "--batch_size=1"), capsys)
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_signal_stops_between_batches(pair: Path, tmp_path: Path) -> None:
    from segadapt.adaptation.apply_translation import apply_translation
    from segadapt.adaptation.fit_translation import images_in
    from segadapt.config import FolderTranslation
    from segadapt.errors import Stopped

    machine = Machine(torch.device("cpu"), Terminal(quiet=True))
    machine.signals.received = 15
    options, source = FolderTranslation("lab"), images_in("source", str(pair / "clear"))
    with pytest.raises(Stopped):
        apply_translation(options, source, images_in("target", str(pair / "adverse")), tmp_path / "out", machine)
    assert names(tmp_path / "out") == []
