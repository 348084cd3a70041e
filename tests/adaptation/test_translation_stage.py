"""`adapt` with `translation: {method: cyclegan}`: one command from two folders to the paper's last row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt
from segadapt.adaptation.run_log import Terminal
from segadapt.config import CycleGanConfig, TranslationConfig, WarmUpConfig
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
