"""Every YAML that is shipped: it is read, it says what it claims, and it trains two steps on files of its formats."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segadapt.cli import main
from segadapt.commands.options import command_parser, experiment_of
from segadapt.commands.train import TRAIN_ROWS
from segadapt.config import ClassifierAgreement, Experiment, MatchingConfig, NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, SYNTHIA16
from streets import ROOT, few

CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*.yaml"))
PRESETS = CONFIGS / "presets"
METHODS = ("sim", "sim-paper", "sim-official")
SMALL = (64, 96)
# as shipped, but for two steps at the size of a stamp, from random weights where the file is not ours to ship
SHORT = ["--schedule.steps=2", "--schedule.decay_steps=null", "--schedule.workers=0", "--schedule.save_every=0"]
SHORT += [f"--{domain}.size={list(SMALL)}" for domain in ("source", "target", "test")]
SHORT += ["--augmentation.crop=null", "--schedule.evaluate_every=0", "--schedule.batch_size=1", "--warm_up.steps=0"]


def composed(*files: Path, command: str = "adapt") -> Any:
    """The options that these files make together, the later ones over the earlier."""
    _, parser = command_parser(command)
    return parser.instantiate(parser.parse_args([*(f"--config={file}" for file in files), "--run_dir=x"]))


def labels_of(space_ids: list[int], size: tuple[int, int] = SMALL) -> np.ndarray:
    """A label map with a stripe for each of the ids."""
    columns = np.linspace(0, len(space_ids), size[1], endpoint=False).astype(int)
    return np.tile(np.array(space_ids, np.uint8)[columns], (size[0], 1))


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    return make_formats(tmp_path)


def make_formats(tmp_path: Path) -> Path:
    """Two images of each data set that a shipped YAML names, in its format on disk; returns the project's folder."""
    random = np.random.default_rng(0)
    first_ids = [ids[0] for ids in CITYSCAPES.ids]
    for number in range(2):
        picture = random.integers(0, 256, (*SMALL, 3), np.uint8)
        write(tmp_path / f"data/gta5/images/{number:05}.png", picture)
        write(tmp_path / f"data/gta5/labels/{number:05}.png", labels_of(first_ids))
        write(tmp_path / f"data/synthia/RGB/{number:07}.png", picture)
        write(tmp_path / f"data/synthia/GT/LABELS/{number:07}.png", labels_of([ids[0] for ids in SYNTHIA16.ids]))
        for split in ("train", "val"):
            stem = f"{split}/aachen/aachen_{number:06}_000019"
            write(tmp_path / f"data/cityscapes/leftImg8bit/{stem}_leftImg8bit.png", picture)
            write(tmp_path / f"data/cityscapes/gtFine/{stem}_gtFine_labelIds.png", labels_of(first_ids))
        for split in ("train", "val", "test"):
            write(tmp_path / f"shared/data/camvid/{split}/images/{number}.png", picture)
            write(tmp_path / f"shared/data/camvid/{split}/labels/{number}.png", labels_of(list(range(12))))
        write(tmp_path / f"shared/data/synstreet/images/{number:05}.jpg", picture)
        write(tmp_path / f"shared/data/synstreet/labels/{number:05}.png", labels_of(list(range(11))))
    (tmp_path / "data/streets").mkdir()
    few(tmp_path / "data/streets")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/data").symlink_to(tmp_path / "data")
    return tmp_path / "project"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_a_shipped_experiment_trains(file: Path, formats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(formats)
    random_start = [] if "efficientnet" in file.read_text() else ["--network.weights=random"]
    assert main(["train", f"--config={file}", "--row=sim", "--run_dir=run", *SHORT, *random_start]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["step"] == 2
    assert 0 <= result["miou"] <= 100
    wanted = {"synthia": 16, "gta5": 19}.get(file.stem.split("_")[0], 11)
    assert len(result["classes"]) == wanted
    shutil.rmtree("run")  # a ResNet-101 with its optimiser is 700 MB


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_a_shipped_experiment_says_how_it_is_run(file: Path) -> None:
    lines = file.read_text().splitlines()
    comment = [line for line in lines[:8] if line.startswith("#")]
    assert any("Command:" in line and f"configs/{file.name}" in line for line in comment)


@pytest.mark.parametrize("task", ["gta5_to_cityscapes_resnet101", "gta5_to_cityscapes_vgg16"])
def test_sizes_weights_and_schedule_of_the_paper(task: str) -> None:
    experiment = experiment_of(composed(CONFIGS / f"{task}.yaml"))
    assert (experiment.source.size, experiment.target.size, experiment.test.size) == ((720, 1280), *[(512, 1024)] * 2)
    assert experiment.network.backbone == task.split("_")[-1]
    assert (experiment.loss, experiment.matching) == (Experiment().loss, Experiment().matching)
    assert experiment.optimiser == Experiment().optimiser
    assert (experiment.schedule.steps, experiment.schedule.decay_steps) == (200_000, 250_000)
    assert (experiment.schedule.batch_size, experiment.schedule.evaluate_every) == (1, 5000)
    synthia = experiment_of(composed(CONFIGS / "synthia_to_cityscapes_resnet101.yaml"))
    assert synthia.source.size == (760, 1280)


def test_the_default_is_the_preset_sim() -> None:
    assert experiment_of(composed(PRESETS / "sim.yaml")) == Experiment()


@pytest.mark.parametrize("preset", METHODS)
def test_a_preset_composes_with_every_experiment(preset: str) -> None:
    for file in EXPERIMENTS:
        alone, together = experiment_of(composed(file)), experiment_of(composed(file, PRESETS / f"{preset}.yaml"))
        assert (together.source, together.target, together.test) == (alone.source, alone.target, alone.test)
        assert together.network.backbone == alone.network.backbone
        assert together.pseudo_labels == experiment_of(composed(PRESETS / f"{preset}.yaml")).pseudo_labels


def test_sim_paper_and_sim_official_differ_from_the_default_where_docs_say() -> None:
    default = Experiment()
    paper = experiment_of(composed(PRESETS / "sim-paper.yaml"))
    assert paper.loss.matching_step2 == paper.loss.matching == 0.01 != default.loss.matching_step2
    assert paper.matching.classifier_agreement == ClassifierAgreement(False, False, False)
    assert (paper.pseudo_labels.override, default.pseudo_labels.override) == ("literal", "fill")
    assert (paper.optimiser.nesterov, default.optimiser.nesterov) == (True, False)
    official = experiment_of(composed(PRESETS / "sim-official.yaml"))
    assert official.network == NetworkConfig(aspp_branches=2)
    assert official.matching == MatchingConfig(min_fill="full", label_sampling="nearest")
    assert (official.pseudo_labels.override, official.pseudo_labels.model) == ("off", "best")
    assert (official.schedule.steps, official.schedule.evaluate_every) == (200_000, 5000)


@pytest.mark.parametrize("preset", METHODS)
def test_a_preset_trains_both_steps(preset: str, formats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(formats)
    files = [f"--config={CONFIGS}/smoke.yaml", f"--config={PRESETS}/{preset}.yaml"]
    assert main(["adapt", *files, "--run_dir=run", *SHORT]) == 0
    assert json.loads(Path("run/result.json").read_text())["step"] == 2


@pytest.mark.parametrize("row", [row for row in TRAIN_ROWS if row != "sim"])  # that one is a method, above
def test_a_baseline_is_a_preset(row: str) -> None:
    assert composed(CONFIGS / "smoke.yaml", PRESETS / f"{row}.yaml", command="train").row == row


def test_every_preset_is_tested_here() -> None:
    assert {file.stem for file in PRESETS.glob("*.yaml")} == {*METHODS, *TRAIN_ROWS}


def test_a_baseline_is_no_preset_of_the_whole_procedure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [f"--config={CONFIGS}/smoke.yaml", f"--config={PRESETS}/adabn.yaml"]
    assert main(["adapt", *files, f"--run_dir={tmp_path}/run"]) == 2
    assert "row" in capsys.readouterr().err
