"""Published formats, trap by trap: each layout written small, read as docs/formats.md says."""

import json
import logging
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from image_files import write_16_bit_png, write_ids, write_image, write_palette_ids
from segadapt.config import AugmentationConfig, DataConfig, Experiment
from segadapt.data.decoding import read_labels
from segadapt.data.label_spaces import CAMVID11, CITYSCAPES, SYNTHIA13, SYNTHIA16, common
from segadapt.data.loading import evaluation_batches, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
FORMATS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maps_and_schedule.json").read_text())

# One row of every label file: a road, a car, the sky, and nothing.
LABEL_IDS, TRAIN_IDS, SYNTHIA_IDS, CAMVID_IDS, IDD_IDS = (
    np.array(ids) for ids in ([7, 26, 23, 0], [0, 13, 10, 255], [3, 8, 1, 0], [3, 8, 0, 11], [0, 9, 25, 255])
)
ROW = ["road", "car", "sky", None]
CONDITIONS = ("fog", "night", "rain", "snow")


def classes(image_set: ImageSet, index: int = 0) -> list[str | None]:
    """Class names of the first row of a label file."""
    label = image_set.labels[index]
    assert label is not None
    row = read_labels(label, image_set.table)[0]
    return [None if train_id == 255 else image_set.space.names[train_id] for train_id in row]


def image_names(image_set: ImageSet) -> list[str]:
    return [image_set.image_name(index) for index in range(len(image_set))]


# ---- every configuration in docs/formats.md


def documented() -> dict[tuple[str, int], dict]:
    """The YAML of docs/formats.md by section and number in it."""
    blocks = {}
    for section in re.split(r"^## ", FORMATS, flags=re.MULTILINE)[1:]:
        for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)):
            blocks[section.partition("\n")[0], number] = yaml.safe_load(text)
    return blocks


def write_picture(path: Path) -> None:
    write_image(path, (1, 4))


def write_row(path: Path, ids: np.ndarray) -> None:
    write_ids(path, ids, (1, 4))


