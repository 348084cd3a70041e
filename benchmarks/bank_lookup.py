"""Times the search of the nearest bank entry, min_j of Eqs. (6) and (8), beside a loop over the regions.

    python benchmarks/bank_lookup.py

30 regions of 2048 channels, rings of 50 and 500 full; forward and backward to the regions' features, on one thread.
Distances and gradients are first verified to be the same.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from matching_step import CHANNELS, QUICK_CHANNELS, SPACE, full_bank, street
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.matching import Distance, FeatureBank, region_means
from timing import compared, options_of, paired_seconds, record

PAIR_DISTANCES: dict[Distance, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1_mean": lambda feature, entries: (feature - entries).abs().mean(1),
    "l2": lambda feature, entries: (feature - entries).square().sum(1).sqrt(),
    "cosine": lambda feature, entries: 1 - F.cosine_similarity(feature[None], entries, dim=1),
}


def plain_nearest(
    entries: list[torch.Tensor], features: torch.Tensor, class_index: list[int], distance: Distance
) -> torch.Tensor:
    """Each region beside all entries of its class, by broadcasting."""
    pair_distance = PAIR_DISTANCES[distance]
    return torch.stack(
        [pair_distance(feature, entries[k]).min() for feature, k in zip(features, class_index, strict=True)]
    )


def gradient_of(distances: Callable[[], torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    features.grad = None
    distances().sum().backward()
    assert features.grad is not None
    return features.grad


def main() -> None:
    options = options_of(__doc__)
    channels = QUICK_CHANNELS if options.quick else CHANNELS
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a training
    torch.manual_seed(0)
    size = (91, 161)
    class_index = region_means(torch.zeros(1, 1, *size), street(size, np.random.default_rng(0)), SPACE).class_index
    features = torch.randn(len(class_index), channels).mul(0.05).add(0.4).requires_grad_()
    bank: FeatureBank = full_bank(channels)
    entries = [bank.entries(k) for k in range(SPACE.num_classes)]
    classes = class_index.tolist()

    results = []
    for distance in PAIR_DISTANCES:

        def ours(distance: Distance = distance) -> torch.Tensor:
            return bank.nearest(features, class_index, distance)

        def plain(distance: Distance = distance) -> torch.Tensor:
            return plain_nearest(entries, features, classes, distance)

        torch.testing.assert_close(ours(), plain(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient_of(ours, features), gradient_of(plain, features), rtol=1e-4, atol=1e-7)
        seconds = paired_seconds(
            lambda ours=ours: gradient_of(ours, features),
            lambda plain=plain: gradient_of(plain, features),
            2 if options.quick else 15,
        )
        peer = "a broadcast difference and its minimum for each region"
        results.append(compared("bank_lookup", distance, seconds, peer) | {"regions": len(classes), "threads": 1})
    record(results, options.result)


if __name__ == "__main__":
    main()
