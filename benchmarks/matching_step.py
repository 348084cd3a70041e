"""Times the matching part of one training step at the paper's size beside a plain loop over regions.

    python benchmarks/matching_step.py

Both do the same: mean features of about 30 source regions into full banks, then of about 30 target regions
the losses of Eqs. (6) and (8), forward and backward to the target feature map. The run first verifies that
losses, gradient and banks are equal, then times both in turn, on 1 and on 2 threads; first with the C library's own
handling of memory, as in a program that just imports `segadapt.matching`, then with freed memory kept, as in our
trainings. The loop makes a copy of the feature map for each region, so it gains most by that.
"""

import cc3d
import numpy as np
import torch

from segadapt.adaptation.machine import keep_freed_memory
from segadapt.data.label_spaces import CITYSCAPES as SPACE
from segadapt.data.label_spaces import LabelSpace
from segadapt.matching import FeatureBank, matching_losses, region_means
from timing import compared, options_of, paired_seconds, record

CHANNELS, SOURCE_SIZE, TARGET_SIZE = 2048, (91, 161), (65, 129)  # ResNet-101 at 1280x720 and 1024x512
QUICK_CHANNELS, QUICK_SOURCE_SIZE, QUICK_TARGET_SIZE = 64, (41, 61), (37, 49)
STUFF_SIZE, THING_SIZE, MAX_INSTANCES = 50, 500, 10
ROUNDS, OURS_PER_ROUND = 3, 5
PEER = "eager torch, one masked mean and one broadcast L1 minimum for each region"


def street(size: tuple[int, int], generator: np.random.Generator) -> torch.Tensor:
    """A label map (1, h, w) of 8 stuff classes in blocks and 22 separate instances of 6 thing classes."""
    height, width = size
    blocks = np.array(SPACE.stuff).reshape(2, 4).repeat(-(-height // 2), axis=0).repeat(-(-width // 4), axis=1)
    labels = blocks[:height, :width].astype(np.uint8)
    cells = [(row, column) for row in range(5) for column in range(6)]
    for number, cell in enumerate(generator.permutation(len(cells))[:22]):
        top, left = cells[cell][0] * (height // 5) + 1, cells[cell][1] * (width // 6) + 1
        instance = generator.integers(4, (height // 5 - 2, width // 6 - 2))
        labels[top : top + instance[0], left : left + instance[1]] = SPACE.things[number % 6]
    return torch.from_numpy(labels)[None]


def full_bank(channels: int) -> FeatureBank:
    """Every ring full of features near the means of regions of rectified noise."""
    bank = FeatureBank(SPACE, channels, STUFF_SIZE, THING_SIZE)
    bank.features.copy_(torch.randn_like(bank.features).mul_(0.05).add_(0.4))
    bank.pushed.copy_(bank.ring_size)
    return bank


def plain_regions(
    features: torch.Tensor, labels: torch.Tensor, space: LabelSpace = SPACE
) -> list[tuple[int, list[torch.Tensor]]]:
    """What one would write first: a loop over classes, a loop over their regions, a mask and a mean for each.

    Args:
        features: (C, h, w).
        labels: (h, w).
        space: Its classes.

    Returns:
        Mean features (C,) of each class that is in the image.
    """
    found = []
    for k in space.stuff:
        mask = labels == k
        if mask.any():
            found.append((k, [(features * mask).sum((1, 2)) / mask.sum()]))
    for k in space.things:
        numbers = cc3d.connected_components((labels == k).numpy(), connectivity=8)
        areas = np.bincount(numbers.reshape(-1))[1:]
        means = []
        for number in np.argsort(-areas, kind="stable")[:MAX_INSTANCES]:
            mask = torch.from_numpy(numbers == number + 1)
            means.append((features * mask).sum((1, 2)) / mask.sum())
        if means:
            found.append((k, means))
    return found


class PlainMatching:
    """A list of entries and a counter for each class, and a distance for each region."""

    def __init__(self, entries: dict[int, torch.Tensor]) -> None:
        self.entries = entries
        self.counter = dict.fromkeys(entries, 0)

    def step(
        self, source: torch.Tensor, source_labels: torch.Tensor, target: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for k, means in plain_regions(source[0], source_labels[0]):
            for mean in means:
                self.entries[k][self.counter[k] % len(self.entries[k])] = mean.detach()
                self.counter[k] += 1
        stuff_loss, instance_loss = torch.zeros(()), torch.zeros(())
        for k, means in plain_regions(target[0], labels[0]):
            distances = [(mean - self.entries[k]).abs().mean(1).min() for mean in means]
            loss = torch.stack(distances).mean()
            if k in SPACE.stuff:
                stuff_loss = stuff_loss + loss
            else:
                instance_loss = instance_loss + loss
        target.grad = None
        (stuff_loss + instance_loss).backward()
        return stuff_loss, instance_loss


def our_step(
    bank: FeatureBank,
    source: torch.Tensor,
    source_labels: torch.Tensor,
    target: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    bank.store(region_means(source, source_labels, SPACE, MAX_INSTANCES))
    stuff_loss, instance_loss = matching_losses(region_means(target, labels, SPACE, MAX_INSTANCES), bank)
    target.grad = None
    (stuff_loss + instance_loss).backward()
    return stuff_loss, instance_loss


def verify(bank: FeatureBank, plain: PlainMatching, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raises if losses, gradient or banks differ by more than float32 rounding."""
    target = inputs[2]
    found = our_step(bank, *inputs)
    gradient = target.grad
    expected = plain.step(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, target.grad, rtol=1e-4, atol=1e-9)
    for k, entries in plain.entries.items():
        torch.testing.assert_close(bank.entries(k), entries, rtol=1e-4, atol=1e-5)


def main() -> None:
    options = options_of(__doc__)
    channels, source_size, target_size = (
        (QUICK_CHANNELS, QUICK_SOURCE_SIZE, QUICK_TARGET_SIZE)
        if options.quick
        else (CHANNELS, SOURCE_SIZE, TARGET_SIZE)
    )
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    source = torch.randn(1, channels, *source_size).relu()
    target = torch.randn(1, channels, *target_size).relu().requires_grad_()
    inputs = (source, street(source_size, generator), target, street(target_size, generator))
    for name, size, labels in (("source", source_size, inputs[1]), ("target", target_size, inputs[3])):
        count = len(region_means(torch.zeros(1, 1, *size), labels, SPACE, MAX_INSTANCES))
        print(f"{name}: {channels} channels, {size[0]}x{size[1]}, {count} regions")

    bank = full_bank(channels)
    plain = PlainMatching({k: bank.entries(k).clone() for k in range(SPACE.num_classes)})
    verify(bank, plain, inputs)
    print("losses, gradient and banks are equal")

    entries = []
    for kept in (False, True):
        if kept:
            keep_freed_memory()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rounds = 1 if options.quick else ROUNDS
            seconds = paired_seconds(
                lambda: our_step(bank, *inputs), lambda: plain.step(*inputs), rounds, OURS_PER_ROUND
            )
            case = f"{threads} thread{'s' * (threads > 1)}{', memory kept' * kept}"
            entries.append(compared("matching_step", case, seconds, PEER) | {"threads": threads, "memory_kept": kept})
    record(entries, options.result)


if __name__ == "__main__":
    main()