@pytest.fixture
def everything(tmp_path, monkeypatch) -> Path:
    """All data sets in their layouts, one image a split, with the files beside them that must not be read."""
    data = tmp_path / "data"
    write_picture(data / "site/photographs/x/1_rgb.png")
    write_row(data / "site/ids/x/1_classes.png", CAMVID_IDS)
    (data / "site/label_space.yaml").write_text(CAMVID11.to_yaml())

    write_picture(data / "gta5/images/00001.png")
    write_palette_ids(data / "gta5/labels/00001.png", LABEL_IDS[None])
    write_row(data / "gta5/labels/00001_labelTrainIds.png", TRAIN_IDS)

    write_picture(data / "synthia/RGB/0000000.png")
    two_channels = np.zeros((1, 4, 3), int)
    two_channels[0, :, :2] = np.stack([SYNTHIA_IDS, [0, 300, 0, 0]], axis=1)
    write_16_bit_png(data / "synthia/GT/LABELS/0000000.png", two_channels, filters=[1])
    write_row(data / "synthia/GT/LABELS/0000000_labelTrainIds.png", TRAIN_IDS)
    write_picture(data / "synthia/GT/COLOR/0000000.png")

    for split, stem in (("train", "aachen/aachen_000000_000019"), ("val", "bonn/bonn_000001_000019")):
        write_picture(data / f"cityscapes/leftImg8bit/{split}/{stem}_leftImg8bit.png")
        for strength in ("0.005", "0.01", "0.02"):
            foggy = f"cityscapes/leftImg8bit_foggy/{split}/{stem}_leftImg8bit_foggy_beta_{strength}.png"
            write_picture(data / foggy)
        write_picture(data / f"cityscapes/gtFine/{split}/{stem}_gtFine_color.png")
        write_row(data / f"cityscapes/gtFine/{split}/{stem}_gtFine_instanceIds.png", LABEL_IDS)
        write_row(data / f"cityscapes/gtFine/{split}/{stem}_gtFine_labelIds.png", LABEL_IDS)

    for split, stem in (("train", "0001TP_006690"), ("test", "0001TP_008550")):
        write_picture(data / f"camvid/{split}/{stem}.png")
        write_row(data / f"camvid/{split}annot/{stem}.png", CAMVID_IDS)

    for split, stem, suffix in (("train", "201/frame0029", "jpg"), ("val", "119/119638", "png")):
        write_picture(data / f"idd/leftImg8bit/{split}/{stem}_leftImg8bit.{suffix}")
        write_row(data / f"idd/gtFine/{split}/{stem}_gtFine_labelcsTrainIds.png", TRAIN_IDS)
        write_row(data / f"idd/gtFine/{split}/{stem}_gtFine_labellevel3Ids.png", IDD_IDS)
        write_picture(data / f"idd/gtFine/{split}/{stem}_gtFine_labelColors.png")

    for condition in CONDITIONS:
        for split in ("train", "val"):
            stem = f"{condition}/{split}/GOPR0475/GOPR0475_frame_000041"
            write_picture(data / f"acdc/rgb_anon/{stem}_rgb_anon.png")
            clear = stem.replace(split, f"{split}_ref")
            write_picture(data / f"acdc/rgb_anon/{clear}_rgb_ref_anon.png")
            write_row(data / f"acdc/gt/{stem}_gt_labelTrainIds.png", TRAIN_IDS)
            write_row(data / f"acdc/gt/{stem}_gt_labelIds.png", LABEL_IDS)
            write_picture(data / f"acdc/gt/{stem}_gt_labelColor.png")

    for split, stem in (("train", "0004a4c0-d4dff0ad"), ("val", "7d128593-0ccfea4c")):
        write_picture(data / f"bdd100k/images/10k/{split}/{stem}.jpg")
        write_row(data / f"bdd100k/labels/sem_seg/masks/{split}/{stem}.png", TRAIN_IDS)
        write_picture(data / f"bdd100k/labels/sem_seg/colormaps/{split}/{stem}.png")
        write_picture(data / f"bdd100k/images/100k/{split}/{stem}.jpg")
    monkeypatch.chdir(tmp_path)
    return data


ACDC = [f"{condition}/{{}}/GOPR0475/GOPR0475_frame_000041_rgb_anon.png" for condition in CONDITIONS]
READ = {
    ("Patterns: any other layout", 0, "source"): ["x/1_rgb.png"],
    ("GTA5", 0, "source"): ["00001.png"],
    ("SYNTHIA", 0, "source"): ["0000000.png"],
    ("SYNTHIA", 1, "source"): ["0000000.png"],
    ("Cityscapes", 0, "target"): ["aachen/aachen_000000_000019_leftImg8bit.png"],
    ("Cityscapes", 0, "test"): ["bonn/bonn_000001_000019_leftImg8bit.png"],
    ("Foggy Cityscapes", 0, "target"): ["aachen/aachen_000000_000019_leftImg8bit_foggy_beta_0.02.png"],
    ("Foggy Cityscapes", 0, "test"): ["bonn/bonn_000001_000019_leftImg8bit_foggy_beta_0.02.png"],
    ("CamVid", 0, "target"): ["0001TP_006690.png"],
    ("CamVid", 0, "test"): ["0001TP_008550.png"],
    ("IDD", 0, "target"): ["201/frame0029_leftImg8bit.png"],
    ("IDD", 0, "test"): ["119/119638_leftImg8bit.png"],
    ("ACDC", 0, "target"): [name.format("train") for name in ACDC],
    ("ACDC", 0, "test"): [name.format("val") for name in ACDC],
    ("BDD100K", 0, "target"): ["0004a4c0-d4dff0ad.png"],
    ("BDD100K", 0, "test"): ["7d128593-0ccfea4c.png"],
}


