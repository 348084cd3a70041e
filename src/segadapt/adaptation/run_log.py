"""What a run says: to the person who watches, and into `metrics.jsonl` (and TensorBoard where it is installed).

In: nested dictionaries of numbers with a step. Out: one JSON line each, the same scalars for TensorBoard; a bar.
"""

import json
import math
import os
import shlex
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from segadapt.whole_file import whole_file

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # the extra [tensorboard] is not installed
    SummaryWriter = None

METRICS_FILE = "metrics.jsonl"


class Terminal:
    """Messages and progress on standard error; where that is no terminal, plain lines, one every half minute.

    Args:
        quiet: Whether nothing is shown at all.
        seconds: Between the plain lines.
    """

    def __init__(self, quiet: bool = False, seconds: float = 30.0) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.seconds = seconds
        self.bar: Progress | None = None
        self.plain: PlainProgress | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish_progress()

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start_progress(self, title: str, total: int, done: int = 0) -> None:
        """Begin a new bar, or a plain heading where output is not a terminal."""
        self.finish_progress()
        if self.console.quiet or not sys.stderr.isatty():
            self.say(f"{title}: {done}/{total}")
            self.plain = PlainProgress(title, total, done)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.bar.add_task(title, total=total, completed=done, note="")
        self.bar.start()

    def advance(self, note: str = "") -> None:
        """One unit of work done; `note` is shown beside the bar."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], advance=1, note=note)
        elif self.plain:
            self.plain.done += 1
            if time.monotonic() - self.plain.said >= self.seconds:
                self.plain.said = time.monotonic()
                self.say(f"{self.plain.line()} {note}".rstrip())

    def finish_progress(self) -> None:
        """Close the current bar."""
        if self.bar:
            self.bar.stop()
        self.bar = self.plain = None


class PlainProgress:
    """What a bar knows, for those who read lines.

    Args:
        title: Of the work.
        total: Units of it.
        done: Units that an earlier call did.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.began = self.said = time.monotonic()

    def line(self) -> str:
        """How far the work is, how fast it goes and how long it still takes."""
        rate = (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)
        left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        return f"{self.title}: {self.done}/{self.total}, {rate:.1f}/s, {left} left"


class RateColumn(ProgressColumn):
    """Units a second of the last while."""

    def render(self, task: Task) -> Text:
        """Of a task; nothing before it is known."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Metrics:
    """The metrics of one training, as `metrics.jsonl` and, with TensorBoard installed, `tensorboard/`.

    A run that stopped some steps after its last checkpoint makes these steps again, so their lines are dropped first.

    Args:
        run_dir: Folder of the training; it exists.
        step: Steps the training has behind it; lines of later steps are dropped.
        writes: Whether this process writes the files; the others only read what is there.

    Attributes:
        earlier: The lines that were kept.
    """

    def __init__(self, run_dir: Path, step: int = 0, writes: bool = True) -> None:
        path = run_dir / METRICS_FILE
        self.earlier = lines_until(path, step)
        self.file = self.board = None
        if not writes:
            return
        with whole_file(path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in self.earlier)
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1) if SummaryWriter else None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line {"step": step, **values}; nested dictionaries stay nested; for TensorBoard '/' joins them."""
        if self.file:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        if self.board:
            for name, value in flatten(values).items():
                self.board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Make all lines last through a power cut."""
        if self.file:
            os.fsync(self.file.fileno())


def command_line() -> str:
    """The command that this process was started with, as a shell takes it."""
    program = Path(sys.argv[0])
    name = "segadapt" if program.name == "__main__.py" else program.name  # python -m segadapt
    return shlex.join([name, *sys.argv[1:]])


def lines_until(path: Path, step: int | float = math.inf) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl up to a step, without the half line that a crash may leave; none without a file."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        if line["step"] <= step:
            lines.append(line)
    return lines


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries, keys joined by '/'."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[prefix + key] = float(value)
    return flat
