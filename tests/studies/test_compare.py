"""`segadapt compare` on run folders written by hand."""

import json
from pathlib import Path

import pytest

from report_runs import run_folder
from segadapt.cli import main

IOU = (60.0, 30.0, None)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two whole tables; the second lacks a seed of one row and has one that is not finished of another."""
    for table, above in (("first", 0.0), ("second", 1.0)):
        for row, miou in (("source_only", 30.0), ("sim_ssl", 40.0), ("target_only", 50.0)):
            for seed in (0, 1):
                if (table, row, seed) != ("second", "sim_ssl", 1):
                    iou = None if (table, row, seed) == ("second", "target_only", 0) else IOU
                    kind = "sim" if row == "sim_ssl" else row
                    run_folder(tmp_path / table / row / f"seed{seed}", kind, iou, seed, miou + seed + above)
    return [str(tmp_path / table) for table in ("first", "second")]


def test_two_tables_in_one(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Gap" not in shown, "there are two"
    text = (tmp_path / "out/table.md").read_text()
    assert text == (
        "| method | seeds | mIoU % | gain | seconds |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| first: source only | 0 1 | 30.5 ± 0.7 |  | 61 |\n"
        "| first: + SSL | 0 1 | 40.5 ± 0.7 | +10.0 (+10.0 to +10.0) | 61 |\n"
        "| first: target only | 0 1 | 50.5 ± 0.7 | +20.0 (+20.0 to +20.0) | 61 |\n"
        "| second: source only | 0 1 | 31.5 ± 0.7 | +1.0 (+1.0 to +1.0) | 61 |\n"
        "| second: + SSL | 0 | 41.0 | +11.0 | 61 |\n"
        "| second: target only | 1 | 52.0 | +21.0 | 61 |\n"
        "\nGain: mean of the differences seed by seed, with its 95 % confidence interval (t distribution).\n"
        "\nNot finished, or without a score, and so left out: second: target only (seed 0).\n"
    )
    assert json.loads((tmp_path / "out/label_free.json").read_text()) == {}


def test_gains_are_counted_from_the_baseline(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *folders, "--baseline", "second: + SSL", "--json"]) == 0
    shown = capsys.readouterr()
    gains = {line["title"]: line["gain"] and line["gain"]["each"] for line in json.loads(shown.out)}
    assert gains == {
        "first: source only": [-11.0],
        "first: + SSL": [-1.0],
        "first: target only": [9.0],
        "second: source only": [-10.0],
        "second: + SSL": None,
        "second: target only": None,  # it has the other seed
    }
    assert shown.err == "Not finished, or without a score, and so left out: second: target only (seed 0).\n"


def test_trainings_on_other_images_have_no_gain(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "camvid/sim/seed0", "sim", IOU, 0, 70.0, test="camvid")
    assert main(["compare", folders[0], str(tmp_path / "camvid"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)[-1]["gain"] is None
    assert "Scored on different test images" in shown.err
    assert "7 images of folder test (fingerprint camvid01, 3 classes): camvid: + SIM." in shown.err


def test_what_is_refused(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", folders[0], folders[0], "--baseline", "first: + SSL"]) == 2
    assert "first: is given twice; name each folder once" in capsys.readouterr().err
    assert main(["compare", *folders, "--baseline", "sim_ssl", "--out", str(tmp_path / "out")]) == 2
    assert "'sim_ssl' is several of the rows; use one of ['first: source only'," in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run_folder(tmp_path / "waits/sim/seed0", "sim", None)
    assert main(["compare", str(tmp_path / "waits")]) == 2
    assert "no training there is finished and scored" in capsys.readouterr().err
