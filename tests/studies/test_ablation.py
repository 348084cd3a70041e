"""The table of rows, one real one at postage-stamp size, trained in one process and continued in two."""

import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.config import TranslationConfig
from segadapt.errors import InputError
from segadapt.output.pictures import GAP
from segadapt.output.study import draw_study
from segadapt.studies.ablation import ablate, default_rows
from segadapt.studies.runs import read_rows, table_rows
from segadapt.studies.table import table_of
from streets import few, tiny

ROWS = ("source_only", "sim", "sim_ssl", "target_only")


def machine() -> Machine:
    return Machine(torch.device("cpu"), Terminal(quiet=True))


def test_translation_is_a_row_where_images_are_translated() -> None:
    plain, whole = tiny(), ("source_only", "adversarial", "translation", "sim", "sim_ssl", "target_only")
    assert default_rows(plain) == tuple(name for name in whole if name != "translation")
    assert default_rows(replace(plain, translation=TranslationConfig("lab"))) == whole
    assert default_rows(replace(plain, source=replace(plain.source, translated="there"))) == whole


def test_wrong_rows_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows: \['sim', 'sim'\] holds a value twice"):
        ablate(tiny(), tmp_path, [0], ["sim", "sim"], 1, machine())
    with pytest.raises(InputError, match=r"seeds: \[1, 1\] holds a value twice"):
        ablate(tiny(), tmp_path, [1, 1], ["sim"], 1, machine())
    with pytest.raises(InputError, match="row translation: source images are not translated"):
        ablate(tiny(), tmp_path, [0], ["source_only", "translation"], 1, machine())
    with pytest.raises(InputError, match=r"test\.root: is empty"):
        ablate(replace(tiny(), test=replace(tiny().test, root="")), tmp_path, [0], ["sim"], 1, machine())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Data and, in run/, a table of seed 0."""
    path = tmp_path_factory.mktemp("ablation")
    (path / "data").mkdir()
    ablate(tiny(few(path / "data"), steps=2), path / "run", [0], ROWS, 1, machine())
    return path


def test_a_table_grows_by_a_seed_in_two_processes(folder: Path) -> None:
    experiment, run_dir = tiny(folder / "data", steps=2), folder / "run"
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    assert before
    rows = ablate(experiment, run_dir, [0, 1], ROWS, 2, machine())
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished cells are not trained again"
    alone = ablate(experiment, folder / "alone", [1], ROWS, 1, machine())

    table = json.loads((run_dir / "table.json").read_text())
    assert table == table_of(rows)
    assert [line["name"] for line in table] == list(ROWS)
    folders = {name: run_dir / name for name in ROWS} | {"sim": run_dir / "sim_ssl"}
    for line in table:
        step = "step1" if line["name"] == "sim" else "."
        found = [json.loads((folders[line["name"]] / f"seed{s}" / step / "result.json").read_text()) for s in (0, 1)]
        assert line["miou_each"] == [result["miou"] for result in found]
        assert line["miou"] == pytest.approx(sum(line["miou_each"]) / 2)
        assert line["miou_std"] == pytest.approx(abs(line["miou_each"][0] - line["miou_each"][1]) / 2**0.5)
        assert line["test"] == found[0]["data"]["test"]
    each = [b - a for a, b in zip(table[0]["miou_each"], table[1]["miou_each"], strict=True)]
    assert (table[1]["gain"]["over"], table[1]["gain"]["each"]) == ("source only", pytest.approx(each))
    assert table[1]["gain"]["mean"] == pytest.approx(sum(each) / 2)
    for line, single in zip(table, table_of(alone), strict=True):
        assert line["seeds"] == [0, 1]
        assert line["seconds"] > 0
        assert line["miou_each"][1] == single["miou"], "a process of its own trains the same"
        assert line["miou_each"][0] != line["miou_each"][1], "two seeds are two trainings"
        assert set(line["label_free"]) == set(line["selected"]) != set()
    assert not (run_dir / "sim").exists(), "it is the first step of sim_ssl, trained once"


def times(run_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}


@pytest.mark.parametrize("rows", [("target_only",), ("sim",), ("target_only", "source_only")])
def test_a_part_of_the_table_leaves_the_rest_in_it(folder: Path, rows: tuple[str, ...]) -> None:
    run_dir = folder / "run"
    before = times(run_dir)
    found = ablate(tiny(folder / "data", steps=2), run_dir, [0], rows, 1, machine())
    assert times(run_dir) == before, "sim was trained with sim_ssl"
    table = json.loads((run_dir / "table.json").read_text())
    assert [line["name"] for line in table] == list(ROWS), "the order of Table 2, whatever was asked for"
    assert [row.title for row in found] == [row.title for row in read_rows([run_dir])], "as on the page"
    assert [line["gain"] and line["gain"]["over"] for line in table] == [None, "source only", "+ SIM", "+ SSL"]
    assert all(line["seeds"] == [run.seed for run in row.runs] for line, row in zip(table, found, strict=True))


def test_a_training_of_sim_becomes_step_1_of_sim_ssl(folder: Path) -> None:
    experiment, run_dir = tiny(folder / "data", steps=2), folder / "grown"
    shutil.copytree(folder / "run/sim_ssl/seed0/step1", run_dir / "sim/seed0")
    (before,) = ablate(experiment, run_dir, [0], ["sim"], 1, machine())
    model = times(run_dir / "sim/seed0")[run_dir / "sim/seed0/model.safetensors"]
    sim, _ = ablate(experiment, run_dir, [0], ["sim_ssl"], 1, machine())
    assert sim.results == before.results
    assert (run_dir / "sim_ssl/seed0/step1/model.safetensors").stat().st_mtime_ns == model, "it is not trained again"
    assert not (run_dir / "sim").exists()


def test_sim_has_a_training_for_each_seed_wherever_it_is(folder: Path) -> None:
    run_dir = folder / "apart"
    shutil.copytree(folder / "run/sim_ssl/seed0", run_dir / "sim_ssl/seed0")
    shutil.copytree(folder / "run/sim_ssl/seed0/step1", run_dir / "sim/seed10")
    config = run_dir / "sim/seed10/config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 10"))
    sim, ssl = table_rows(run_dir)
    assert [run.folder for run in sim.runs] == [run_dir / "sim_ssl/seed0/step1", run_dir / "sim/seed10"]
    assert [run.seed for run in ssl.runs] == [0]
    assert read_rows([run_dir]) == [sim, ssl]


def test_one_table_is_of_one_experiment(folder: Path) -> None:
    experiment, run_dir = tiny(folder / "data", steps=3), folder / "run"
    before = times(folder)
    with pytest.raises(InputError, match=r"source_only/seed0 holds a run with another configuration \(schedule\.steps"):
        ablate(experiment, run_dir, [5], ["adversarial"], 1, machine())
    with pytest.raises(InputError, match="source_only/seed0 holds a single training and no table"):
        ablate(experiment, run_dir / "source_only/seed0", [0], ["sim"], 1, machine())
    shutil.copytree(run_dir / "source_only/seed0", folder / "values/w_10/seed0")
    with pytest.raises(InputError, match="values holds w_10, which is not in this table; name it too"):
        ablate(experiment, folder / "values", [0], ["sim"], 1, machine())
    assert {path: time for path, time in times(folder).items() if "values" not in path.parts} == before


def width_of(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


def test_what_is_drawn(folder: Path) -> None:
    run_dir = folder / "run"
    rows = ablate(tiny(folder / "data", steps=2), run_dir, [0], ROWS, 1, machine())
    draw_study(rows, run_dir, machine(), pictures=2)
    pictures = sorted((run_dir / "pictures").glob("*.png"))
    assert len(pictures) == 2
    width = width_of(folder / "data/adverse/val/labels" / pictures[0].name)
    for path in pictures:
        assert width_of(path) == 4 * width + 3 * GAP, "photograph, two models, labels"
    page = (run_dir / "report.html").read_text()
    assert all(row.title in page for row in rows)
    captions = re.findall(r'<caption class="hidden">(.*?)</caption>', page)
    assert "Last models, gains over the row above" in captions
    # the page is of all seeds that are there
    source, sim, *_ = ([result["miou"] for result in row.results] for row in read_rows([run_dir]))
    assert f"<td>{statistics.fmean(source):.1f}" in page
    assert f"<td>{statistics.fmean(b - a for a, b in zip(source, sim, strict=True)):+.1f}" in page
