"""The report: its numbers on runs written by hand, and its structure on a real table at postage-stamp size."""

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from report_runs import CLASSES, run_folder
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.cli import main
from segadapt.config import DataConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import evaluate
from segadapt.networks.weights import load_network
from segadapt.output.report import _side_by_side, sections
from segadapt.output.report.charts import (
    COLOURS,
    Line,
    ink,
    line_chart,
    reliability_chart,
    shade,
    stroke,
    thinned,
    ticks,
)
from segadapt.output.report.measure import (
    BINS,
    Measured,
    Reliability,
    data_config,
    measure,
    pseudo_label_precision,
)
from segadapt.output.report.pictures import described, figure
from segadapt.output.report.tables import Cell, Table
from segadapt.studies.ablation import ablate
from segadapt.studies.runs import adapted_of, baseline_of, read_rows
from streets import few, tiny

CPU = torch.device("cpu")
SPACE = LabelSpace(
    name="toy",
    names=CLASSES,
    colours=((1, 2, 3), (250, 0, 0), (0, 250, 0)),
    ids=((0,), (1,), (2,)),
    stuff=(0, 1),
    things=(2,),
)
VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """Tables as text, images, identifiers, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        if tag == "img":
            self.images.append(given)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "rect", "polyline", "polygon"), "only elements of SVG are closed so"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    """Source only and the whole method with two seeds each, target only with one that is not finished."""
    folder = tmp_path / "ablation"
    for seed in (0, 1):
        run_folder(
            folder / f"source_only/seed{seed}", "source_only", (60.0 + 2 * seed, 30.0, None), seed, 40 + 2.0 * seed
        )
        ssl = run_folder(
            folder / f"sim_ssl/seed{seed}",
            "sim",
            (70.0, 20.0, 10.0),
            seed,
            44.0,
            "segadapt ablate <x>",
            {20: 30.0, 40: 44.0},
        )
        run_folder(ssl / "step1", "sim", (65.0, 31.0, 5.0), seed, 42.0)
    run_folder(folder / "target_only/seed0", "target_only", None)
    return folder


def test_rows_of_a_table_in_the_order_of_the_paper(table_folder: Path) -> None:
    rows = read_rows([table_folder])
    assert [row.title for row in rows] == ["source only", "+ SIM", "+ SSL", "target only"]
    assert [len(row.runs) for row in rows] == [2, 2, 2, 1]
    source, sim, ssl, target = rows
    assert source.miou() == 41.0
    assert source.deviation() == pytest.approx(2**0.5)
    assert (target.miou(), target.finished) == (None, ())
    assert baseline_of(rows) is source
    assert adapted_of(rows) is ssl
    assert adapted_of([source, sim]) is sim


def test_the_kinds_of_folders(table_folder: Path, tmp_path: Path) -> None:
    assert [row.name for row in read_rows([table_folder / "sim_ssl/seed0"])] == ["sim", "sim_ssl"]
    assert [row.name for row in read_rows([table_folder / "source_only/seed1"])] == ["source_only"]
    assert [row.name for row in read_rows([table_folder / "target_only/seed0"])] == ["target_only"]
    two = read_rows([table_folder / "source_only/seed0", table_folder / "sim_ssl/seed0"])
    assert [row.title for row in two] == [
        "source_only/seed0: source only",
        "sim_ssl/seed0: + SIM",
        "sim_ssl/seed0: + SSL",
    ]
    run_folder(tmp_path / "sweep/lambda_ci_0.1/seed0", "sim", (1.0, 2.0, 3.0))
    assert [row.title for row in read_rows([tmp_path / "sweep"])] == ["lambda_ci_0.1"]
    with pytest.raises(InputError, match="holds no run"):
        read_rows([tmp_path])
    (table_folder / "sim_ssl/seed0/result.json").write_text("{")
    with pytest.raises(InputError, match=r"seed0/result\.json: damaged"):
        read_rows([table_folder])


def test_the_class_table_with_gains(table_folder: Path) -> None:
    html = sections.class_table(read_rows([table_folder])).html()
    (table,) = Page(html).tables
    assert table == [
        ["method", *CLASSES, "mIoU"],
        ["source only", "61.0", "30.0", "–", "41.0 ± 1.4"],
        ["+ SIM", "65.0", "31.0", "5.0", "42.0 ± 0.0"],
        ["gain", "▲+4.0", "▲+1.0", "–", "▲+1.0"],
        ["+ SSL", "70.0", "20.0", "10.0", "44.0 ± 0.0"],
        ["gain", "▲+9.0", "▼−10.0", "–", "▲+3.0"],
        ["target only", "–", "–", "–", "–"],
    ]
    assert "<b>70.0</b>" in html, "the best of a column"
    assert "<b>31.0</b>" in html
    copied = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html)[0])
    lines = list(csv.reader(io.StringIO(copied["CSV"])))
    assert lines[5] == ["+ SSL: gain", "+9.0", "-10.0", "–", "+3.0"]
    assert copied["Markdown"].splitlines()[1] == "| --- | --- | --- | --- | --- |"


def test_gains_are_counted_on_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    """The baseline's seed 1 is far better: means over all seeds of each row would tell of a loss."""
    for seed, road in ((0, 40.0), (1, 80.0)):
        run_folder(tmp_path / f"source_only/seed{seed}", "source_only", (road, 10.0, None), seed, road / 2)
    run_folder(tmp_path / "sim_ssl/seed0", "sim", (50.0, 12.0, 1.0), 0, 26.0)
    run_folder(tmp_path / "sim_ssl/seed0/step1", "sim", None)
    run_folder(tmp_path / "target_only/seed0", "target_only", (70.0, 12.0, 1.0), 0, 32.0)
    rows = read_rows([tmp_path])
    (table,) = Page(sections.class_table(rows).html()).tables
    assert table[1] == ["source only", "60.0", "10.0", "–", "30.0 ± 14.1"]
    assert table[4] == ["gain", "▲+10.0", "▲+2.0", "–", "▲+6.0"]
    top = sections.summary(rows)
    assert "<dt>gain over source only</dt><dd><b>+6.0</b> points</dd>" in top
    assert "<dt>gap closed</dt><dd><b>50 %</b>" in top, "6 of the 12 points of seed 0"
    assert "Seeds: source only 0, 1; + SSL 0; target only 0." in top


