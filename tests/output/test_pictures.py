"""Colours of a label space, and the sheet of panels with captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segadapt.config import DataConfig, NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.networks.weights import build_network, save_network
from segadapt.output.pictures import CAPTION_HEIGHT, GAP, colourise, save_comparison, side_by_side
from streets import ROOT, SIZE


def test_each_class_has_its_colour_and_ignored_pixels_are_black() -> None:
    labels = np.array([[*range(11), 255]], dtype=np.uint8)
    colours = colourise(labels, STREETS11)
    assert colours.shape == (1, 12, 3)
    assert [tuple(colour) for colour in colours[0, :11].tolist()] == list(STREETS11.colours)
    assert colours[0, 11].tolist() == [0, 0, 0]


def test_panels_stand_side_by_side_under_their_captions() -> None:
    panels = {name: np.full((4, 8, 3), value, np.uint8) for name, value in (("a", 10), ("b", 200), ("c", 30))}
    sheet = np.asarray(side_by_side(panels, (16, 32)))
    assert sheet.shape == (16 + CAPTION_HEIGHT, 3 * 32 + 2 * GAP, 3)
    for index, value in enumerate((10, 200, 30)):
        left = index * (32 + GAP)
        assert (sheet[CAPTION_HEIGHT:, left : left + 32] == value).all()
    assert (sheet[CAPTION_HEIGHT:, 32 : 32 + GAP] == 255).all()
    assert (sheet[:CAPTION_HEIGHT] < 128).any(), "the captions are written"


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_are_spread_over_the_set_and_end_with_the_labels(tmp_path: Path, count: int) -> None:
    network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0)
    model = tmp_path / "model.safetensors"
    save_network(model, network)
    data = DataConfig(root=str(ROOT / "data" / "streets" / "adverse"), split="val", size=SIZE)
    written = save_comparison({"new": model}, data, tmp_path / "pictures", torch.device("cpu"), count)
    assert len(set(written)) == count
    names = sorted(path.stem for path in (ROOT / "data/streets/adverse/val/images").iterdir())
    places = [names.index(path.stem) for path in written]
    assert places == sorted(places)
    assert 10 <= places[0] <= places[-1] <= 50, "neither the first nor the last"
    labels = np.asarray(Image.open(ROOT / "data/streets/adverse/val/labels" / f"{written[0].stem}.png"))
    height, width = labels.shape
    sheet = np.asarray(Image.open(written[0]))
    assert sheet.shape == (height + CAPTION_HEIGHT, 3 * width + 2 * GAP, 3)
    train_ids = STREETS11.lookup()[labels]
    assert np.array_equal(sheet[CAPTION_HEIGHT:, -width:], colourise(train_ids, STREETS11))


def test_images_of_one_name_in_two_folders_have_a_picture_each(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_network(model, build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0))
    for kind in ("images", "labels"):
        file = next((ROOT / "data/streets/adverse/val" / kind).iterdir())
        for town in ("a", "b"):
            (tmp_path / "data" / kind / town).mkdir(parents=True)
            (tmp_path / "data" / kind / town / f"0{file.suffix}").symlink_to(file)
    data = DataConfig(root=str(tmp_path / "data"), label_space="streets11", size=SIZE)
    written = save_comparison({"new": model}, data, tmp_path / "pictures", torch.device("cpu"), 2)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["pictures/a/0.png", "pictures/b/0.png"]
    assert all(path.exists() for path in written)
