"""Scores that need no target label, to choose a checkpoint or a setting by.

In: a network, unlabelled target images, labelled source images. Out: a number for each score; `better` says which of
two is. How well each of them follows the true score is measured by `ablate` and `sweep` (rank correlation).
"""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segadapt.data.loading import EvaluationBatch
from segadapt.evaluation.evaluate import evaluate, predict_logits
from segadapt.networks.deeplab import DeepLab
from segadapt.processes import ONE_PROCESS, Processes

# score -> whether more of it is better
HIGHER_IS_BETTER = {
    "entropy": False,
    "soft_neighbourhood_density": True,
    "information_maximisation": True,
    "source_validation": True,
}
TEMPERATURE = 0.05  # of the neighbours' softmax, as published
POSITIONS = 512  # of an image, whose neighbourhoods are looked at


def better(score: str, value: float, than: float) -> bool:
    """Whether `value` of a score promises a better network than another value does."""
    return value > than if HIGHER_IS_BETTER[score] else value < than


@torch.inference_mode()
def label_free_scores(
    network: DeepLab,
    target: Iterable[EvaluationBatch],
    source: Iterable[EvaluationBatch],
    processes: Processes = ONE_PROCESS,
) -> dict[str, float]:
    """All scores of `network` (put into eval mode, and back).

    entropy: mean over pixels, in nats (as minimised by Vu et al. 2019). information_maximisation: entropy of the mean
    prediction minus the mean entropy (Krause et al. 2010). soft_neighbourhood_density: mean entropy of the similarity
    of a pixel's prediction to those of the other pixels of its image (Saito et al. 2021). source_validation: mIoU in
    percent of `source`. Predictions are taken at the stride of the network.

    Args:
        network: Any.
        target: Images of the target; labels are not looked at.
        source: Images with labels, of the source.
        processes: Each with its share of the images.

    Returns:
        The scores by name; none where `target` has no image (all were left out).
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    # pixels, sum of their entropies, images, sum of their densities, then the summed predictions
    sums = torch.zeros(4 + network.label_space.num_classes, dtype=torch.float64, device=device)
    for batch in target:
        probabilities = predict_logits(network, batch.images).softmax(1)
        for image in probabilities.flatten(2).mT:
            sums[0] += len(image)
            sums[1] += entropy(image).double().sum()
            sums[2] += 1
            sums[3] += neighbourhood_density(image).double()
            sums[4:] += image.double().sum(0)
    network.train(was_training)
    pixels, entropies, images, densities, *predicted = processes.sum(sums).tolist()
    if not images:
        return {}
    mean_entropy = entropies / pixels
    of_mean = -sum(share / pixels * math.log(share / pixels) for share in predicted if share > 0)
    return {
        "entropy": mean_entropy,
        "soft_neighbourhood_density": densities / images,
        "information_maximisation": of_mean - mean_entropy,
        "source_validation": evaluate(network, source, processes=processes).miou,
    }


def entropy(probabilities: Float[Tensor, "P N"]) -> Float[Tensor, " P"]:
    """Of each row, in nats."""
    return torch.special.entr(probabilities).sum(1)


def neighbourhood_density(probabilities: Float[Tensor, "P N"]) -> Float[Tensor, ""]:
    """Soft neighbourhood density of one image: high where predictions form dense clusters.

    Each of up to POSITIONS evenly spread pixels has a distribution over the others, the softmax of the cosine of
    their predictions over TEMPERATURE; returned is the mean of these distributions' entropies, in nats; 0 for a single
    pixel, which has no neighbour.
    """
    if len(probabilities) < 2:
        return probabilities.new_zeros(())
    spread = torch.linspace(0, len(probabilities) - 1, min(POSITIONS, len(probabilities))).round().long()
    predictions = F.normalize(probabilities[spread.to(probabilities.device)], dim=1)
    similarity = predictions @ predictions.T / TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    return entropy(similarity.softmax(1)).mean()


def selected_steps(checks: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, int]:
    """For each score the first step that has its best value.

    Args:
        checks: Steps, rising, with the scores of each.
    """
    best: dict[str, tuple[int, float]] = {}
    for step, scores in checks:
        for score, value in scores.items():
            if score not in best or better(score, value, best[score][1]):
                best[score] = (step, value)
    return {score: step for score, (step, _) in best.items()}