def test_scores_on_different_test_images_are_not_compared(tmp_path: Path) -> None:
    run_folder(tmp_path / "source_only/seed0", "source_only", (40.0, 10.0, None), 0, 20.0)
    run_folder(tmp_path / "sim/seed0", "sim", (50.0, 12.0, 1.0), 0, 26.0, test="camvid")
    rows = read_rows([tmp_path])
    html = sections.class_table(rows).html()
    assert [row[0] for row in Page(html).tables[0]] == ["method", "source only", "+ SIM"], "no line of gains"
    assert "<b>" not in html, "and no best"
    top = sections.summary(rows)
    assert "gain over" not in top
    assert "Scored on different test images" in top
    assert "7 images of folder test (fingerprint camvid01, 3 classes): + SIM." in top


def test_a_gain_is_told_by_sign_and_colour() -> None:
    better, worse, same = (sections._gain(gain) for gain in (2.0, -2.0, 0.04))
    assert "▲" in better.shown
    assert "rgba(0,114,178" in better.style
    assert "▼" in worse.shown
    assert "rgba(230,140,0" in worse.style
    assert (same.text, same.style) == ("0.0", "")


def test_a_line_is_the_mean_of_the_seeds_and_its_band(table_folder: Path) -> None:
    line = sections.line_of(read_rows([table_folder])[0], "loss/segmentation", 3)
    assert np.array(line.points) == pytest.approx(np.array([(20, 0.6), (40, 0.55)]))
    assert np.array(line.band) == pytest.approx(np.array([(20, 0.1, 1.1), (40, 0.05, 1.05)]))


