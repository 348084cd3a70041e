"""Run folders for tests of the report, written by hand: what they hold is known to the last digit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from segadapt.adaptation.rows import row_of
from segadapt.adaptation.run_folder import config_text
from segadapt.config import DataConfig, Experiment, LossConfig, ScheduleConfig

CLASSES = ("road", "wall", "car")


def run_folder(
    folder: Path,
    row: str,
    iou: tuple[float | None, ...] | None,
    seed: int = 0,
    miou: float = 40.0,
    command: str = "",
    evaluations: dict[int, float] | None = None,
    test: str = "adverse",
) -> Path:
    """One training that was never made; `iou` None: not finished; `test`: of the images that it was scored on."""
    folder.mkdir(parents=True)
    source, target = DataConfig(root="source"), DataConfig(root="target")
    experiment = Experiment(
        source=source, target=target, loss=LossConfig(), schedule=ScheduleConfig(steps=40), seed=seed
    )
    config = yaml.safe_load(config_text(asdict(row_of(experiment, row))))
    if row == "target_only":
        config["source"] = config["target"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines: list[dict[str, Any]] = []
    for step in (20, 40):
        line: dict[str, Any] = {"step": step, "loss/segmentation": 2.0 / step + seed, "images_per_second": 5.0}
        if row in ("sim", "sim_ssl"):
            line |= {"loss/stuff": 3.0, "loss/instance": 1.0, "matched/stuff": 4, "matched/instances": 2}
            line["bank_fill"] = {"road": step, "wall": 50, "car": 2 * step}
        lines.append(line)
    lines += [{"step": step, "evaluation": evaluation_of(score)} for step, score in (evaluations or {}).items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if iou is not None:
        names = {"source": "clear", "target": "adverse", "test": test}
        data = {
            name: {"name": f"folder {name}", "images": 7, "fingerprint": f"{of}0123456789"}
            for name, of in names.items()
        }
        result: dict[str, Any] = {
            "miou": miou,
            "iou": dict(zip(CLASSES, iou, strict=True)),
            "subsets": {},
            "step": 40,
            "best": {"miou": miou, "step": 40, "chosen_on": "test labels"},
            "seed": seed,
            "initial_weights": "efficientnet_lite0: imagenet",
            "versions": {"segadapt": "0.1.0", "torch": "2.13.0"},
            "data": data,
            "seconds": 61.0,
        }
        if command:
            result["command"] = command
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def evaluation_of(miou: float) -> dict[str, Any]:
    """What a line of metrics.jsonl says of an evaluation."""
    return {"miou": miou, "iou": {}, "subsets": {}, "images": 7}
