"""One file on disk becomes an array: an image in RGB, or a label file with its ids as they were written.

In: a path, and for labels the table from raw ids to train ids. Out: 8-bit RGB (H, W, 3); raw ids, or train ids
(H, W). Whatever is wrong with a file ends in an InputError that names it; where the file itself is missing or damaged,
in an UnreadableFileError.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from segadapt.data.label_spaces import RAW_IDS
from segadapt.errors import InputError, UnreadableFileError

# Only these are decoded: some of Pillow's other formats start programs (EPS runs Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNED = 5  # orientations from here on have height and width exchanged
_RGB, _GREY_ALPHA, _RGBA = 2, 4, 6  # colour types in the header of a PNG


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as 8-bit RGB, upright (EXIF orientation applied); alpha is dropped, grey repeated.

    Of several pictures in a file (animation, pages) the first; of 16 bits the upper eight.

    Raises:
        UnreadableFileError: The file is missing, or cannot be read as an image.
        InputError: Its samples are of a kind that has no white: 32 bits or floating point.
    """
    with opened(path, "image") as image:
        return rgb_pixels(image, str(path))


def rgb_pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """What `read_image` gives of an opened image, which is turned upright itself.

    Args:
        image: As Pillow opened it.
        where: What error messages call it.

    Raises:
        InputError: As `read_image`.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise InputError(f"{where}: has samples of 32 bits (mode {image.mode}); write 8 or 16 bits a sample")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may carry transparency, which only this mode keeps apart
    return np.array(image.convert("RGB"))


def read_raw_ids(path: Path) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """Reads the ids of a label file as they are: grey values or palette indices of 8 or 16 bits.

    A 16-bit PNG of several channels gives its first one, as SYNTHIA has it (class there, instance in the second).

    Raises:
        UnreadableFileError: The file is missing, or cannot be read as an image.
        InputError: It is a colour picture instead of ids, or no PNG whatever its name says.
    """
    with opened(path, "label file") as image:
        if image.format != "PNG":  # JPEG, for one, changes ids along every border
            raise InputError(f"{path}: is a {image.format} file under the name of a PNG; write the ids as PNG")
        bits, colour_type = _png_format(path)
        if bits == 16 and colour_type in (_RGB, _GREY_ALPHA, _RGBA):
            return _first_channel_16_bit(path, colour_type)
        if bits in (2, 4) and image.mode == "L":
            # Decoders multiply such grey to reach white at 255, so ids 0, 1, 2 would come out as 0, 17, 34.
            raise InputError(f"{path}: is a PNG with {bits} bits a pixel of grey; write it with 8 bits")
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode.startswith("I"):
            ids = np.array(image)
            if ids.min() < 0 or ids.max() >= RAW_IDS:
                raise InputError(f"{path}: holds ids from {ids.min()} to {ids.max()}; write ids of 8 or 16 bits")
            return ids.astype(np.uint16)
        raise InputError(
            f"{path}: is a colour picture (mode {image.mode}), not ids; "
            "write a PNG with one channel, a class id a pixel"
        )


def read_labels(path: Path, table: UInt8[np.ndarray, " 65536"]) -> UInt8[np.ndarray, "H W"]:
    """Reads a label file and turns its raw ids into train ids by the table.

    Raises:
        UnreadableFileError, InputError: As `read_raw_ids`.
    """
    return table[read_raw_ids(path)]


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image or label file as stored; of a PNG from its header, ten times as fast as opening it.

    Raises:
        UnreadableFileError: The file is missing, or cannot be read as an image.
    """
    head = _png_header(path)
    if len(head) >= 24:
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    with opened(path, "image") as image:
        return image.height, image.width


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) that `read_image` gives an image, from what stands before its pixels.

    Raises:
        UnreadableFileError: The file is missing, or cannot be read as an image.
    """
    with opened(path, "image") as image:
        # of a PNG that has no such chunk yet, Pillow would decode the pixels to find one behind them
        told = image.format != "PNG" or not image.info.keys().isdisjoint(("exif", "XML:com.adobe.xmp"))
        turned = told and image.getexif().get(ExifTags.Base.Orientation, 1) >= _TURNED
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer Pillows have turned the size of these already
            width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        return (width, height) if turned else (height, width)


def _first_channel_16_bit(path: Path, colour_type: int) -> UInt16[np.ndarray, "H W"]:
    # Pillow keeps only the high byte of 16-bit samples, where a class id has nothing. So it is told another order
    # of the same bytes: two channels of 16 bits are four of 8 bits; and samples said to be little-endian give the
    # other byte of each pair, the low one as PNG orders them.
    if colour_type == _GREY_ALPHA:
        channels = _decoded_as(path, "RGBA")
        high, low = channels[:, :, 0], channels[:, :, 1]
    else:
        mode = "RGB" if colour_type == _RGB else "RGBA"
        high, low = (_decoded_as(path, f"{mode};16{order}")[:, :, 0] for order in "BL")
    return high.astype(np.uint16) << 8 | low


def _decoded_as(path: Path, raw_mode: str) -> UInt8[np.ndarray, "H W channels"]:
    with Image.open(path) as image:
        assert isinstance(image, ImageFile.ImageFile)
        codec, extents, offset, _ = image.tile[0]
        # Older Pillows know no class of tiles but read the same tuple.
        image.tile = [(codec, extents, offset, raw_mode)]  # type: ignore[list-item]
        return np.array(image)


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """A file as an image, for as long as the context lasts; whatever goes wrong in there is said of the file.

    Raises:
        UnreadableFileError: The file is missing, or cannot be read as `what`.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe, which would be waited for
            raise UnreadableFileError(f"{path}: is no file; put the {what} there or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damage that it then reads past or refuses
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise UnreadableFileError(f"{path}: {what} is missing; restore it") from error
    except Exception as error:  # a decoder meets damage with whatever it stumbles over: struct.error, KeyError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFileError(f"{path}: cannot be read as {what} ({reason}); replace or remove it") from error


def _png_format(path: Path) -> tuple[int, int]:
    """Bits a sample and colour type of a PNG, as its header says; (0, 0) for any other file."""
    head = _png_header(path)
    return (head[24], head[25]) if len(head) == 26 else (0, 0)


def _png_header(path: Path) -> bytes:
    """The first 26 bytes of a PNG; nothing of any other file, or of one that opening it as an image will refuse."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return b""
    return head if head.startswith(_PNG) else b""
