"""What there is to predict: image files, folders of them, patterns with *, videos.

In: what the user named. Out: a `Source` for each, with the name that its results get; the frames of videos, which PyAV
reads (the extra [video]).
"""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from segadapt.data.readers import IMAGE_SUFFIXES, files_below
from segadapt.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Args:
        path: Where it is.
        name: Of its results, a path without suffix; those of a video's frames lie in a folder of that name.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str], results: Sequence[Path] = ()) -> tuple[Source, ...]:
    """The images and videos that the inputs name, each folder and pattern in order of names.

    A folder is searched with all its sub-folders and the results keep its structure; so do those of a pattern, below
    the part of it that has no *. Hidden files, and whatever lies in the folders of `results`, are left aside.

    Raises:
        InputError: An input names nothing, or two results would have one name.
    """
    aside = frozenset(folder.resolve() for folder in results)
    sources = [source for text in inputs for source in _sources_of(text, aside)]
    seen: dict[str, Path] = {}
    for source in sources:
        other = seen.setdefault(source.name, source.path)
        if other != source.path:
            raise InputError(
                f"{other} and {source.path} would both become {source.name}.png; rename one, or use another --out"
            )
    videos = {source.name: source.path for source in sources if source.is_video}
    for source in sources:
        folder, _, number = source.name.rpartition("/")
        if folder in videos and not source.is_video and re.fullmatch("[0-9]{6,}", number):
            raise InputError(
                f"{source.path} and a frame of {videos[folder]} would both become {source.name}.png; rename one, or "
                "use another --out"
            )
    return tuple(dict.fromkeys(sources))


def find_images(text: str) -> list[Path]:
    """The images that an input names, see `find_sources`; videos are left aside.

    Raises:
        InputError: It names none.
    """
    images = [source.path for source in _sources_of(text) if not source.is_video]
    if not images:
        raise InputError(f"{text}: holds videos alone; name a folder of images")
    return images


def _sources_of(text: str, aside: frozenset[Path] = frozenset()) -> list[Source]:
    path = Path(text).expanduser()
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            known = " ".join(suffix[1:] for suffix in _SUFFIXES)
            raise InputError(f"{text}: '{path.suffix}' is no known image or video; convert it to one of {known}")
        return [Source(path, path.stem)]
    if path.is_dir():
        root, found = path, [path / name for name in files_below(path, _SUFFIXES)]
    elif glob.has_magic(text):
        fixed = list(path.parts[:-1])
        while fixed and any(map(glob.has_magic, fixed)):
            fixed.pop()
        root, found = Path(*fixed), [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    else:
        raise InputError(f"{text}: no such file or folder; name an image, a video, a folder or a pattern in quotes")
    files = sorted(file for file in found if _is_source(file, root, aside))
    if not files:
        raise InputError(f"{text}: holds no image or video; name another")
    return [Source(file, file.relative_to(root).with_suffix("").as_posix()) for file in files]


def _is_source(file: Path, root: Path, aside: frozenset[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    known = file.suffix.lower() in _SUFFIXES
    return known and not hidden and aside.isdisjoint(file.resolve().parents)


def count_frames(path: Path) -> int:
    """Frames of a video, counted without decoding them.

    Raises:
        InputError: It cannot be read, or PyAV is missing.
    """
    with _opened(path) as video:
        return sum(packet.size > 0 for packet in video.demux(video.streams.video[0]))


def read_frames(path: Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a video in RGB, upright.

    Raises:
        InputError: It cannot be read, or PyAV is missing.
    """
    with _opened(path) as video:
        for frame in video.decode(video.streams.video[0]):
            yield upright(frame.to_ndarray(format="rgb24"), float(frame.rotation))


def upright(pixels: UInt8[np.ndarray, "H W 3"], degrees: float) -> UInt8[np.ndarray, "_ _ 3"]:
    """A frame turned counterclockwise, by quarters: the rotation that a phone notes beside its frames."""
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90)))


@contextmanager
def _opened(path: Path) -> Iterator["InputContainer"]:
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise InputError(f"{path}: videos need PyAV; pip install 'segadapt[video]'") from None
    try:
        with av.open(str(path)) as video:
            if not video.streams.video:
                raise InputError(f"{path}: holds no pictures; remove it")
            yield video
    except FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error}); convert or remove it") from error
