"""Side-by-side pictures: photograph, predictions of several models, labels.

In: model files and a labelled set. Out: one PNG for each of a few images, each panel with its caption.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from segadapt.config import DataConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.evaluation.evaluate import predict_logits
from segadapt.evaluation.label_maps import predict_labels
from segadapt.networks.weights import load_network

CAPTION_HEIGHT = 22
GAP = 6


def colourise(labels: Integer[np.ndarray, "H W"], space: LabelSpace) -> UInt8[np.ndarray, "H W 3"]:
    """Labels in the label space's colours; ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: space.num_classes] = space.colours
    return table[labels]


@torch.inference_mode()
def save_comparison(
    models: Mapping[str, Path], data: DataConfig, out: Path, device: torch.device, count: int = 4
) -> list[Path]:
    """Write `count` pictures of images spread evenly over the set.

    Args:
        models: Model files by caption; they share one label space.
        data: The labelled set.
        out: Folder for the pictures, which lie in it as the images do in theirs.
        device: Where to predict.
        count: Number of pictures.

    Returns:
        The files written.
    """
    networks = {caption: load_network(path).to(device) for caption, path in models.items()}
    space = next(iter(networks.values())).label_space
    images = find_pairs(data, labelled=True)
    chosen = np.unique(np.linspace(0, len(images.images) - 1, count + 2)[1:-1].round().astype(int))
    subset = replace(
        images,
        images=tuple(images.images[index] for index in chosen),
        labels=tuple(images.labels[index] for index in chosen),
    )
    written = []
    for batch in evaluation_batches(subset, space, data, 1, workers=0):
        labels = batch.labels[0]
        size = (labels.shape[-2], labels.shape[-1])
        panels = {"photograph": batch.images[0].permute(1, 2, 0).numpy()}
        for caption, network in networks.items():
            predicted = predict_labels(predict_logits(network, batch.images)[0], size)
            panels[caption] = colourise(predicted.cpu().numpy(), space)
        panels["labels"] = colourise(labels.numpy(), space)
        path = out / batch.names[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        side_by_side(panels, size).save(path)
        written.append(path)
    return written


def side_by_side(panels: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], size: tuple[int, int]) -> Image.Image:
    """One picture of all panels at `size` (height, width), captions above."""
    height, width = size
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, (caption, pixels) in enumerate(panels.items()):
        left = index * (width + GAP)
        draw.text((left + 2, 2), caption, fill="black", font=font)
        sheet.paste(Image.fromarray(pixels).resize((width, height)), (left, CAPTION_HEIGHT))
    return sheet