def parsed(block: dict) -> Experiment:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, "experiment")
    return parser.instantiate(parser.parse_object({"experiment": block})).experiment


def test_every_documented_domain_is_read_here():
    domains = ("source", "target", "test")
    assert {(*key, name) for key, block in documented().items() for name in domains if name in block} == set(READ)


@pytest.mark.parametrize(("section", "number", "name"), READ)
def test_documented_configurations_read_what_they_say(section, number, name, everything, caplog):
    config = getattr(parsed(documented()[section, number]), name)
    assert image_names(find_pairs(config, False)) == READ[section, number, name]
    if name != "target":
        found = find_pairs(config, True)
        assert image_names(found) == READ[section, number, name]
        for index in range(len(found)):
            assert classes(found, index) == ROW
    assert caplog.text == ""


def test_documented_classes_of_mapped_synthia_are_the_16_in_common():
    assert tuple(documented()["SYNTHIA", 1]["classes"]) == SYNTHIA16.names


def test_the_own_ids_of_idd_are_read_with_the_documented_label_space(everything):
    Path("idd_level3.yaml").write_text(yaml.safe_dump(documented()["IDD", 1]))
    config = parsed(documented()["IDD", 0]).test
    own = DataConfig(
        root=config.root,
        images=config.images,
        labels=config.labels.replace("labelcsTrainIds", "labellevel3Ids"),
        label_space="idd_level3.yaml",
    )
    found = find_pairs(own, True)
    assert classes(found) == ROW
    for field in ("names", "colours"):
        given = dict(zip(CITYSCAPES.names, getattr(CITYSCAPES, field), strict=True))
        assert getattr(found.space, field) == tuple(given[name] for name in found.space.names)
    assert {name for name in CITYSCAPES.names if name not in found.space.names} == {"terrain", "train"}
    assert {found.space.names[index] for index in found.space.stuff} < {CITYSCAPES.names[i] for i in CITYSCAPES.stuff}


def test_documented_variants_of_acdc_and_bdd100k(everything):
    one = DataConfig(
        root="data/acdc",
        label_space="cityscapes19",
        images="rgb_anon/fog/val/*_rgb_anon",
        labels="gt/fog/val/*_gt_labelIds",
    )
    assert image_names(find_pairs(one, True)) == ["GOPR0475/GOPR0475_frame_000041_rgb_anon.png"]
    assert classes(find_pairs(one, True)) == ROW
    write_picture(everything / "older/seg/images/train/0004a4c0-d4dff0ad.jpg")
    write_row(everything / "older/seg/labels/train/0004a4c0-d4dff0ad_train_id.png", TRAIN_IDS)
    older = DataConfig(
        root="data/older",
        label_space="cityscapes19_train_ids",
        images="seg/images/train/*",
        labels="seg/labels/train/*_train_id",
    )
    assert classes(find_pairs(older, True)) == ROW


@pytest.mark.parametrize(
    ("root", "images", "labels"),
    [
        ("cityscapes", "leftImg8bit/val/*_leftImg8bit", "gtFine/val/*_gtFine_color"),
        ("acdc", "rgb_anon/*/val/*_rgb_anon", "gt/*/val/*_gt_labelColor"),
        ("bdd100k", "images/10k/val/*", "labels/sem_seg/colormaps/val/*"),
        ("synthia", "RGB/*", "GT/COLOR/*"),
    ],
)
def test_colour_pictures_in_place_of_labels_are_refused(root, images, labels, everything):
    config = DataConfig(root=f"data/{root}", images=images, labels=labels, label_space="cityscapes19")
    with pytest.raises(InputError, match=r"\.png: is a colour picture \(mode RGB\), not ids; write a PNG with one"):
        find_pairs(config, True)


