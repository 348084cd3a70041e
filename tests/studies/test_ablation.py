"""The table of rows: its numbers on results made by hand, and one real table at postage-stamp size."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.output.ablation import ablate, gap_closed, lines_of, markdown, print_table, row_summary
from segadapt.output.pictures import GAP
from streets import few, tiny

CPU = torch.device("cpu")


def row(name: str, miou: float, deviation: float | None = None, seconds: float = 10.0) -> dict[str, Any]:
    return {"name": name, "miou": miou, "miou_std": deviation, "miou_each": [miou], "seeds": [0], "seconds": seconds}


def test_a_row_is_mean_and_sample_deviation_over_seeds() -> None:
    summary = row_summary("sim", [{"miou": 40.0, "seconds": 10}, {"miou": 43.0, "seconds": 20}], [0, 7])
    assert summary == {
        "name": "sim",
        "miou": 41.5,
        "miou_std": pytest.approx(math.sqrt(4.5)),
        "miou_each": [40.0, 43.0],
        "seeds": [0, 7],
        "seconds": 15,
    }


def test_one_seed_has_no_deviation() -> None:
    assert row_summary("sim", [{"miou": 40.0, "seconds": 10}], [3])["miou_std"] is None


def test_the_gap_closed() -> None:
    table = [row("source_only", 36.6), row("sim_ssl", 49.2), row("target_only", 65.1)]
    assert gap_closed(table) == pytest.approx(44.2, abs=0.05), "the paper's 44 %"
    assert gap_closed(table[:2]) is None
    assert gap_closed([row("source_only", 50.0), row("sim_ssl", 40.0), row("target_only", 60.0)]) == -100


@pytest.mark.parametrize("target_only", [36.6, 30.0])
def test_without_a_gap_there_is_none_to_close(target_only: float) -> None:
    table = [row("source_only", 36.6), row("sim_ssl", 49.2), row("target_only", target_only)]
    assert gap_closed(table) is None
    assert "Gap" not in markdown(table)


def test_the_table_as_text() -> None:
    table = [row("source_only", 36.64), row("sim", 46.2, 0.35, 119.6), row("target_only", 40.0)]
    assert lines_of(table)[0] == ("source only", "36.6", "", "10")
    assert markdown(table) == (
        "| method | mIoU % | gain | seconds |\n"
        "| --- | --- | --- | --- |\n"
        "| source only | 36.6 |  | 10 |\n"
        "| + SIM | 46.2 ± 0.3 | +9.6 | 120 |\n"
        "| target only | 40.0 | -6.2 | 10 |\n"
    )
    closed = [row("source_only", 30.0), row("sim_ssl", 40.0), row("target_only", 50.0)]
    assert markdown(closed).endswith("\nGap closed: 50 %\n")


ROWS = ("source_only", "sim", "sim_ssl", "target_only")


def test_a_real_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    experiment, run_dir = tiny(few(data), steps=2), tmp_path / "run"
    table = ablate(experiment, run_dir, [0, 1], ROWS, Machine(CPU, Terminal()))
    assert table == json.loads((run_dir / "table.json").read_text())
    assert [line["name"] for line in table] == list(ROWS)
    for line in table:
        assert set(line) == {"name", "miou", "miou_std", "miou_each", "seeds", "seconds"}
        assert line["seeds"] == [0, 1]
        assert line["seconds"] > 0
        assert line["miou"] == pytest.approx(sum(line["miou_each"]) / 2)
        assert len(set(line["miou_each"])) == 2, "two seeds are two trainings"
    for name in ROWS[0], ROWS[2], ROWS[3]:
        assert (run_dir / name / "seed1" / "result.json").exists()
    assert not (run_dir / "sim").exists(), "it is the first step of sim_ssl, trained once"
    for seed, miou in enumerate(table[1]["miou_each"]):
        result = json.loads((run_dir / "sim_ssl" / f"seed{seed}" / "step1" / "result.json").read_text())
        assert (result["miou"], result["seed"]) == (miou, seed)
    assert (run_dir / "table.md").read_text() == markdown(table)
    print_table(table)
    shown = capsys.readouterr().out
    assert all(f"{line['miou']:.1f}" in shown for line in table)

    pictures = sorted((run_dir / "pictures").glob("*.png"))
    assert len(pictures) == 4
    width = np.array(Image.open(data / "adverse/val/labels" / pictures[0].name)).shape[1]
    for path in pictures:
        assert np.array(Image.open(path)).shape[1] == 4 * width + 3 * GAP, "photograph, two models, labels"

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    assert ablate(experiment, run_dir, [0, 1], ROWS, Machine(CPU, Terminal())) == table
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")} == before
