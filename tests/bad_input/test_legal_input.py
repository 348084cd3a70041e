"""Unusual input that is right: it is read as it was meant, and its names come out as they were."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mistakes import bytes_as, evaluate, noise, pseudo_label, save, snapshot, train
from PIL import Image

from image_files import write_16_bit_png
from segadapt.cli import main
from segadapt.data.decoding import read_image, read_raw_ids

# Left half red, right half blue: chroma subsampling of JPEG leaves it in place.
HALVES = np.zeros((16, 32, 3), np.uint8)
HALVES[:, :16, 0], HALVES[:, 16:, 2] = 200, 120
GREY = np.where(np.arange(32) < 16, 40, 220).astype(np.uint8)[None].repeat(16, 0)


def halves(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(HALVES).convert(mode)


def transparent() -> Image.Image:
    picture = halves("RGBA")
    picture.putalpha(Image.fromarray(GREY))
    return picture


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    return exif


def of_16_bits(path: Path, channels: np.ndarray) -> None:
    write_16_bit_png(path, channels.astype(int) * 256 + 77, [0])


@pytest.mark.parametrize(
    ("name", "write", "expected", "tolerance"),
    [
        ("rgb.png", lambda p: halves().save(p), HALVES, 0),
        ("rgb.bmp", lambda p: halves().save(p), HALVES, 0),
        ("rgb.tif", lambda p: halves().save(p), HALVES, 0),
        ("lossless.webp", lambda p: halves().save(p, lossless=True), HALVES, 0),
        ("UPPER.PNG", lambda p: halves().save(p), HALVES, 0),
        ("png under another suffix.jpg", lambda p: halves().save(p, "PNG"), HALVES, 0),
        ("interlaced.png", lambda p: halves().save(p, interlace=1), HALVES, 0),
        ("palette.png", lambda p: halves().quantize(8).save(p), HALVES, 4),
        ("palette with a transparent colour.png", lambda p: halves().quantize(8).save(p, transparency=0), HALVES, 4),
        ("palette.tif", lambda p: halves().quantize(8).save(p), HALVES, 4),
        ("alpha.png", lambda p: transparent().save(p), HALVES, 0),
        ("alpha.webp", lambda p: transparent().save(p, lossless=True, exact=True), HALVES, 0),
        ("alpha.tif", lambda p: transparent().save(p), HALVES, 0),
        ("cmyk.tif", lambda p: halves("CMYK").save(p), HALVES, 2),
        ("cmyk.jpg", lambda p: halves("CMYK").save(p, quality=100), HALVES, 6),
        ("photograph.jpg", lambda p: halves().save(p, quality=100), HALVES, 6),
        ("progressive.jpg", lambda p: halves().save(p, quality=100, progressive=True), HALVES, 6),
        ("upside down.jpg",
         lambda p: Image.fromarray(HALVES[::-1, ::-1]).save(p, quality=100, exif=turned()), HALVES, 6),
        ("grey.png", lambda p: Image.fromarray(GREY).save(p), GREY, 0),
        ("grey.jpg", lambda p: Image.fromarray(GREY).save(p, quality=100), GREY, 2),
        ("grey with alpha.png", lambda p: Image.fromarray(np.stack([GREY, GREY], 2)).save(p), GREY, 0),
        ("black and white.png", lambda p: Image.fromarray(GREY > 99).save(p), (GREY > 99) * 255, 0),
        ("grey of 16 bits.png", lambda p: of_16_bits(p, GREY[:, :, None]), GREY, 0),
        ("grey and alpha of 16 bits.png", lambda p: of_16_bits(p, np.stack([GREY, GREY], 2)), GREY, 0),
        ("colour of 16 bits.png", lambda p: of_16_bits(p, HALVES), HALVES, 0),
        ("colour and alpha of 16 bits.png", lambda p: of_16_bits(p, np.dstack([HALVES, GREY])), HALVES, 0),
        ("grey of 16 bits.tif", lambda p: Image.fromarray(GREY.astype("<u2") * 256).save(p), GREY, 0),
        ("animated.png", lambda p: halves().save(p, save_all=True, append_images=[noise((16, 32))]), HALVES, 0),
        ("animated.webp",
         lambda p: halves().save(p, save_all=True, append_images=[noise((16, 32))], lossless=True), HALVES, 0),
        ("pages.tif", lambda p: halves().save(p, save_all=True, append_images=[noise((16, 32))]), HALVES, 0),
        ("two views.jpg",
         lambda p: halves().save(p, "MPO", save_all=True, append_images=[noise((16, 32))], quality=100),
         HALVES, 6),
    ],
)  # fmt: skip
def test_what_is_read(name, write, expected, tolerance, tmp_path):
    write(tmp_path / name)
    read = read_image(tmp_path / name)
    assert (read.dtype, read.shape) == (np.uint8, (16, 32, 3))
    whole = expected if expected.ndim == 3 else expected[:, :, None].repeat(3, 2)
    inside = np.r_[2:14, 18:30]  # away from the border of the halves, which JPEG blurs
    np.testing.assert_allclose(read[:, inside].astype(int), whole[:, inside].astype(int), atol=tolerance)


def test_a_huge_image_is_read(tmp_path):
    Image.new("1", (9500, 9500), 1).save(tmp_path / "huge.png")  # Pillow warns of 90 megapixels
    read = read_image(tmp_path / "huge.png")
    assert read.shape == (9500, 9500, 3)
    assert read[::1000, ::1000].min() == 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_ids_of_16_bits_are_those_of_the_first_channel(channels, tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    np.testing.assert_array_equal(read_raw_ids(write_16_bit_png(tmp_path / "l.png", samples, [1])), samples[:, :, 0])


NAMES = (
    "white space", "Straße", "東京", "кадр 1", "emoji 🚗", "e\u0301 as two characters", "a.b.c", "-dash", "50%", "it's",
    '"quoted"', "[brackets]", "star*", "question?", "new\nline", "tab\there", "back\\slash", "x" * 200, "#1", "~",
    os.fsdecode(b"latin-1 \xe9"),
)  # fmt: skip


def test_odd_names_work(site, model, capsys):
    for kind in ("images", "labels"):
        pixels = (site / kind / "a.png").read_bytes()
        for name in NAMES:
            (site / kind / f"{name}.png").write_bytes(pixels)
            (site / kind / f"{name} folder").mkdir()
            (site / kind / f"{name} folder" / "1.png").write_bytes(pixels)
    count = 2 + 2 * len(NAMES)
    assert main([*evaluate(model, site), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == count
    assert main(pseudo_label(model, site)) == 0
    labelled = {path.relative_to(site / "out") for path in (site / "out").rglob("*.png")}
    assert labelled == {path.relative_to(site / "images") for path in (site / "images").rglob("*.png")}
    assert len(labelled) == count


def test_finished_labels_are_read_and_what_is_missing_is_made(site, model, capsys):
    def labelled() -> str:
        assert main([*pseudo_label(model, site), "--json"]) == 0
        return capsys.readouterr().out

    said, before = labelled(), snapshot(site / "out")
    assert labelled() == said
    assert snapshot(site / "out") == before
    for name in ("b.png", "thresholds.json"):
        content = (site / "out" / name).read_bytes()
        (site / "out" / name).unlink()
        assert labelled() == said
        assert (site / "out" / name).read_bytes() == content
    (site / "out/thresholds.json").write_text("{}")
    assert labelled() == said
    bytes_as(site / "images" / "b.png", noise(), "PNG", 0.5)
    assert main([*pseudo_label(model, site, f"--out={site}/part"), "--on_bad_image=skip"]) == 0
    before = snapshot(site / "part")
    assert main([*pseudo_label(model, site, f"--out={site}/part"), "--on_bad_image=skip"]) == 0
    assert snapshot(site / "part") == before
    capsys.readouterr()
    assert main(pseudo_label(model, site, f"--out={site}/part")) == 2
    assert "images/b.png" in capsys.readouterr().err


def test_an_odd_root_works(site, model, capsys):
    root = site / "Größe [1] 🚗 #2"
    root.mkdir()
    for name in ("images", "labels", "label_space.yaml"):
        (site / name).rename(root / name)
    assert main([*evaluate(model, root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_links_to_files_and_folders_elsewhere_work(site, model, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for kind in ("images", "labels"):
        (site / kind).rename(elsewhere / kind)
        (site / kind).mkdir()
        (site / kind / "all").symlink_to(elsewhere / kind)
        (site / kind / "one.png").symlink_to(elsewhere / kind / "a.png")
    assert main([*evaluate(model, site), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_a_batch_larger_than_the_set_works(site, capsys):
    """The stream has no end: a batch of seven of two images has each of them three times at least."""
    assert main([*train(site, "--row=sim", "--schedule.batch_size=7"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 1
    assert (site / "run" / "model.safetensors").exists()


def test_images_without_a_class_beside_others_are_no_error(site, model, capsys):
    save(site / "labels" / "a.png", np.full((32, 32), 255, np.uint8))
    assert main([*evaluate(model, site), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
