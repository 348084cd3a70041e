"""Transforms of an image and its labels together, as 8-bit arrays.

In and out: image (H, W, 3) RGB and labels (H, W) train ids. Labels are only ever picked, never mixed: no
transform makes a label that was not there, except 255 where a crop reaches beyond the image. All randomness
comes from the generator that is handed in.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segadapt.config import AugmentationConfig

Rgb = UInt8[np.ndarray, "H W 3"]
Labels = UInt8[np.ndarray, "H W"]

# Colour beyond the image: about the mean of photographs, so that it is near zero after normalisation.
PADDING_RGB = (124, 116, 104)
_IGNORE = 255
_GREY = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def resize_image(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image to (height, width) by bicubic interpolation, antialiased where it shrinks."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_labels(labels: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Resizes labels to (height, width) by taking the nearest, pixel centres aligned with the image's."""
    if labels.shape == size:
        return labels
    height, width = size
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def flip(image: Rgb, labels: Labels) -> tuple[Rgb, Labels]:
    """Mirrors both, left to right."""
    return image[:, ::-1], labels[:, ::-1]


def crop(
    image: Rgb, labels: Labels, top: int, left: int, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Cuts (height, width) out of both, padding at the bottom and right with PADDING_RGB and 255."""
    height, width = size
    image = image[top : top + height, left : left + width]
    labels = labels[top : top + height, left : left + width]
    if labels.shape != size:
        padded_image = np.empty((height, width, 3), np.uint8)
        padded_image[:] = PADDING_RGB
        padded_labels = np.full(size, _IGNORE, np.uint8)
        padded_image[: labels.shape[0], : labels.shape[1]] = image
        padded_labels[: labels.shape[0], : labels.shape[1]] = labels
        return padded_image, padded_labels
    return image, labels


def shift_colour(image: Rgb, brightness: float, contrast: float, saturation: float, hue: float) -> Rgb:
    """Changes the colours of an image in one pass.

    Args:
        image: What to change.
        brightness: Factor; 1 changes nothing.
        contrast: Factor of the distance from the mean grey.
        saturation: Factor of the distance from each pixel's own grey.
        hue: Rotation about the grey axis, in full turns; 0 changes nothing.
    """
    # All four are affine in RGB; one matrix costs a quarter of four passes and rounds once.
    picture = Image.fromarray(image)
    mean_grey = float(np.asarray(picture.convert("L")).mean()) * brightness
    angle = 2 * math.pi * hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    hue_matrix = np.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
    saturation_matrix = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * _GREY
    colour = hue_matrix @ saturation_matrix
    linear = colour * (contrast * brightness)
    offset = colour @ np.full(3, (1 - contrast) * mean_grey)
    matrix = tuple(float(value) for value in np.column_stack([linear, offset]).ravel())
    return np.asarray(picture.convert("RGB", matrix))


def augment(
    image: Rgb,
    labels: UInt8[np.ndarray, "h w"],
    size: tuple[int, int] | None,
    augmentation: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "a b 3"], UInt8[np.ndarray, "a b"]]:
    """Resizes a training pair and transforms it at random: scale, crop, flip, colour.

    Args:
        image: At its own size.
        labels: At the image's size, or at another one with the same view (pseudo-labels).
        size: (height, width) to resize to, before the random factor; None keeps the image's.
        augmentation: Which transforms, how large.
        random: Source of all random numbers.

    Returns:
        Image and labels of size `augmentation.crop` or, without it, `size` times the random factor.
    """
    height, width = image.shape[:2] if size is None else size
    smallest, largest = augmentation.scale
    if (smallest, largest) != (1.0, 1.0):
        # Uniform in the logarithm, so that halving is as likely as doubling; resized once, from the original.
        factor = math.exp(random.uniform(math.log(smallest), math.log(largest)))
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
    image = resize_image(image, (height, width))
    labels = resize_labels(labels, (height, width))
    if augmentation.crop is not None:
        top = int(random.integers(max(0, height - augmentation.crop[0]) + 1))
        left = int(random.integers(max(0, width - augmentation.crop[1]) + 1))
        image, labels = crop(image, labels, top, left, augmentation.crop)
    if augmentation.flip > 0 and random.random() < augmentation.flip:
        image, labels = flip(image, labels)
    if augmentation.colour_jitter > 0:
        amount = augmentation.colour_jitter
        brightness, contrast, saturation = random.uniform(max(0.0, 1 - amount), 1 + amount, 3)
        hue = random.uniform(-0.1 * amount, 0.1 * amount)
        image = shift_colour(image, float(brightness), float(contrast), float(saturation), float(hue))
    return image, labels