def test_ids_of_the_other_numbering_are_told(tmp_path, caplog):
    # Shares as in a street: 0.30 road, 0.2 building, 0.16 vegetation, 0.08 car, 0.05 sidewalk and sky, 0.16 void.
    shares = {7: 30, 11: 20, 21: 16, 26: 8, 8: 5, 23: 5, 3: 16}
    label_ids = np.repeat(list(shares), list(shares.values()))
    train_ids = CITYSCAPES.lookup()[label_ids]
    for name, ids in (("label_ids", label_ids), ("train_ids", train_ids)):
        write_image(tmp_path / name / "images" / "a.png", (1, 100))
        write_ids(tmp_path / name / "labels" / "a.png", ids, (1, 100))
    for name, space in (("label_ids", "cityscapes19"), ("train_ids", "cityscapes19_train_ids")):
        find_pairs(DataConfig(root=str(tmp_path / name), label_space=space), True)
    assert caplog.text == ""
    find_pairs(DataConfig(root=str(tmp_path / "train_ids"), label_space="cityscapes19"), True)
    assert "71 % of the pixels in the 1 label files" in caplog.text
    assert "label space cityscapes19 and will be ignored (id 0: 36 %, id 2: 24 %, id 1: 6 %, id 10: 6 %)" in caplog.text
    caplog.clear()
    find_pairs(DataConfig(root=str(tmp_path / "label_ids"), label_space="cityscapes19_train_ids"), True)
    assert "29 % of the pixels in the 1 label files" in caplog.text
    assert "label space cityscapes19_train_ids and will be ignored (id 21: 16 %, id 26: 8 %, id 23: 5 %)" in caplog.text


# ---- GTA5


def test_gta5_reads_mixed_sizes_and_leaves_out_broken_pairs(tmp_path, caplog):
    for name, size in (("00001", (2, 4)), ("00002", (3, 4)), ("00005", (5, 4))):
        write_image(tmp_path / "images" / f"{name}.png", size)
        write_palette_ids(tmp_path / "labels" / f"{name}.png", np.tile(LABEL_IDS, (size[0], 1)))
    write_image(tmp_path / "images" / "00003.png")  # no label
    write_image(tmp_path / "images" / "00004.png", (4, 6))
    write_ids(tmp_path / "labels" / "00004.png", 7, (4, 5))  # a label of another size
    write_image(tmp_path / "images" / "00006.jpg", (4, 6))
    write_ids(tmp_path / "labels" / "00006.png", 7, (6, 4))  # another size, and no PNG whose header says so
    write_ids(tmp_path / "labels" / "00007.png", 7)  # no image
    with caplog.at_level(logging.WARNING):
        found = find_pairs(DataConfig("gta5", str(tmp_path)), True)
    assert [image.stem for image in found.images] == ["00001", "00002", "00005"]
    assert [label.stem for label in found.labels if label] == ["00001", "00002", "00005"]
    (record,) = caplog.records
    assert "left out 1 images without a label and 2 with a label of another size; 3 pairs remain" in record.getMessage()
    assert classes(found, 2) == ROW
    assert len(find_pairs(DataConfig("gta5", str(tmp_path)), False)) == 6
    (tmp_path / "labels" / "00005.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"labels/00005\.png: cannot be read as image"):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)
    left = find_pairs(DataConfig("gta5", str(tmp_path)), True, skip_bad=True)
    assert left.images == found.images, "it is counted when it is read"


def test_gta5_at_its_true_sizes_reaches_the_network_at_one_size_with_picked_labels(tmp_path):
    random = np.random.default_rng(0)
    files = {}
    for name, size in (("00001", (1052, 1914)), ("00002", (1046, 1914))):
        write_image(tmp_path / "images" / f"{name}.png", size)
        files[f"{name}.png"] = random.choice(np.array([7, 33, 0, 26], np.uint8), size)
        write_palette_ids(tmp_path / "labels" / f"{name}.png", files[f"{name}.png"])
    config = DataConfig("gta5", str(tmp_path), size=(97, 175))
    found = find_pairs(config, True)
    (batch,) = islice(training_batches(found, CITYSCAPES, config, AugmentationConfig(), 2, 0, 0, 0), 1)
    assert batch.images.shape == (2, 3, 97, 175)
    for name, labels in zip(batch.names, batch.labels, strict=True):
        picks = []
        for side in (-1e-6, 1e-6):  # the centre of an odd size lies between two pixels of an even one: either will do
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new + side).astype(int)
                for old, new in zip(files[name].shape, (97, 175), strict=True)
            )
            picks.append(CITYSCAPES.lookup()[files[name][np.ix_(rows, columns)]])
        assert ((labels.numpy() == picks[0]) | (labels.numpy() == picks[1])).all()
        assert (picks[0] == picks[1]).mean() > 0.97
    tested = [labels for group in evaluation_batches(found, CITYSCAPES, config, 2, 0) for labels in group.labels]
    assert [tuple(labels.shape) for labels in tested] == [(1052, 1914), (1046, 1914)]
    np.testing.assert_array_equal(tested[1].numpy(), CITYSCAPES.lookup()[files["00002.png"]])


