"""Readers: each published layout written small, and every way in which a folder can be wrong."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segadapt.config import DataConfig
from segadapt.data.label_spaces import CAMVID11, CITYSCAPES, STREETS11, SYNTHIA16, LabelSpace
from segadapt.data.readers import ImageSet, find_pairs, fingerprint, read_image, read_labels, read_raw_ids
from segadapt.errors import InputError

STREETS = Path(__file__).parents[2] / "data" / "streets"
CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"


def write_image(path: Path, size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    return path


def write_ids(path: Path, ids: int | np.ndarray = 7, size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(ids, np.uint8), size).copy()).save(path)
    return path


def write_16_bit_png(path: Path, samples: np.ndarray, filters: list[int]) -> Path:
    """A PNG with 16-bit samples (H, W, channels), its rows filtered as the specification says, in turn."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step = 2 * channels
    data, above = b"", np.zeros(width * step, int)
    for number, row in enumerate(rows):
        kind = filters[number % len(filters)]
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        estimate = left + above - corner
        distances = np.abs(np.stack([estimate - left, estimate - above, estimate - corner]))
        paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
        prediction = [np.zeros_like(row), left, above, (left + above) // 2, paeth][kind]
        data += bytes([kind]) + ((row - prediction) % 256).astype(np.uint8).tobytes()
        above = row
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )
    return path


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


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not ours to ship")
def test_camvid_itself_is_found():
    found = find_pairs(DataConfig("camvid", str(CAMVID), "test"), True)
    assert len(found) == 233
    assert set(train_ids(found, 0)) <= {*range(11), 255}


# ---- CamVid, GTA5, SYNTHIA, Cityscapes


@pytest.mark.parametrize("layout", [("{}/images", "{}/labels"), ("{}", "{}annot")])
def test_camvid_in_both_layouts(layout, tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / layout[0].format(split) / "0016E5.png")
        write_ids(tmp_path / layout[1].format(split) / "0016E5.png", np.array([8, 11, 8, 8, 0, 11]))
    found = find_pairs(DataConfig("camvid", str(tmp_path), "val"), True)
    assert found.space == CAMVID11
    assert [found.image_name(index) for index in range(len(found))] == ["0016E5.png"]
    assert train_ids(found, 0) == [0, 8, 255]
    with pytest.raises(InputError, match=r"split: 'dev' is no folder of .*; use one of: train"):
        find_pairs(DataConfig("camvid", str(tmp_path), "dev"), True)


def test_gta5_reads_palette_pngs_of_mixed_sizes_and_leaves_out_broken_pairs(tmp_path, caplog):
    ids = np.array([[7, 26, 34, 0]], np.uint8)
    for number, size in enumerate([(1, 4), (3, 4)]):
        write_image(tmp_path / "images" / f"0000{number}.png", size)
        picture = Image.fromarray(np.broadcast_to(ids, size).copy()).convert("P")
        picture.putpalette([value % 256 for value in range(768)])
        (tmp_path / "labels").mkdir(exist_ok=True)
        picture.save(tmp_path / "labels" / f"0000{number}.png")
    write_image(tmp_path / "images" / "00002.png")  # no label
    write_image(tmp_path / "images" / "00003.png", (4, 6))
    write_ids(tmp_path / "labels" / "00003.png", 7, (4, 5))  # a label of another size
    with caplog.at_level(logging.WARNING):
        found = find_pairs(DataConfig("gta5", str(tmp_path)), True)
    assert [image.stem for image in found.images] == ["00000", "00001"]
    assert "left out 1 images without a label and 1 with a label of another size; 2 pairs" in caplog.text
    assert len(caplog.records) == 1
    assert train_ids(found, 1) == [0, 13, 255]
    assert len(find_pairs(DataConfig("gta5", str(tmp_path)), False)) == 4


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_labels_keep_the_class_of_the_first_channel(channels, tmp_path):
    random = np.random.default_rng(0)
    samples = random.integers(0, 65536, (15, 11, channels))
    path = write_16_bit_png(tmp_path / "l.png", samples, filters=[0, 1, 2, 3, 4])
    np.testing.assert_array_equal(read_raw_ids(path), samples[:, :, 0])


@pytest.mark.parametrize("kind", range(5))
def test_16_bit_colour_labels_under_each_filter(kind, tmp_path):
    samples = np.random.default_rng(kind).integers(0, 23, (6, 7, 3))
    path = write_16_bit_png(tmp_path / "l.png", samples, filters=[kind])
    np.testing.assert_array_equal(read_raw_ids(path), samples[:, :, 0])


