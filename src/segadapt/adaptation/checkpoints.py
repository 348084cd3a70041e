"""The state of a training on disk, from which the run continues.

`checkpoints/STEP-DIGEST.pt`, the last two of them: DIGEST begins the file's SHA-256, so a file that was torn by a crash
or has rotted is found out before it is read. `model.safetensors`, which stands alone, is written by `networks.weights`.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from segadapt.adaptation.machine import Machine
from segadapt.errors import InputError
from segadapt.whole_file import sync_folder, whole_file

FOLDER, KEPT, DIGEST_LENGTH = "checkpoints", 2, 16


def save_state(run_dir: Path, step: int, state: dict[str, Any]) -> None:
    """Add the checkpoint of `step`, whole or not at all, and remove those before the last two."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    written = folder / "new.pt"
    with whole_file(written) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # all that torch lets through of an error of the disk
            raise OSError(str(error)) from error
    newest = folder / f"{step:09}-{digest_of(written)}.pt"
    written.replace(newest)
    sync_folder(folder)
    others = [path for path in saved_states(run_dir) if path != newest]
    same_step = [path for path in others if path.name.startswith(f"{step:09}-")]
    for path in {*same_step, *[path for path in others if path not in same_step][KEPT - 1 :]}:
        path.unlink()


def saved_states(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; of one step, the one written last."""
    files = (run_dir / FOLDER).glob("*-*.pt")
    return sorted(files, key=lambda path: (path.name.split("-")[0], path.stat().st_mtime_ns), reverse=True)


def digest_of(path: Path) -> str:
    """Begin of the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def newest_whole(run_dir: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose content is what was written, if there is one, and the damaged ones before it."""
    damaged = []
    for path in saved_states(run_dir):
        if digest_of(path) == path.stem.split("-")[1]:
            return path, damaged
        damaged.append(path)
    return None, damaged


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in a checkpoint. Only tensors and plain values are read; code in it is never run.

    Raises:
        InputError: the file holds something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it then refuses or reads
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged archives and pickles end in whatever the reader stumbles over
        raise InputError(f"{path}: not a readable training state; delete it to continue from the one before") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds {type(state).__name__}, no training state; delete it")
    return state


@runtime_checkable
class Resumable(Protocol):
    """A training's state, as far as a checkpoint knows it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what its `state_dict` returned."""


def restore(state: Resumable, run_dir: Path, machine: Machine) -> None:
    """Bring `state` to the newest whole checkpoint of `run_dir`, if there is one; rank 0 says which.

    Raises:
        InputError: the checkpoint is of another training.
    """
    path, damaged = machine.processes.share(newest_whole(run_dir) if machine.processes.is_first else (None, []))
    for other in damaged:
        back_to = f"continuing from {path.name}, the one before" if path else "starting this training again"
        machine.terminal.say(f"{other}: damaged, its content is not what was written; {back_to}")
    if path:
        try:
            state.load_state_dict(load_state(path, machine.device))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: not the state of this network ({error}); it is of another version of segadapt, or was "
                "changed: choose another --run_dir"
            ) from None
