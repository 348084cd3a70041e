"""`adapt` with `translation: {method: cyclegan}`: one command from two folders to the paper's last row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt, generator_config, train_row
from segadapt.adaptation.run_log import Terminal
from segadapt.config import CycleGanConfig, TranslationConfig, WarmUpConfig
from segadapt.errors import InputError
from streets import few, tiny

SMALL = CycleGanConfig(size=(48, 64), crop=None, filters=4, blocks=1, steps=2, log_every=1, workers=0)


def test_the_source_is_translated_before_step_1(tmp_path: Path) -> None:
    data = few(tmp_path, images=3)
    experiment = replace(
        tiny(data, steps=1),
        translation=TranslationConfig("cyclegan"),
        cyclegan=SMALL,
        warm_up=WarmUpConfig(steps=1),
    )
    run_dir, machine = tmp_path / "run", Machine(torch.device("cpu"), Terminal())
    result = adapt(experiment, run_dir, machine)

    images = sorted((run_dir / "translation" / "images").rglob("*.png"))
    originals = sorted((data / "clear" / "train" / "images").iterdir())
    assert [path.stem for path in images] == [path.stem for path in originals]
    changed = np.asarray(Image.open(images[0]).resize((64, 48))).astype(float)
    assert np.abs(changed - np.asarray(Image.open(originals[0]).convert("RGB").resize((64, 48)))).mean() > 3
    # the warm-up comes first, on the images as they are, and its network keeps the labels valid
    fitted = json.loads((run_dir / "translation" / "metrics.jsonl").read_text().splitlines()[0])
    assert "loss/semantic" in fitted
    data_of = {
        step: json.loads((run_dir / step / "result.json").read_text())["data"] for step in ("warm_up", "step1", ".")
    }
    assert data_of["warm_up"]["source"] != data_of["step1"]["source"] == data_of["."]["source"]
    assert result == adapt(experiment, run_dir, machine), "a finished run is read"

    # moved, and not finished, it goes on: the warm-up's network is the same wherever it lies
    moved = run_dir.rename(tmp_path / "moved")
    (moved / "result.json").unlink()
    assert adapt(experiment, moved, machine)["miou"] == result["miou"]


def test_a_bad_image_is_left_out_of_the_translation_too(tmp_path: Path) -> None:
    data = few(tmp_path, images=3)
    bad = sorted((data / "clear" / "train" / "images").iterdir())[1]
    bad.unlink()
    bad.write_bytes(b"no image")
    experiment = tiny(data, steps=1)
    experiment = replace(
        experiment,
        translation=TranslationConfig("cyclegan"),
        cyclegan=SMALL,
        schedule=replace(experiment.schedule, on_bad_image="skip"),
    )
    adapt(experiment, tmp_path / "run", Machine(torch.device("cpu"), Terminal(quiet=True)))
    translation = tmp_path / "run" / "translation"
    assert bad.name in (translation / "images" / bad.name).with_suffix(".unreadable").read_text()
    assert len(list((translation / "images").rglob("*.png"))) == 2
    with pytest.raises(InputError, match=bad.name):
        adapt(
            replace(experiment, schedule=replace(experiment.schedule, on_bad_image="fail")),
            tmp_path / "strict",
            Machine(torch.device("cpu"), Terminal(quiet=True)),
        )


def test_the_generator_sees_images_as_large_as_the_training_does() -> None:
    experiment = replace(tiny(), translation=TranslationConfig("cyclegan"))
    config = generator_config(experiment)
    assert (config.size, config.crop) == ((48, 64), (48, 64))
    own = replace(experiment, cyclegan=SMALL)
    assert generator_config(own) == SMALL


def test_another_experiment_does_not_take_the_place_of_the_one_whose_generator_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(
        tiny(few(tmp_path, images=3), steps=1), translation=TranslationConfig("cyclegan"), cyclegan=SMALL
    )
    run_dir, machine = tmp_path / "run", Machine(torch.device("cpu"), Terminal(quiet=True))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segadapt.adaptation.fit_translation.cyclegan_step", stop)
    with pytest.raises(KeyboardInterrupt):
        adapt(experiment, run_dir, machine)
    kept = (run_dir / "experiment.yaml").read_bytes()
    with pytest.raises(InputError, match="translation holds a run with another configuration"):
        adapt(replace(experiment, seed=7), run_dir, machine)
    assert (run_dir / "experiment.yaml").read_bytes() == kept, "for --resume"


def test_a_wrong_segmenter_is_found_before_the_warm_up(tmp_path: Path) -> None:
    experiment = replace(
        tiny(few(tmp_path, images=3), steps=1),
        translation=TranslationConfig("cyclegan"),
        cyclegan=replace(SMALL, segmenter="nowhere.safetensors"),
        warm_up=WarmUpConfig(steps=1),
    )
    machine = Machine(torch.device("cpu"), Terminal(quiet=True))
    for name in ("sim_ssl", "translation"):
        with pytest.raises(InputError, match=r"cyclegan\.segmenter: .*nowhere\.safetensors"):
            train_row(experiment, name, tmp_path / name, machine, name)
        assert not (tmp_path / name).exists()
