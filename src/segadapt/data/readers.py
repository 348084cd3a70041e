"""The formats on disk: which image belongs to which label file, and what the numbers in it mean.

In: a DataConfig. Out: an ImageSet, its files in a fixed order with a table from raw ids to the train ids of
its label space; and the functions that read one file, `read_image` and `read_labels`. Everything wrong with a
folder or a file ends in an InputError that names it.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile, ImageOps

from segadapt.config import DataConfig
from segadapt.data import label_spaces
from segadapt.data.label_spaces import IGNORE, LabelSpace
from segadapt.errors import InputError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SPACE_FILES = ("label_space.yaml", "classes.yaml")
_PROBED_LABELS = 8


@dataclass(frozen=True)
class ImageSet:
    """The images of one domain and where their labels are.

    Args:
        name: Reader, folder and split, as messages say it.
        space: Classes of the label files.
        root: The folder that the names of images are relative to.
        images: Image files, in a fixed order.
        labels: Label file of each image; None throughout a set whose labels are not to be read.
        table: Raw id in a label file to train id of `space`, 255 for all else.
    """

    name: str
    space: LabelSpace
    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    table: UInt8[np.ndarray, " 65536"] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether labels may be read."""
        return self.labels[0] is not None

    def image_name(self, index: int) -> str:
        """Name of an image in its set, 'aachen/aachen_000000_000019.png': where its pseudo-label goes."""
        return self.images[index].relative_to(self.root).with_suffix(".png").as_posix()


def find_pairs(config: DataConfig, labelled: bool) -> ImageSet:
    """Finds the files of a domain.

    Args:
        config: The domain.
        labelled: Whether its labels are to be read. If not, they need not exist and are not looked at.

    Returns:
        At least one image, sorted by name.

    Raises:
        InputError: A folder or file is missing, or the first labels do not hold the ids of the label space.
    """
    if not config.root:
        raise InputError("root is empty; give the folder of the data set (for example --source.root)")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise InputError(f"root: '{config.root}' is not a folder; correct the path or put the data set there")
    image_set = _READERS[config.reader](config, root, labelled)
    if labelled:
        _probe_labels(image_set)
    return image_set


def fingerprint(image_set: ImageSet) -> str:
    """SHA-256 over the names and sizes in bytes of all files: whether two results saw the same data."""
    digest = hashlib.sha256()
    for index, (image, label) in enumerate(zip(image_set.images, image_set.labels, strict=True)):
        label_bytes = -1 if label is None else label.stat().st_size
        digest.update(f"{image_set.image_name(index)}\0{image.stat().st_size}\0{label_bytes}\n".encode())
    return digest.hexdigest()


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as 8-bit RGB, upright (EXIF orientation applied); alpha is dropped, grey repeated.

    Raises:
        InputError: The file cannot be read as an image.
    """
    with _opened(path, "image") as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
            grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == "P":
            image = image.convert("RGBA")  # a palette may carry transparency, which only this mode keeps apart
        return np.array(image.convert("RGB"))


def read_raw_ids(path: Path) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """Reads the ids of a label file as they are: grey values or palette indices of 8 or 16 bits.

    A 16-bit colour PNG gives its first channel, as SYNTHIA has it (class there, instance in the second).

    Raises:
        InputError: The file cannot be read, or is a colour picture instead of ids.
    """
    with _opened(path, "label file") as image:
        bits, colour_type = _png_format(path)
        if bits == 16 and colour_type in (2, 6):  # RGB, RGBA
            return _first_channel_16_bit(path)
        if bits in (2, 4) and image.mode == "L":
            # Decoders multiply such grey to reach white at 255, so ids 0, 1, 2 would come out as 0, 17, 34.
            raise InputError(f"{path}: is a PNG with {bits} bits a pixel of grey; write it with 8 bits")
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode.startswith("I"):
            ids = np.array(image)
            if ids.min() < 0 or ids.max() >= label_spaces.RAW_IDS:
                raise InputError(f"{path}: holds ids from {ids.min()} to {ids.max()}; write ids of 8 or 16 bits")
            return ids.astype(np.uint16)
        raise InputError(
            f"{path}: is a colour picture (mode {image.mode}), not ids; "
            "write a PNG with one channel, a class id a pixel"
        )


def read_labels(path: Path, table: UInt8[np.ndarray, " 65536"]) -> UInt8[np.ndarray, "H W"]:
    """Reads a label file and turns its raw ids into train ids by the table.

    Raises:
        InputError: As `read_raw_ids`.
    """
    return table[read_raw_ids(path)]


def _first_channel_16_bit(path: Path) -> UInt16[np.ndarray, "H W"]:
    # Pillow keeps only the high byte of 16-bit colour, where a class id has nothing. Told that the samples
    # are little-endian, its decoder keeps the other byte of each pair, the low one as PNG orders them.
    halves = []
    for byte_order in ("B", "L"):
        with Image.open(path) as image:
            assert isinstance(image, ImageFile.ImageFile)
            codec, extents, offset, _ = image.tile[0]
            # Older Pillows know no class of tiles but read the same tuple.
            image.tile = [(codec, extents, offset, f"{image.mode};16{byte_order}")]  # type: ignore[list-item]
            halves.append(np.asarray(image)[:, :, 0].astype(np.uint16))
    high, low = halves
    return high << 8 | low


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path}: {what} is missing; restore it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as {what} ({reason}); replace or remove it") from error


def _png_format(path: Path) -> tuple[int, int]:
    """Bits a sample and colour type of a PNG, as its header says; (0, 0) for any other file."""
    with open(path, "rb") as file:
        head = file.read(26)
    return (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" else (0, 0)


def _png_size(path: Path) -> tuple[int, int] | None:
    """(height, width) from the header of a PNG, ten times as fast as opening it; None for any other file."""
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def _probe_labels(image_set: ImageSet) -> None:
    """Refuses labels that hold no id of their space: with a wrong space nothing would be learned."""
    step = max(1, len(image_set) // _PROBED_LABELS)
    found: set[int] = set()
    for label in image_set.labels[::step][:_PROBED_LABELS]:
        assert label is not None
        ids = read_raw_ids(label)
        if (image_set.table[ids] != IGNORE).any():
            return
        found |= {int(raw) for raw in np.unique(ids)}
    known = [int(raw) for raw in np.flatnonzero(image_set.table != IGNORE)]
    raise InputError(
        f"{image_set.labels[0]}: none of its ids ({_few(sorted(found))}) is one of label space "
        f"{image_set.space.name} ({_few(known)}); set label_space to the one these files were written with"
    )


def _few(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:12])) + (", ..." if len(ids) > 12 else "")


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """All files below a folder with one of the suffixes, hidden ones left out, sorted by their path."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(found)


