"""Does matching push the features the way the target's labels would? No training, one model, a few images.

    python benchmarks/matching_gradient.py --config configs/streets_frozen.yaml
        --model runs/streets_frozen/warm_up/seed0/model.safetensors

Banks are filled from source images by the model; then, for target images, the gradient of each loss with respect to the
backbone is summed over the images and compared with that of the cross-entropy with the true target labels, which no
training may see. Prints for each loss the cosine of the two (1: the same way, below 0: against the labels) and its norm
per image. The matching losses are shown by kind, by whether the classifier agrees with the region's class, by class,
and as they would be with true labels instead of predictions.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from segadapt.adaptation.step import agrees, cross_entropy, find_regions, upsample
from segadapt.adaptation.trainer import new_state
from segadapt.commands.options import experiment_from
from segadapt.config import DataConfig
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.data.transforms import resize_labels
from segadapt.matching import Regions, correct_labels, matching_losses, shrink_labels
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import load_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="experiment: its source, target and matching options")
    parser.add_argument(
        "--model", required=True, help="model.safetensors, as a rule of the row source_only or a warm-up"
    )
    parser.add_argument("--source-images", type=int, default=60, help="images that fill the banks")
    parser.add_argument("--target-images", type=int, default=24)
    options = parser.parse_args()

    experiment = experiment_from(options.config)
    network = load_network(options.model)
    state = new_state(experiment, network.label_space, torch.device("cpu"))
    state.segmenter = network
    matching = experiment.matching

    with torch.no_grad():
        for images, labels in pairs(experiment.source, network, options.source_images):
            output = network(images)
            small = shrink_labels(labels, output.features.shape[-2:], matching.label_sampling)
            regions = find_regions(output.features, correct_labels(output.logits.argmax(1), small), state)
            state.bank.store(regions.select(agrees(network, regions)))
    names = network.label_space.names
    print("bank:", ", ".join(f"{name} {n}" for name, n in zip(names, state.bank.filled.tolist(), strict=True)))

    parameters = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    sums: dict[str, Tensor | float] = defaultdict(float)
    for images, labels in pairs(experiment.target, network, options.target_images):
        output = network(images)
        small = shrink_labels(labels, output.features.shape[-2:], matching.label_sampling)
        losses = {"cross-entropy, true labels": cross_entropy(upsample(output.logits, labels), labels)}
        predicted = find_regions(output.features, output.logits.argmax(1), state)
        agreed = agrees(network, predicted)
        groups: dict[str, Regions] = {
            "agreed": predicted.select(agreed),
            "not agreed": predicted.select(~agreed),
            "true labels": find_regions(output.features, small, state),
        }
        for group, regions in groups.items():
            pair = matching_losses(regions, state.bank, matching.distance, matching.min_fill)
            losses |= {f"stuff, {group}": pair[0], f"things, {group}": pair[1]}
        for index, name in enumerate(names):
            regions = predicted.select(predicted.class_index == index)
            losses[f"class {name}"] = sum(matching_losses(regions, state.bank, matching.distance, matching.min_fill))
        for name, loss in losses.items():
            if loss.requires_grad and loss.item():
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                sums[name] = sums[name] + torch.cat([gradient.flatten() for gradient in gradients])

    true = sums["cross-entropy, true labels"]
    assert isinstance(true, Tensor)
    print("| loss | cosine with the true labels' gradient | norm per image |\n| --- | --- | --- |")
    for name, gradient in sums.items():
        assert isinstance(gradient, Tensor)
        cosine = torch.cosine_similarity(gradient, true, dim=0)
        print(f"| {name} | {cosine:+.2f} | {gradient.norm() / options.target_images:.2f} |")


def pairs(data: DataConfig, network: DeepLab, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (1, 3, H, W) and labels at their size, spread evenly over the set."""
    images = find_pairs(data, labelled=True)
    chosen = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int))
    subset = replace(
        images, images=tuple(images.images[i] for i in chosen), labels=tuple(images.labels[i] for i in chosen)
    )
    for batch in evaluation_batches(subset, network.label_space, data, 1, workers=0):
        labels = resize_labels(batch.labels[0].numpy(), batch.images.shape[-2:])
        yield network.normalisation(batch.images), torch.from_numpy(labels.astype(np.int64))[None]


if __name__ == "__main__":
    main()