def test_charts_are_whole_svg_and_say_what_they_show() -> None:
    lines = [Line("a < b", ((0, 1.0), (10, 2.0)), ((0, 0.5, 1.5), (10, 1.5, 2.5))), Line("other", ((5, 1.2),), style=1)]
    root = ElementTree.fromstring(line_chart(lines, "loss & more", "step", "loss"))
    assert root[0].text == "loss & more"
    assert root[1].text == "loss against step. a < b ends at 2; other ends at 1.2."
    polylines = [element for element in root if element.tag == "polyline"]
    assert [element.get("stroke") for element in polylines] == list(COLOURS[:2])
    assert len({element.get("stroke-dasharray") for element in polylines}) == 2
    assert len({stroke(style) for style in range(24)}) == 24
    numbers = [float(n) for element in polylines for n in re.split("[ ,]", element.get("points", ""))]
    assert min(numbers) >= 0
    assert max(numbers) <= 400
    ElementTree.fromstring(line_chart([Line("flat", ((20, 1.0),))], "t", "x", "y"))
    ElementTree.fromstring(reliability_chart([(0.2, 0.1, 0.5), (0.9, 0.8, 0.5)], "t", 0.1))


def test_long_curves_are_thinned_by_means() -> None:
    points = [(step, float(step)) for step in range(1, 1001)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[0] == (10, 5.5)
    assert thin[-1][0] == 1000
    assert thinned(points[:5], 100) == tuple(points[:5])


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [(0, 40, [0, 10, 20, 30, 40]), (0.11, 0.29, [0.15, 0.2, 0.25]), (20, 22, [20, 20.5, 21, 21.5, 22])],
)
def test_ticks_are_round(lowest: float, highest: float, expected: list[float]) -> None:
    assert ticks(lowest, highest, 4) == pytest.approx(expected)


def test_text_on_any_shade_is_readable() -> None:
    def luminance(colour: list[int]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c / 255 > 0.04045 else c / 255 / 12.92 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for share in np.linspace(0, 1, 101):
        ground = luminance([int(c) for c in re.findall(r"\d+", shade(float(share)))])
        text = 0.0 if ink(float(share)) == "#000" else 1.0
        assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) >= 4.5, share


def test_tables_are_copied_as_they_stand() -> None:
    table = Table("a & b", ("class", "x|y"), (("r<d", Cell("1", shown="<b>1</b>")), ('say "no"', "2")))
    assert table.csv() == 'class,x|y\nr<d,1\n"say ""no""",2\n'
    assert table.markdown() == '| class | x\\|y |\n| --- | --- |\n| r<d | 1 |\n| say "no" | 2 |\n'
    page = Page(table.html())
    assert page.tables == [[["class", "x|y"], ["r<d", "1"], ['say "no"', "2"]]]


def test_reliability_counts_pixels_by_confidence() -> None:
    reliability = Reliability()
    reliability.update(torch.tensor([0.5, 0.51, 1.0, 0.9]), torch.tensor([True, False, True, True]))
    assert reliability.bins() == [
        (pytest.approx(0.505), 0.5, 0.5), (pytest.approx(0.9), 1.0, 0.25), (1.0, 1.0, 0.25),
    ]  # fmt: skip
    assert int(0.5 * BINS) == int(0.51 * BINS), "both in one bin"
    assert reliability.error() == pytest.approx(0.5 * 0.005 + 0.25 * 0.1)


def test_a_picture_says_in_words_what_it_shows() -> None:
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    assert described(labels, SPACE) == "road 67 %, wall 33 %"
    html = figure("a.png", np.zeros((1, 4, 3), np.uint8), {"+ SSL": labels, "labels": labels}, SPACE)
    images = Page(html).images
    assert [image["alt"] for image in images] == [
        "Photograph a.png", "a.png, + SSL: road 67 %, wall 33 %", "a.png, labels: road 67 %, wall 33 %",
    ]  # fmt: skip
    import base64

    drawn = Image.open(io.BytesIO(base64.b64decode(str(images[1]["src"]).partition(",")[2]))).convert("RGB")
    assert np.asarray(drawn).tolist() == [[[1, 2, 3], [1, 2, 3], [250, 0, 0], [0, 0, 0]]]


