"""One training step of the whole method with ResNet-101 at full size: seconds and peak memory, on one machine.

    python benchmarks/full_size_step.py
    python benchmarks/full_size_step.py --source-size 90 160 --target-size 64 128 --steps 2

Random images, labels and weights, full banks, 19 classes, batch 1; the losses of step 2, which are all there are:
(1), (2), (3), (6), (8), (10), with the labels of (11). Defaults are the sizes of the paper: source 720x1280, target
512x1024 (height x width). Prints one line of JSON; `seconds` is that of the last step, `memory_gib` the peak of the
process (of the device on a GPU).
"""

import argparse
import json
import time

import torch

from segadapt.adaptation.step import adaptation_step
from segadapt.adaptation.trainer import memory_mib, new_state
from segadapt.config import Experiment, NetworkConfig, ScheduleConfig
from segadapt.data.label_spaces import CITYSCAPES, IGNORE
from segadapt.data.loading import Batch

BLOCK = 40  # pixels; a label map of blocks has regions of every class, as a street scene has


def random_batch(
    size: tuple[int, int],
    labelled_share: float,
    generator: torch.Generator,
    images: int = 1,
    classes: int = CITYSCAPES.num_classes,
) -> Batch:
    """Noise images and label maps of blocks, of which `labelled_share` have a label."""
    height, width = size
    noise = torch.randint(256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
    grid = (images, -(-height // BLOCK), -(-width // BLOCK))
    labels = torch.randint(classes, grid, generator=generator)
    labels[torch.rand(grid, generator=generator) >= labelled_share] = IGNORE
    labels = labels.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :height, :width]
    return Batch(noise, labels.contiguous(), ("noise",) * images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source-size", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--target-size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    experiment = Experiment(
        network=NetworkConfig(options.backbone, weights="random"), schedule=ScheduleConfig(steps=options.steps)
    )
    state = new_state(experiment, CITYSCAPES, torch.device(options.device))
    # Full banks, as after some thousand steps; a random network would fill them slowly.
    state.bank.features.uniform_()
    state.bank.pushed.copy_(state.bank.ring_size)
    generator = torch.Generator().manual_seed(0)
    source = random_batch(options.source_size, 0.9, generator)
    target = random_batch(options.target_size, 0.5, generator)
    report: dict[str, torch.Tensor] = {}
    seconds = 0.0
    for _ in range(options.steps):
        start = time.perf_counter()
        report = adaptation_step(state, source, target)
        values = {name: round(float(value), 6) for name, value in report.items()}  # waits for the device
        seconds = time.perf_counter() - start
    if not report["matched/instances"] > 0:
        raise SystemExit("no instance was matched: this step is not the whole method")
    line = {
        "name": "full_size_step",
        "backbone": options.backbone,
        "source_size": list(options.source_size),
        "target_size": list(options.target_size),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": options.steps,
        "seconds": round(seconds, 2),
        "memory_gib": round(memory_mib(state.device) / 1024, 2),
        "bank_entries": int(state.bank.filled.sum()),
        **values,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
