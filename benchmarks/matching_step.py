"""Times the matching part of one training step at the paper's size beside a plain loop over regions.

    python benchmarks/matching_step.py

Both do the same: mean features of about 30 source regions into full banks, then of about 30 target regions
the losses of Eqs. (6) and (8), forward and backward to the target feature map. The run first verifies that
losses, gradient and banks are equal, then times both in turn, on 1 and on 2 threads. A table is printed and
runs/bench/bench.json written.
"""

import json
import statistics
import time
from pathlib import Path

import cc3d
import numpy as np
import torch

from segadapt.data.label_spaces import CITYSCAPES as SPACE
from segadapt.matching import FeatureBank, matching_losses, region_means

CHANNELS, SOURCE_SIZE, TARGET_SIZE = 2048, (91, 161), (65, 129)  # ResNet-101 at 1280x720 and 1024x512
STUFF_SIZE, THING_SIZE, MAX_INSTANCES = 50, 500, 10
ROUNDS, OURS_PER_ROUND = 3, 5
RESULT = Path("runs/bench/bench.json")
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


class PlainMatching:
    """What one would write first: a loop over classes, a loop over their regions, a mask and a mean for
    each."""

    def __init__(self, entries: dict[int, torch.Tensor]) -> None:
        self.entries = entries
        self.counter = dict.fromkeys(entries, 0)

    def regions(self, features: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, list[torch.Tensor]]]:
        """Mean features (C,) of each class that is in the image, features (C, h, w), labels (h, w)."""
        found = []
        for k in SPACE.stuff:
            mask = labels == k
            if mask.any():
                found.append((k, [(features * mask).sum((1, 2)) / mask.sum()]))
        for k in SPACE.things:
            numbers = cc3d.connected_components((labels == k).numpy(), connectivity=8)
            areas = np.bincount(numbers.reshape(-1))[1:]
            means = []
            for number in np.argsort(-areas, kind="stable")[:MAX_INSTANCES]:
                mask = torch.from_numpy(numbers == number + 1)
                means.append((features * mask).sum((1, 2)) / mask.sum())
            if means:
                found.append((k, means))
        return found

    def step(
        self, source: torch.Tensor, source_labels: torch.Tensor, target: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for k, means in self.regions(source[0], source_labels[0]):
            for mean in means:
                self.entries[k][self.counter[k] % len(self.entries[k])] = mean.detach()
                self.counter[k] += 1
        stuff_loss, instance_loss = torch.zeros(()), torch.zeros(())
        for k, means in self.regions(target[0], labels[0]):
            distances = [(mean - self.entries[k]).abs().mean(1).min() for mean in means]
            loss = torch.stack(distances).mean()
            if k in SPACE.stuff:
                stuff_loss = stuff_loss + loss
            else:
                instance_loss = instance_loss + loss
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
    (stuff_loss + instance_loss).backward()
    return stuff_loss, instance_loss


def seconds(step, *inputs: torch.Tensor) -> float:
    inputs[2].grad = None
    start = time.perf_counter()
    step(*inputs)
    return time.perf_counter() - start


def verify(bank: FeatureBank, plain: PlainMatching, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raises if losses, gradient or banks differ by more than float32 rounding."""
    target = inputs[2]
    found = our_step(bank, *inputs)
    gradient, target.grad = target.grad, None
    expected = plain.step(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, target.grad, rtol=1e-4, atol=1e-9)
    for k, entries in plain.entries.items():
        torch.testing.assert_close(bank.entries(k), entries, rtol=1e-4, atol=1e-5)


def main() -> None:
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    source = torch.randn(1, CHANNELS, *SOURCE_SIZE).relu()
    target = torch.randn(1, CHANNELS, *TARGET_SIZE).relu().requires_grad_()
    inputs = (source, street(SOURCE_SIZE, generator), target, street(TARGET_SIZE, generator))
    for name, size, labels in (("source", SOURCE_SIZE, inputs[1]), ("target", TARGET_SIZE, inputs[3])):
        count = len(region_means(torch.zeros(1, 1, *size), labels, SPACE, MAX_INSTANCES))
        print(f"{name}: {CHANNELS} channels, {size[0]}x{size[1]}, {count} regions")

    bank = FeatureBank(SPACE, CHANNELS, STUFF_SIZE, THING_SIZE)
    bank.features.copy_(torch.randn_like(bank.features).mul_(0.05).add_(0.4))  # near the means of the regions
    bank.pushed.copy_(bank.ring_size)
    plain = PlainMatching({k: bank.entries(k).clone() for k in range(SPACE.num_classes)})
    verify(bank, plain, inputs)
    print("losses, gradient and banks are equal\n")

    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ours, peer = [], []
        for _ in range(ROUNDS):
            ours += [seconds(lambda *x: our_step(bank, *x), *inputs) for _ in range(OURS_PER_ROUND)]
            peer.append(seconds(plain.step, *inputs))
        ours_s, peer_s = statistics.median(ours), statistics.median(peer)
        results.append(
            {
                "name": "matching_step",
                "threads": threads,
                "ratio": round(peer_s / ours_s, 1),
                "ours_s": round(ours_s, 4),
                "peer_s": round(peer_s, 4),
                "peer": PEER,
            }
        )
    print("threads   ours [s]   plain loop [s]   ratio   (medians)")
    for row in results:
        print(f"{row['threads']:7d} {row['ours_s']:10.3f} {row['peer_s']:16.3f} {row['ratio']:7.1f}")

    RESULT.parent.mkdir(parents=True, exist_ok=True)
    others = json.loads(RESULT.read_text()) if RESULT.exists() else []
    others = [row for row in others if row["name"] != "matching_step"]
    RESULT.write_text(json.dumps(others + results, indent=1) + "\n")
    print(f"\nwritten to {RESULT}")


if __name__ == "__main__":
    main()
