"""The formats on disk: which image belongs to which label file, and what the numbers in it mean.

In: a DataConfig. Out: an ImageSet, its files in a fixed order with a table from raw ids to the train ids of
its label space. Each format is two patterns, of its images and of its labels, and a label space; docs/formats.md
describes them. Everything wrong with a folder ends in an InputError that names it.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from segadapt.config import DataConfig
from segadapt.data import label_spaces
from segadapt.data.decoding import image_size, read_raw_ids
from segadapt.data.label_spaces import IGNORE, RAW_IDS, LabelSpace
from segadapt.errors import InputError, UnreadableFileError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIX = ".png"
UNREADABLE_SUFFIX = ".unreadable"  # of a file that says why an image has no translation
SPACE_FILES = ("label_space.yaml", "classes.yaml")
_Stars = tuple[str, ...]  # what the stars of a pattern stand for in the path of one image
_PROBED_LABELS = 8
# which label files a set is to have: none, one for every image, one for every image whether it exists or not, or those
# that are there
_Wanted = Literal["none", "all", "named", "found"]
_DOUBTFUL_SHARE = 0.25  # of pixels in no class; a tenth is usual in Cityscapes, a third in files of other ids


@dataclass(frozen=True)
class ImageSet:
    """The images of one domain and where their labels are.

    Args:
        name: Reader, folder, split and pattern of the images, as messages say it.
        space: Classes of the label files.
        root: The folder that the names of images are relative to.
        images: Image files, in a fixed order.
        labels: Label file of each image; None throughout a set whose labels are not to be read.
        table: Raw id in a label file to train id of `space`, 255 for all else.
        translations: Files that are read in place of images, by `image_name`; none, or one of every image that could
            be read when they were made.
    """

    name: str
    space: LabelSpace
    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    table: UInt8[np.ndarray, " 65536"] = field(repr=False, compare=False)
    translations: Mapping[str, Path] = field(default_factory=dict, repr=False, hash=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether labels may be read."""
        return self.labels[0] is not None

    def image_name(self, index: int) -> str:
        """Name of an image in its set, 'aachen/aachen_000000_000019.png': where its pseudo-label goes."""
        return self.images[index].relative_to(self.root).with_suffix(".png").as_posix()

    def spread(self, count: int) -> "ImageSet":
        """A set of `count` of these images, evenly spread; all of them if they are no more."""
        if count >= len(self):
            return self
        chosen = [round((number + 0.5) * len(self) / count - 0.5) for number in range(count)]
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
        )

    def file(self, index: int) -> Path:
        """The file that holds the pixels: the image, or its translation."""
        return self.translations.get(self.image_name(index), self.images[index])


def find_pairs(config: DataConfig, labelled: bool, skip_bad: bool = False) -> ImageSet:
    """Finds the files of a domain.

    Args:
        config: The domain.
        labelled: Whether its labels are to be read. If not, they need not exist and are not looked at.
        skip_bad: Whether who reads the pairs leaves out those of which a file is missing or damaged. Then a missing
            label file is no error here, but the path of its pair all the same.

    Returns:
        At least one image, sorted by name.

    Raises:
        InputError: A folder or file is missing, or the first labels do not hold the ids of the label space.
    """
    wanted = "named" if skip_bad else "all"
    image_set = _find(config, wanted if labelled else "none")
    if labelled:
        _probe_labels(image_set)
    return image_set


def find_what_is_there(config: DataConfig) -> ImageSet:
    """As `find_pairs` with labels, for `segadapt check-data`: None where a label is missing; no file is looked into.

    Raises:
        InputError: There are no images, or no label space.
    """
    return _find(config, "found")


