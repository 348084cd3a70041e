"""Decoding: every kind of image becomes RGB, every kind of label file its ids, everything else one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from image_files import write_16_bit_png, write_image
from segadapt.data.decoding import image_size, read_image, read_raw_ids, upright_size
from segadapt.errors import InputError, UnreadableFileError


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


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_labels_of_several_channels_keep_the_class_of_the_first_channel(channels, tmp_path):
    random = np.random.default_rng(0)
    samples = random.integers(0, 65536, (15, 11, channels))
    path = write_16_bit_png(tmp_path / "l.png", samples, filters=[0, 1, 2, 3, 4])
    np.testing.assert_array_equal(read_raw_ids(path), samples[:, :, 0])


@pytest.mark.parametrize("kind", range(5))
def test_16_bit_labels_of_several_channels_under_each_filter(kind, tmp_path):
    for channels in (2, 3):
        samples = np.random.default_rng(kind).integers(0, 23, (6, 7, channels))
        path = write_16_bit_png(tmp_path / "l.png", samples, filters=[kind])
        np.testing.assert_array_equal(read_raw_ids(path), samples[:, :, 0])


def test_palette_labels_give_their_indices_never_their_colours(tmp_path):
    ids = np.array([[0, 7, 26], [33, 34, 255]], np.uint8)
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "transparent.png", transparency=26)
    small = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    small.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 6, 6])
    small.save(tmp_path / "two_bits.png", bits=2)
    assert read_raw_ids(tmp_path / "plain.png").tolist() == ids.tolist()
    assert read_raw_ids(tmp_path / "transparent.png").tolist() == ids.tolist()
    assert (tmp_path / "two_bits.png").read_bytes()[24] == 2
    assert read_raw_ids(tmp_path / "two_bits.png").tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_saved_as_a_picture_are_refused_even_where_all_channels_agree(mode, tmp_path):
    Image.fromarray(np.full((2, 3), 7, np.uint8)).convert(mode).save(tmp_path / "l.png")
    with pytest.raises(
        InputError, match=rf"l\.png: is a colour picture \(mode {mode}\), not ids; write a PNG with one"
    ):
        read_raw_ids(tmp_path / "l.png")


def test_sizes_are_height_and_width_whatever_the_file(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        assert image_size(write_image(tmp_path / name, (5, 9))) == (5, 9)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    (tmp_path / "text.jpg").write_text("no image at all")
    for name in ("cut.png", "text.jpg"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as image .*; replace or remove it"):
            image_size(tmp_path / name)


def test_the_upright_size_is_the_one_that_is_read(tmp_path):
    picture, turned = Image.fromarray(np.zeros((5, 9, 3), np.uint8)), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="t"><d tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    picture.save(tmp_path / "xmp.png", pnginfo=text)
    picture.save(tmp_path / "xmp.jpg", xmp=xmp.encode())
    for suffix in ("png", "jpg", "webp", "tif"):
        picture.save(tmp_path / f"as_is.{suffix}")
        picture.save(tmp_path / f"turned.{suffix}", exif=turned)
    for path in sorted(tmp_path.iterdir()):
        expected = (5, 9) if path.stem == "as_is" else (9, 5)
        assert (path.name, upright_size(path)) == (path.name, expected)
        assert read_image(path).shape[:2] == expected


def test_label_files_that_are_not_ids_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"c\.png: is a colour picture \(mode RGB\), not ids; write a PNG"):
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
    with pytest.raises(UnreadableFileError, match=r"name\.png: cannot be read as image \(.*too long"):
        read_image(tmp_path / f"{'long' * 100}name.png")  # the system refuses to look, as in a folder of no permission