def test_synthia_with_its_16_bit_labels(tmp_path):
    write_image(tmp_path / "RGB" / "0000000.png", (2, 3))
    samples = np.zeros((2, 3, 3), int)
    samples[:, :, 0] = [[3, 8, 0], [3, 21, 22]]
    samples[:, :, 1] = 700  # instances
    write_16_bit_png(tmp_path / "GT" / "LABELS" / "0000000.png", samples, [4])
    found = find_pairs(DataConfig("synthia", str(tmp_path)), True)
    assert found.space == SYNTHIA16
    label = found.labels[0]
    assert label is not None
    names = ["road", "car", None, "road", "wall", None]
    expected = [255 if name is None else SYNTHIA16.names.index(name) for name in names]
    assert read_labels(label, found.table).ravel().tolist() == expected


def test_synthia_prefers_an_8_bit_copy(tmp_path):
    write_image(tmp_path / "RGB" / "1.png")
    write_ids(tmp_path / "parsed_LABELS" / "1.png", 8)
    (tmp_path / "GT" / "LABELS").mkdir(parents=True)
    found = find_pairs(DataConfig("synthia", str(tmp_path)), True)
    assert train_ids(found, 0) == [SYNTHIA16.names.index("car")]


def cityscapes(root: Path, kind: str, ids: np.ndarray) -> DataConfig:
    for city, stem in (("bonn", "bonn_000001_000019"), ("aachen", "aachen_000000_000019")):
        write_image(root / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png")
        write_ids(root / "gtFine" / "val" / city / f"{stem}_gtFine_{kind}.png", ids)
        write_ids(root / "gtFine" / "val" / city / f"{stem}_gtFine_instanceIds.png", 99)
    return DataConfig("cityscapes", str(root), "val")


def test_cityscapes_reads_label_ids_and_train_ids_alike(tmp_path):
    raw = cityscapes(tmp_path / "raw", "labelIds", np.array([7, 33, 0, 7, 26, 3]))
    trained = cityscapes(tmp_path / "train", "labelTrainIds", np.array([0, 18, 255, 0, 13, 255]))
    for config in (raw, trained):
        found = find_pairs(config, True)
        assert [found.image_name(index) for index in range(2)] == [
            "aachen/aachen_000000_000019_leftImg8bit.png",
            "bonn/bonn_000001_000019_leftImg8bit.png",
        ]
        assert found.space == CITYSCAPES
        assert train_ids(found, 0) == [0, 13, 18, 255]


def test_cityscapes_prefers_label_ids_when_it_has_both(tmp_path):
    cityscapes(tmp_path, "labelTrainIds", np.array(13))
    found = find_pairs(cityscapes(tmp_path, "labelIds", np.array(26)), True)
    assert {label.name.split("_")[-1] for label in found.labels if label} == {"labelIds.png"}
    assert train_ids(found, 0) == [13]


def test_cityscapes_with_classes_of_ones_own(tmp_path):
    space = tmp_path / "mine.yaml"
    space.write_text(
        "name: mine\nclasses:\n- {name: vehicle, kind: thing, colour: [0, 0, 1], ids: [26, 27, 28]}\n"
        "- {name: road, kind: stuff, colour: [0, 0, 2], ids: [7, 8]}\n"
    )
    for kind, ids in (("labelIds", [7, 8, 27, 28, 0, 23]), ("labelTrainIds", [0, 1, 14, 15, 255, 10])):
        config = cityscapes(tmp_path / kind, kind, np.array(ids))
        found = find_pairs(DataConfig(config.reader, config.root, "val", str(space)), True)
        label = found.labels[0]
        assert label is not None
        assert read_labels(label, found.table)[0].tolist() == [1, 1, 0, 0, 255, 255]


def test_cityscapes_target_needs_no_labels(tmp_path):
    write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_1_leftImg8bit.png")
    found = find_pairs(DataConfig("cityscapes", str(tmp_path), "train"), False)
    assert (len(found), found.labelled) == (1, False)
    with pytest.raises(InputError, match="gtFine/train: no such folder; unpack gtFine"):
        find_pairs(DataConfig("cityscapes", str(tmp_path), "train"), True)


# ---- single files


def test_images_of_every_kind_become_upright_rgb(tmp_path):
    colour = np.zeros((4, 6, 3), np.uint8)
    colour[:, :3] = (200, 30, 30)
    picture = Image.fromarray(colour)
    picture.save(tmp_path / "rgb.png")
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    for name in ("rgb.png", "palette.png", "alpha.png", "cmyk.tif"):
        np.testing.assert_allclose(read_image(tmp_path / name), colour, atol=2)
    picture.convert("L").save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png")
    assert grey.shape == (4, 6, 3)
    assert (grey[:, :, 0] == grey[:, :, 2]).all()
    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 40000 // 256).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.shape == (6, 4, 3)
    assert upright[0, 0, 0] == 200
    assert upright[-1, 0, 0] == 0


def test_raw_ids_of_every_depth(tmp_path):
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    Image.fromarray(ids * 255).convert("1").save(tmp_path / "1.png")
    Image.fromarray(ids).save(tmp_path / "8.png")
    Image.fromarray(ids.astype(np.uint16) * 1000).save(tmp_path / "16.png")
    assert read_raw_ids(tmp_path / "1.png").tolist() == ids.tolist()
    assert read_raw_ids(tmp_path / "8.png").tolist() == ids.tolist()
    assert read_raw_ids(tmp_path / "16.png").tolist() == (ids.astype(int) * 1000).tolist()


def test_label_files_that_are_not_ids_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"c\.png: is a colour picture \(mode RGB\), not ids; write a PNG with one"):
        read_raw_ids(write_image(tmp_path / "c.png"))
    four_bit = tmp_path / "four.png"
    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\x00\x12")), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    four_bit.write_bytes(content)
    with pytest.raises(InputError, match=r"four\.png: is a PNG with 4 bits a pixel of grey; write it with 8"):
        read_raw_ids(four_bit)