def _find(config: DataConfig, wanted: _Wanted) -> ImageSet:
    if not config.root:
        raise InputError("root is empty; give the folder of the data set (for example --source.root)")
    root = Path(os.path.expanduser(config.root))  # not Path.expanduser, which raises where '~name' is no user
    if not root.is_dir():
        raise InputError(f"root: '{config.root}' is not a folder; correct the path or put the data set there")
    if config.reader != "folder":
        for option, pattern in (("images", config.images), ("labels", config.labels)):
            if pattern:
                raise InputError(
                    f"{option}: '{pattern}' is given, but reader {config.reader} knows where its {option} lie; "
                    "leave it empty or use reader folder"
                )
    image_set = _READERS[config.reader](config, root, wanted)
    if config.translated:
        translated = Path(os.path.expanduser(config.translated))
        image_set = replace(image_set, translations=_translations(translated, image_set))
    return image_set


def fingerprint(image_set: ImageSet) -> str:
    """SHA-256 over the names and sizes in bytes of all files: whether two results saw the same data."""
    digest = hashlib.sha256()
    for index, label in enumerate(image_set.labels):
        image_bytes, label_bytes = _bytes(image_set.file(index)), -1 if label is None else _bytes(label)
        line = f"{image_set.image_name(index)}\0{image_bytes}\0{label_bytes}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names that are not UTF-8
    return digest.hexdigest()


def _bytes(path: Path) -> int:
    """Size of a file; -1 of one that is not there, which is said when it is read."""
    return path.stat().st_size if path.exists() else -1


# ---- from patterns to pairs