def test_gta5_labels_turned_into_rgb_are_refused(tmp_path):
    write_image(tmp_path / "images" / "00001.png", (1, 4))
    path = write_palette_ids(tmp_path / "labels" / "00001.png", LABEL_IDS[None])
    with Image.open(path) as picture:
        picture.convert("RGB").save(path)
    with pytest.raises(InputError, match=r"labels/00001\.png: is a colour picture \(mode RGB\), not ids"):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)


def test_gta5_without_any_pair_is_refused(tmp_path):
    write_image(tmp_path / "images" / "1.png")
    message = r"labels: holds a label of the name and size of none of the 1 images \(0 of another size\); put"
    with pytest.raises(InputError, match=message):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)
    write_ids(tmp_path / "labels" / "1.png", 7, (9, 9))
    with pytest.raises(InputError, match=message.replace("0 of", "1 of")):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)


# ---- SYNTHIA


def test_synthia_in_16_bits_leads_to_the_published_train_ids(tmp_path):
    random = np.random.default_rng(0)
    samples = np.zeros((760, 1280, 3), int)
    samples[:, :, 0] = random.integers(0, 23, (760, 1280))
    samples[:, :, 1] = random.integers(0, 1000, (760, 1280))  # instances
    write_image(tmp_path / "RGB" / "0000000.png", (760, 1280))
    write_16_bit_png(tmp_path / "GT" / "LABELS" / "0000000.png", samples, filters=[0, 1, 2, 3, 4])
    for name, space in {"": SYNTHIA16, "synthia16": SYNTHIA16, "synthia13": SYNTHIA13}.items():
        config = DataConfig("synthia", str(tmp_path), label_space=name)
        found = find_pairs(config, True)
        assert found.space == space
        published = np.full(23, 255)
        for raw, train_id in GOLDEN["synthia_id_to_trainid"].items():
            if CITYSCAPES.names[train_id] in space.names:
                published[int(raw)] = train_id
        (batch,) = evaluation_batches(found, CITYSCAPES, config, 1, 0)
        np.testing.assert_array_equal(batch.labels[0].numpy(), published[samples[:, :, 0]])
        assert len(np.unique(published)) == space.num_classes + 1


@pytest.mark.parametrize("folder", ["parsed_LABELS", "GT/parsed_LABELS"])
def test_synthia_prefers_an_8_bit_copy(folder, tmp_path):
    write_picture(tmp_path / "RGB" / "0000000.png")
    write_row(tmp_path / folder / "0000000.png", SYNTHIA_IDS)
    (tmp_path / "GT" / "LABELS").mkdir(parents=True)
    found = find_pairs(DataConfig("synthia", str(tmp_path)), True)
    assert classes(found) == ROW
    (tmp_path / folder / "0000000.png").unlink()
    with pytest.raises(InputError, match=rf"its label .*{folder}/0000000\.png is missing \(1 of 1 are\)"):
        find_pairs(DataConfig("synthia", str(tmp_path)), True)


