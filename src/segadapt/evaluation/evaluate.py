"""Score a network on a labelled set, as docs/method.md says.

In: a network and a stream of images with labels of any size. Out: an `Evaluation`: IoU a class, mIoU, subset scores.
Logits go bilinearly (align_corners) to the labels' own size; no test-time augmentation.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segadapt.data.label_spaces import IGNORE
from segadapt.data.loading import EvaluationBatch
from segadapt.evaluation.label_maps import predict_labels
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.networks.deeplab import DeepLab
from segadapt.processes import ONE_PROCESS, Processes


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
    """Logits at the network's own stride, float32; bf16 arithmetic where the device is a GPU.

    One image after another: a convolution may sum in another order in a batch of another size, and the last digits
    decide where two classes are equally likely. So the labels of an image depend on no other image. On a CPU a batch
    of four would be 1 to 6 % faster; on a GPU one image of the usual sizes is enough work.
    """
    device = next(network.parameters()).device
    images = images.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = [network(network.normalisation(image)).logits for image in images.split(1)]
    return torch.cat(logits).float()


@torch.inference_mode()
def evaluate(
    network: DeepLab,
    batches: Iterable[EvaluationBatch],
    restricted_argmax: bool = False,
    processes: Processes = ONE_PROCESS,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate `network` (put into eval mode, and back) over all `batches`.

    Args:
        network: Its label space says which classes and subsets are scored.
        batches: Images at the network's input size, labels of its classes at their own.
        restricted_argmax: Whether the score of a subset (SYNTHIA's 13 or 16 of 19 classes) asks for the most likely
            class of the subset, on the pixels that belong to it. As a rule it does not: a pixel predicted as another
            class is an error of its own class, and a pixel of another class one of the class it is predicted as.
        processes: Each with its share of the images in `batches`; all get the scores of the whole set.
        progress: Called after each image.
    """
    space, was_training = network.label_space, network.training
    device = next(network.parameters()).device
    network.eval()
    matrix = ConfusionMatrix(space.num_classes, device=device)
    members = {name: torch.tensor(space.subset_ids(name), device=device) for name in space.subsets}
    restricted = {name: ConfusionMatrix(space.num_classes, device) for name in members if restricted_argmax}
    images = 0
    for batch in batches:
        for logits, labels in zip(predict_logits(network, batch.images), batch.labels, strict=True):
            size = (labels.shape[-2], labels.shape[-1])
            matrix.update(predict_labels(logits, size), labels)
            for name, subset_matrix in restricted.items():
                ids, labels = members[name], labels.to(device)
                of_subset = ids[predict_labels(logits[ids], size).long()]
                subset_matrix.update(of_subset, labels.where(torch.isin(labels, ids), IGNORE))
            images += 1
            progress()
    network.train(was_training)
    for counted in (matrix, *restricted.values()):
        counted.counts = processes.sum(counted.counts)
    images = int(processes.sum(torch.tensor(images)))
    iou = [None if value != value else 100 * value for value in matrix.iou().tolist()]
    return Evaluation(
        miou=100 * matrix.miou(),
        iou=dict(zip(space.names, iou, strict=True)),
        subsets={name: 100 * restricted.get(name, matrix).miou(space.subset_ids(name)) for name in members},
        images=images,
    )
