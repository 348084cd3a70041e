"""A tiny data set with a model for it, ways to break them, and what a refusal has to look like."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from segadapt.cli import main
from segadapt.data.label_spaces import LabelSpace

SIZE = (32, 32)
SPACE = LabelSpace("site", ("road", "car"), ((0, 0, 0), (9, 9, 9)), ((1,), (2,)), (0,), (1,))


class Mistake(NamedTuple):
    """One line of a table: what is wrong, how the input comes to be so, words of the message."""

    name: str
    make: Callable[[Path], object]
    words: str  # several with | between them


def table(*rows: tuple[str, Callable[[Path], object], str]) -> pytest.MarkDecorator:
    """The rows as the parameter `mistake` of a test."""
    mistakes = [Mistake(*row) for row in rows]
    assert len({mistake.name for mistake in mistakes}) == len(mistakes)
    return pytest.mark.parametrize("mistake", mistakes, ids=[mistake.name for mistake in mistakes])


def write_site(folder: Path) -> Path:
    """Two images a.png and b.png with labels, and their label space; every pixel of some class."""
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        save(folder / "images" / name, random.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        save(folder / "labels" / name, random.integers(1, 3, SIZE, dtype=np.uint8))
    (folder / "label_space.yaml").write_text(SPACE.to_yaml())
    return folder


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """An array as an image of the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def bytes_as(path: Path, image: Image.Image, kind: str, keep: float = 1.0, **options: object) -> None:
    """Write `image` in the format `kind` whatever the name says, and of the file only the first part `keep`."""
    path.unlink(missing_ok=True)
    image.save(path, format=kind, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(path: Path, header: tuple[int, ...], data: bytes = b"", *, crc: int = 0) -> None:
    """A PNG of a header (width, height, bits, colour type, 0, 0, interlace) and compressed data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ crc)

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def link(path: Path, target: str | Path) -> None:
    """A symbolic link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder with kind, size and time of change; links are not followed."""
    found = {}
    for parent, folders, names in os.walk(os.fsencode(folder)):
        for name in folders + names:
            state = os.lstat(os.path.join(parent, name))
            size = 0 if name in folders else state.st_size
            found[repr(os.path.join(parent, name))] = (state.st_mode, size, state.st_mtime_ns)
    return found


def refused(arguments: list[str], folder: Path, words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that has to end in one line with the words and to leave the folder as it was."""
    before = snapshot(folder)
    code = main(arguments)
    shown, said = capsys.readouterr()
    assert code == 2, said
    assert said.startswith("segadapt: error: ")
    assert said.count("\n") == 1, said
    assert said.endswith("\n")
    assert "Traceback" not in said
    assert shown == ""
    for word in words.split("|"):
        assert word in said, f"{word!r} is not in {said!r}"
    assert snapshot(folder) == before
    return said


def evaluate(model: Path, site: Path, *others: str) -> list[str]:
    """The command that reads images and labels."""
    return ["evaluate", f"--model={model}", f"--data.root={site}", "--data.size=[32,32]", "--quiet", *others]


def pseudo_label(model: Path, site: Path, *others: str) -> list[str]:
    """The command that reads images alone and writes."""
    options = [f"--model={model}", f"--data.root={site}", "--data.size=[32,32]", f"--out={site}/out", "--quiet"]
    return ["pseudo-label", *options, *others]


def train(site: Path, *others: str, command: str = "train") -> list[str]:
    """A training on the site as all three domains, with the smallest network."""
    domains = [f"--{name}.{key}" for name in ("source", "target", "test") for key in (f"root={site}", "size=[32,32]")]
    network = ["--network.backbone=efficientnet_lite0", "--network.weights=random"]
    schedule = ["--schedule.steps=1", "--schedule.workers=0"]
    return [command, *domains, *network, *schedule, f"--run_dir={site}/run", "--quiet", *others]