def test_precision_of_pseudo_labels(tmp_path: Path) -> None:
    (tmp_path / "label_space.yaml").write_text(SPACE.to_yaml())
    for folder, values in (("images", None), ("labels", [[0, 1, 2, 255]]), ("pseudo", [[0, 2, 2, 2]])):
        (tmp_path / folder).mkdir()
        array = np.zeros((1, 4, 3), np.uint8) if values is None else np.array(values, np.uint8)
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    # one that could not be read when the pseudo-labels were made
    for folder in ("images", "labels"):
        (tmp_path / folder / "b.png").write_bytes((tmp_path / folder / "a.png").read_bytes())
    kept, right, images = pseudo_label_precision(tmp_path / "pseudo", DataConfig(root=str(tmp_path)), SPACE)
    assert (kept.tolist(), right.tolist(), images) == ([1, 0, 2], [1, 0, 1], 1)


def test_models_of_other_test_images_or_classes_are_not_laid_over_one_another() -> None:
    drawn = LabelSpace("drawn", CLASSES, SPACE.colours[::-1], SPACE.ids, (0, 1), (2,))
    spaces = {"a": SPACE, "b": SPACE, "other images": SPACE, "other classes": SPACE, "other colours": drawn}
    measured = {
        title: Measured(space, np.zeros((0, 0), np.int64), Reliability(), {}) for title, space in spaces.items()
    }
    tested_on = dict.fromkeys(spaces, ("adverse", "road"))
    tested_on |= {"other images": ("camvid", "road"), "other classes": ("adverse", "car")}
    groups = _side_by_side(tested_on, measured)
    assert [list(group) for group in groups] == [["a", "b"], ["other images"], ["other classes"], ["other colours"]]


def test_weights_of_one_name_in_two_folders_differ(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, "sim", None) for name in ("a", "b")]
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["network"]["weights"] = f"{folder.name}/model.safetensors"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    tables = Page(sections.provenance(read_rows(folders), "").html()).tables
    assert tables[-1][1:] == [["network.weights", "a/model.safetensors", "b/model.safetensors"]]


def test_a_run_without_a_score_has_its_command(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "sim", (1.0, 2.0, 3.0), command="segadapt train")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"miou": None}))
    html = sections.provenance(read_rows([folder]), "segadapt report").html()
    assert "segadapt train\nsegadapt report" in html
    assert "do not say" not in html


@pytest.mark.parametrize("content", ['{"thresholds": {', '{"thresholds": {"road": 0.5}, "images": 2}'])
def test_damaged_thresholds_are_named(content: str, table_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = table_folder / "sim_ssl/seed0/pseudo_labels"
    labels.mkdir()
    (labels / "thresholds.json").write_text(content)
    assert main(["report", str(table_folder), "--quiet"]) == 2
    assert "thresholds.json: damaged" in capsys.readouterr().err


def test_a_page_of_runs_without_models_or_data(table_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(table_folder), "--quiet"]) == 0
    path = table_folder / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text()
    page = Page(text)
    assert "Not finished, or without a score, and so left out: target only (seed 0)." in text
    assert "segadapt ablate &lt;x&gt;" in text, "the command, escaped"
    assert "mIoU of the test images" in text
    assert "80/50" not in text
    assert page.images == []
    assert_self_contained(text, page)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    run_folder(tmp_path / "run", "sim", None)
    assert main(["report", str(tmp_path / "run"), f"{tmp_path}/x/../run"]) == 2
    assert "run: is given twice; name each folder once" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--pictures", "-1"]) == 2
    assert "pictures: -1" in capsys.readouterr().err


def assert_self_contained(text: str, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text), "loads nothing"
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text


@pytest.fixture(scope="module")
def real_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "data").mkdir()
    experiment = tiny(few(folder / "data", images=4), steps=2)
    ablate(experiment, folder / "run", [0], ("source_only", "sim_ssl"), 1, Machine(CPU, Terminal(quiet=True)))
    return folder / "run"


