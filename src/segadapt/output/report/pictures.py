"""Pictures of the report: each test image as photograph, as every model labels it, and as it is labelled, in the page.

In: images and label maps. Out: figures whose two halves a divider compares, moved by a range input, by pointer or keys.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segadapt.data.label_spaces import IGNORE, LabelSpace

MOST_WIDTH = 960  # in pixels: enough for a screen, and a page of photographs stays small
Labels = UInt8[np.ndarray, "H W"]


def figure(
    name: str, photograph: UInt8[np.ndarray, "H W 3"], label_maps: Mapping[str, Labels], space: LabelSpace
) -> str:
    """One image: its panels, from which the page's script makes a comparison.

    Args:
        name: Of the image.
        photograph: RGB.
        label_maps: By caption: predictions, and the labels.
        space: Classes and colours.
    """
    panels = [("photograph", f"Photograph {name}", _jpeg(photograph))]
    panels += [
        (caption, f"{name}, {caption}: {described(labels, space)}", _png(labels, space))
        for caption, labels in label_maps.items()
    ]
    return _comparison(name, panels, _fitted(photograph.shape[1], photograph.shape[0]))


def photographs(name: str, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> str:
    """As `figure`, of photographs of one size by caption; the divider begins between the first two."""
    panels = [(caption, f"{name}, {caption}", _jpeg(image)) for caption, image in images.items()]
    height, width = next(iter(images.values())).shape[:2]
    return _comparison(name, panels, _fitted(width, height), ' data-left="0" data-right="1"')


def _comparison(name: str, panels: Sequence[tuple[str, str, str]], size: tuple[int, int], attributes: str = "") -> str:
    """The figure of panels (caption, description, address)."""
    width, height = size
    shown = "".join(
        f'<div class="panel"><img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}">'
        f"<p>{escape(caption)}</p></div>"
        for caption, alt, source in panels
    )
    caption = f"<figcaption>{escape(name)}</figcaption>"
    return f'<figure class="picture"{attributes}>{caption}<div class="panels">{shown}</div></figure>\n'


def described(labels: Labels, space: LabelSpace, most: int = 4) -> str:
    """The classes that take most of a label map, in words."""
    counts = np.bincount(labels.ravel(), minlength=256)[: space.num_classes]
    total = max(int(counts.sum()), 1)
    largest = [index for index in np.argsort(-counts, kind="stable")[:most] if counts[index]]
    return ", ".join(f"{space.names[index]} {100 * counts[index] / total:.0f} %" for index in largest)


def class_legend(space: LabelSpace) -> str:
    """The classes with their colours."""
    colours = zip(space.names, space.colours, strict=True)
    items = "".join(
        f'<li><span class="swatch" style="background:rgb{colour}"></span>{escape(name)}</li>'
        for name, colour in (*colours, ("ignored", (0, 0, 0)))
    )
    return f'<ul class="legend">{items}</ul>'


def _fitted(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, MOST_WIDTH / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _jpeg(photograph: UInt8[np.ndarray, "H W 3"]) -> str:
    picture = Image.fromarray(photograph)
    return _data_url(picture.resize(_fitted(*picture.size), Image.Resampling.LANCZOS), "jpeg", quality=85)


def _png(labels: Labels, space: LabelSpace) -> str:
    picture = Image.fromarray(labels, mode="L").resize(_fitted(*labels.shape[::-1]), Image.Resampling.NEAREST)
    picture = picture.convert("P") if picture.mode != "L" else Image.frombytes("P", picture.size, picture.tobytes())
    palette = np.zeros((IGNORE + 1, 3), np.uint8)
    palette[: space.num_classes] = space.colours
    picture.putpalette(palette.tobytes())
    return _data_url(picture, "png", optimize=True)


def _data_url(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
