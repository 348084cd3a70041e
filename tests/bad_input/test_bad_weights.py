"""Files of weights and states of trainings: damaged, of another network, or made to run code when they are opened."""

import hashlib
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mistakes import evaluate, pseudo_label, refused, snapshot, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segadapt.cli import main
from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.errors import InputError
from segadapt.networks.weights import build_network, load_network, save_network

THREE = LabelSpace("three", ("road", "car", "sky"), ((0, 0, 0), (9, 9, 9), (5, 5, 5)), ((1,), (2,), (3,)), (0, 2), (1,))


class Code:
    """Unpickled by anything but a reader of plain tensors, it makes the folder `ran`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    """A saved network after `change(tensors, metadata)`."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    path.unlink()
    save_file(tensors, path, metadata)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda tensors, _: change(tensors))


def says(**metadata: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda _, before: before.update(metadata))


def describes(change: Callable[[dict], object], part: str = "network") -> Callable[[Path], None]:
    """A saved network whose JSON in the metadata is changed."""

    def make(_: object, metadata: dict[str, str]) -> None:
        content = json.loads(metadata[part])
        change(content)
        metadata[part] = json.dumps(content)

    return lambda path: rewrite(path, make)


STEM = "backbone._conv_stem.weight"
HEAD = "classifier.branches.0.weight"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.unlink(), "there is no file"),
        (lambda p: (p.unlink(), p.mkdir()), "there is no file"),
        (lambda p: (p.unlink(), p.symlink_to("nowhere")), "there is no file"),
        (lambda p: p.write_bytes(b""), "not a safetensors file"),
        (lambda p: p.write_text("weights"), "not a safetensors file"),
        (lambda p: cut(p, 0.0001), "not a safetensors file"),
        (lambda p: cut(p, 0.5), "not a safetensors file"),
        (lambda p: cut(p, 0.9999), "not a safetensors file"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "not a safetensors file"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"), "not a safetensors file"),
        (lambda p: p.write_bytes(struct.pack("<Q", 3000) + b"[" * 3000), "not a safetensors file"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"{}"), "something else than a state dict"),
        (tensors(lambda t: t.pop(STEM)), f"lacks {STEM}"),
        (tensors(lambda t: t.update(more=torch.zeros(1))), "has unknown keys more"),
        (tensors(lambda t: t.update({STEM: torch.zeros(3)})), f"has the wrong shape for {STEM} (3,)"),
        (tensors(lambda t: t.update({STEM: t[STEM].to(torch.int32)})), "another kind of numbers"),
        (tensors(lambda t: t.update({STEM: t[STEM] * float("nan")})), f"not finite in {STEM}"),
        (tensors(lambda t: t.update({HEAD: t[HEAD] / 0})), f"not finite in {HEAD}"),
        (says(format_version="7"), "has format version 7; this segadapt reads 1"),
        (says(label_space=THREE.to_yaml()), f"has the wrong shape for {HEAD}"),
        (says(label_space="name: x"), "classes"),
        (says(label_space="&a [*a]"), "nested"),
        (says(network="{"), "its metadata cannot be read"),
        (says(network="[" * 9000), "its metadata cannot be read"),
        (says(network="[]"), "its metadata cannot be read"),
        (says(network='{"depth": 9}'), "its metadata cannot be read"),
        (describes(lambda c: c.update(backbone="resnet18")), "resnet18"),
        (describes(lambda c: c.update(backbone="resnet50")), "lacks"),
        (describes(lambda c: c.update(aspp_branches=0)), "its metadata cannot be read"),
        (describes(lambda c: c.update(aspp_branches=2)), "has unknown keys classifier.branches.2"),
        (describes(lambda c: c.update(batch_norm=[])), "its metadata cannot be read"),
        (describes(lambda c: c.update(std=[1, 1, 0]), "normalisation"), "normalisation is not"),
        (describes(lambda c: c.update(mean="abc"), "normalisation"), "normalisation is not"),
        (describes(lambda c: c.pop("bgr"), "normalisation"), "its metadata cannot be read"),
        (says(provenance="made by me"), "its metadata cannot be read"),
        (says(provenance="[1]"), "provenance is no JSON object"),
        (says(input_size="big"), "its metadata cannot be read"),
        (says(input_size="[0, 5]"), "input_size is not [height, width]"),
    ],
    ids=lambda value: value.replace("/", " ") if isinstance(value, str) else "",
)  # fmt: skip
def test_a_model_that_is_none(make, words, model, site, capsys):
    path = site / "m.safetensors"
    path.write_bytes(model.read_bytes())
    make(path)
    refused(evaluate(path, site), site, f"m.safetensors|{words}", capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--network.weights={site}/none.pth"], "none.pth"),
        (["--network.weights={site}/three.safetensors"], "three.safetensors was trained on the classes road, car, sky"),
        (["--network.weights={model}", "--network.aspp_branches=2"], "model.safetensors holds|with 4 branches"),
        (["--network.weights={model}", "--network.backbone=resnet50"], "model.safetensors holds efficientnet_lite0"),
        (["--network.weights={site}/label_space.yaml"], "label_space.yaml"),
        (["--network.weights={site}"], "there is no file"),
        (["--network.weights=imagenet", "--network.backbone=resnet101"], "get https|--network.weights"),
    ],
)
def test_weights_that_do_not_fit_a_training(options, words, model, site, capsys):
    save_network(site / "three.safetensors", build_network(NetworkConfig("efficientnet_lite0", "random"), THREE, 0))
    given = [option.format(site=site, model=model) for option in options]
    refused(train(site, "--row=source_only", *given), site, words, capsys)


