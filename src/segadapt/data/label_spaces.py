"""Which classes there are: their names, colours, raw ids in label files, and which are stuff or things.

In: YAML, shipped (spaces/*.yaml) or the user's own. Out: a LabelSpace, whose positions are the train ids, and
lookup tables from raw ids to train ids and from the train ids of one space to those of another. What is in no
class becomes 255 and is ignored by every loss and score. Does not import torch.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt8

from segadapt.errors import InputError
from segadapt.yaml_text import read_yaml

IGNORE = 255
RAW_IDS = 65536  # label files hold 8 or 16 bits a pixel
_SPACES = Path(__file__).parent / "spaces"


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set, or those that are trained; the train id of a class is its position.

    Args:
        name: What messages and results call the space.
        names: Class names, all different.
        colours: (red, green, blue) of each class, 0 to 255, all different.
        ids: Raw ids of each class in label files, 0 to 65535, each id in one class.
        stuff: Train ids of the amorphous classes, ascending.
        things: Train ids of the countable classes, ascending; with stuff, every class once.
        subsets: Names of classes that are also scored on their own, by the name of the subset.
        ignore: The label of pixels without a class.

    Raises:
        InputError: Where one of these does not hold.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ids: tuple[tuple[int, ...], ...]
    stuff: tuple[int, ...]
    things: tuple[int, ...]
    subsets: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    ignore: int = IGNORE

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count <= IGNORE:
            raise InputError(f"classes: {count} given; write 1 to {IGNORE} of them")
        if len(self.colours) != count or len(self.ids) != count:
            raise InputError(f"{count} names, {len(self.colours)} colours, {len(self.ids)} ids; give each class one")
        if self.ignore != IGNORE:
            raise InputError(
                f"ignore: {self.ignore} is not possible; leave it at {IGNORE} and list only ids of classes"
            )
        _refuse_repeats("name", self.names, self.names)
        _refuse_repeats("colour", self.colours, self.names)
        _refuse_repeats(
            "id",
            [raw for raw_ids in self.ids for raw in raw_ids],
            [name for name, raw_ids in zip(self.names, self.ids, strict=True) for _ in raw_ids],
        )
        for name, colour, raw_ids in zip(self.names, self.colours, self.ids, strict=True):
            if any(not 0 <= value <= 255 for value in colour):
                raise InputError(f"class '{name}': colour {list(colour)} is out of range; use three values 0 to 255")
            if not raw_ids:
                raise InputError(f"class '{name}': ids is empty; list the values its pixels have in label files")
            for raw in raw_ids:
                if not 0 <= raw < RAW_IDS:
                    raise InputError(f"class '{name}': id {raw} is out of range; use 0 to {RAW_IDS - 1}")
        if sorted(self.stuff + self.things) != list(range(count)):
            raise InputError("stuff and things must name every class exactly once")
        if list(self.stuff) != sorted(self.stuff) or list(self.things) != sorted(self.things):
            raise InputError("stuff and things must be in ascending order")
        for subset, members in self.subsets.items():
            if not members:
                raise InputError(f"subset '{subset}' is empty; name its classes or remove it")
            for member in members:
                if member not in self.names:
                    raise InputError(f"subset '{subset}': '{member}' is no class here; use {_listed(self.names)}")

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored label not among them."""
        return len(self.names)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "LabelSpace":
        """Reads a label space from a file.

        Raises:
            InputError: The file is missing or says something that a label space cannot be.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); give the path of a label space in YAML") from error
        return cls.from_yaml_text(text, str(path))

    @classmethod
    def from_yaml_text(cls, text: str, where: str) -> "LabelSpace":
        """Reads a label space from YAML.

        Args:
            text: Keys name, classes, and optionally ignore and subsets, as `to_yaml` writes them.
            where: What error messages call the text, usually its file.

        Raises:
            InputError: The text says something that a label space cannot be.
        """
        try:
            return cls._from_mapping(read_yaml(text))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def _from_mapping(cls, content: Any) -> "LabelSpace":
        top = _mapping(content, "the file", required=("name", "classes"), optional=("ignore", "subsets"))
        classes = top["classes"]
        if not isinstance(classes, list):
            raise InputError("classes: not a list; write one '- {name, kind, colour, ids}' for each class")
        names, colours, ids = [], [], []
        by_kind: dict[str, list[int]] = {"stuff": [], "thing": []}
        for position, entry in enumerate(classes):
            where = f"classes[{position}]"
            entry = _mapping(entry, where, required=("name", "kind", "colour", "ids"))
            names.append(_text(entry["name"], f"{where}.name"))
            if entry["kind"] not in ("stuff", "thing"):
                raise InputError(f"{where}.kind: '{entry['kind']}' is neither; write stuff or thing")
            by_kind[entry["kind"]].append(position)
            colour = _integers(entry["colour"], f"{where}.colour")
            if len(colour) != 3:
                raise InputError(f"{where}.colour: {list(colour)} has {len(colour)} values; write [red, green, blue]")
            colours.append(colour)
            ids.append(_integers(entry["ids"], f"{where}.ids"))
        subsets = top.get("subsets") or {}
        if not isinstance(subsets, dict):
            raise InputError("subsets: not a mapping; write 'name: [class, class]' for each subset")
        for subset, members in subsets.items():
            if not isinstance(members, list):
                raise InputError(f"subsets.{subset}: not a list; write [class, class]")
        ignore = top.get("ignore", IGNORE)
        if type(ignore) is not int:
            raise InputError(f"ignore: {_shown(ignore)} is not a number; leave it at {IGNORE}")
        return cls(
            name=_text(top["name"], "name"),
            names=tuple(names),
            colours=tuple(colours),  # type: ignore[arg-type]  # three values each, checked above
            ids=tuple(ids),
            stuff=tuple(by_kind["stuff"]),
            things=tuple(by_kind["thing"]),
            subsets={
                _text(subset, "subsets"): tuple(_text(member, f"subsets.{subset}") for member in members)
                for subset, members in subsets.items()
            },
            ignore=ignore,
        )

    def to_yaml(self) -> str:
        """The space as YAML that `from_yaml_text` reads back to an equal space, one line a class."""
        lines = [f"name: {_quoted(self.name)}", f"ignore: {self.ignore}", "classes:"]
        for train_id, name in enumerate(self.names):
            kind = "thing" if train_id in self.things else "stuff"
            colour, ids = list(self.colours[train_id]), list(self.ids[train_id])
            lines.append(f"  - {{name: {_quoted(name)}, kind: {kind}, colour: {colour}, ids: {ids}}}")
        if self.subsets:
            lines.append("subsets:")
            for subset, members in self.subsets.items():
                lines.append(f"  {_quoted(subset)}: [{', '.join(_quoted(member) for member in members)}]")
        return "\n".join(lines) + "\n"

    def restrict(self, names: Iterable[str]) -> "LabelSpace":
        """The space with some of its classes only.

        Args:
            names: Classes to keep; they keep the order they have here, whatever the order given.

        Returns:
            A space with the same raw ids, in which all other ids are ignored. A subset stays where all of its
            classes do; one that has lost some would be another score under the same name, so it goes.

        Raises:
            InputError: A name that is no class here.
        """
        wanted = list(names)
        for name in wanted:
            if name not in self.names:
                raise InputError(f"class '{name}' is not in label space {self.name}; use {_listed(self.names)}")
        kept = [train_id for train_id, name in enumerate(self.names) if name in wanted]
        if len(kept) == self.num_classes:
            return self
        names = tuple(self.names[old] for old in kept)
        return LabelSpace(
            name=f"{self.name}[{len(kept)}]",
            names=names,
            colours=tuple(self.colours[old] for old in kept),
            ids=tuple(self.ids[old] for old in kept),
            stuff=tuple(new for new, old in enumerate(kept) if old in self.stuff),
            things=tuple(new for new, old in enumerate(kept) if old in self.things),
            subsets={
                subset: members
                for subset, members in self.subsets.items()
                if all(member in names for member in members)
            },
        )

    def lookup(self) -> UInt8[np.ndarray, " 65536"]:
        """Table from raw id to train id, 255 where no class has the id."""
        table = np.full(RAW_IDS, IGNORE, np.uint8)
        for train_id, raw_ids in enumerate(self.ids):
            table[list(raw_ids)] = train_id
        return table

    def subset_ids(self, name: str) -> tuple[int, ...]:
        """Train ids of a subset, ascending.

        Raises:
            InputError: There is no such subset.
        """
        if name not in self.subsets:
            raise InputError(f"label space {self.name} has no subset '{name}'; use {_listed(self.subsets) or 'none'}")
        return tuple(sorted(self.names.index(member) for member in self.subsets[name]))


def shipped(name_or_path: str | Path) -> LabelSpace:
    """A label space by the name of a shipped one, or by the path of a YAML file.

    Raises:
        InputError: It is neither.
    """
    names = sorted(path.stem for path in _SPACES.glob("*.yaml"))
    if str(name_or_path) in names:
        return LabelSpace.from_yaml(_SPACES / f"{name_or_path}.yaml")
    path = Path(os.path.expanduser(name_or_path))
    if not path.is_file():
        raise InputError(
            f"label_space: '{name_or_path}' is neither shipped nor a file; "
            f"use {_listed(names)} or the path of a YAML file"
        )
    return LabelSpace.from_yaml(path)


def common(source: LabelSpace, target: LabelSpace) -> LabelSpace:
    """The classes that both spaces have by name, in the order of the target and with its colours and kinds.

    Raises:
        InputError: They have no class in common.
    """
    names = [name for name in target.names if name in source.names]
    if not names:
        raise InputError(
            f"label spaces {source.name} ({_listed(source.names)}) and {target.name} "
            f"({_listed(target.names)}) have no class name in common; give the same classes the same names"
        )
    return target.restrict(names)


def remap(from_space: LabelSpace, to_space: LabelSpace) -> UInt8[np.ndarray, " 256"]:
    """Table from train ids of one space to those of another, by class name; 255 where it lacks the class."""
    table = np.full(256, IGNORE, np.uint8)
    for train_id, name in enumerate(from_space.names):
        if name in to_space.names:
            table[train_id] = to_space.names.index(name)
    return table


def _shown(value: Any) -> str:
    """A value as messages show it, without its end where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _quoted(text: str) -> str:
    # A name such as 'no' or '12' would come back from YAML as something else than text.
    plain = re.fullmatch(r"[A-Za-z][\w \-]*\w|[A-Za-z]", text) is not None and yaml.safe_load(text) == text
    return text if plain else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6).strip()


def _refuse_repeats(what: str, values: Iterable[Any], owners: Iterable[str]) -> None:
    first: dict[Any, str] = {}
    for value, owner in zip(values, owners, strict=True):
        shown = list(value) if isinstance(value, tuple) else value
        if value in first:
            raise InputError(
                f"{what} {shown!r} stands twice (classes '{first[value]}' and '{owner}'); give each its own"
            )
        first[value] = owner


def _mapping(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a mapping; write the keys {_listed(required)}")
    for key in value:
        if key not in required + optional:
            raise InputError(f"{where}: unknown key '{key}'; use {_listed(required + optional)}")
    for key in required:
        if key not in value:
            raise InputError(f"{where}: key '{key}' is missing; add it")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {_shown(value)} is not a name; write text, in quotes where YAML reads it otherwise")
    return value


def _integers(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(entry) is not int for entry in value):
        raise InputError(f"{where}: {_shown(value)} is not a list of whole numbers; write for example [1, 2, 3]")
    return tuple(value)


CITYSCAPES = shipped("cityscapes19")
SYNTHIA16 = shipped("synthia16")
SYNTHIA13 = shipped("synthia13")
STREETS11 = shipped("streets11")
CAMVID11 = shipped("camvid11")