def _images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; the images belong there (check reader, root and split)")
    images = _files(folder, suffixes)
    if not images:
        raise InputError(f"{folder}: holds no images ({' '.join(suffixes)}); put them there or correct root and split")
    stems: dict[Path, Path] = {}
    for image in images:
        if (other := stems.setdefault(image.with_suffix(""), image)) != image:
            raise InputError(f"{image}: has the same name as {other.name}; rename or remove one of them")
    return images


def _image_set(
    config: DataConfig,
    space: LabelSpace,
    root: Path,
    images: list[Path],
    labels: list[Path] | None,
    table: UInt8[np.ndarray, " 65536"] | None = None,
) -> ImageSet:
    return ImageSet(
        name=" ".join(part for part in (config.reader, config.root, config.split) if part),
        space=space,
        root=root,
        images=tuple(images),
        labels=(None,) * len(images) if labels is None else tuple(labels),
        table=space.lookup() if table is None else table,
    )


def _labels_beside(images: list[Path], image_root: Path, label_root: Path) -> list[Path]:
    """The label file of each image: the same name with .png, below another folder."""
    if not label_root.is_dir():
        raise InputError(f"{label_root}: no such folder; the labels of {image_root} belong there")
    labels = [label_root / image.relative_to(image_root).with_suffix(".png") for image in images]
    existing = set(_files(label_root, (".png",)))
    if not existing:
        raise InputError(f"{label_root}: holds no labels (.png); put them there or correct root and split")
    missing = [position for position, label in enumerate(labels) if label not in existing]
    if missing:
        first = missing[0]
        raise InputError(
            f"{images[first]}: its label {labels[first]} is missing ({len(missing)} of {len(images)} are); "
            "add it or remove the image"
        )
    return labels


def _own_or_declared_space(config: DataConfig, own: LabelSpace) -> LabelSpace:
    """The label space of a format with fixed ids: its own, or the user's if it speaks of the same ids."""
    if not config.label_space:
        return own
    space = label_spaces.shipped(config.label_space)
    for name, ids in zip(space.names, space.ids, strict=True):
        if name in own.names and not set(ids) & set(own.ids[own.names.index(name)]):
            raise InputError(
                f"label_space: '{config.label_space}' gives class '{name}' the ids {list(ids)}, but files of "
                f"reader {config.reader} have {list(own.ids[own.names.index(name)])}; "
                "leave label_space empty and choose with classes"
            )
    return space


def _folder(config: DataConfig, root: Path, labelled: bool) -> ImageSet:
    folder = root / config.split
    image_root = folder / "images"
    if not labelled and not image_root.is_dir() and folder.is_dir() and _files(folder, IMAGE_SUFFIXES):
        image_root = folder  # plain photographs, without the folders of a labelled set
    images = _images(image_root)
    labels = _labels_beside(images, image_root, folder / "labels") if labelled else None
    return _image_set(config, _folder_space(config, root), image_root, images, labels)


def _folder_space(config: DataConfig, root: Path) -> LabelSpace:
    if config.label_space:
        return label_spaces.shipped(config.label_space)
    for place in (root, root.resolve().parent):
        for name in SPACE_FILES:
            if (place / name).is_file():
                return LabelSpace.from_yaml(place / name)
    raise InputError(
        f"{root / SPACE_FILES[0]}: no label space; write one there (name, classes: "
        "[{name, kind: stuff or thing, colour: [r, g, b], ids: [..]}]) or set label_space to a shipped one"
    )