def test_a_page_of_real_runs(real_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(real_table), "--out", str(out), "--pictures", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out), "bytes": out.stat().st_size}
    text = out.read_text()
    page = Page(text)
    assert_self_contained(text, page)
    assert len(page.images) == 2 * 4, "photograph, source only, adapted, labels"
    assert all(image["alt"] for image in page.images)
    names = ["classes", "study", "pictures", "curves", "confusion", "reliability", "matching", "pseudo-labels", "made"]
    assert [name for name in page.ids if not name.startswith("chart")] == names
    result = json.loads((real_table / "sim_ssl/seed0/result.json").read_text())
    scores = next(row for row in page.tables[0] if row[0] == "+ SSL")
    shown = ["–" if value is None else f"{value:.1f}" for value in result["iou"].values()]
    assert scores[1:] == [*shown, f"{result['miou']:.1f}"]
    confusions = [table for table in page.tables if table[0][0] == "label"]
    assert [len(table) for table in confusions] == [12, 12]
    labels = [table for table in page.tables if table[0][0] == "class"]
    assert [row[0] for row in labels[0][1:]] == [*result["iou"], "all pixels"]
    assert result["command"] in text.replace("&#x27;", "'")


def test_what_is_measured_is_what_was_scored(real_table: Path) -> None:
    run = read_rows([real_table])[0].runs[0]
    data = data_config(run.config["test"])
    assert run.model
    measured = measure(run.model, data, [1], CPU, lambda: None)
    network = load_network(run.model)
    scores = evaluate(network, evaluation_batches(find_pairs(data, True), network.label_space, data, 2, 0))
    hit = measured.confusion.diagonal()
    union = measured.confusion.sum(0) + measured.confusion.sum(1) - hit
    iou = {name: 100 * h / u for name, h, u in zip(measured.space.names, hit, union, strict=True) if u}
    assert iou == pytest.approx({name: value for name, value in scores.iou.items() if value is not None})
    assert int(measured.reliability.pixels.sum()) == measured.confusion.sum()
    assert int(measured.reliability.right.sum()) == hit.sum()
    assert list(measured.predicted) == [1]


def test_models_of_other_test_images_have_pictures_of_their_own(real_table: Path, tmp_path: Path) -> None:
    other = shutil.copytree(real_table / "source_only/seed0", tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["test"] |= {"root": str(real_table.parent / "data/clear"), "split": "train"}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((other / "result.json").read_text())
    result["data"]["test"]["fingerprint"] = "of the clear images"
    (other / "result.json").write_text(json.dumps(result))
    ours, out = real_table / "sim_ssl/seed0", tmp_path / "page.html"
    assert main(["report", str(other), str(ours), "--out", str(out), "--pictures", "1", "--quiet"]) == 0
    shown = [str(image["alt"]).partition(",")[0] for image in Page(out.read_text()).images]
    clear, adverse = (
        sorted(path.name for path in (real_table.parent / "data" / part / "images").iterdir())[2]
        for part in ("clear/train", "adverse/val")
    )
    assert shown == [f"Photograph {clear}", clear, clear, f"Photograph {adverse}", adverse, adverse]


def test_names_of_images_need_not_be_utf_8(real_table: Path, tmp_path: Path) -> None:
    data = shutil.copytree(real_table.parent / "data", tmp_path / "data")
    for kind in ("images", "labels"):
        for path in (data / "adverse/val" / kind).iterdir():
            path.rename(path.with_name(f"\udce9{path.name}"))
    run = shutil.copytree(real_table / "source_only/seed0", tmp_path / "run")
    config = (run / "config.yaml").read_text().replace(str(real_table.parent / "data"), str(data))
    (run / "config.yaml").write_text(config)
    assert main(["report", str(run), "--pictures", "1", "--quiet"]) == 0
    assert any("?" in str(image["alt"]) for image in Page((run / "report.html").read_text()).images)


def test_without_the_test_images_the_rest_is_there(
    real_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (real_table.parent / "data").rename(real_table.parent / "elsewhere")
    try:
        assert main(["report", str(real_table), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        (real_table.parent / "elsewhere").rename(real_table.parent / "data")
    assert "without pictures, confusions and reliability: " in capsys.readouterr().err
    text = (tmp_path / "page.html").read_text()
    assert 'id="matching"' in text
    assert 'id="confusion"' not in text
    assert "has no labels that could be compared" in text
