"""Tables 3 and 4: which settings are varied, and one real table at postage-stamp size."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.errors import InputError
from segadapt.output.sweep import PAPER_VALUES, markdown, sweep, with_setting
from streets import few, tiny

CPU = torch.device("cpu")


def test_the_values_are_those_of_the_paper() -> None:
    assert PAPER_VALUES == {"lambda_ci": (0.1, 0.05, 0.01, 0.005, 0.001), "w": (10, 50, 200, 800, 1600)}


def test_lambda_ci_is_the_weight_of_matching_in_step_1() -> None:
    varied = with_setting(tiny(), "lambda_ci", 0.05)
    assert varied.loss.matching == 0.05
    assert (varied.loss.matching_step2, varied.matching) == (tiny().loss.matching_step2, tiny().matching)


def test_w_is_the_size_of_all_rings() -> None:
    varied = with_setting(tiny(), "w", 200.0)
    assert (varied.matching.stuff_size, varied.matching.thing_size) == (200, 2000)
    assert varied.loss == tiny().loss
    with pytest.raises(InputError, match=r"w is a number of entries, 0\.5 is not"):
        with_setting(tiny(), "w", 0.5)


def test_a_value_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="values"):
        sweep(tiny(), tmp_path, "w", [10.0, 10.0], [0], Machine(CPU, Terminal()))
    with pytest.raises(InputError, match="stuff_size: 0"):
        sweep(tiny(), tmp_path, "w", [10.0, 0.0], [0], Machine(CPU, Terminal()))
    assert not list(tmp_path.iterdir()), "refused before anything was trained"


def test_the_table_lies_as_in_the_paper() -> None:
    table = [{"value": 0.1, "miou": 43.44, "miou_std": None}, {"value": 0.01, "miou": 46.2, "miou_std": 0.52}]
    assert markdown("lambda_ci", table) == (
        "| lambda_ci | 0.1 | 0.01 |\n| --- | --- | --- |\n| mIoU % | 43.4 | 46.2 ± 0.5 |\n"
    )


def test_a_real_sweep(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    experiment, run_dir = tiny(few(data), steps=2), tmp_path / "run"
    table = sweep(experiment, run_dir, "lambda_ci", [0.5, 0.001], [0, 1], Machine(CPU, Terminal()))
    assert [row["value"] for row in table] == [0.5, 0.001]
    assert table == json.loads((run_dir / "table.json").read_text())
    assert (run_dir / "table.md").read_text() == markdown("lambda_ci", table)
    for row in table:
        for seed, miou in enumerate(row["miou_each"]):
            folder = run_dir / f"lambda_ci_{row['value']:g}" / f"seed{seed}"
            config = yaml.safe_load((folder / "config.yaml").read_text())
            assert (config["loss"]["matching"], config["seed"]) == (row["value"], seed)
            assert json.loads((folder / "result.json").read_text())["miou"] == miou

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    assert sweep(experiment, run_dir, "lambda_ci", [0.5, 0.001], [0, 1], Machine(CPU, Terminal())) == table
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")} == before
