"""Figure 2: from the metrics of run folders to a table of scores by step and a picture."""

import csv
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from segadapt.output.curves import HEIGHT, WIDTH, Curve, mean_of_seeds, picture, save_curves


def test_the_mean_is_over_seeds_where_all_have_a_score() -> None:
    curves = {("AA", 0): {2: 30.0, 4: 32.0}, ("AA", 1): {2: 31.0, 4: 34.0, 6: 35.0}, ("SIM", 0): {2: 20.0}}
    assert mean_of_seeds(curves) == {"AA": {2: 30.5, 4: 33.0}, "SIM": {2: 20.0}}


def test_both_files(tmp_path: Path) -> None:
    save_curves({("+ AA", 0): {2: 30.0, 4: 40.0}, ("<SIM>", 0): {2: 35.0, 4: 20.0}}, tmp_path)
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
    save_curves({("+ AA", 0): {4: 30.0}}, tmp_path)
    assert not (tmp_path / "curves.csv").exists()


def test_a_flat_curve_can_be_drawn() -> None:
    assert "polyline" in picture({"AA": {1: 30.0, 2: 30.0}})


def test_seeds_without_a_common_step_have_no_mean(tmp_path: Path) -> None:
    apart: dict[tuple[str, int], Curve] = {("AA", 0): {2: 30.0, 4: 31.0}, ("AA", 1): {3: 30.0, 5: 31.0}}
    save_curves(apart, tmp_path)
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 5
    assert not (tmp_path / "curves.svg").exists()
    save_curves(apart | {("SIM", 0): {2: 35.0, 4: 20.0}}, tmp_path)
    svg = ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert len([element for element in svg if element.tag.endswith("polyline")]) == 1
    assert any(element.text == "AA (no step that all seeds were scored at)" for element in svg)


def test_many_rows_are_told_apart_and_stand_within_the_picture() -> None:
    titles = [f"row {number}" for number in range(9)] + ["runs/" + "long/" * 40 + "lambda_ci_0.05"]
    svg = ElementTree.fromstring(picture({title: {1: 30.0, 2: 31.0} for title in titles}))
    lines = [element for element in svg if element.tag.endswith("polyline")]
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == 10
    height = float(svg.get("viewBox", "").split()[3])
    texts = [e for e in svg if e.tag.endswith("text") and float(e.get("y", "0")) >= HEIGHT]
    assert [element.text for element in texts[:9]] == titles[:9]
    assert str(texts[9].text).endswith("lambda_ci_0.05")
    places = [float(element.get("y", "")) for element in texts]
    assert places == sorted(places)
    assert min(b - a for a, b in pairwise(places)) >= 16, "more than the letters are high"
    assert places[-1] <= height
    # letters of 13 pixels are 7 wide on average
    assert all(float(e.get("x", "")) + 7 * len(str(e.text)) <= WIDTH for e in texts)
