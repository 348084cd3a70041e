"""One picture of many pairs of a domain: labels laid over photographs, with the names of their classes.

In: the images of a set. Out: one RGB picture in which a shifted, swapped or wrongly numbered label is seen at a glance.
"""

import math
from collections.abc import Sequence

import cc3d
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from segadapt.data.decoding import read_image, read_labels
from segadapt.data.label_spaces import IGNORE, LabelSpace, remap
from segadapt.data.readers import ImageSet
from segadapt.data.transforms import resize_image, resize_labels
from segadapt.output.pictures import colourise

COLUMNS, CELL_WIDTH, GAP, CAPTION = 3, 400, 8, 20
OPACITY = 0.55  # of the labels' colours
NAMED_SHARE = 0.004  # of the image: smaller regions have no room for a name


def contact_sheet(images: ImageSet, space: LabelSpace, count: int = 12) -> Image.Image:
    """Pairs spread evenly over the set; where there are no labels, the photographs.

    Args:
        images: Files that can be read.
        space: Classes to show; pixels of no class keep the photograph's colours.
        count: Pairs at most.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    cells = [_cell(images, int(index), space) for index in chosen]
    height = max(cell.height for cell in cells)
    rows = math.ceil(len(cells) / COLUMNS)
    legend = _legend(space, COLUMNS * (CELL_WIDTH + GAP) + GAP)
    sheet = Image.new("RGB", (legend.width, rows * (height + GAP) + GAP + legend.height), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(cell, (GAP + column * (CELL_WIDTH + GAP), GAP + row * (height + GAP)))
    sheet.paste(legend, (0, sheet.height - legend.height))
    return sheet


def _cell(images: ImageSet, index: int, space: LabelSpace) -> Image.Image:
    photograph = read_image(images.file(index))
    size = (max(1, round(photograph.shape[0] * CELL_WIDTH / photograph.shape[1])), CELL_WIDTH)
    photograph = resize_image(photograph, size)
    path = images.labels[index]
    labels = np.full(size, IGNORE, np.uint8)
    if path is not None:
        labels = resize_labels(read_labels(path, remap(images.space, space)[images.table]), size)
    cell = Image.new("RGB", (CELL_WIDTH, size[0] + CAPTION), "white")
    cell.paste(Image.fromarray(laid_over(photograph, labels, space)), (0, CAPTION))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=13)
    file = images.images[index].relative_to(images.root).as_posix()
    draw.text((2, 2), file[-56:], fill="black", font=font)
    for class_index, (row, column) in _places(labels, space.num_classes):
        half = font.getlength(space.names[class_index]) / 2 + 2
        column = min(max(column, half), CELL_WIDTH - half)  # whole names at the edges too
        draw.text(
            (column, row + CAPTION), space.names[class_index], fill="black", font=font, anchor="mm",
            stroke_width=2, stroke_fill="white",
        )  # fmt: skip
    return cell


def laid_over(
    photograph: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], space: LabelSpace
) -> UInt8[np.ndarray, "H W 3"]:
    """The photograph with the labels' colours over it, except where there is no label."""
    mixed = (1 - OPACITY) * photograph + OPACITY * colourise(labels, space)
    return np.where((labels == IGNORE)[:, :, None], photograph, mixed.round()).astype(np.uint8)


def _places(labels: UInt8[np.ndarray, "H W"], num_classes: int) -> list[tuple[int, tuple[int, int]]]:
    """For each class a place for its name: in its largest region, the pixel nearest to the region's centre."""
    places = []
    for class_index in range(num_classes):
        mask = labels == class_index
        if mask.mean() < NAMED_SHARE:
            continue
        regions = cc3d.connected_components(mask, connectivity=8)
        largest = np.bincount(regions[regions > 0]).argmax()
        rows, columns = np.nonzero(regions == largest)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        places.append((class_index, (int(rows[nearest]), int(columns[nearest]))))
    return places


def _legend(space: LabelSpace, width: int) -> Image.Image:
    """The classes with their colours, in as many lines as they take."""
    font, swatch, line = ImageFont.load_default(size=14), 14, 24
    places: list[tuple[int, int]] = []
    x, y = GAP, 4
    names: Sequence[str] = (*space.names, "no colour: ignored")
    for name in names:
        needed = swatch + 6 + math.ceil(font.getlength(name)) + 18
        if x + needed > width and x > GAP:
            x, y = GAP, y + line
        places.append((x, y))
        x += needed
    legend = Image.new("RGB", (width, y + line + 4), "white")
    draw = ImageDraw.Draw(legend)
    for name, colour, (x, y) in zip(names, (*space.colours, None), places, strict=True):
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=colour, outline="black")
        draw.text((x + swatch + 6, y), name, fill="black", font=font)
    return legend
