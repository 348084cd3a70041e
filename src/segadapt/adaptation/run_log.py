"""What a training run says while it runs: `metrics.jsonl`, TensorBoard when it is installed, a progress bar.

In: nested dictionaries of numbers with a step. Out: one JSON line each, the same scalars for TensorBoard, and the terminal.
"""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # the extra [tensorboard] is not installed
    SummaryWriter = None


class RunLog:
    """Writes one run folder's metrics and shows progress on standard error (plain lines when it is no terminal).

    Args:
        run_dir: Folder that gets `metrics.jsonl` (continued if it exists) and `tensorboard/`.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard")) if SummaryWriter else None
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish_progress()
        self.file.close()
        if self.board:
            self.board.close()

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Write one line: {"step": step, **values}; nested dictionaries stay nested, for TensorBoard they are joined by '/'."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in flatten(values).items():
                self.board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.console.print(text, highlight=False)

    def start_progress(self, title: str, total: int, done: int = 0) -> None:
        """Begin a new bar, or a plain heading where output is not a terminal."""
        self.finish_progress()
        if not sys.stderr.isatty():
            self.say(f"{title}: {done}/{total}")
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.bar.add_task(title, total=total, completed=done, note="")
        self.bar.start()

    def advance(self, note: str | None = None) -> None:
        """One unit of work done; `note` is shown beside the bar."""
        if self.bar:
            self.bar.advance(self.bar.task_ids[0])
            if note is not None:
                self.bar.update(self.bar.task_ids[0], note=note)

    def finish_progress(self) -> None:
        """Close the current bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries, keys joined by '/'."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[prefix + key] = float(value)
    return flat
