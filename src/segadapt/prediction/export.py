"""A network as a program for other programs: ONNX, or torch.export's own file.

In: a `DeepLab` and images to check with. Out: a file whose program takes 8-bit RGB images (B, H, W, 3), of any number
and size, and gives their train ids (B, H, W) as 8-bit integers: normalisation, network, resizing of the logits and the
choice of the class are inside. Images should come at the size the network was tested at, which the file says beside the
classes.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segadapt.data.transforms import resize_image
from segadapt.errors import InputError
from segadapt.evaluation.label_maps import resize_logits
from segadapt.networks.deeplab import DeepLab

Target = Literal["onnx", "torch-export"]
Program = Callable[[UInt8[np.ndarray, "B H W 3"]], UInt8[np.ndarray, "B H W"]]

# Programs of other libraries round differently, so a pixel whose two best classes are equally likely may change.
SMALLEST_AGREEMENT = 0.999
DESCRIPTION = "segadapt.json"  # of the model, among the extra files of a torch.export file
_EXAMPLE = (2, 96, 136, 3)


class LabelProgram(nn.Module):
    """8-bit RGB images to train ids: what is exported.

    Args:
        network: In evaluation mode.
    """

    def __init__(self, network: DeepLab) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B H W"]:
        """Most likely class of each pixel, as `evaluate` finds it."""
        values = images.permute(0, 3, 1, 2)
        logits = self.network(self.network.normalisation(values)).logits
        full = nn.functional.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=True)
        return full.argmax(1).to(torch.uint8)


@dataclass(frozen=True)
class Agreement:
    """Share of pixels on which an exported program and the network give one class, over all images and in the worst."""

    mean: float
    worst: float
    images: int


def describe(network: DeepLab, tested_size: tuple[int, int] | None) -> dict[str, str]:
    """What the file says of its program: classes, colours, and the (height, width) to resize images to, as JSON."""
    space = network.label_space
    content = {"classes": space.names, "colours": space.colours, "input_size": tested_size}
    return {name: json.dumps(value) for name, value in content.items()}


def export(network: DeepLab, target: Target, description: dict[str, str]) -> bytes:
    """The content of the file.

    Args:
        network: On the CPU.
        target: 'onnx' (opset of torch's default) or 'torch-export', which torch.export.load reads.
        description: See `describe`; metadata of an ONNX model, an extra file of the other.

    Raises:
        InputError: The extra [export] is not installed.
    """
    if target == "onnx":
        require_onnx()
    any_size = {"images": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}}
    with quiet_exporter(), torch.no_grad():
        example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
        program = torch.export.export(LabelProgram(network).eval(), (example,), dynamic_shapes=any_size)
        return _onnx(program, description) if target == "onnx" else _torch_export(program, description)


def require_onnx() -> None:
    """Make sure that ONNX files can be written and run.

    Raises:
        InputError: The extra [export] is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--to onnx: {error.name} is missing; pip install 'segadapt[export]'") from None


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep torch's exporter from telling users what its own code does wrong, and that torchvision is not there."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        registration.setLevel(level)


def _onnx(program: ExportedProgram, description: dict[str, str]) -> bytes:
    exported = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["labels"], verbose=False)
    assert exported is not None
    exported.model.metadata_props.update(description)
    return exported.model_proto.SerializeToString()


def _torch_export(program: ExportedProgram, description: dict[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(description)})
    return file.getvalue()


def run_of(content: bytes, target: Target) -> Program:
    """The program in the content of a file, to be called with images."""
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(["labels"], {"images": images})[0])
    program = torch.export.load(io.BytesIO(content)).module()
    return lambda images: program(torch.from_numpy(images.copy())).numpy()


@torch.inference_mode()
def agreement(
    network: DeepLab,
    program: Program,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    advance: Callable[[], None] = lambda: None,
) -> Agreement:
    """How well a program agrees with the network, on each image alone and, at another size, on two at once.

    Args:
        network: What the program was made from.
        program: See `run_of`.
        images: At the size the network was tested at.
        advance: Called after each image.
    """
    shares = []
    for image in images:
        shares.append(share_alike(network, program, image[None]))
        advance()
    # an odd size that is no multiple of any stride, which a program with fixed sizes could not take
    odd = (images[0].shape[0] * 3 // 4 | 1, images[0].shape[1] * 3 // 4 | 1)
    shares.append(share_alike(network, program, np.stack([resize_image(image, odd) for image in images[:2]])))
    return Agreement(float(np.mean(shares)), min(shares), len(images))


def share_alike(network: DeepLab, program: Program, images: UInt8[np.ndarray, "B H W 3"]) -> float:
    """Share of pixels to which both give one class."""
    size = (images.shape[1], images.shape[2])
    values = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits = network(network.normalisation(values)).logits
    labels = torch.stack([resize_logits(one, size).argmax(0) for one in logits]).numpy()
    return float((program(images) == labels).mean())


def refuse_disagreement(found: Agreement, target: Target) -> None:
    """Let nothing be written that is not the network.

    Raises:
        InputError: On some image the program and the network differ on more than a thousandth of the pixels.
    """
    if not found.worst >= SMALLEST_AGREEMENT:
        raise InputError(
            f"--to {target}: on one image only {100 * found.worst:.2f} % of the pixels agree with the network; nothing "
            f"was written (this torch {torch.__version__} exports it wrongly; try the other --to)"
        )
