"""What run folders say when they are read: which seeds and rows they hold, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from report_runs import run_folder
from segadapt.cli import main
from segadapt.errors import InputError
from segadapt.studies.runs import names_of, read_rows, rows_to_compare

IOU = (60.0, 30.0, None)


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a config.yaml; a dictionary changes keys within a key."""
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))


def test_only_seeds_are_seeds(tmp_path: Path) -> None:
    for name, seed in (("seed10", 10), ("seed2", 2), ("seed2_old", 2), ("seeds", 3), ("seed", 4)):
        run_folder(tmp_path / "sim" / name, "sim", IOU, seed)
    (row,) = read_rows([tmp_path])
    assert [run.seed for run in row.runs] == [2, 10]


def test_a_seed_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for name in ("seed1", "seed2"):
        run_folder(tmp_path / "sim" / name, "sim", IOU, seed=1)
    with pytest.raises(InputError, match=r"sim/seed1 and \S+sim/seed2: both are of seed 1; take one of them away"):
        read_rows([tmp_path])


def test_seeds_on_different_test_images_are_refused(tmp_path: Path) -> None:
    run_folder(tmp_path / "sim/seed0", "sim", IOU)
    run_folder(tmp_path / "sim/seed1", "sim", IOU, seed=1, test="camvid")
    with pytest.raises(InputError, match=r"sim/seed0 and \S+sim/seed1: were scored on different test images"):
        read_rows([tmp_path])


def test_one_training_is_called_by_what_it_adapts(tmp_path: Path) -> None:
    for name in ("adversarial", "on_the_way", "before"):
        run_folder(tmp_path / name, "adversarial", IOU)
    rewrite(tmp_path / "on_the_way/config.yaml", translation={"method": "lab"})
    rewrite(tmp_path / "before/config.yaml", source={"translated": "there"})
    assert [read_rows([tmp_path / name])[0].title for name in ("adversarial", "on_the_way", "before")] == [
        "+ AA",
        "+ IT",
        "+ IT",
    ]


def test_folders_are_told_apart_and_each_is_given_once(tmp_path: Path) -> None:
    for path in ("a/x", "b/x"):
        run_folder(tmp_path / path / "sim/seed0", "sim", IOU)
    assert names_of([tmp_path / "a/x"]) == ["x"]
    assert names_of([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    assert [row.title for row in read_rows([tmp_path / "a/x", tmp_path / "b/x"])] == ["a/x: + SIM", "b/x: + SIM"]
    with pytest.raises(InputError, match=r"b/\.\./a/x: is given twice; name each folder once"):
        read_rows([tmp_path / "a/x", tmp_path / "b/../a/x"])


def test_a_comparison_needs_a_score(tmp_path: Path) -> None:
    run_folder(tmp_path / "sim/seed0", "sim", None)
    with pytest.raises(InputError, match="no training there is finished and scored"):
        rows_to_compare([tmp_path])
    run_folder(tmp_path / "source_only/seed0", "source_only", IOU)
    assert [row.name for row in rows_to_compare([tmp_path])] == ["source_only", "sim"]


def result_without(*names: str) -> str:
    """A result.json that lacks a key, given by the names that lead to it."""
    content = {
        "miou": 1.0, "iou": {}, "subsets": {}, "best": {"miou": 1.0}, "seconds": 1.0,
        "data": {"test": {"name": "x", "images": 1, "fingerprint": "x"}},
    }  # fmt: skip
    inner: Any = content
    for name in names[:-1]:
        inner = inner[name]
    del inner[names[-1]]
    return json.dumps(content)


@pytest.mark.parametrize("command", ["compare", "report"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sim/seed0/result.json", result_without("best"), "damaged (best.miou is missing)"),
        ("sim/seed0/result.json", result_without("data", "test", "fingerprint"), "(data.test.fingerprint is missing)"),
        ("sim/seed0/result.json", "{}", "damaged (miou is missing)"),
        ("sim/seed0/result.json", '{"miou": "much"}', "damaged (miou is 'much')"),
        ("sim/seed0/result.json", "[1]", "damaged"),
        ("sim/seed0/config.yaml", "", "damaged"),
        ("sim/seed0/config.yaml", "{seed: 0, source: {translated: ''}}", "damaged (target is missing)"),
        ("sim/seed0/metrics.jsonl", '{"step": 1, "evaluation": {"miou": 1.0}}', "damaged (evaluation.iou is missing)"),
        ("sim/seed0/metrics.jsonl", '{"step": 1, "evaluation": 5}', "damaged (evaluation.miou is missing)"),
        ("sim/seed0/metrics.jsonl", '{"step": 1, "label_free": {"entropy": "x"}}', "damaged (label_free.* is 'x')"),
        ("table.json", "[1]", "damaged (it is no list of rows, each with a name)"),
        ("table.json", "{}", "damaged (it is no list of rows, each with a name)"),
    ],
    ids=lambda value: "",
)
def test_a_damaged_folder_is_refused_in_a_line(
    command: str, name: str, content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "sim/seed0", "sim", IOU)
    (tmp_path / name).write_text(content)
    assert main([command, str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path / name}: " in shown
    assert words in shown
    assert shown.count("\n") == 1


def test_a_configuration_without_weights_of_losses_is_refused(tmp_path: Path) -> None:
    config = run_folder(tmp_path / "run", "sim", IOU) / "config.yaml"
    content = yaml.safe_load(config.read_text())
    del content["loss"]
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"config\.yaml: damaged \(loss\.adversarial is missing\)"):
        read_rows([tmp_path / "run"])
