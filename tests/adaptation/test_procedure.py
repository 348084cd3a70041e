"""The whole procedure on the bundled pair at postage-stamp size, as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from segadapt.adaptation.procedure import adapt, claim, evaluate_model, row_of, run_training
from segadapt.adaptation.run_log import RunLog
from segadapt.cli import build_parser, experiment_of, main
from segadapt.config import DataConfig, Experiment
from segadapt.errors import InputError

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent


def tiny() -> Experiment:
    parser = build_parser()
    options = parser.parse_args(["adapt", f"--config={ROOT}/configs/smoke.yaml", "--run_dir=x"])
    experiment = experiment_of(parser.instantiate(options).adapt)
    here = {
        name: replace(getattr(experiment, name), root=str(ROOT / getattr(experiment, name).root), size=(48, 64))
        for name in ("source", "target", "test")
    }
    return replace(experiment, **here, schedule=replace(experiment.schedule, steps=4, log_every=1, evaluate_every=2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    with RunLog(run_dir) as log:
        adapt(tiny(), run_dir, CPU, log)
    return run_dir


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_folder_holds_all_that_was_promised(finished: Path) -> None:
    for folder in (finished, finished / "step1"):
        for name in ("config.yaml", "metrics.jsonl", "model.safetensors", "train_state.pt", "result.json"):
            assert (folder / name).stat().st_size > 0, f"{folder.name}/{name}"
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
    assert step1[0]["learning_rate"]["head"] == pytest.approx(10 * step1[0]["learning_rate"]["backbone"])


def test_the_result_names_what_it_depends_on(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert {
        "miou",
        "iou",
        "seed",
        "initial_weights",
        "versions",
        "data",
        "mean_last_k",
        "best",
        "step1",
    } <= result.keys()
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


def test_evaluating_the_model_file_gives_the_runs_own_score(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    again = evaluate_model(finished / "model.safetensors", tiny().test, CPU)
    assert again["miou"] == pytest.approx(result["miou"], abs=1e-9)
    assert again["seed"] == result["seed"]


def test_a_finished_run_is_read_and_not_trained_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with RunLog(finished.parent / "log") as log:
        result = adapt(tiny(), finished, CPU, log)
    assert result == json.loads((finished / "result.json").read_text())
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_experiment_may_not_use_the_folder(finished: Path) -> None:
    with pytest.raises(InputError, match="another configuration"):
        claim(finished / "step1", replace(tiny(), seed=99))


def test_the_pseudo_label_command_writes_the_same_labels(finished: Path, tmp_path: Path) -> None:
    target = tiny().target
    code = main(
        ["pseudo-label", f"--model={finished}/step1/model.safetensors", f"--data.root={target.root}"]
        + [f"--data.split={target.split}", "--data.size=[48,64]", f"--out={tmp_path}/labels"]
    )
    assert code == 0
    for path in (finished / "pseudo_labels").glob("*.png"):
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(tmp_path / "labels" / path.name)))


def test_an_interrupted_training_continues_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    experiment = row_of(tiny(), "sim")
    experiment = replace(experiment, schedule=replace(experiment.schedule, save_every=1, evaluate_every=0))
    broken = tmp_path / "broken"
    with RunLog(tmp_path / "log") as log:
        whole = run_training(experiment, tmp_path / "whole", CPU, log, "whole")
        claim(broken, experiment)
        first_two = replace(experiment, schedule=replace(experiment.schedule, steps=2, decay_steps=4))
        run_training(first_two, tmp_path / "two", CPU, log, "two")
        (broken / "train_state.pt").write_bytes((tmp_path / "two" / "train_state.pt").read_bytes())
        continued = run_training(experiment, broken, CPU, log, "continued")
    assert continued["iou"] == whole["iou"]
    assert [line["step"] for line in lines(broken / "metrics.jsonl") if "learning_rate" in line] == [3, 4]


def test_different_class_lists_train_the_intersection(tmp_path: Path) -> None:
    space = yaml.safe_load((ROOT / "data" / "streets" / "label_space.yaml").read_text())
    space["classes"] = [entry for entry in space["classes"] if entry["name"] not in ("fence", "sign")]
    space.pop("subsets", None)
    (tmp_path / "nine.yaml").write_text(yaml.safe_dump(space))
    experiment = tiny()
    fewer = {"label_space": str(tmp_path / "nine.yaml")}
    experiment = replace(experiment, target=replace(experiment.target, **fewer), test=replace(experiment.test, **fewer))
    with RunLog(tmp_path / "log") as log:
        result = run_training(row_of(experiment, "source_only"), tmp_path / "run", CPU, log, "nine classes")
    assert len(result["classes"]) == 9
    assert "fence" not in result["iou"]


def test_a_missing_test_set_is_said_before_training(tmp_path: Path) -> None:
    experiment = replace(tiny(), test=DataConfig(root=str(tmp_path / "absent")))
    with RunLog(tmp_path / "log") as log, pytest.raises(InputError, match="absent"):
        run_training(experiment, tmp_path / "run", CPU, log, "none")
    assert not (tmp_path / "run" / "model.safetensors").exists()
