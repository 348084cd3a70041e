"""Tables 3 and 4 and tables like them: which settings are varied, and one real table at postage-stamp size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentError

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.commands.options import experiment_with
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.studies.sweep import PAPER_VALUES, folder_name, sweep, trained_by, with_setting
from streets import few, tiny


def machine() -> Machine:
    return Machine(torch.device("cpu"), Terminal(quiet=True))


def varied(setting: str, *values: str) -> dict[str, Experiment]:
    return {value: with_setting(tiny(), setting, value) for value in values}


def test_the_values_are_those_of_the_paper() -> None:
    numbers = {setting: tuple(map(float, values)) for setting, values in PAPER_VALUES.items()}
    assert numbers == {"lambda_ci": (0.1, 0.05, 0.01, 0.005, 0.001), "w": (10, 50, 200, 800, 1600)}


def test_lambda_ci_is_the_weight_of_matching_in_step_1() -> None:
    changed = with_setting(tiny(), "lambda_ci", "0.05")
    assert changed.loss.matching == 0.05
    assert (changed.loss.matching_step2, changed.matching) == (tiny().loss.matching_step2, tiny().matching)


def test_w_is_the_size_of_all_rings() -> None:
    changed = with_setting(tiny(), "w", "200")
    assert (changed.matching.stuff_size, changed.matching.thing_size) == (200, 2000)
    assert changed.loss == tiny().loss
    for value in ("0.5", "inf", "nan"):
        with pytest.raises(InputError, match=f"w is a number of entries, {value} is not"):
            with_setting(tiny(), "w", value)
    with pytest.raises(InputError, match=r"stuff_size: 1\d+ is out of range"):
        with_setting(tiny(), "w", "1e300")
    with pytest.raises(InputError, match="lambda_ci is a number, 'much' is none"):
        with_setting(tiny(), "lambda_ci", "much")
    with pytest.raises(InputError, match="stuff_size: 0"):
        with_setting(tiny(), "w", "0")


def test_any_key_can_be_varied() -> None:
    changed = experiment_with(tiny(), "translation.method", "lab")
    assert changed.translation.method == "lab"
    assert experiment_with(changed, "translation.method", "off") == tiny(), "and nothing else is"
    assert experiment_with(tiny(), "augmentation.crop", "[32, 32]").augmentation.crop == (32, 32)
    with pytest.raises(ArgumentError, match=r"translation\.methode"):
        experiment_with(tiny(), "translation.methode", "lab")
    with pytest.raises(ArgumentError, match="method"):
        experiment_with(tiny(), "translation.method", "paint")


def test_a_value_is_one_folder() -> None:
    assert folder_name("lambda_ci", "0.05") == "lambda_ci_0.05"
    assert folder_name("source.translated", "runs/a b") == "source.translated_runs_a_b"


def test_wrong_tables_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"values: \['10', '10\.0'\] holds a value twice"):
        sweep(varied("w", "10", "10.0"), tmp_path, "w", "sim", [0], 1, machine())
    with pytest.raises(InputError, match=r"seeds: \[0, 0\] holds a value twice"):
        sweep(varied("w", "10", "20"), tmp_path, "w", "sim", [0, 0], 1, machine())
    with pytest.raises(InputError, match="row translation: source images are not translated"):
        sweep(varied("w", "10", "20"), tmp_path, "w", "translation", [0], 1, machine())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "values", "row"),
    [
        ("seed", ("0", "1"), "sim"),
        ("lambda_ci", ("0.1", "0.01"), "source_only"),
        ("w", ("10", "20"), "adversarial"),
        ("pseudo_labels.quantile", ("0.3", "0.5"), "sim"),
        ("loss.matching_step2", ("0.1", "0.2"), "sim"),
        ("translation.method", ("off", "lab"), "target_only"),
    ],
)
def test_a_setting_that_the_row_does_not_read_is_refused(
    setting: str, values: tuple[str, ...], row: str, tmp_path: Path
) -> None:
    with_value = with_setting if setting in PAPER_VALUES else experiment_with
    experiments = {value: with_value(tiny(), setting, value) for value in values}
    with pytest.raises(InputError, match=f"row {row} does not depend on {setting}"):
        sweep(experiments, tmp_path, setting, row, [0], 1, machine())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "values", "row"),
    [
        ("lambda_ci", ("0.1", "0.01"), "sim_ssl"),
        ("w", ("10", "20"), "sim_ssl"),
        ("pseudo_labels.quantile", ("0.3", "0.5"), "sim_ssl"),
        ("loss.matching_step2", ("0.1", "0.2"), "sim_ssl"),
        ("loss.adversarial", ("0.1", "0.2"), "adversarial"),
    ],
)
def test_what_a_row_reads_are_several_trainings(setting: str, values: tuple[str, str], row: str) -> None:
    with_value = with_setting if setting in PAPER_VALUES else experiment_with
    one, other = (trained_by(with_value(tiny(), setting, value), row) for value in values)
    assert one != other


def test_all_values_are_scored_on_the_same_images(tmp_path: Path) -> None:
    experiments = {"a": tiny(), "b": replace(tiny(), test=replace(tiny().test, root=""))}
    with pytest.raises(InputError, match=r"setting: test\.root changes the images that are scored"):
        sweep(experiments, tmp_path, "test.root", "sim", [0], 1, machine())
    without = {value: replace(each, test=replace(each.test, root="")) for value, each in varied("w", "1", "2").items()}
    with pytest.raises(InputError, match=r"test\.root: is empty"):
        sweep(without, tmp_path, "w", "sim", [0], 1, machine())
    assert not list(tmp_path.iterdir())


def test_a_real_sweep(tmp_path: Path) -> None:
    data, run_dir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    experiment = tiny(few(data), steps=2)
    values = {value: with_setting(experiment, "lambda_ci", value) for value in ("0.5", "0.001")}
    rows = sweep(values, run_dir, "lambda_ci", "sim", [0, 1], 1, machine())
    assert [row.title for row in rows] == ["lambda_ci_0.5", "lambda_ci_0.001"]
    table = json.loads((run_dir / "table.json").read_text())
    for row, value in zip(table, values, strict=True):
        for seed, miou in enumerate(row["miou_each"]):
            folder = run_dir / f"lambda_ci_{value}" / f"seed{seed}"
            config = yaml.safe_load((folder / "config.yaml").read_text())
            assert (config["loss"]["matching"], config["seed"]) == (float(value), seed)
            assert json.loads((folder / "result.json").read_text())["miou"] == miou
    assert (table[0]["gain"], table[1]["gain"]["over"]) == (None, "lambda_ci_0.5")
    as_in_the_paper = [f"{row['miou']:.1f} ± {row['miou_std']:.1f}" for row in table]
    assert (
        (run_dir / "table.md")
        .read_text()
        .startswith(f"| lambda_ci | 0.5 | 0.001 |\n| --- | --- | --- |\n| mIoU % | {' | '.join(as_in_the_paper)} |\n")
    )

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    assert sweep(values, run_dir, "lambda_ci", "sim", [0, 1], 1, machine()) == rows
    assert sweep(values, run_dir, "lambda_ci", "sim", [1], 1, machine()) == rows, "the table keeps the other seed"
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")} == before
    assert json.loads((run_dir / "table.json").read_text()) == table
    with pytest.raises(InputError, match=r"holds lambda_ci_0\.001, which is not in this table; name it too"):
        sweep({"0.5": values["0.5"]}, run_dir, "lambda_ci", "sim", [0], 1, machine())
