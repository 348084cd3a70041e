"""A model file at work in Python: `Segmenter.load(path).predict(image)`.

In: images of any size. Out: a `Prediction` of each at its own size, the one that `evaluate` scores wherever the whole
image is seen at once: logits at the network's stride, bilinearly (align_corners) resized.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from segadapt.data.label_spaces import LabelSpace
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import predict_logits
from segadapt.evaluation.label_maps import predict_labels, resize_logits
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import load_network, read_metadata
from segadapt.prediction import View
from segadapt.prediction.pictures import palette_picture, read_srgb, rgb_of
from segadapt.prediction.windows import Canvas, canvas_of, ramp


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of one image.

    Args:
        labels: Train id of each pixel.
        logits: Of the whole image on a coarser grid whose corners are the image's.
        label_space: The classes.
        canvas: What the network saw.
    """

    labels: UInt8[np.ndarray, "H W"]
    logits: Float[Tensor, "N h w"]
    label_space: LabelSpace
    canvas: Canvas

    @torch.inference_mode()
    def probabilities(self) -> Float[np.ndarray, "N H W"]:
        """Probability of each class at each pixel, float32; the largest is that of `labels`."""
        height, width = self.labels.shape
        return resize_logits(self.logits, (height, width)).softmax(0).cpu().numpy()

    def confidence(self) -> Float[np.ndarray, "H W"]:
        """Probability of the predicted class at each pixel, float32."""
        return self.probabilities().max(0)

    def picture(self) -> Image.Image:
        """The labels as a palette picture: values are train ids, shown in the label space's colours."""
        return palette_picture(self.labels, self.label_space)


class Segmenter:
    """A network with all it needs to label images.

    Args:
        network: On the device where it is to run.
        tested_size: (height, width) it was tested at; None: each image at its own.
        view: How it looks at images that are larger or of another shape, see `windows.canvas_of`.
        batch_size: Images, or windows of images, that it sees at a time.

    Raises:
        InputError: The batch size is below 1, or windows are asked for and the network has no tested size.
    """

    def __init__(
        self, network: DeepLab, tested_size: tuple[int, int] | None, view: View = "auto", batch_size: int = 4
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is too small; use 1 or more")
        canvas_of((1, 1), tested_size, view)  # a view that cannot be is refused here, before `predict` writes anything
        self.network = network.eval()
        self.tested_size = tested_size
        self.view: View = view
        self.batch_size = batch_size

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", view: View = "auto", batch_size: int = 4
    ) -> "Segmenter":
        """The network of a model file; classes, colours, normalisation and size are in the file.

        Raises:
            InputError: It is no model file.
        """
        return cls(load_network(path).to(device), tested_size_of(path), view, batch_size)

    @property
    def label_space(self) -> LabelSpace:
        """The classes; the train id of one is its position."""
        return self.network.label_space

    def predict(self, image: str | Path | Image.Image | UInt8[np.ndarray, "H W 3"]) -> Prediction:
        """Label one image.

        Args:
            image: A file; or a Pillow image, whose EXIF orientation and colour profile are applied as those of a file
                are; or an array in RGB.

        Raises:
            InputError: The file cannot be read, or the array is no 8-bit RGB image.
        """
        if isinstance(image, str | Path):
            image = read_srgb(Path(image))
        elif isinstance(image, Image.Image):
            image = rgb_of(image)
        return next(self.predict_batch([image]))

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Iterator[Prediction]:
        """Label several RGB images (H, W, 3), which may differ in size; what has one size is seen together.

        Raises:
            InputError: An array is no 8-bit RGB image.
        """
        for image in images:
            refuse_no_rgb(image)
        canvases = [canvas_of((image.shape[0], image.shape[1]), self.tested_size, self.view) for image in images]
        parts = [part for image, canvas in zip(images, canvases, strict=True) for part in canvas.cut(image)]
        logits = iter(self._logits_of(parts))
        for image, canvas in zip(images, canvases, strict=True):
            whole = blended(canvas, (next(logits) for _ in canvas.corners))
            labels = predict_labels(whole, (image.shape[0], image.shape[1]))
            yield Prediction(labels.cpu().numpy(), whole, self.label_space, canvas)

    def _logits_of(self, parts: list[np.ndarray]) -> list[Float[Tensor, "N _ _"]]:
        logits: list[Tensor] = []
        while len(logits) < len(parts):
            first = len(logits)
            last = first + 1
            while last < min(len(parts), first + self.batch_size) and parts[last].shape == parts[first].shape:
                last += 1
            batch = np.stack(parts[first:last]).transpose(0, 3, 1, 2)
            logits += predict_logits(self.network, torch.from_numpy(np.ascontiguousarray(batch)))
        return logits


def refuse_no_rgb(image: np.ndarray) -> None:
    """Raises InputError for an array that is no 8-bit RGB image; of values from 0 to 1 the labels would be nonsense."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"image: an array of {image.dtype} and shape {image.shape}; give uint8 RGB of shape (height, width, 3)"
        )


def tested_size_of(path: str | Path) -> tuple[int, int] | None:
    """(height, width) that the model in a file was tested at; None: each image at its own size."""
    size = json.loads(read_metadata(path).get("input_size", "null"))
    return (size[0], size[1]) if size else None


def blended(canvas: Canvas, logits: Iterator[Float[Tensor, "N _ _"]]) -> Float[Tensor, "N _ _"]:
    """Logits of the whole image from those of its windows: their weighted mean, weights falling towards window edges.

    A single window's stay as they are, at the network's stride; several are blended at the size of the canvas.
    """
    if canvas.whole:
        return next(logits)
    height, width = canvas.window
    weight = torch.from_numpy(np.outer(ramp(height), ramp(width))).float()
    total, weights = torch.zeros(0), torch.zeros(canvas.size)
    for (top, left), window in zip(canvas.corners, logits, strict=True):
        if not total.numel():
            weight, weights = weight.to(window.device), weights.to(window.device)
            total = window.new_zeros((len(window), *canvas.size))
        total[:, top : top + height, left : left + width] += weight * resize_logits(window, canvas.window)
        weights[top : top + height, left : left + width] += weight
    return total / weights
