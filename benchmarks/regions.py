"""Times the regions of one image, Eqs. (5) and (7), beside three other ways to find and average them.

    python benchmarks/regions.py

Mean features of about 30 regions of a source feature map of the paper's size, forward and backward; and finding the
regions alone, for which the feature map has one channel. All are first verified to give the same, on one thread.
"""

from collections.abc import Callable

import cc3d
import numpy as np
import torch

from matching_step import (
    CHANNELS,
    MAX_INSTANCES,
    QUICK_CHANNELS,
    QUICK_SOURCE_SIZE,
    SOURCE_SIZE,
    SPACE,
    plain_regions,
    street,
)
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.matching import region_means
from timing import compared, options_of, paired_seconds, record

Means = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ours(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return region_means(features, labels, SPACE, MAX_INSTANCES).features


def loop(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([mean for _, means in plain_regions(features[0], labels[0]) for mean in means])


def picked(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Only a region's own pixels are read, but they are copied out one region after the other."""
    numbers, count = numbered_regions(labels[0].numpy())
    masks = [torch.from_numpy(numbers == number) for number in range(count)]
    return torch.stack([features[0][:, mask].mean(1) for mask in masks])


def added(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Every pixel is added to the sum of its region."""
    numbers, count = numbered_regions(labels[0].numpy())
    ids = torch.from_numpy(np.where(numbers < 0, count, numbers)).flatten()
    sums = features.new_zeros(count + 1, features.shape[1]).index_add(0, ids, features[0].flatten(1).T)
    return sums[:count] / torch.bincount(ids, minlength=count)[:count, None]


def numbered_regions(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of each pixel's region, -1 for none, and how many there are; one search for each thing class."""
    numbers, count = np.full(labels.shape, -1), 0
    for k in SPACE.stuff:
        mask = labels == k
        if mask.any():
            numbers[mask] = count
            count += 1
    for k in SPACE.things:
        instances = cc3d.connected_components(labels == k, connectivity=8)
        areas = np.bincount(instances.reshape(-1))[1:]
        for number in np.argsort(-areas, kind="stable")[:MAX_INSTANCES]:
            numbers[instances == number + 1] = count
            count += 1
    return numbers, count


def forward_and_backward(means: Means, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of the sum of all means' squares, by which the ways can be compared."""
    features.grad = None
    means(features, labels).square().sum().backward()
    assert features.grad is not None
    return features.grad


PEERS: dict[str, Means] = {
    "each class searched for regions, (features * mask).sum((1, 2)) / mask.sum() for each": loop,
    "each class searched for regions, features[:, mask].mean(1) for each": picked,
    "each class searched for regions, index_add of all pixels": added,
}


def main() -> None:
    options = options_of(__doc__)
    channels, size = (QUICK_CHANNELS, QUICK_SOURCE_SIZE) if options.quick else (CHANNELS, SOURCE_SIZE)
    rounds = 2 if options.quick else 5
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a training
    torch.manual_seed(0)
    labels = street(size, np.random.default_rng(0))
    features = torch.randn(1, channels, *size).relu().requires_grad_()
    one_channel = features[:, :1].detach()

    entries = []
    expected, gradient = ours(features, labels), forward_and_backward(ours, features, labels)
    for peer, means in PEERS.items():
        torch.testing.assert_close(means(features, labels), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(forward_and_backward(means, features, labels), gradient, rtol=1e-4, atol=1e-8)
        seconds = paired_seconds(
            lambda: forward_and_backward(ours, features, labels),
            lambda means=means: forward_and_backward(means, features, labels),
            rounds,
        )
        entries.append(compared("region_means", f"{channels}x{size[0]}x{size[1]}", seconds, peer))
    seconds = paired_seconds(lambda: ours(one_channel, labels), lambda: numbered_regions(labels[0].numpy()), 20)
    entries.append(compared("regions", f"{size[0]}x{size[1]}", seconds, "each thing class searched on its own"))
    record([entry | {"threads": 1, "regions": len(expected)} for entry in entries], options.result)


if __name__ == "__main__":
    main()
