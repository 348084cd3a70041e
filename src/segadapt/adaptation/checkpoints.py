"""A training run on disk: `model.safetensors`, which stands alone, and `train_state.pt`, which continues the run.

Files are written under another name, synced, then renamed: what is there is whole.
"""

import os
from pathlib import Path
from typing import Any

import torch

from segadapt.errors import InputError

STATE_FILE = "train_state.pt"


def save_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace `run_dir/train_state.pt` by `state`, as a whole or not at all."""
    temporary = run_dir / (STATE_FILE + ".part")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run_dir / STATE_FILE)


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
    except Exception as error:
        raise InputError(f"{path}: not a readable training state; delete it to start this training again") from error
