"""Colour profiles: RGB ones are converted to sRGB, all others are left aside."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from segadapt.prediction.pictures import in_srgb, read_srgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_primaries() -> bytes:
    """A profile in which the first channel is green and the second red; everything else is sRGB's."""
    profile = SRGB.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    table, rest = profile[:400], profile[400:]
    assert table.count(b"rXYZ") == table.count(b"gXYZ") == 1
    return table.replace(b"rXYZ", b"    ").replace(b"gXYZ", b"rXYZ").replace(b"    ", b"gXYZ", 1) + rest


def test_colours_of_another_profile_are_converted(tmp_path: Path) -> None:
    photo = np.zeros((4, 6, 3), np.uint8)
    photo[:, :3, 0], photo[:, 3:, 2] = 255, 255  # red, blue
    Image.fromarray(photo).save(tmp_path / "1.png", icc_profile=swapped_primaries())
    found = read_srgb(tmp_path / "1.png").astype(int)
    np.testing.assert_allclose(found[:, :3], np.broadcast_to([0, 255, 0], (4, 3, 3)), atol=3)
    np.testing.assert_allclose(found[:, 3:], np.broadcast_to([0, 0, 255], (4, 3, 3)), atol=3)


def test_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own, of what may be a bomb: twice as large it is refused."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_srgb(tmp_path / "1.png").shape == (40, 40, 3)


def test_srgb_stays_exactly(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "1.png", icc_profile=SRGB)
    np.testing.assert_array_equal(read_srgb(tmp_path / "1.png"), photo)


def test_other_profiles_are_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    photo = np.full((2, 2, 3), 90, np.uint8)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(in_srgb(photo, lab, "x.png"), photo)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(in_srgb(photo, b"no profile", "x.png"), photo)
    assert "x.png" in caplog.text