@dataclass(frozen=True)
class _Pattern:
    """Where the images or the labels of a format lie: 'gtFine/val/*_gtFine_labelIds', below a root.

    What the stars stand for names an image and finds its label: the last star is any path, sub-folders and all;
    one before it is text within the name of a file or folder.
    """

    root: Path
    text: str

    @property
    def stars(self) -> int:
        return self.text.count("*")

    @property
    def folder(self) -> Path:
        """The folder that holds all files of the pattern."""
        return self.root / self._before

    @property
    def _before(self) -> str:
        return self.text.partition("*")[0].rpartition("/")[0]

    @property
    def _below(self) -> str:
        return self.text.removeprefix(self._before).removeprefix("/")

    def find(self, suffixes: tuple[str, ...]) -> dict[_Stars, Path]:
        """The files with one of the suffixes by what their stars stand for, sorted by path."""
        stem, suffix = os.path.splitext(self._below)
        if suffix.lower() in suffixes:
            suffixes = (suffix.lower(),)
        else:
            stem = self._below
        *first, last = (re.escape(part) for part in stem.split("*"))
        expression = re.compile("([^/]+)".join(first) + "(.+)" + last, re.DOTALL)
        found: dict[_Stars, Path] = {}
        for name in files_below(self.folder, suffixes):
            if match := expression.fullmatch(name.rpartition(".")[0]):
                file = self.folder / name
                if (other := found.setdefault(match.groups(), file)) != file:
                    raise InputError(f"{file}: has the same name as {other.name}; rename or remove one of them")
        return found

    def file(self, stars: _Stars, suffix: str) -> Path:
        """The file whose stars stand for these texts, whether it exists or not."""
        first, *others = self._below.removesuffix(suffix).split("*")
        name = first + "".join(text + part for text, part in zip(stars, others, strict=True))
        return self.folder / (name + suffix)


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names below a folder of all files with one of the suffixes, hidden ones left out, links followed, sorted.

    Raises:
        InputError: A sub-folder cannot be listed, or is a link to a folder that holds it.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _refuse_loop(folder, Path(parent, name))
        within = Path(parent).relative_to(folder).as_posix()
        before = "" if within == "." else f"{within}/"
        found += [before + name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return  # a folder that is not there has no files; what that means, the caller knows
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable or remove it")


def _refuse_loop(top: Path, folder: Path) -> None:
    """Raises InputError if a folder below `top` is a link to one that holds it, whose files would be found again."""
    if not folder.is_symlink():
        return
    target = folder.resolve()
    above = [place for place in folder.parents if place == top or place.is_relative_to(top)]
    if any(place.resolve().is_relative_to(target) for place in above):
        raise InputError(f"{folder}: is a link to {target}, which holds it; remove the link")


def _images(pattern: _Pattern) -> dict[_Stars, Path]:
    if not pattern.folder.is_dir():
        raise InputError(f"{pattern.folder}: no such folder; the images belong there (check reader, root and split)")
    images = pattern.find(IMAGE_SUFFIXES)
    if not images:
        raise InputError(
            f"{pattern.folder}: holds no images ({pattern.text}, {' '.join(IMAGE_SUFFIXES)}); "
            "put them there or correct root and split"
        )
    return images


def _labels(pattern: _Pattern, images: dict[_Stars, Path], wanted: _Wanted) -> dict[_Stars, Path] | None:
    """The label file of each image that is wanted."""
    if wanted == "none":
        return None
    if not pattern.folder.is_dir():
        if wanted == "found":
            return {}
        raise InputError(f"{pattern.folder}: no such folder; the labels belong there (check reader, root and split)")
    labels = pattern.find((LABEL_SUFFIX,))
    missing = [stars for stars in images if stars not in labels]
    if missing and wanted == "all":
        raise InputError(
            f"{images[missing[0]]}: its label {pattern.file(missing[0], LABEL_SUFFIX)} is missing "
            f"({len(missing)} of {len(images)} are); add it or remove the image"
        )
    if wanted == "named":
        labels |= {stars: pattern.file(stars, LABEL_SUFFIX) for stars in missing}
    return labels


def _image_set(
    config: DataConfig,
    space: LabelSpace,
    folder: Path,
    images: dict[_Stars, Path],
    labels: dict[_Stars, Path] | None,
    table: UInt8[np.ndarray, " 65536"] | None = None,
) -> ImageSet:
    return ImageSet(
        name=" ".join(part for part in (config.reader, config.root, config.split, config.images) if part),
        space=space,
        root=folder,
        images=tuple(images.values()),
        labels=(None,) * len(images) if labels is None else tuple(labels.get(stars) for stars in images),
        table=space.lookup() if table is None else table,
    )


def _translations(folder: Path, image_set: ImageSet) -> dict[str, Path]:
    """The translated file of each image, by its name."""
    if not folder.is_dir():
        raise InputError(f"translated: '{folder}' is not a folder; write it with 'segadapt translate apply --out'")
    found = {f"{stars[0]}.png": file for stars, file in _Pattern(folder, "*").find(IMAGE_SUFFIXES).items()}
    names = [image_set.image_name(index) for index in range(len(image_set))]
    missing = [name for name in names if name not in found]
    if missing := [name for name in missing if not (folder / name).with_suffix(UNREADABLE_SUFFIX).exists()]:
        raise InputError(
            f"translated: {folder / missing[0]} is missing ({len(missing)} of {len(names)} are); finish "
            f"'segadapt translate apply --source {image_set.root} --out {folder}', or leave translated empty"
        )
    return {name: found[name] for name in names if name in found}


def _probe_labels(image_set: ImageSet) -> None:
    """Looks into a few labels: refuses those without any id of their space, and warns where much is in no class.

    With the wrong space nothing would be learned, or, where the ids of two spaces overlap, something else.
    """
    probed = image_set.labels[:: max(1, len(image_set) // _PROBED_LABELS)][:_PROBED_LABELS]
    pixels, unreadable = np.zeros(RAW_IDS, np.int64), []
    for label in probed:
        assert label is not None
        try:
            pixels += np.bincount(read_raw_ids(label).ravel(), minlength=RAW_IDS)
        except UnreadableFileError as error:  # a training may be told to leave it out
            unreadable.append(error)
    if len(unreadable) == len(probed):
        raise unreadable[0]
    known = image_set.table != IGNORE
    if not pixels[known].any():
        raise InputError(
            f"{image_set.labels[0]}: no id in it and in {len(probed) - 1} other label files "
            f"({_counted(pixels)}) is one of label space {image_set.space.name} ({_few(np.flatnonzero(known))}); "
            "set label_space to the one these files were written with"
        )
    pixels[IGNORE] = pixels[IGNORE] if known[IGNORE] else 0  # says 'no class' in every format
    outside = np.where(known, 0, pixels)
    if outside.sum() > _DOUBTFUL_SHARE * pixels.sum():
        largest = [raw for raw in np.argsort(-outside, kind="stable")[:6] if outside[raw]]
        logger.warning(
            "%s: %.0f %% of the pixels in the %d label files looked at are of no class of label space %s and will be "
            "ignored (%s); if that is not meant, set label_space to the one these files were written with",
            image_set.name,
            100 * outside.sum() / pixels.sum(),
            len(probed),
            image_set.space.name,
            ", ".join(f"id {raw}: {100 * outside[raw] / pixels.sum():.0f} %" for raw in largest),
        )


def _counted(pixels: np.ndarray) -> str:
    """The ids with most pixels, each with their number."""
    largest = [raw for raw in np.argsort(-pixels, kind="stable")[:6] if pixels[raw]]
    others = np.count_nonzero(pixels) - len(largest)
    return ", ".join(f"id {raw}: {pixels[raw]} pixels" for raw in largest) + (f", {others} more" if others else "")


def _few(ids: np.ndarray) -> str:
    return ", ".join(str(raw) for raw in ids[:12]) + (", ..." if len(ids) > 12 else "")


# ---- the formats


def _folder(config: DataConfig, root: Path, wanted: _Wanted) -> ImageSet:
    folder = root / config.split
    image_pattern = _Pattern(folder, config.images or "images/*")
    label_pattern = _Pattern(folder, config.labels or "labels/*")
    for option, pattern in (("images", image_pattern), ("labels", label_pattern)):
        if not pattern.stars:
            raise InputError(
                f"{option}: '{pattern.text}' has no *; write one for what differs from image to image, "
                f"for example {option}/*"
            )
        if "**" in pattern.text:  # would ask for two letters at least
            raise InputError(
                f"{option}: '{pattern.text}' holds **; write a single *, the last one reaches through sub-folders"
            )
    if Path(label_pattern.text).suffix.lower() in set(IMAGE_SUFFIXES) - {LABEL_SUFFIX}:
        raise InputError(f"labels: '{label_pattern.text}' names files that are no PNG; write the ids as PNG")
    if wanted != "none" and image_pattern.stars != label_pattern.stars:
        raise InputError(
            f"labels: '{label_pattern.text}' has {label_pattern.stars} *, but images: '{image_pattern.text}' has "
            f"{image_pattern.stars}; write as many in both, they stand for the same text"
        )
    plain = wanted in ("none", "found") and not config.images and not image_pattern.folder.is_dir()
    if plain and (names := files_below(folder, IMAGE_SUFFIXES)):
        if any(name.startswith("labels/") for name in names):
            raise InputError(f"{folder}: photographs beside a folder of labels; move them to {folder}/images")
        image_pattern = _Pattern(folder, "*")  # plain photographs, without the folders of a labelled set
    images = _images(image_pattern)
    labels = _labels(label_pattern, images, wanted)
    return _image_set(config, _folder_space(config, root), image_pattern.folder, images, labels)


def _folder_space(config: DataConfig, root: Path) -> LabelSpace:
    if config.label_space:
        return label_spaces.shipped(config.label_space)
    # 'above' as the path is written, and where a link leads
    for place in (root, Path(os.path.abspath(root)).parent, root.resolve().parent):
        for name in SPACE_FILES:
            if (place / name).is_file():
                return LabelSpace.from_yaml(place / name)
    raise InputError(
        f"{root / SPACE_FILES[0]}: no label space; write one there (name, classes: "
        "[{name, kind: stuff or thing, colour: [r, g, b], ids: [..]}]) or set label_space to a shipped one"
    )


def _gta5(config: DataConfig, root: Path, wanted: _Wanted) -> ImageSet:
    _refuse_split(config)
    space = _own_or_declared_space(config, label_spaces.CITYSCAPES)
    image_pattern, label_pattern = _Pattern(root, "images/*"), _Pattern(root, "labels/*")
    images = _images(image_pattern)
    if wanted == "none":
        return _image_set(config, space, image_pattern.folder, images, None)
    labels = label_pattern.find((LABEL_SUFFIX,))
    if wanted == "found":
        return _image_set(config, space, image_pattern.folder, images, labels)
    # The published set has images without a label and labels of another size, which nobody can repair.
    paired = {stars: image for stars, image in images.items() if stars in labels}
    equal = {stars: image for stars, image in paired.items() if _same_size(image, labels[stars], wanted)}
    if not equal:
        raise InputError(
            f"{label_pattern.folder}: holds a label of the name and size of none of the {len(images)} images "
            f"({len(paired)} of another size); put the labels of GTA5 there"
        )
    if len(equal) < len(images):
        logger.warning(
            "%s: left out %d images without a label and %d with a label of another size; %d pairs remain",
            root, len(images) - len(paired), len(paired) - len(equal), len(equal),
        )  # fmt: skip
    return _image_set(config, space, image_pattern.folder, equal, labels)


def _same_size(image: Path, label: Path, wanted: _Wanted) -> bool:
    """Whether both have one size; also where a file cannot be read, which is then left out when its pixels are."""
    try:
        return image_size(image) == image_size(label)
    except UnreadableFileError:
        if wanted == "named":
            return True
        raise


def _synthia(config: DataConfig, root: Path, wanted: _Wanted) -> ImageSet:
    _refuse_split(config)
    space = _own_or_declared_space(config, label_spaces.SYNTHIA16)
    image_pattern = _Pattern(root, "RGB/*")
    images = _images(image_pattern)
    # The published 16-bit files, or a copy in 8 bits with the same ids, which reads faster.
    places = [_Pattern(root, f"{folder}/*") for folder in ("parsed_LABELS", "GT/parsed_LABELS", "GT/LABELS")]
    label_pattern = next((place for place in places if place.folder.is_dir()), places[-1])
    labels = _labels(label_pattern, images, wanted)
    return _image_set(config, space, image_pattern.folder, images, labels)


def _cityscapes(config: DataConfig, root: Path, wanted: _Wanted) -> ImageSet:
    space = _own_or_declared_space(config, label_spaces.CITYSCAPES)
    _refuse_unknown_split(config, root / "leftImg8bit")
    image_pattern = _Pattern(root, f"leftImg8bit/{config.split}/*_leftImg8bit")
    images = _images(image_pattern)
    if wanted == "none":
        return _image_set(config, space, image_pattern.folder, images, None)
    if config.split == "test":
        raise InputError("split: the labels of the test split of Cityscapes are not public; use train or val")
    label_ids, train_ids = (
        _Pattern(root, f"gtFine/{config.split}/*_gtFine_{kind}") for kind in ("labelIds", "labelTrainIds")
    )
    missing_ids, missing_trained = (
        len(images.keys() - kind.find((LABEL_SUFFIX,)).keys()) for kind in (label_ids, train_ids)
    )
    if missing_ids <= missing_trained:
        return _image_set(config, space, image_pattern.folder, images, _labels(label_ids, images, wanted))
    # Only train ids, 0 to 18: the label space speaks of label ids, so go through those.
    table = np.full(RAW_IDS, IGNORE, np.uint8)
    for train_id, ids in enumerate(label_spaces.CITYSCAPES.ids):
        table[train_id] = space.lookup()[ids[0]]
    return _image_set(config, space, image_pattern.folder, images, _labels(train_ids, images, wanted), table)


def _camvid(config: DataConfig, root: Path, wanted: _Wanted) -> ImageSet:
    space = _own_or_declared_space(config, label_spaces.CAMVID11)
    _refuse_unknown_split(config, root)
    if (root / config.split / "images").is_dir():
        layout = (f"{config.split}/images/*", f"{config.split}/labels/*")
    else:  # as the SegNet tutorial lays it out
        layout = (f"{config.split}/*", f"{config.split}annot/*")
    image_pattern, label_pattern = (_Pattern(root, text) for text in layout)
    images = _images(image_pattern)
    labels = _labels(label_pattern, images, wanted)
    return _image_set(config, space, image_pattern.folder, images, labels)


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


def _refuse_unknown_split(config: DataConfig, parent: Path) -> None:
    if not config.split or not (parent / config.split).is_dir():
        there = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
        raise InputError(
            f"split: '{config.split}' is no folder of {parent}; use one of: {', '.join(there) or '(none)'}"
        )


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