def raw_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def new_format(path: Path, content: object) -> None:
    torch.save(content, path)


def old_format(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def other_zip(path: Path, content: object) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(content))
        file.writestr("archive/version", "3")


FORMATS = [raw_pickle, new_format, old_format, other_zip]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "command",
    [
        lambda path, site: evaluate(path, site),
        lambda path, site: pseudo_label(path, site),
        lambda path, site: train(site, f"--network.weights={path}"),
        lambda path, site: ["weights", str(path)],
    ],
    ids=["evaluate", "pseudo-label", "train", "weights"],
)
def test_code_in_a_file_of_weights_does_not_run(command, suffix, write, site, capsys):
    path = site / f"evil{suffix}"
    write(path, {"layer": torch.zeros(2), "code": Code(site / "ran")})
    refused(command(path, site), site, f"evil{suffix}", capsys)
    assert not (site / "ran").exists()


@pytest.mark.parametrize("write", FORMATS)
def test_the_same_file_runs_code_where_it_is_trusted(write, site):
    """The cases above would find a reader that trusts."""
    write(site / "evil.pth", {"code": Code(site / "ran")})
    if write is raw_pickle:
        pickle.loads((site / "evil.pth").read_bytes())
    else:
        torch.load(site / "evil.pth", weights_only=False)
    assert (site / "ran").exists()


