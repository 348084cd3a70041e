"""The whole procedure on the bundled pair at postage-stamp size, as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from occupied import occupied
from segadapt.adaptation.apply_model import evaluate_model
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.step import TrainState, adaptation_step
from segadapt.adaptation.training import run_training
from segadapt.cli import main
from segadapt.config import DataConfig, LossConfig, WarmUpConfig
from segadapt.data.decoding import image_size
from segadapt.data.loading import Batch
from segadapt.errors import InputError
from segadapt.evaluation.label_free import HIGHER_IS_BETTER
from streets import ROOT, few, tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    adapt(tiny(), run_dir, Machine(CPU, Terminal()))
    return run_dir


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_folder_holds_all_that_was_promised(finished: Path) -> None:
    for folder in (finished, finished / "step1"):
        for name in (
            "config.yaml",
            "metrics.jsonl",
            "model.safetensors",
            "selected.safetensors",
            "best.safetensors",
            "result.json",
        ):
            assert (folder / name).stat().st_size > 0, f"{folder.name}/{name}"
        assert len(list((folder / "checkpoints").iterdir())) == 1
    assert (finished / "experiment.yaml").read_text().startswith("source:")
    assert not list(finished.rglob("*.part"))
    assert yaml.safe_load((finished / "config.yaml").read_text())["schedule"]["steps"] == 4
    with safe_open(finished / "model.safetensors", framework="pt") as file:
        assert {"label_space", "normalisation", "network", "provenance"} <= file.metadata().keys()


def test_metrics_say_every_loss_and_the_state_of_the_banks(finished: Path) -> None:
    step1 = [line for line in lines(finished / "step1" / "metrics.jsonl") if "learning_rate" in line]
    step2 = [line for line in lines(finished / "metrics.jsonl") if "learning_rate" in line]
    assert [line["step"] for line in step1] == [1, 2, 3, 4]
    wanted = {"loss/segmentation", "loss/adversarial", "loss/discriminator", "loss/stuff", "loss/instance"}
    wanted |= {"matched/stuff", "matched/instances", "bank_fill", "images_per_second", "memory_mib"}
    assert wanted <= step1[-1].keys()
    assert "loss/target_segmentation" in step2[-1]
    assert "loss/target_segmentation" not in step1[-1]
    assert sum(step1[-1]["bank_fill"].values()) > 0
    rates, multiplier = step1[0]["learning_rate"], tiny().optimiser.head_multiplier
    assert rates["head"] == pytest.approx(multiplier * rates["backbone"])


def test_the_result_names_what_it_depends_on(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    wanted = {"miou", "iou", "seed", "initial_weights", "versions", "data", "mean_last_k", "best", "step1"}
    assert wanted <= result.keys()
    assert result["best"]["chosen_on"] == "test labels"
    assert result["best"]["miou"] >= result["miou"]
    assert result["mean_last_k"]["k"] == 2
    assert result["images"] == 60
    known = [value for value in result["iou"].values() if value is not None]
    assert result["miou"] == pytest.approx(np.mean(known))


def test_pseudo_labels_are_train_ids_or_255_at_the_networks_size(finished: Path) -> None:
    files = sorted((finished / "pseudo_labels").glob("*.png"))
    assert len(files) == 120
    maps = np.stack([np.array(Image.open(path)) for path in files])
    assert maps.shape[1:] == (48, 64)
    assert set(np.unique(maps)) <= {*range(11), 255}
    assert 0.2 < (maps != 255).mean() < 0.95


@pytest.mark.parametrize("size", [(48, 64), None])  # None: the size in the file
def test_evaluating_the_model_file_gives_the_runs_own_score(finished: Path, size: tuple[int, int] | None) -> None:
    result = json.loads((finished / "result.json").read_text())
    again = evaluate_model(finished / "model.safetensors", replace(tiny().test, size=size), Machine(CPU, Terminal()))
    assert again["miou"] == pytest.approx(result["miou"], abs=1e-9)
    assert again["seed"] == result["seed"]


def test_a_finished_run_is_read_and_not_trained_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    result = adapt(tiny(), finished, Machine(CPU, Terminal()))
    assert result == json.loads((finished / "result.json").read_text())
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 99}, {"loss": LossConfig(matching=0.5)}])
def test_another_experiment_may_not_use_the_folder(finished: Path, change: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(InputError, match="another configuration"):
        adapt(replace(tiny(), **change), finished, Machine(CPU, Terminal()))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_experiment_does_not_take_the_place_of_the_one_whose_warm_up_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(tiny(few(tmp_path)), warm_up=WarmUpConfig(steps=3))
    run_dir, machine = tmp_path / "run", Machine(CPU, Terminal(quiet=True))
    monkeypatch.setattr("segadapt.adaptation.trainer.adaptation_step", stop)
    with pytest.raises(Stopped):
        adapt(experiment, run_dir, machine)
    kept = (run_dir / "experiment.yaml").read_bytes()
    for other in (replace(experiment, seed=7), replace(experiment, warm_up=WarmUpConfig())):
        with pytest.raises(InputError, match="warm_up holds a run with another configuration"):
            adapt(other, run_dir, machine)
        assert (run_dir / "experiment.yaml").read_bytes() == kept, "for --resume"


def test_two_commands_do_not_train_in_one_folder(tmp_path: Path) -> None:
    experiment = row_of(tiny(few(tmp_path), steps=1), "source_only")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with occupied(run_dir):
        with pytest.raises(InputError, match=r"run: another command is training there; wait for it"):
            run_training(experiment, run_dir, Machine(CPU, Terminal(quiet=True)), "")
        assert [path.name for path in run_dir.iterdir()] == [".lock"], "nothing is written, and the lock stays"
    run_training(experiment, run_dir, Machine(CPU, Terminal(quiet=True)), "")
    assert not (run_dir / ".lock").exists()


def test_the_pseudo_label_command_writes_the_same_labels(finished: Path, tmp_path: Path) -> None:
    target = tiny().target
    code = main(
        [
            "pseudo-label",
            f"--model={finished}/step1/model.safetensors",
            f"--data.root={target.root}",
            f"--data.split={target.split}",
            "--data.size=[48,64]",
            f"--out={tmp_path}/labels",
        ]
    )
    assert code == 0
    for path in sorted((finished / "pseudo_labels").iterdir()):
        assert path.read_bytes() == (tmp_path / "labels" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "labels").iterdir())) == 122, "maps, thresholds.json and made_by.json"


def test_a_target_that_is_not_resized_is_labelled_as_large_as_it_is(tmp_path: Path) -> None:
    experiment = tiny(few(tmp_path, images=2), steps=1)
    experiment = replace(
        experiment,
        target=replace(experiment.target, size=None),
        augmentation=replace(experiment.augmentation, crop=(48, 64)),
        schedule=replace(experiment.schedule, evaluate_every=0),
    )
    adapt(experiment, tmp_path / "run", Machine(CPU, Terminal(quiet=True)))
    shapes = [np.array(Image.open(path)).shape for path in (tmp_path / "run/pseudo_labels").glob("*.png")]
    assert shapes == [(288, 384)] * 2, "not the size of the test images"


class Stopped(Exception):
    """What a power cut looks like from inside."""


def stop(*_: object) -> None:
    raise Stopped


def test_an_interrupted_training_continues_and_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = row_of(tiny(few(tmp_path)), "sim")
    experiment = replace(experiment, schedule=replace(experiment.schedule, save_every=2, evaluate_every=2))
    whole = run_training(experiment, tmp_path / "whole", Machine(CPU, Terminal()), "whole")

    def stop_in_step_4(state: TrainState, source: Batch, target: Batch | None) -> dict[str, torch.Tensor]:
        if state.step == 3:
            raise Stopped
        return adaptation_step(state, source, target)

    monkeypatch.setattr("segadapt.adaptation.trainer.adaptation_step", stop_in_step_4)
    with pytest.raises(Stopped):
        run_training(experiment, tmp_path / "broken", Machine(CPU, Terminal()), "broken")
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "result.json").exists()
    continued = run_training(experiment, tmp_path / "broken", Machine(CPU, Terminal()), "continued")

    timed = {"seconds"}
    assert {k: v for k, v in continued.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}
    measured = {"images_per_second", "memory_mib"}
    one, other = (
        [{k: v for k, v in line.items() if k not in measured} for line in lines(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "broken")
    )
    assert one == other, "step 3, made twice, stands once; losses and evaluations are the same"
    assert [line["step"] for line in one if "evaluation" in line] == [2, 4]
    for name in ("best.safetensors", "selected.safetensors", "model.safetensors"):
        tensors, again = (load_file(tmp_path / run / name) for run in ("whole", "broken"))
        assert all(torch.equal(value, again[key]) for key, value in tensors.items()), name


def test_different_class_lists_train_the_intersection(tmp_path: Path) -> None:
    space = yaml.safe_load((ROOT / "data" / "streets" / "label_space.yaml").read_text())
    space["classes"] = [entry for entry in space["classes"] if entry["name"] not in ("fence", "sign")]
    space.pop("subsets", None)
    (tmp_path / "nine.yaml").write_text(yaml.safe_dump(space))
    experiment = tiny(few(tmp_path))
    fewer = {"label_space": str(tmp_path / "nine.yaml")}
    experiment = replace(experiment, target=replace(experiment.target, **fewer), test=replace(experiment.test, **fewer))
    result = run_training(row_of(experiment, "source_only"), tmp_path / "run", Machine(CPU, Terminal()), "nine classes")
    assert len(result["classes"]) == 9
    assert "fence" not in result["iou"]


def test_a_missing_test_set_is_said_before_training(tmp_path: Path) -> None:
    experiment = replace(tiny(), test=DataConfig(root=str(tmp_path / "absent")))
    with pytest.raises(InputError, match=r"test: root: .*absent"):
        run_training(experiment, tmp_path / "run", Machine(CPU, Terminal()), "none")
    assert not (tmp_path / "run").exists()


def test_test_images_without_a_trained_class_are_said_before_training(finished: Path, tmp_path: Path) -> None:
    data = few(tmp_path, images=2)
    for path in (data / "adverse/val/labels").iterdir():
        sky = np.zeros_like(np.array(Image.open(path)))
        path.unlink()
        Image.fromarray(sky).save(path)
    experiment, machine = tiny(data), Machine(CPU, Terminal(quiet=True))
    with pytest.raises(InputError, match=r"val: no label of its 2 images is of a trained class \(road, car\)"):
        run_training(replace(experiment, classes=("road", "car")), tmp_path / "run", machine, "none")
    assert not (tmp_path / "run").exists()
    assert evaluate_model(finished / "model.safetensors", experiment.test, machine)["iou"]["sky"] is not None


def test_both_steps_start_from_the_network_of_the_warm_up(tmp_path: Path) -> None:
    warm_up = WarmUpConfig(steps=3, learning_rate=0.002)
    experiment = replace(tiny(few(tmp_path), steps=1), warm_up=warm_up)
    run_dir = tmp_path / "run"
    adapt(experiment, run_dir, Machine(CPU, Terminal()))
    # a run folder that was moved is still a finished run of the same experiment
    run_dir = run_dir.rename(tmp_path / "moved")
    assert adapt(experiment, run_dir, Machine(CPU, Terminal())) == json.loads((run_dir / "result.json").read_text())
    warmed = run_dir / "warm_up" / "model.safetensors"
    alone = yaml.safe_load((run_dir / "warm_up" / "config.yaml").read_text())
    assert (alone["schedule"]["steps"], alone["optimiser"]["learning_rate"]) == (3, 0.002)
    assert alone["loss"]["adversarial"] == alone["loss"]["matching"] == 0
    for folder in (run_dir / "step1", run_dir):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["schedule"]["steps"], config["optimiser"]["learning_rate"]) == (1, 0.001)
        assert json.loads((folder / "result.json").read_text())["initial_weights"].endswith("warm_up/model.safetensors")
        # one step at a thousandth: close to where it started, and far from a new classifier
        start, end = load_file(warmed), load_file(folder / "model.safetensors")
        key = "classifier.branches.0.weight"
        assert 0 < (start[key] - end[key]).abs().max() < 0.1 * start[key].abs().max()


def test_rows_that_are_not_adapted_train_as_long_as_warm_up_and_adaptation_together() -> None:
    experiment = replace(tiny(steps=5), warm_up=WarmUpConfig(steps=3, learning_rate=0.002))
    for name in ("source_only", "adabn", "target_only"):
        row = row_of(experiment, name)
        assert (row.schedule.steps, row.optimiser.learning_rate, row.warm_up.steps) == (8, 0.002, 0)
    for name in ("adversarial", "sim"):
        row = row_of(experiment, name)
        assert (row.schedule, row.optimiser, row.warm_up) == (
            experiment.schedule,
            experiment.optimiser,
            experiment.warm_up,
        )


def test_without_test_images_it_adapts_and_scores_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = replace(tiny(few(tmp_path), steps=1), test=DataConfig())
    run_dir = tmp_path / "run"
    result = adapt(experiment, run_dir, Machine(CPU, Terminal()))
    assert (result["miou"], result["step1"]["miou"], result["images"]) == (None, None, 0)
    assert "test" not in result["data"]
    assert (run_dir / "model.safetensors").exists()
    assert not (run_dir / "best.safetensors").exists()
    assert (run_dir / "selected.safetensors").exists(), "chosen without labels"
    assert set(result["label_free"]) == set(HIGHER_IS_BETTER)
    assert main(["adapt", f"--resume={run_dir}"]) == 0
    assert "no score" in capsys.readouterr().out
    best = replace(experiment, pseudo_labels=replace(experiment.pseudo_labels, model="best"))
    with pytest.raises(InputError, match=r"pseudo_labels\.model: 'best'"):
        adapt(best, tmp_path / "other", Machine(CPU, Terminal()))
    assert not (tmp_path / "other").exists()


def test_with_a_crop_images_of_any_size_are_trained_on_labelled_and_scored(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = few(tmp_path / "data", 3)
    for file in data.glob("*/*/*/*.*"):
        with Image.open(file) as whole:
            picture = whole.resize((76, 60) if file.stem.endswith("1") else (64, 48), Image.Resampling.NEAREST)
        file.unlink()
        picture.save(file)
    experiment = tiny(data, steps=1)
    own = {name: replace(getattr(experiment, name), size=None) for name in ("source", "target", "test")}
    experiment = replace(experiment, **own, augmentation=replace(experiment.augmentation, crop=(48, 64)))
    result = adapt(experiment, tmp_path / "run", Machine(CPU, Terminal(quiet=True)))
    sizes = {image_size(path) for path in (tmp_path / "run" / "pseudo_labels").glob("*.png")}
    assert sizes == {(48, 64), (60, 76)}
    scores = evaluate_model(tmp_path / "run" / "model.safetensors", own["test"], Machine(CPU, Terminal(quiet=True)))
    assert (scores["images"], scores["miou"]) == (3, result["miou"])


def test_test_images_of_other_classes_are_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = few(tmp_path / "data", 2)
    text = (data / "label_space.yaml").read_text().replace("name: ", "name: other ")
    (data / "adverse" / "val" / "label_space.yaml").write_text(text)
    experiment = tiny(data)
    for name in ("test", "validation"):
        other = replace(experiment.test, root=str(data / "adverse" / "val"), split="")
        with pytest.raises(InputError, match=f"^{name}: label spaces other streets11 .* no class name in common"):
            run_training(replace(experiment, **{name: other}), tmp_path / "run", Machine(CPU, Terminal(quiet=True)), "")
        if name == "test":
            with pytest.raises(InputError, match="no class name in common"):
                adapt(replace(experiment, test=other), tmp_path / "run", Machine(CPU, Terminal(quiet=True)))
        assert not (tmp_path / "run").exists()
