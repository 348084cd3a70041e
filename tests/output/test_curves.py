"""Figure 2: from the metrics of run folders to a table of scores by step and a picture."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

from segadapt.output.curves import evaluations_of, mean_of_seeds, picture, save_curves


def run_folder(folder: Path, scores: dict[int, float]) -> Path:
    folder.mkdir()
    lines = [{"step": step, "evaluation": {"miou": miou}} for step, miou in scores.items()]
    lines.insert(1, {"step": 3, "loss/segmentation": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_evaluations_are_read_from_the_metrics(tmp_path: Path) -> None:
    assert evaluations_of(run_folder(tmp_path / "a", {2: 30.0, 4: 31.5})) == {2: 30.0, 4: 31.5}
    assert evaluations_of(tmp_path / "absent") == {}


def test_the_mean_is_over_seeds_where_all_have_a_score() -> None:
    curves = {("AA", 0): {2: 30.0, 4: 32.0}, ("AA", 1): {2: 31.0, 4: 34.0, 6: 35.0}, ("SIM", 0): {2: 20.0}}
    assert mean_of_seeds(curves) == {"AA": {2: 30.5, 4: 33.0}, "SIM": {2: 20.0}}


def test_both_files(tmp_path: Path) -> None:
    runs = {
        ("+ AA", 0): run_folder(tmp_path / "a", {2: 30.0, 4: 40.0}),
        ("<SIM>", 0): run_folder(tmp_path / "b", {2: 35.0, 4: 20.0}),
    }
    save_curves(runs, tmp_path)
    with (tmp_path / "curves.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[0] == {"row": "+ AA", "seed": "0", "step": "2", "miou": "30.000"}
    assert [(line["row"], line["step"], line["miou"]) for line in table[2:]] == [
        ("<SIM>", "2", "35.000"),
        ("<SIM>", "4", "20.000"),
    ]
    svg = ElementTree.parse(tmp_path / "curves.svg").getroot()
    lines = [element.get("points", "").split() for element in svg if element.tag.endswith("polyline")]
    assert [len(line) for line in lines] == [2, 2]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert heights[0][1] < heights[1][0] < heights[0][0] < heights[1][1], "more is higher up"
    assert any(element.text == "<SIM>" for element in svg)


def test_one_evaluation_makes_no_curve(tmp_path: Path) -> None:
    save_curves({("+ AA", 0): run_folder(tmp_path / "a", {4: 30.0})}, tmp_path)
    assert not (tmp_path / "curves.csv").exists()


def test_a_flat_curve_can_be_drawn() -> None:
    assert "polyline" in picture({"AA": {1: 30.0, 2: 30.0}})