def checkpoint(run_dir: Path, write: Callable[[Path, object], None], content: object) -> Path:
    """A checkpoint of step 1 with the right checksum in its name."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True)
    write(folder / "new.pt", content)
    digest = hashlib.sha256((folder / "new.pt").read_bytes()).hexdigest()[:16]
    return (folder / "new.pt").rename(folder / f"000000001-{digest}.pt")


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("command", ["train", "adapt"])
def test_code_in_a_checkpoint_does_not_run(command, write, site, capsys):
    run_dir = site / "run" / ("step1" if command == "adapt" else "")
    path = checkpoint(run_dir, write, {"step": 1, "code": Code(site / "ran")})
    arguments = train(site, command=command)
    if command == "train":
        refused(arguments, site, f"{path.name}|not a readable training state", capsys)
    else:  # which keeps its experiment first
        assert main(arguments) == 2
        assert "not a readable training state" in capsys.readouterr().err
    assert not (site / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds list, no training state"),
        ({}, "not the state of this network"),
        ({"step": 1}, "not the state of this network"),
        ({"step": 1, "seconds": 0.0, "segmenter": {"a": torch.zeros(1)}}, "not the state of this network"),
    ],
)
def test_a_checkpoint_of_something_else(content, words, site, capsys):
    path = checkpoint(site / "run", new_format, content)
    refused(train(site), site, f"{path.name}|{words}", capsys)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", b"seed: 5\nversion: 0\n", "another configuration|seed: 5 there, 0 now|version: 0 there"),
        ("config.yaml", b"", "config.yaml: damaged"),
        ("config.yaml", b"[", "config.yaml: damaged"),
        ("config.yaml", b"\xff", "config.yaml: damaged"),
        ("config.yaml", b"- seed", "config.yaml: damaged"),
        ("result.json", b"", "result.json: damaged"),
        ("result.json", b"[1]", "result.json: damaged"),
        ("result.json", b"{\xff", "result.json: damaged"),
        ("result.json", b"[" * 9000, "result.json: damaged"),
    ],
    ids=lambda value: "",
)
def test_a_run_folder_of_another_version(name, content, words, site, capsys):
    (site / "run").mkdir()
    (site / "run" / name).write_bytes(content)
    refused(train(site), site, f"run|{words}", capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "experiment.yaml is missing"),
        (b"", "experiment.yaml"),
        (b"[", "experiment.yaml"),
        (b"sched: {steps: 1}", "experiment.yaml|sched"),
        (b"seed: many", "experiment.yaml|seed"),
        (b"\xff", "experiment.yaml"),
    ],
    ids=lambda value: "",
)
def test_a_run_that_cannot_be_resumed(content, words, site, capsys):
    (site / "run").mkdir()
    if content is not None:
        (site / "run" / "experiment.yaml").write_bytes(content)
    refused(["adapt", f"--resume={site}/run", "--quiet"], site, words, capsys)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_labels_of_another_version(content, site, model, capsys):
    (site / "out").mkdir()
    (site / "out" / "made_by.json").write_bytes(content)
    refused(pseudo_label(model, site), site, "made_by.json: damaged", capsys)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("write", [new_format, old_format])
def test_weights_cut_short(write, keep, site, capsys):
    path = site / "cut.pth"
    write(path, {"layer": torch.zeros(5000)})
    cut(path, keep)
    refused(["weights", str(path)], site, "cut.pth", capsys)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a full disk: what would grow above `size` bytes cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_model_whole(site, model, capsys):
    """A network is saved in place of another; the disk is full half-way."""
    path = site / "model.safetensors"
    path.write_bytes(model.read_bytes())
    before = snapshot(site)
    with no_file_above(1 << 20), pytest.raises(InputError, match=r"model\.safetensors: cannot be written"):
        save_network(path, load_network(path))
    assert snapshot(site) == before
    assert path.read_bytes() == model.read_bytes()


def test_a_full_disk_ends_a_training_in_one_line(site, capsys):
    arguments = train(site, "--row=source_only", "--schedule.steps=0")
    with no_file_above(1 << 20):
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "safetensors" in said
    assert "cannot be written" in said
    assert not list((site / "run").glob("*.safetensors"))
    assert not (site / "run" / "result.json").exists()
    assert not [path for path in (site / "run").rglob("*") if path.suffix in (".part", ".tmp")]
    assert main([*arguments, "--json"]) == 0, "with room on the disk the same command continues"
    assert (site / "run" / "model.safetensors").stat().st_size > 1 << 20


def test_a_full_disk_ends_labelling_in_one_line(site, model, capsys):
    with no_file_above(100):
        assert main(pseudo_label(model, site)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "out" in said
    assert not (site / "out" / "thresholds.json").exists()


def test_a_model_of_numbers_that_broke_down_does_not_replace_one_that_works(site, model):
    path = site / "model.safetensors"
    path.write_bytes(model.read_bytes())
    network = load_network(path)
    with torch.no_grad():
        next(network.parameters()).fill_(float("inf"))
    before = snapshot(site)
    with pytest.raises(InputError, match=r"model\.safetensors is not written, because weights are no longer finite"):
        save_network(path, network)
    assert snapshot(site) == before
