"""The data check: its counts on files made by hand, what it finds wrong, and that it goes on after a bad file."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segadapt.cli import main
from segadapt.config import AugmentationConfig, DataConfig, Experiment, MatchingConfig, NetworkConfig, ScheduleConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.output.contact_sheet import CELL_WIDTH, COLUMNS, GAP, contact_sheet, laid_over
from segadapt.output.data_check import DataCheck, Finding, check_data, feature_size
from streets import ROOT, few, tiny

SPACE = """name: yard
classes:
  - {name: ground, kind: stuff, colour: [90, 60, 30], ids: [1]}
  - {name: wall, kind: stuff, colour: [200, 200, 200], ids: [2, 3]}
  - {name: barrel, kind: thing, colour: [0, 0, 255], ids: [7]}
"""
SMOKE = ROOT / "configs" / "smoke.yaml"
SIZE = (64, 64)  # 8 x 8 features, aligned to pixels 0, 9, 18, ... 63


def pair(folder: Path, name: str, labels: np.ndarray | None, size: tuple[int, int] = SIZE) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 100, np.uint8)).save(folder / "images" / f"{name}.png")
    if labels is not None:
        Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{name}.png")


def scene(barrels: int = 0, raw_ground: int = 1) -> np.ndarray:
    """Wall above ground; barrels of 12 x 12 pixels stand apart on the ground."""
    labels = np.full(SIZE, raw_ground)
    labels[:32] = 2
    for number in range(barrels):
        labels[46:58, 2 + 22 * number : 14 + 22 * number] = 7
    return labels


def yard(folder: Path) -> Experiment:
    """Two labelled source pairs, an unlabelled target, one test pair."""
    (folder / "label_space.yaml").write_text(SPACE)
    pair(folder / "source", "a", scene(2))
    pair(folder / "source", "b", scene(0))
    pair(folder / "target", "t", None)
    (folder / "target" / "labels").rmdir()
    pair(folder / "test", "x", scene(1))
    return Experiment(
        source=DataConfig(root=str(folder / "source")),
        target=DataConfig(root=str(folder / "target")),
        test=DataConfig(root=str(folder / "test")),
        network=NetworkConfig(backbone="efficientnet_lite0"),
        matching=MatchingConfig(stuff_size=3, thing_size=4),
        schedule=ScheduleConfig(steps=2, batch_size=1),
    )


def texts(check: DataCheck, stops: bool) -> list[str]:
    return [f"{finding.domain}: {finding.text}" for finding in check.findings if finding.stops == stops]


def test_counts_of_files_made_by_hand(tmp_path: Path) -> None:
    check, sets = check_data(yard(tmp_path))
    source = check.domains["source"]
    assert (source.images, source.pairs, source.missing_labels, source.bad_files) == (2, 2, (), ())
    assert source.image_sizes == {"64x64": 2}
    assert source.feature_sizes == {"8x8": 2}
    ground, wall, barrel = source.classes
    pixels = 2 * 64 * 64
    assert ground.share == pytest.approx((2 * 32 * 64 - 2 * 144) / pixels)
    assert wall.share == pytest.approx(0.5)
    assert barrel.share == pytest.approx(2 * 144 / pixels)
    assert (ground.images, wall.images, barrel.images) == (2, 2, 1)
    assert (ground.regions, wall.regions, barrel.regions) == (2, 2, 2), "stuff: one an image; two barrels"
    assert (barrel.kind, barrel.images_at_feature_size) == ("thing", 1)
    assert [(entry.id, entry.name, entry.images) for entry in source.ids] == [
        (2, "wall", 2), (1, "ground", 2), (7, "barrel", 1),
    ]  # fmt: skip
    assert check.domains["target"].pairs == 0
    assert not check.stops
    assert {name: len(images) for name, images in sets.items()} == {"source": 2, "target": 1, "test": 1}


def test_the_forecast(tmp_path: Path) -> None:
    check, _ = check_data(yard(tmp_path))
    ground, _, barrel = check.banks
    assert (ground.entries, ground.per_step, ground.steps_until_full) == (3, 1.0, 3)
    assert ground.filled_at_end == pytest.approx(2 / 3)
    assert (barrel.entries, barrel.per_step, barrel.steps_until_full) == (4, 1.0, 4)
    assert any("not full after 2 steps" in text and "barrel 50 %" in text for text in texts(check, stops=False))
    experiment = yard(tmp_path)
    larger = replace(experiment, schedule=replace(experiment.schedule, batch_size=4))
    assert [bank.steps_until_full for bank in check_data(larger)[0].banks] == [1, 1, 1]


def test_max_instances_bounds_what_is_stored(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    one = replace(experiment, matching=replace(experiment.matching, max_instances=1))
    assert check_data(one)[0].domains["source"].classes[2].regions == 1


def test_a_class_that_vanishes_at_feature_size(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    speck = scene(0)
    speck[47:50, 47:50] = 7  # between the pixels that are sampled
    pair(tmp_path / "source", "a", speck)
    check, _ = check_data(experiment)
    barrel = check.domains["source"].classes[2]
    assert (barrel.images, barrel.images_at_feature_size) == (1, 0)
    assert check.banks[2].steps_until_full is None
    assert any("barrel: too small" in text for text in texts(check, stops=False))


def test_every_bad_file_is_listed_and_the_rest_counted(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    source = tmp_path / "source"
    pair(source, "c", scene(1))
    pair(source, "d", scene(1))
    pair(source, "e", scene(1))
    pair(source, "f", None)
    whole = (source / "images" / "c.png").read_bytes()
    (source / "images" / "c.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", SIZE).save(source / "labels" / "d.png")
    Image.fromarray(np.ones((32, 32), np.uint8)).save(source / "labels" / "e.png")
    check, sets = check_data(experiment)
    domain = check.domains["source"]
    assert (domain.images, domain.pairs) == (6, 2)
    assert [Path(line.split(":")[0]).name for line in domain.bad_files] == ["c.png", "d.png", "e.png"]
    assert [Path(path).name for path in domain.missing_labels] == ["f.png"]
    stopping = texts(check, stops=True)
    assert len(stopping) == 4
    assert any("1 of 6 images have no label file" in text for text in stopping)
    assert check.stops
    assert [path.name for path in sets["source"].images] == ["a.png", "b.png", "f.png"]
    assert domain.classes[2].images == 1, "the good pairs are counted all the same"


def test_ids_that_no_class_has(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    pair(tmp_path / "source", "b", scene(0, raw_ground=9))
    check, _ = check_data(experiment)
    unknown = [entry for entry in check.domains["source"].ids if entry.name is None]
    assert [(entry.id, entry.pixels, entry.images) for entry in unknown] == [(9, 2048, 1)]
    assert any("9 (2048 pixels in 1 images)" in text for text in texts(check, stops=False))
    for name in ("a", "b"):
        pair(tmp_path / "source", name, np.full(SIZE, 40))
    assert any("label_space" in text for text in texts(check_data(experiment)[0], stops=True))


def test_sizes_that_do_not_make_a_batch(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    pair(tmp_path / "source", "wide", np.ones((64, 96)), size=(64, 96))
    two = replace(experiment, schedule=replace(experiment.schedule, batch_size=2))
    assert texts(check_data(experiment)[0], stops=True) == []
    assert any("2 sizes" in text for text in texts(check_data(two)[0], stops=True))
    cropped = replace(two, augmentation=AugmentationConfig(crop=(64, 64)))
    check, _ = check_data(cropped)
    assert texts(check, stops=True) == []
    assert check.domains["source"].feature_sizes == {"8x8": 3}
    sized = replace(two, source=replace(two.source, size=(64, 64)))
    assert texts(check_data(sized)[0], stops=True) == []


def test_one_missing_domain_leaves_the_others_checked(tmp_path: Path) -> None:
    experiment = replace(yard(tmp_path), test=DataConfig(root=str(tmp_path / "nowhere")))
    check, _ = check_data(experiment)
    assert set(check.domains) == {"source", "target"}
    assert [(finding.domain, finding.stops) for finding in check.findings if "nowhere" in finding.text] == [
        ("test", True)
    ]


def test_test_and_validation_may_be_left_out_and_are_checked_where_they_are_not(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    check, sets = check_data(replace(experiment, test=DataConfig()))
    assert texts(check, stops=True) == []
    assert set(sets) == {"source", "target"}
    validation = DataConfig(root=str(tmp_path / "held_out"))
    assert "held_out" in texts(check_data(replace(experiment, validation=validation))[0], stops=True)[0]
    pair(tmp_path / "held_out", "v", np.ones((32, 64)))
    stopping = texts(check_data(replace(experiment, validation=validation))[0], stops=True)
    assert [text for text in stopping if text.startswith("validation: ") and "v.png: is 32x64" in text]


def test_scored_images_of_other_classes_or_sizes(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    pair(tmp_path / "test", "wide", np.ones((64, 96)), size=(64, 96))
    assert texts(check_data(experiment)[0], stops=True) == [], "they are scored one after another"
    (tmp_path / "test" / "label_space.yaml").write_text(SPACE.replace("name: ", "name: other "))
    (stopping,) = texts(check_data(experiment)[0], stops=True)
    assert "test: label spaces other yard (other ground" in stopping


def test_labels_of_the_target_stop_nothing(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    (tmp_path / "target" / "labels").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "target" / "labels" / "t.png")
    check, _ = check_data(experiment)
    assert texts(check, stops=True) == []
    assert any("t.png: is a colour picture" in text for text in texts(check, stops=False))
    assert check.domains["target"].image_sizes == {"64x64": 1}
    (tmp_path / "target" / "images" / "t.png").write_bytes(b"")
    assert any("t.png: cannot be read" in text for text in texts(check_data(experiment)[0], stops=True))


def test_what_a_training_skips_does_not_stop_it(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    experiment = replace(experiment, schedule=replace(experiment.schedule, on_bad_image="skip"))
    pair(tmp_path / "source", "c", None)
    (tmp_path / "source" / "images" / "a.png").write_bytes(b"")
    check, _ = check_data(experiment)
    assert texts(check, stops=True) == []
    assert len([text for text in texts(check, stops=False) if "a.png: cannot" in text or "1 of 3 images" in text]) == 2
    Image.new("RGB", SIZE).save(tmp_path / "source" / "labels" / "b.png")
    (tmp_path / "test" / "images" / "x.png").write_bytes(b"")
    (tmp_path / "target" / "images" / "t.png").write_bytes(b"")
    stopping = texts(check_data(experiment)[0], stops=True)
    for words in ("b.png: is a colour", "target: none of its 1 images can be used", "x.png: cannot be read"):
        assert any(words in text for text in stopping), words


def test_classes_that_are_not_trained_or_not_known(tmp_path: Path) -> None:
    experiment = yard(tmp_path)
    check, _ = check_data(replace(experiment, classes=("ground", "barrel")))
    assert [entry.name for entry in check.domains["source"].classes] == ["ground", "barrel"]
    assert Finding(False, "source", "classes that are not trained: wall") in check.findings
    assert check_data(replace(experiment, classes=("grund",)))[0].stops


def test_worker_processes_count_the_same(tmp_path: Path) -> None:
    experiment = tiny(few(tmp_path))
    told: list[Any] = []
    alone, _ = check_data(experiment, 0, lambda title, total: told.append((title, total)), lambda: told.append(1))
    assert told[:7] == [("source", 6), 1, 1, 1, 1, 1, 1]
    assert told.count(1) == 18
    assert check_data(experiment, 2)[0] == alone


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        ("resnet101", (512, 1024), (65, 129)),
        ("efficientnet_lite0", (160, 224), (20, 28)),
        ("vgg16", (96, 128), (13, 17)),
    ],
)
def test_the_size_of_the_features(backbone: Any, size: tuple[int, int], expected: tuple[int, int]) -> None:
    space = LabelSpace.from_yaml_text(SPACE, "here")
    assert feature_size(NetworkConfig(backbone=backbone, weights="random"), space, size) == expected


def test_the_contact_sheet_shows_labels_over_photographs(tmp_path: Path) -> None:
    _, sets = check_data(yard(tmp_path))
    space = sets["source"].space
    sheet = np.asarray(contact_sheet(sets["source"], space))
    assert sheet.shape[1] == COLUMNS * (CELL_WIDTH + GAP) + GAP
    wall = sheet[GAP + 40, GAP + 8]
    assert wall.tolist() == [155, 155, 155], "0.45 * 100 + 0.55 * 200"
    target = np.asarray(contact_sheet(sets["target"], space))
    assert target[GAP + 40, GAP + 8].tolist() == [100, 100, 100], "no labels: the photograph"


def test_ignored_pixels_stay_as_they_are() -> None:
    space = LabelSpace.from_yaml_text(SPACE, "here")
    photograph = np.full((1, 2, 3), 100, np.uint8)
    mixed = laid_over(photograph, np.array([[255, 2]], np.uint8), space)
    assert mixed.tolist() == [[[100, 100, 100], [45, 45, 185]]]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    few(data)
    command = ["check-data", "--config", str(SMOKE), "--workers", "0"]
    command += [f"--source.root={data}/clear", f"--target.root={data}/adverse", f"--test.root={data}/adverse"]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "Nothing here would stop a training." in said.out
    assert "bicyclist" in said.out
    assert "source: 0/6" in said.err
    files = {"check.json", "contact_source.png", "contact_target.png", "contact_test.png"}
    assert {path.name for path in out.iterdir()} == files
    assert main([*command, "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out) == json.loads((out / "check.json").read_text())
    next((data / "clear" / "train" / "labels").iterdir()).unlink()
    assert main([*command, "--test.root=", "--test.split=", "--out", str(out)]) == 2
    assert "Would stop a training:" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == files - {"contact_test.png"}, "none that is not of this check"
    assert main([*command, f"--out={SMOKE}"]) == 2
    said = capsys.readouterr()
    assert (said.out, "source: " in said.err) == ("", False), "refused before anything is read"


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "site [red]"
    odd.mkdir()
    yard(odd)
    (odd / "label_space.yaml").write_text(SPACE.replace("name: barrel", "name: 'barrel [blue]'"))
    os.rename(odd / "source" / "images" / "b.png", os.fsencode(odd / "source" / "images") + b"/\xff.png")
    command = ["check-data", "--workers=0", "--quiet", "--network.backbone=efficientnet_lite0"]
    assert main([*command, f"--source.root={odd}/source", f"--target.root={odd}/target"]) == 2
    said = capsys.readouterr().out
    for words in (f"source: folder {odd}/source\n", "barrel [blue]", "images/\\udcff.png; add the labels"):
        assert words in said