def test_unreadable_files_are_named(tmp_path):
    whole = write_image(tmp_path / "a.png", (200, 300))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:20000])
    (tmp_path / "text.png").write_text("no image at all")
    for name in ("cut.png", "text.png"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as image .*; replace or remove it"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match=r"absent\.png: label file is missing"):
        read_raw_ids(tmp_path / "absent.png")


# ---- folders that are wrong


def test_wrong_folders_are_named_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="root is empty; give the folder"):
        find_pairs(DataConfig(), True)
    with pytest.raises(InputError, match="root: '/no/where' is not a folder; correct"):
        find_pairs(DataConfig(root="/no/where"), True)
    with pytest.raises(InputError, match=r"images: no such folder; .*check reader, root and split"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"images: holds no images \(\.png"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"labels: no such folder; the labels of .*images belong there"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match=r"labels: holds no labels \(\.png\)"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)
    write_ids(tmp_path / "labels" / "other.png")
    with pytest.raises(InputError, match=r"a\.png: its label .*a\.png is missing \(1 of 1 are\)"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), True)


def test_two_images_of_one_name_are_refused(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.png: has the same name as a\.jpg; rename or remove one"):
        find_pairs(DataConfig(root=str(tmp_path), label_space="streets11"), False)


def test_labels_with_no_id_of_the_space_are_refused(tmp_path):
    config = folder(tmp_path, label=77)
    message = r"a\.png: none of its ids \(77\) is one of label space streets11 \(0, 1, .*\); set label_space to"
    with pytest.raises(InputError, match=message):
        find_pairs(config, True)


def test_one_image_that_is_all_ignored_is_no_error(tmp_path):
    config = folder(tmp_path)
    write_ids(tmp_path / "train" / "labels" / "a.png", 255)
    assert train_ids(find_pairs(config, True), 0) == [255]


def test_formats_without_splits_say_so(tmp_path):
    for reader in ("gta5", "synthia"):
        with pytest.raises(InputError, match=f"split: 'train' is given, but reader {reader} has no splits"):
            find_pairs(DataConfig(reader, str(tmp_path), "train"), False)


def test_a_label_space_with_the_ids_of_another_data_set_is_refused(tmp_path):
    config = cityscapes(tmp_path, "labelIds", np.array(7))
    message = r"'synthia13' gives class 'road' the ids \[3\], but files of reader cityscapes have \[7\]; leave"
    with pytest.raises(InputError, match=message):
        find_pairs(DataConfig("cityscapes", config.root, "val", "synthia13"), True)


def test_missing_cityscapes_labels_are_counted(tmp_path):
    config = cityscapes(tmp_path, "labelIds", np.array(7))
    next((tmp_path / "gtFine" / "val" / "bonn").glob("*labelIds.png")).unlink()
    with pytest.raises(InputError, match=r"bonn_000001_000019_gtFine_labelIds\.png: is missing \(1 of 2 are\)"):
        find_pairs(config, True)


def test_gta5_without_any_pair_is_refused(tmp_path):
    write_image(tmp_path / "images" / "1.png")
    with pytest.raises(InputError, match="labels: no such folder; the labels of GTA5 belong there"):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)
    write_ids(tmp_path / "labels" / "2.png")
    with pytest.raises(InputError, match="holds no label for any image of"):
        find_pairs(DataConfig("gta5", str(tmp_path)), True)


def test_fingerprint_tells_data_apart(tmp_path):
    config = folder(tmp_path / "here")
    before = fingerprint(find_pairs(config, True))
    assert fingerprint(find_pairs(folder(tmp_path / "elsewhere"), True)) == before
    assert fingerprint(find_pairs(config, False)) != before
    write_image(tmp_path / "here" / "train" / "images" / "b.jpg", (40, 60))
    assert fingerprint(find_pairs(config, True)) != before
