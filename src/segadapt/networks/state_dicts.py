"""Reading tensors by name out of files of strangers, without running anything that such a file may hold.

In: a .safetensors file, or whatever `torch.save` wrote. Out: one flat state dict. A checkpoint that wraps its state
dict (`{"state_dict": ..., "iter": ...}`, `{"ResNet101": ...}`) is opened.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segadapt.errors import InputError


def require_file(path: Path) -> None:
    """Raises InputError if there is no such file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the file on the CPU, floating-point ones as float32, names without `module.`.

    Raises:
        InputError: The file is absent or damaged, holds objects that are no tensors, or no state dict or several.
    """
    require_file(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that it then refuses or reads; either is said below
                content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise InputError(f"{path} is no state dict that torch reads safely (damaged, or something else)") from None
        raise InputError(
            f"{path} holds more than plain tensors ({refused.group(1)}), and opening that could run anything; "
            "where you trust it, save its state dict alone with torch.save"
        ) from None
    except Exception as error:  # damaged archives and pickles end in whatever the reader stumbles over
        raise InputError(f"{path} is no state dict that torch reads safely ({type(error).__name__})") from None
    state = _unwrapped(content, path)
    # Parallel training prefixes every name; half-precision training may have saved halves.
    return {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, or the only one among the values of a checkpoint."""
    if _is_state_dict(content):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, not a state dict of tensors")
    inner = {str(key): value for key, value in content.items() if _is_state_dict(value)}
    if len(inner) == 1:
        return next(iter(inner.values()))
    if not inner:
        raise InputError(f"{path} holds something else than a state dict of tensors")
    raise InputError(
        f"{path} holds several state dicts ({', '.join(inner)}); save the one of the segmentation network alone"
    )


def _is_state_dict(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