def _camvid(config: DataConfig, root: Path, labelled: bool) -> ImageSet:
    space = _own_or_declared_space(config, label_spaces.CAMVID11)
    folder = _split_folder(config, root)
    if (folder / "images").is_dir():
        image_root, label_root = folder / "images", folder / "labels"
    else:  # as the SegNet tutorial lays it out
        image_root, label_root = folder, folder.with_name(folder.name + "annot")
    images = _images(image_root)
    return _image_set(
        config,
        space,
        image_root,
        images,
        _labels_beside(images, image_root, label_root) if labelled else None,
    )


def _gta5(config: DataConfig, root: Path, labelled: bool) -> ImageSet:
    _refuse_split(config)
    space = _own_or_declared_space(config, label_spaces.CITYSCAPES)
    image_root, label_root = root / "images", root / "labels"
    images = _images(image_root, (".png", ".jpg"))
    if not labelled:
        return _image_set(config, space, image_root, images, None)
    if not label_root.is_dir():
        raise InputError(f"{label_root}: no such folder; the labels of GTA5 belong there")
    existing = set(_files(label_root, (".png",)))
    pairs, missing, unequal = [], 0, 0
    for image in images:
        label = label_root / image.relative_to(image_root).with_suffix(".png")
        if label not in existing:
            missing += 1
        elif (size := _png_size(image)) is not None and size != _png_size(label):
            unequal += 1  # the published set has such pairs, which cannot be repaired
        else:
            pairs.append((image, label))
    if missing or unequal:
        logger.warning(
            "%s: left out %d images without a label and %d with a label of another size; %d pairs remain",
            root, missing, unequal, len(pairs),
        )  # fmt: skip
    if not pairs:
        raise InputError(f"{label_root}: holds no label for any image of {image_root}; put them there, named alike")
    return _image_set(config, space, image_root, [image for image, _ in pairs], [label for _, label in pairs])


def _synthia(config: DataConfig, root: Path, labelled: bool) -> ImageSet:
    _refuse_split(config)
    space = _own_or_declared_space(config, label_spaces.SYNTHIA16)
    images = _images(root / "RGB")
    if not labelled:
        return _image_set(config, space, root / "RGB", images, None)
    # The published 16-bit files, or a copy in 8 bits with the same ids, which reads faster.
    places = [root / "parsed_LABELS", root / "GT" / "parsed_LABELS", root / "GT" / "LABELS"]
    label_root = next((place for place in places if place.is_dir()), places[-1])
    return _image_set(config, space, root / "RGB", images, _labels_beside(images, root / "RGB", label_root))


def _cityscapes(config: DataConfig, root: Path, labelled: bool) -> ImageSet:
    space = _own_or_declared_space(config, label_spaces.CITYSCAPES)
    image_root = _split_folder(config, root / "leftImg8bit")
    ending = "_leftImg8bit"
    images = [image for image in _images(image_root) if image.stem.endswith(ending)]
    if not images:
        raise InputError(f"{image_root}: holds no *{ending}.png; unpack leftImg8bit of Cityscapes there")
    if not labelled:
        return _image_set(config, space, image_root, images, None)
    label_root = root / "gtFine" / config.split
    if not label_root.is_dir():
        raise InputError(f"{label_root}: no such folder; unpack gtFine of Cityscapes there")
    existing = set(_files(label_root, (".png",)))
    by_kind = {
        kind: [
            label_root / image.relative_to(image_root).with_name(f"{image.stem.removesuffix(ending)}_gtFine_{kind}.png")
            for image in images
        ]
        for kind in ("labelIds", "labelTrainIds")
    }
    if all(label in existing for label in by_kind["labelIds"]):
        return _image_set(config, space, image_root, images, by_kind["labelIds"])
    if all(label in existing for label in by_kind["labelTrainIds"]):
        # The files hold train ids 0 to 18; the label space speaks of label ids, so go through those.
        table = np.full(label_spaces.RAW_IDS, IGNORE, np.uint8)
        for train_id, ids in enumerate(label_spaces.CITYSCAPES.ids):
            table[train_id] = space.lookup()[ids[0]]
        return _image_set(config, space, image_root, images, by_kind["labelTrainIds"], table)
    missing = [label for label in by_kind["labelIds"] if label not in existing]
    raise InputError(
        f"{missing[0]}: is missing ({len(missing)} of {len(images)} are), and there is no full set of "
        "labelTrainIds; unpack gtFine of Cityscapes again"
    )


def _split_folder(config: DataConfig, parent: Path) -> Path:
    folder = parent / config.split
    if not config.split or not folder.is_dir():
        there = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
        raise InputError(
            f"split: '{config.split}' is no folder of {parent}; use one of: {', '.join(there) or '(none)'}"
        )
    return folder


def _refuse_split(config: DataConfig) -> None:
    if config.split:
        raise InputError(f"split: '{config.split}' is given, but reader {config.reader} has no splits; leave it empty")


_READERS = {
    "folder": _folder,
    "gta5": _gta5,
    "synthia": _synthia,
    "cityscapes": _cityscapes,
    "camvid": _camvid,
}
