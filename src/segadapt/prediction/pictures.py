"""Pictures in and out: photographs as the network wants them, and what it says of them as PNG files.

In: an image file or a Pillow image. Out: 8-bit sRGB, upright. In: label maps and probabilities. Out: palette PNGs and
16-bit grey PNGs.
"""

import io
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms

from segadapt.data.decoding import opened, rgb_pixels
from segadapt.data.label_spaces import LabelSpace

logger = logging.getLogger(__name__)

OVERLAY_SHARE = 0.5  # of the class colour in an overlay
_LARGEST_16_BIT = 65535
_COLOUR_SPACE = slice(16, 20)  # of an ICC file's header


def read_srgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as 8-bit sRGB, upright; an embedded RGB profile other than sRGB is converted.

    Training and `evaluate` do not convert: files with such profiles are rare in data sets and usual in phones.

    Raises:
        InputError: The file cannot be read as an image.
    """
    with opened(path, "image") as image:
        profile = image.info.get("icc_profile")
        pixels = rgb_pixels(image, str(path))
    return in_srgb(pixels, profile, str(path)) if profile else pixels


def rgb_of(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """A Pillow image, which stays as it is, as `read_srgb` would read its file.

    Raises:
        InputError: Its samples are of a kind that has no white: 32 bits or floating point.
    """
    profile = image.info.get("icc_profile")
    own = image.copy()
    own.format = image.format  # which a copy forgets
    pixels = rgb_pixels(own, "the image")
    return in_srgb(pixels, profile, "the image") if profile else pixels


def in_srgb(pixels: UInt8[np.ndarray, "H W 3"], profile: bytes, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of a colour profile (the bytes of an ICC file) in sRGB.

    Profiles of grey and CMYK images do not describe RGB pixels and are left aside; so are damaged ones, with a warning.
    """
    if len(profile) > _COLOUR_SPACE.stop and profile[_COLOUR_SPACE] != b"RGB ":
        return pixels
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return pixels
        converted = ImageCms.profileToProfile(Image.fromarray(pixels), own, ImageCms.createProfile("sRGB"))
    except (OSError, ImageCms.PyCMSError) as error:
        logger.warning("%s: its colour profile cannot be used (%s); its colours are taken as sRGB", where, error)
        return pixels
    return pixels if converted is None else np.array(converted)


def palette_picture(labels: UInt8[np.ndarray, "H W"], space: LabelSpace) -> Image.Image:
    """Labels as a palette picture of 8 bits: values are train ids, in the space's colours; all other ids are black."""
    picture = Image.fromarray(labels).convert("L")
    palette = np.zeros((256, 3), np.uint8)
    palette[: space.num_classes] = space.colours
    picture.putpalette(palette.tobytes())
    return picture


def overlay(photograph: UInt8[np.ndarray, "H W 3"], picture: Image.Image) -> Image.Image:
    """The photograph under the colours of its label map."""
    return Image.blend(Image.fromarray(photograph), picture.convert("RGB"), OVERLAY_SHARE)


def grey_picture(values: Float[np.ndarray, "H W"]) -> Image.Image:
    """Values from 0 to 1 as 16-bit grey, 65535 for 1."""
    return Image.fromarray((values * _LARGEST_16_BIT).round().clip(0, _LARGEST_16_BIT).astype(np.uint16))