def test_formats_without_splits_say_so(tmp_path):
    for reader in ("gta5", "synthia"):
        with pytest.raises(InputError, match=f"split: 'train' is given, but reader {reader} has no splits"):
            find_pairs(DataConfig(reader, str(tmp_path), "train"), False)


# ---- Cityscapes


def cityscapes(root: Path, kind: str, ids: np.ndarray) -> DataConfig:
    for city, stem in (("bonn", "bonn_000001_000019"), ("aachen", "aachen_000000_000019")):
        write_image(root / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png")
        write_ids(root / "gtFine" / "val" / city / f"{stem}_gtFine_{kind}.png", ids)
    return DataConfig("cityscapes", str(root), "val")


ALL_LABEL_IDS = np.resize(np.arange(34), 36)
ALL_TRAIN_IDS = np.array([GOLDEN["cityscapes_id_to_trainid"].get(str(raw), 255) for raw in ALL_LABEL_IDS])


def test_cityscapes_reads_label_ids_and_train_ids_alike(tmp_path):
    raw = cityscapes(tmp_path / "raw", "labelIds", ALL_LABEL_IDS.reshape(6, 6)[:4])
    trained = cityscapes(tmp_path / "train", "labelTrainIds", ALL_TRAIN_IDS.reshape(6, 6)[:4])
    for config in (raw, trained):
        found = find_pairs(config, True)
        assert image_names(found) == [
            "aachen/aachen_000000_000019_leftImg8bit.png",
            "bonn/bonn_000001_000019_leftImg8bit.png",
        ]
        assert found.space == CITYSCAPES
        for label in found.labels:
            assert label is not None
            np.testing.assert_array_equal(read_labels(label, found.table), ALL_TRAIN_IDS.reshape(6, 6)[:4])


def test_cityscapes_prefers_label_ids_when_it_has_both(tmp_path):
    cityscapes(tmp_path, "labelTrainIds", np.array(13))
    found = find_pairs(cityscapes(tmp_path, "labelIds", np.array(26)), True)
    assert {label.name.split("_")[-1] for label in found.labels if label} == {"labelIds.png"}
    assert set(classes(found)) == {"car"}
    next((tmp_path / "gtFine" / "val" / "bonn").glob("*_labelIds.png")).unlink()
    found = find_pairs(DataConfig("cityscapes", str(tmp_path), "val"), True)
    assert {label.name.split("_")[-1] for label in found.labels if label} == {"labelTrainIds.png"}
    assert set(classes(found)) == {"car"}


def test_cityscapes_with_classes_of_ones_own(tmp_path):
    space = tmp_path / "mine.yaml"
    space.write_text(
        "name: mine\nclasses:\n- {name: vehicle, kind: thing, colour: [0, 0, 1], ids: [26, 27, 28]}\n"
        "- {name: road, kind: stuff, colour: [0, 0, 2], ids: [7, 8]}\n"
    )
    for kind, ids in (("labelIds", [7, 8, 27, 28, 0, 23]), ("labelTrainIds", [0, 1, 14, 15, 255, 10])):
        config = cityscapes(tmp_path / kind, kind, np.array(ids))
        found = find_pairs(DataConfig(config.reader, config.root, "val", str(space)), True)
        assert classes(found) == ["road", "road", "vehicle", "vehicle", None, None]


def test_cityscapes_target_needs_no_labels(tmp_path):
    write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_1_leftImg8bit.png")
    found = find_pairs(DataConfig("cityscapes", str(tmp_path), "train"), False)
    assert (len(found), found.labelled) == (1, False)
    with pytest.raises(InputError, match="gtFine/train: no such folder; the labels belong there"):
        find_pairs(DataConfig("cityscapes", str(tmp_path), "train"), True)


def test_the_test_split_of_cityscapes_is_a_target_only(tmp_path):
    write_image(tmp_path / "leftImg8bit" / "test" / "berlin" / "berlin_000000_000019_leftImg8bit.png")
    write_ids(tmp_path / "gtFine" / "test" / "berlin" / "berlin_000000_000019_gtFine_labelIds.png", 3)
    assert len(find_pairs(DataConfig("cityscapes", str(tmp_path), "test"), False)) == 1
    with pytest.raises(InputError, match="split: the labels of the test split of Cityscapes are not public; use"):
        find_pairs(DataConfig("cityscapes", str(tmp_path), "test"), True)


@pytest.mark.parametrize("left", ["color", "labelTrainIds"])
def test_missing_cityscapes_labels_are_counted(left, tmp_path):
    config = cityscapes(tmp_path, "labelIds", np.array(7))
    label = next((tmp_path / "gtFine" / "val" / "bonn").glob("*labelIds.png"))
    label.rename(label.with_name(label.name.replace("labelIds", left)))
    message = r"bonn_000001_000019_leftImg8bit\.png: its label .*000019_gtFine_labelIds\.png is missing \(1 of 2 are\)"
    with pytest.raises(InputError, match=message):
        find_pairs(config, True)


def test_a_missing_file_of_train_ids_is_told_as_such(tmp_path):
    config = cityscapes(tmp_path, "labelTrainIds", np.array(0))
    next((tmp_path / "gtFine" / "val" / "bonn").glob("*labelTrainIds.png")).unlink()
    with pytest.raises(InputError, match=r"000019_gtFine_labelTrainIds\.png is missing \(1 of 2 are\)"):
        find_pairs(config, True)
    left = find_pairs(config, True, skip_bad=True)
    assert [label.exists() for label in left.labels if label] == [True, False]


def test_a_label_space_with_the_ids_of_another_data_set_is_refused(tmp_path):
    config = cityscapes(tmp_path, "labelIds", np.array(7))
    for space, ids in (("synthia13", 3), ("cityscapes19_train_ids", 0)):
        message = rf"'{space}' gives class 'road' the ids \[{ids}\], but files of reader cityscapes have \[7\]; leave"
        with pytest.raises(InputError, match=message):
            find_pairs(DataConfig("cityscapes", config.root, "val", space), True)


# ---- CamVid


@pytest.mark.parametrize("layout", [("{}/images", "{}/labels"), ("{}", "{}annot")])
def test_camvid_in_both_layouts(layout, tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / layout[0].format(split) / "0016E5.png")
        write_ids(tmp_path / layout[1].format(split) / "0016E5.png", np.array([8, 11, 8, 8, 0, 11]))
    found = find_pairs(DataConfig("camvid", str(tmp_path), "val"), True)
    assert found.space == CAMVID11
    assert image_names(found) == ["0016E5.png"]
    assert classes(found) == ["car", None, "car", "car", "sky", None]
    with pytest.raises(InputError, match=r"split: 'dev' is no folder of .*; use one of: train"):
        find_pairs(DataConfig("camvid", str(tmp_path), "dev"), True)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not ours to ship")
def test_camvid_itself_is_found(caplog):
    found = find_pairs(DataConfig("camvid", str(CAMVID), "test"), True)
    assert len(found) == 233
    assert set(classes(found)) <= {*CAMVID11.names, None}
    assert caplog.text == ""


# ---- two domains of different numbering


def test_domains_of_either_numbering_are_joined_by_name(everything):
    gta5 = find_pairs(DataConfig("gta5", "data/gta5"), True)
    idd = find_pairs(parsed(documented()["IDD", 0]).test, True)
    space = common(gta5.space, idd.space)
    assert space.names == CITYSCAPES.names
    for found in (gta5, idd):
        (batch,) = evaluation_batches(found, space, DataConfig(), 1, 0)
        assert batch.labels[0].tolist() == [[0, 13, 10, 255]]
