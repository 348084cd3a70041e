"""Readers: how images find their labels, and every way in which a folder can be wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from image_files import write_ids, write_image
from segadapt.config import DataConfig
from segadapt.data.decoding import read_labels
from segadapt.data.label_spaces import STREETS11, LabelSpace
from segadapt.data.readers import ImageSet, find_pairs, fingerprint
from segadapt.errors import InputError

STREETS = Path(__file__).parents[2] / "data" / "streets"


def train_ids(image_set: ImageSet, index: int) -> list[int]:
    label = image_set.labels[index]
    assert label is not None
    return np.unique(read_labels(label, image_set.table)).tolist()


# ---- folder


def folder(root: Path, label: int = 3) -> DataConfig:
    for name in ("b.jpg", "a.png", "deep/c.JPEG"):
        write_image(root / "train" / "images" / name)
        write_ids((root / "train" / "labels" / name).with_suffix(".png"), label)
    return DataConfig("folder", str(root), "train", "streets11")


def test_folder_pairs_by_name_in_sorted_order(tmp_path):
    config = folder(tmp_path)
    (tmp_path / "train" / "images" / "._a.png").write_bytes(b"left by a file manager")
    (tmp_path / "train" / "images" / "notes.txt").write_text("no image")
    found = find_pairs(config, True)
    assert [found.image_name(index) for index in range(len(found))] == ["a.png", "b.png", "deep/c.png"]
    assert found.labels[2] == tmp_path / "train" / "labels" / "deep" / "c.png"
    assert found.space == STREETS11
    assert train_ids(found, 0) == [3]


def test_unlabelled_folder_needs_no_labels_and_never_looks_at_them(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(b"not to be opened")
    found = find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), False)
    assert found.labels == (None,)
    assert not found.labelled


def test_unlabelled_photographs_may_lie_in_the_folder_itself(tmp_path):
    write_image(tmp_path / "holiday.jpg")
    found = find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), False)
    assert found.image_name(0) == "holiday.png"
    with pytest.raises(InputError, match="images: no such folder"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    write_ids(tmp_path / "labels" / "holiday.png")
    with pytest.raises(InputError, match=f"photographs beside a folder of labels; move them to {tmp_path}/images"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), False)


@pytest.mark.parametrize("place", ["label_space.yaml", "classes.yaml", "../label_space.yaml"])
def test_folder_finds_its_label_space_in_root_or_above(place, tmp_path):
    root = tmp_path / "site"
    write_image(root / "images" / "a.jpg")
    write_ids(root / "labels" / "a.png", 40)
    text = "name: mine\nclasses:\n- {name: floor, kind: stuff, colour: [1, 2, 3], ids: [40]}\n"
    (root / place).write_text(text)
    found = find_pairs(DataConfig(root=str(root)), True)
    assert found.space == LabelSpace.from_yaml_text(text, "text")
    assert train_ids(found, 0) == [0]


def test_the_folder_above_a_link_is_the_one_it_lies_in_or_leads_to(tmp_path, monkeypatch):
    write_image(tmp_path / "photographs" / "a.jpg")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "target").symlink_to(tmp_path / "photographs")
    text = "name: mine\nclasses:\n- {name: floor, kind: stuff, colour: [1, 2, 3], ids: [40]}\n"
    (tmp_path / "label_space.yaml").write_text(text.replace("mine", "led to"))
    assert find_pairs(DataConfig(root=str(tmp_path / "site" / "target")), False).space.name == "led to"
    (tmp_path / "site" / "label_space.yaml").write_text(text)
    assert find_pairs(DataConfig(root=str(tmp_path / "site" / "target")), False).space.name == "mine"
    monkeypatch.chdir(tmp_path / "site" / "target")
    assert find_pairs(DataConfig(root="."), False).space.name == "led to", "no shell is there to say how we came here"


def test_folder_without_a_label_space_says_what_to_write(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"label_space\.yaml: no label space; write one there \(name, classes"):
        find_pairs(DataConfig(root=str(tmp_path)), False)


def test_the_bundled_pair_is_found():
    found = find_pairs(DataConfig(root=str(STREETS / "clear"), split="train"), True)
    assert len(found) == 130
    assert found.space == STREETS11
    target = find_pairs(DataConfig(root=str(STREETS / "adverse"), split="train"), False)
    assert (len(target), target.labelled) == (120, False)


# ---- folder with patterns


def test_patterns_say_where_images_and_labels_lie(tmp_path):
    for name in ("x/1_rgb.png", "x/2_rgb.jpg", "y/1_rgb.png"):
        write_image(tmp_path / "site" / "photographs" / name)
        write_ids((tmp_path / "site" / "ids" / name.replace("_rgb", "_classes")).with_suffix(".png"), 3)
    write_image(tmp_path / "site" / "photographs" / "x" / "1_depth.png")
    write_ids(tmp_path / "site" / "ids" / "x" / "1_instances.png", 99)
    config = DataConfig(
        root=str(tmp_path),
        split="site",
        label_space="streets11",
        images="photographs/*_rgb",
        labels="ids/*_classes",
    )
    found = find_pairs(config, True)
    assert [found.image_name(index) for index in range(3)] == ["x/1_rgb.png", "x/2_rgb.png", "y/1_rgb.png"]
    assert found.labels[1] == tmp_path / "site" / "ids" / "x" / "2_classes.png"
    assert find_pairs(config, False).images == found.images
    with_suffixes = replace(config, images="photographs/*_rgb.png", labels="ids/*_classes.png")
    assert [image.name for image in find_pairs(with_suffixes, True).images] == ["1_rgb.png", "1_rgb.png"]
    above = replace(config, split="", images="site/photographs/*/1_rgb", labels="site/ids/*/1_classes")
    assert [image.parent.name for image in find_pairs(above, True).images] == ["x", "y"]


def test_a_star_before_the_last_stays_within_one_name(tmp_path):
    for name in ("fog/train/a/1.png", "fog/train_ref/a/1.png", "fog/more/train/a/2.png"):
        write_image(tmp_path / "rgb" / name)
    config = DataConfig(root=str(tmp_path), label_space="streets11", images="rgb/*/train/*")
    found = find_pairs(config, False)
    assert [found.image_name(index) for index in range(len(found))] == ["fog/train/a/1.png"]


def test_other_characters_of_a_pattern_are_taken_as_they_are(tmp_path):
    write_image(tmp_path / "in (1)+" / "a_0.02.png")
    write_image(tmp_path / "in (1)+" / "a_0x02.png")
    config = DataConfig(root=str(tmp_path), label_space="streets11", images="in (1)+/*_0.02")
    found = find_pairs(config, False)
    assert [found.image_name(index) for index in range(len(found))] == ["a_0.02.png"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"images": "photographs"}, r"images: 'photographs' has no \*; write one for .*, for example images/\*"),
        ({"labels": "ids"}, r"labels: 'ids' has no \*; write one for .*, for example labels/\*"),
        ({"images": "images/**/*"}, r"images: 'images/\*\*/\*' holds \*\*; write a single \*, the last one reaches"),
        ({"images": "a/*/b/*"}, r"labels: 'labels/\*' has 1 \*, but images: 'a/\*/b/\*' has 2; write as many in both"),
        ({"labels": "labels/*.jpg"}, r"labels: 'labels/\*\.jpg' names files that are no PNG; write the ids as PNG"),
        ({"images": "images/*_rgb"}, r"images: holds no images \(images/\*_rgb, \.png"),
        ({"labels": "labels/*_ids"}, r"a\.png: its label .*labels/a_ids\.png is missing \(1 of 1 are\)"),
        ({"labels": "other/*"}, r"other: no such folder; the labels belong there"),
        ({"reader": "gta5", "images": "images/*"}, "images: 'images/\\*' is given, but reader gta5 knows where its"),
        (
            {"reader": "camvid", "labels": "x/*"},
            r"labels: .* is given, but reader camvid knows .*use reader folder",
        ),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns, message, tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_ids(tmp_path / "labels" / "a.png", 3)
    config = DataConfig(root=str(tmp_path), label_space="streets11")
    assert len(find_pairs(config, True)) == 1
    with pytest.raises(InputError, match=message) as caught:
        find_pairs(replace(config, **patterns), True)
    assert "\n" not in str(caught.value)


# ---- label spaces that do not fit


def test_labels_with_no_id_of_the_space_are_refused(tmp_path):
    config = folder(tmp_path, label=77)
    message = r"a\.png: no id in it and in 2 other label files \(id 77: 72 pixels\) is one of label space s"
    with pytest.raises(InputError, match=message):
        find_pairs(config, True)


def test_one_image_that_is_all_ignored_is_no_error(tmp_path, caplog):
    config = folder(tmp_path)
    write_ids(tmp_path / "train" / "labels" / "a.png", 255)
    assert train_ids(find_pairs(config, True), 0) == [255]
    assert caplog.text == ""


def test_ids_that_are_mostly_of_no_class_are_told_with_their_share(tmp_path, caplog):
    config = folder(tmp_path)
    write_ids(tmp_path / "train" / "labels" / "a.png", np.repeat([[255], [255], [40], [41]], 6, axis=1))
    write_ids(tmp_path / "train" / "labels" / "b.png", np.repeat([[3], [8], [40], [40]], 6, axis=1))
    write_ids(tmp_path / "train" / "labels" / "deep" / "c.png", np.repeat([[3], [8], [3], [3]], 6, axis=1))
    found = find_pairs(config, True)  # 4 of the 10 rows that are not 255
    assert len(found) == 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "train: 40 % of the pixels in the 3 label files looked at are of no class of" in record.getMessage()
    assert "streets11 and will be ignored (id 40: 30 %, id 41: 10 %); if that" in record.getMessage()


def test_a_few_ids_of_no_class_are_silent(tmp_path, caplog):
    config = folder(tmp_path)
    write_ids(tmp_path / "train" / "labels" / "a.png", np.repeat([[3], [8], [40], [41]], 6, axis=1))
    assert train_ids(find_pairs(config, True), 0) == [3, 8, 255]  # 2 of 12 rows
    assert caplog.text == ""


# ---- folders that are wrong


def test_wrong_folders_are_named_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="root is empty; give the folder"):
        find_pairs(DataConfig(), True)
    for root in ("/no/where", "~nobody-of-this-name/data"):
        with pytest.raises(InputError, match=f"root: '{root}' is not a folder; correct"):
            find_pairs(DataConfig(root=root), True)
    with pytest.raises(InputError, match=r"images: no such folder; .*check reader, root and split"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"images: holds no images \(images/\*, \.png"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"labels: no such folder; the labels belong there"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    write_ids(tmp_path / "labels" / "other.png")
    with pytest.raises(InputError, match=r"a\.png: its label .*a\.png is missing \(1 of 1 are\)"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)


def test_two_images_of_one_name_are_refused(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.png: has the same name as a\.jpg; rename or remove one"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), False)


def test_fingerprint_tells_data_apart(tmp_path):
    config = folder(tmp_path / "here")
    before = fingerprint(find_pairs(config, True))
    assert fingerprint(find_pairs(folder(tmp_path / "elsewhere"), True)) == before
    assert fingerprint(find_pairs(config, False)) != before
    write_image(tmp_path / "here" / "train" / "images" / "b.jpg", (40, 60))
    assert fingerprint(find_pairs(config, True)) != before
