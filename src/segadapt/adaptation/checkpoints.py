"""The state of a training on disk, `train_state.pt`, from which the run continues; and files that are whole or absent.

`model.safetensors`, which stands alone, is written by `networks.weights`.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segadapt.errors import InputError

STATE_FILE = "train_state.pt"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: under another name, synced, then renamed, so what is there is whole."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace `run_dir/train_state.pt` by `state`, as a whole or not at all."""
    with whole_file(run_dir / STATE_FILE) as file:
        torch.save(state, file)


def load_state(run_dir: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if nothing was.

    Raises:
        InputError: the file cannot be read.
    """
    path = run_dir / STATE_FILE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable training state; delete it to start this training again") from error
