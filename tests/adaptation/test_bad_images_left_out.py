"""`on_bad_image: skip`: which image takes the place of one that cannot be read, and that every one is counted."""

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.training import run_training
from segadapt.cli import main
from segadapt.config import AugmentationConfig, DataConfig, Experiment, TranslationConfig
from segadapt.data.loading import Batch, TrainingSet, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError
from streets import few, tiny

AUGMENTED = AugmentationConfig(flip=0.5, scale=(0.8, 1.2), crop=(48, 64))
MACHINE = Machine(torch.device("cpu"), Terminal(quiet=True))
IMAGES = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of each part, of which one of the source and two of the target cannot be read."""
    (tmp_path / "data").mkdir()
    data = few(tmp_path / "data", IMAGES)
    for part, number in (("clear", 2), ("adverse", 0), ("adverse", 5)):
        damage(data / part / "train" / "images", number)
    return data


def damage(folder: Path, number: int) -> None:
    """Half of a file in place of the link to the whole one."""
    path = sorted(folder.iterdir())[number]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def damage_all(folder: Path) -> None:
    for number in range(len(list(folder.iterdir()))):
        damage(folder, number)


def source_of(data: Path) -> tuple[DataConfig, ImageSet]:
    config = DataConfig(root=str(data / "clear"), split="train", size=(48, 64))
    return config, find_pairs(config, labelled=True)


def stream(data: Path, batches: int, workers: int = 0, start: int = 0) -> tuple[list[Batch], list[tuple[int, str]]]:
    """The first batches of two, and the images that were left out of them."""
    config, images = source_of(data)
    left_out: list[tuple[int, str]] = []
    found = training_batches(
        images, images.space, config, AUGMENTED, 2, 3, 0, workers, start,
        left_out=lambda index, problem: left_out.append((index, problem)),
    )  # fmt: skip
    return list(islice(found, batches)), left_out


def test_the_next_position_takes_the_place_and_nothing_else_changes(data):
    config, images = source_of(data)
    order = TrainingSet(images, images.space, config, AUGMENTED, 3, 0)
    batches, left_out = stream(data, 9)
    names = [name for batch in batches for name in batch.names]
    expected = []
    for position in range(18):
        place = position if order.index(position) != 2 else position + 1
        place += order.index(place) == 2  # at the border of two epochs it may come twice
        expected.append(images.image_name(order.index(place)))
    assert names == expected
    assert len(left_out) >= 3
    assert {index for index, _ in left_out} == {2}
    assert all(problem.startswith(f"{images.images[2]}: cannot be read as image") for _, problem in left_out)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_the_same_from_any_start_with_any_workers(data, workers):
    whole, left_out = stream(data, 6)
    first, before = stream(data, 2, workers)
    rest, after = stream(data, 4, workers, start=4)
    assert before + after == left_out
    for one, other in zip(whole, first + rest, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_without_the_option_the_file_is_an_error(data):
    config, images = source_of(data)
    with pytest.raises(InputError, match="cannot be read as image"):
        list(islice(training_batches(images, images.space, config, AUGMENTED, 2, 3, 0, 0), 3))


def test_a_label_that_cannot_be_read_leaves_its_pair_out_but_one_of_another_size_does_not(data):
    damage(data / "clear" / "train" / "labels", 4)
    assert {index for index, _ in stream(data, 6)[1]} == {2, 4}
    labels = sorted((data / "clear" / "train" / "labels").iterdir())
    labels[1].unlink()
    shutil.copy(data / "label_space.yaml", labels[1])
    assert {index for index, _ in stream(data, 6)[1]} == {1, 2, 4}, "text is no label file either"
    labels[3].unlink()
    shutil.copy(sorted((data / "clear" / "train" / "images").iterdir())[3], labels[3])
    with pytest.raises(InputError, match="is a JPEG file under the name of a PNG"):
        stream(data, 6)


def test_images_that_are_all_bad_are_an_error(data):
    damage_all(data / "clear" / "train" / "images")
    with pytest.raises(InputError, match=r"clear train: none of its 6 images can be read \(.*cannot be read as image"):
        stream(data, 1)


def test_a_label_file_that_was_never_there_leaves_its_pair_out(data, tmp_path):
    missing = sorted((data / "clear" / "train" / "labels").iterdir())[4]
    missing.unlink()
    config = DataConfig(root=str(data / "clear"), split="train", size=(48, 64))
    with pytest.raises(InputError, match=r"is missing \(1 of 6 are\)"):
        find_pairs(config, labelled=True)
    images = find_pairs(config, labelled=True, skip_bad=True)
    assert images.labels[4] == missing
    experiment = replace(experiment_of(data, 4), translation=TranslationConfig())
    result = run_training(experiment, tmp_path / "run", MACHINE, "")
    found = {line["bad_image"][2] for line in bad_images(tmp_path / "run")}
    assert f"{missing}: label file is missing; restore it" in found
    assert result["bad_images"] == 4


def experiment_of(data: Path, steps: int = 3) -> Experiment:
    experiment = tiny(data, steps)
    schedule = replace(experiment.schedule, on_bad_image="skip", batch_size=2, evaluate_every=0)
    network = replace(experiment.network, weights="random")
    return replace(experiment, schedule=schedule, network=network, translation=TranslationConfig("lab"))


def bad_images(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "bad_image" in line]


def test_the_procedure_goes_on_without_them_and_says_so(data, tmp_path, capsys):
    machine = Machine(torch.device("cpu"), Terminal())
    result = adapt(experiment_of(data), tmp_path / "run", machine)
    assert result["bad_images"] == 3
    for run_dir in (tmp_path / "run" / "step1", tmp_path / "run"):
        found = bad_images(run_dir)
        assert [line["bad_images"] for line in found] == [1, 2, 3]
        assert sorted(line["bad_image"][:2] for line in found) == [["source", 2], ["target", 0], ["target", 5]]
        assert json.loads((run_dir / "result.json").read_text())["bad_images"] == 3
    labelled = sorted(path.name for path in (tmp_path / "run" / "pseudo_labels").glob("*.png"))
    assert labelled == ["50001.png", "50002.png", "50003.png", "50004.png"]
    assert json.loads((tmp_path / "run" / "pseudo_labels" / "thresholds.json").read_text())["images"] == 4
    said = capsys.readouterr().err.replace("\n", "")
    assert said.count("left out: ") == 3 + 2 + 3, "once a file in each training, and in the labelling between them"


def test_a_run_that_was_stopped_counts_as_one_that_was_not(data, tmp_path):
    run_training(experiment_of(data), tmp_path / "whole", MACHINE, "")
    run_training(replace_steps(experiment_of(data), 2), tmp_path / "parts", MACHINE, "")
    for name in ("config.yaml", "result.json"):
        (tmp_path / "parts" / name).unlink()  # as if it had been stopped at step 2
    result = run_training(experiment_of(data), tmp_path / "parts", MACHINE, "")
    assert result["bad_images"] == 3
    assert bad_images(tmp_path / "parts") == bad_images(tmp_path / "whole")


def replace_steps(experiment: Experiment, steps: int) -> Experiment:
    """The same rates, but fewer steps."""
    return replace(experiment, schedule=replace(experiment.schedule, steps=steps, decay_steps=3))


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_score_never_loses_an_image(policy, data, tmp_path, capsys):
    damage(data / "adverse" / "val" / "images", 1)
    experiment = experiment_of(data, steps=0)
    experiment = replace(experiment, schedule=replace(experiment.schedule, on_bad_image=policy))
    with pytest.raises(InputError, match=r"val/images/.*cannot be read as image"):
        run_training(experiment, tmp_path / "run", MACHINE, "")
    assert not (tmp_path / "run" / "result.json").exists()


def test_labelling_leaves_out_and_refuses_where_nothing_is_left(data, tmp_path, capsys):
    run_training(replace(experiment_of(data, steps=0)), tmp_path / "run", MACHINE, "")
    model, root = tmp_path / "run" / "model.safetensors", data / "adverse"
    command = ["pseudo-label", f"--model={model}", f"--data.root={root}", "--data.split=train", "--quiet"]
    assert main([*command, f"--out={tmp_path}/fail"]) == 2
    assert not (tmp_path / "fail").exists()
    skip = [*command, "--on_bad_image=skip", "--json"]
    capsys.readouterr()
    assert main([*skip, f"--out={tmp_path}/out"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    damage_all(root / "train" / "images")
    assert main([*skip, f"--out={tmp_path}/none"]) == 2
    assert "none of its 6 images can be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
