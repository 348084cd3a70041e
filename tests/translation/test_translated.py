"""`translated:` in a domain: images of another folder, labels of its own, whatever the reader."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import write_ids, write_image
from segadapt.config import AugmentationConfig, DataConfig
from segadapt.data.loading import evaluation_batches, training_batches
from segadapt.data.readers import find_pairs, fingerprint
from segadapt.errors import InputError

SIZE = (4, 6)
TRANSLATED_GREY = 200  # write_image writes 90


def cityscapes(root: Path) -> tuple[DataConfig, list[str]]:
    for name in ("aachen/aachen_1", "ulm/ulm_2"):
        write_image(root / f"leftImg8bit/train/{name}_leftImg8bit.png", SIZE)
        write_ids(root / f"gtFine/train/{name}_gtFine_labelIds.png", size=SIZE)
    config = DataConfig(reader="cityscapes", root=str(root), split="train")
    return config, ["aachen/aachen_1_leftImg8bit", "ulm/ulm_2_leftImg8bit"]


def gta5(root: Path) -> tuple[DataConfig, list[str]]:
    for name in ("00001", "00002"):
        write_image(root / f"images/{name}.png", SIZE)
        write_ids(root / f"labels/{name}.png", size=SIZE)
    return DataConfig(reader="gta5", root=str(root)), ["00001", "00002"]


def synthia(root: Path) -> tuple[DataConfig, list[str]]:
    for name in ("0000001", "0000002"):
        write_image(root / f"RGB/{name}.png", SIZE)
        write_ids(root / f"parsed_LABELS/{name}.png", size=SIZE)
    return DataConfig(reader="synthia", root=str(root)), ["0000001", "0000002"]


def camvid(root: Path) -> tuple[DataConfig, list[str]]:
    for name in ("a", "b"):
        write_image(root / f"train/images/{name}.png", SIZE)
        write_ids(root / f"train/labels/{name}.png", size=SIZE)
    return DataConfig(reader="camvid", root=str(root), split="train"), ["a", "b"]


def folder(root: Path) -> tuple[DataConfig, list[str]]:
    for name in ("deep/er/a.v1", "b"):
        write_image(root / f"photographs/{name}.jpg", SIZE)
        write_ids(root / f"ids/{name}.png", size=SIZE)
    config = DataConfig(root=str(root), label_space="streets11", images="photographs/*", labels="ids/*")
    return config, ["deep/er/a.v1", "b"]


LAYOUTS = [cityscapes, gta5, synthia, camvid, folder]


def write_translations(out: Path, names: list[str], size: tuple[int, int] = SIZE, suffix: str = ".png") -> str:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), TRANSLATED_GREY, np.uint8)).save(out / f"{name}{suffix}")
    return str(out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_images_are_replaced_and_labels_stay(
    layout: Callable[[Path], tuple[DataConfig, list[str]]], suffix: str, tmp_path: Path
) -> None:
    config, names = layout(tmp_path / "data")
    plain = find_pairs(config, labelled=True)
    config = replace(config, translated=write_translations(tmp_path / "out", names, suffix=suffix))
    translated = find_pairs(config, labelled=True)
    assert translated.images == plain.images
    assert translated.labels == plain.labels
    space = plain.space
    for one, other in zip(
        islice(training_batches(plain, space, config, AugmentationConfig(), 1, 0, 0, 0), 4),
        islice(training_batches(translated, space, config, AugmentationConfig(), 1, 0, 0, 0), 4),
        strict=True,
    ):
        assert one.names == other.names
        assert (one.labels == other.labels).all()
        assert ((one.images.int() - 90).abs() < 3).all()
        assert (other.images == TRANSLATED_GREY).all()
    first, second = evaluation_batches(translated, space, config, 2, 0)
    assert (torch.cat([first.images, second.images]) == TRANSLATED_GREY).all()
    assert {*first.names, *second.names} == {f"{name}.png" for name in names}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_translation_is_named(layout: Callable[[Path], tuple[DataConfig, list[str]]], tmp_path: Path) -> None:
    config, names = layout(tmp_path / "data")
    config = replace(config, translated=write_translations(tmp_path / "out", names[:1]))
    with pytest.raises(InputError, match=rf"translated: .*{names[1]}\.png is missing \(1 of 2 are\)"):
        find_pairs(config, labelled=False)


def test_a_translation_may_be_smaller_than_image_and_labels(tmp_path: Path) -> None:
    config, names = gta5(tmp_path / "data")
    config = replace(config, translated=write_translations(tmp_path / "out", names, size=(2, 3)))
    images = find_pairs(config, labelled=True)
    batch = next(training_batches(images, images.space, config, AugmentationConfig(), 1, 0, 0, 0))
    assert batch.images.shape == (1, 3, 2, 3)
    assert batch.labels.shape == (1, 2, 3)
    for each in evaluation_batches(images, images.space, config, 2, 0):
        assert each.images.shape == (1, 3, 2, 3)
        assert [labels.shape for labels in each.labels] == [SIZE]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_that_is_stored_turned_has_upright_labels(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    height, width = SIZE
    Image.new("RGB", (height, width)).save(tmp_path / f"images/a{suffix}", exif=exif)  # turned, width x height
    write_ids(tmp_path / "labels/a.png", size=(height, width))
    out = write_translations(tmp_path / "out", ["a"])
    config = DataConfig(root=str(tmp_path), label_space="streets11", translated=out)
    images = find_pairs(config, labelled=True)
    (batch,) = evaluation_batches(images, images.space, config, 1, 0)
    assert [labels.shape for labels in batch.labels] == [(height, width)]


def test_labels_of_another_size_than_the_original_are_still_refused(tmp_path: Path) -> None:
    config, names = camvid(tmp_path / "data")
    write_ids(tmp_path / "data/train/labels/a.png", size=(2, 3))
    config = replace(config, translated=write_translations(tmp_path / "out", names, size=(2, 3)))
    images = find_pairs(config, labelled=True)
    with pytest.raises(InputError, match=r"a\.png: is 2x3, its image .* is 4x6"):
        list(evaluation_batches(images, images.space, config, 2, 0))


def test_two_files_of_one_name_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    config, names = gta5(tmp_path / "data")
    out = write_translations(tmp_path / "out", names)
    write_translations(tmp_path / "out", names, suffix=".bmp")
    with pytest.raises(InputError, match="same name"):
        find_pairs(replace(config, translated=out), labelled=True)
    with pytest.raises(InputError, match=r"translated: .*nowhere"):
        find_pairs(replace(config, translated=str(tmp_path / "nowhere")), labelled=True)


def test_the_fingerprint_tells_translations_apart(tmp_path: Path) -> None:
    config, names = gta5(tmp_path / "data")
    plain = find_pairs(config, labelled=True)
    other = find_pairs(replace(config, translated=write_translations(tmp_path / "o", names, (40, 60))), labelled=True)
    assert fingerprint(plain) != fingerprint(other)
    again = find_pairs(replace(config, translated=write_translations(tmp_path / "p", names, (40, 60))), labelled=True)
    assert fingerprint(other) == fingerprint(again)
