"""Score a network on a labelled set, as docs/method.md says.

In: a network and a stream of images with labels of any size. Out: an `Evaluation`: IoU a class, mIoU, subset scores.
Logits go bilinearly (align_corners) to the labels' own size; no test-time augmentation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import EvaluationBatch
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.networks.deeplab import DeepLab


@dataclass(frozen=True)
class Evaluation:
    """Scores in percent; a class met neither in labels nor in predictions has None."""

    miou: float
    iou: dict[str, float | None]
    subsets: dict[str, float]
    images: int

    def as_json(self) -> dict[str, object]:
        """Plain types, ready for json.dump."""
        return {"miou": self.miou, "iou": self.iou, "subsets": self.subsets, "images": self.images}


def predict_logits(network: DeepLab, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B N h w"]:
    """Logits at the network's own stride, float32; bf16 arithmetic where the device is a GPU."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = network(network.normalisation(images.to(device))).logits
    return logits.float()


def predict_labels(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Integer[Tensor, "H W"]:
    """Most likely class of each pixel at `size` (height, width)."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=True)[0].argmax(0)


@torch.inference_mode()
def evaluate(network: DeepLab, batches: Iterable[EvaluationBatch]) -> Evaluation:
    """Evaluate `network` (put into eval mode, and back) over all `batches`.

    Args:
        network: Its label space says which classes and subsets are scored.
        batches: Images at the network's input size, labels of its classes at their own.
    """
    space, was_training = network.label_space, network.training
    network.eval()
    matrix = ConfusionMatrix(space.num_classes, device=next(network.parameters()).device)
    images = 0
    for batch in batches:
        for logits, labels in zip(predict_logits(network, batch.images), batch.labels, strict=True):
            matrix.update(predict_labels(logits, (labels.shape[-2], labels.shape[-1])), labels)
            images += 1
    network.train(was_training)
    return summarise(matrix, space, images)


def summarise(matrix: ConfusionMatrix, space: LabelSpace, images: int) -> Evaluation:
    """The scores of a filled confusion matrix, in percent."""
    iou = [None if value != value else 100 * value for value in matrix.iou().tolist()]
    return Evaluation(
        miou=100 * matrix.miou(),
        iou=dict(zip(space.names, iou, strict=True)),
        subsets={name: 100 * matrix.miou(space.subset_ids(name)) for name in space.subsets},
        images=images,
    )
