"""AdaBN (Li et al., 2017): batch-norm statistics of a trained network, estimated anew on unlabelled images.

In: a network and images. Out: the same network, whose running means and variances are those of the images: the mean
over all images of the statistics that each has alone, so that the order of the images does not matter.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from segadapt.data.transforms import resize_image
from segadapt.errors import InputError
from segadapt.networks.deeplab import OUTPUT_STRIDE, DeepLab
from segadapt.networks.weights import read_metadata, save_network
from segadapt.prediction.pictures import read_srgb

FROZEN_WARNING = (
    "this network was trained with frozen batch norm: its layers have always seen other statistics than those of its "
    "images, so new ones may make it worse; compare with 'segadapt evaluate'"
)


@torch.inference_mode()
def recalibrate(network: DeepLab, images: Iterable[UInt8[Tensor, "1 3 H W"]]) -> int:
    """Set the running statistics of all batch norms to their mean over the images; nothing else changes.

    While it looks at an image, each layer normalises by the statistics of that image, as in training with batches of 1.

    Returns:
        How many images there were.

    Raises:
        InputError: The network has no batch norm.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        raise InputError(f"{network.config.backbone} has no batch norm; there is nothing to recalibrate")
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's name for the mean over all batches
        layer.train()
    device, count = next(network.parameters()).device, 0
    for image in images:
        network.backbone(network.normalisation(image.to(device)))
        count += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    return count


def images_at(
    paths: Sequence[Path], size: tuple[int, int] | None, advance: Callable[[], None]
) -> Iterator[UInt8[Tensor, "1 3 H W"]]:
    """Images one by one, resized to (height, width) or, with None, as they are; `advance` is called after each.

    Raises:
        InputError: One cannot be read, or is so small that features have one value a channel, which has no variance.
    """
    for path in paths:
        image = read_srgb(path)
        image = resize_image(image, size or (image.shape[0], image.shape[1]))
        if max(image.shape[:2]) <= OUTPUT_STRIDE:
            raise InputError(
                f"{path}: {image.shape[0]}x{image.shape[1]} is too small for statistics of its own; leave it out"
            )
        yield torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        advance()


def save_recalibrated(model: Path, network: DeepLab, folder: str, count: int, out: Path) -> None:
    """Write the network with what `model` says of itself, and that it was recalibrated, on how many images of which."""
    metadata = read_metadata(model)
    provenance = json.loads(metadata.get("provenance", "{}"))
    provenance["recalibrated_on"] = {"folder": folder, "images": count}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_network(out, network, {**metadata, "provenance": json.dumps(provenance)})
