"""What makes a step or a prediction on the CPU faster, and what does not: each change alone beside the plain way.

    python benchmarks/cpu_step.py
    python benchmarks/cpu_step.py --threads 2 --rounds 12

Cases: a step of configs/demo.yaml (EfficientNet-Lite0, 160x224, 2 + 2 images, all losses of step 1), a step with
ResNet-101 at 96x192 (1 + 1 images), and the forward pass of both. Changes: the weights in the channels-last layout
(images are in it anyway), bf16 autocast of the segmenter (losses and banks stay float32), both, denormal numbers
flushed to zero, optimisers fused or in multi-tensor form, inference mode instead of no_grad. All variants of a case run
in turns in one process, which takes 5 GiB; the figure is the median of the plain run's seconds divided by those of the
variant in the same turn. On one thread CPU seconds are compared, which do not count what else the machine does.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from segadapt.adaptation.machine import keep_freed_memory
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import TrainState, adaptation_step
from segadapt.adaptation.trainer import new_state
from segadapt.adaptation.training import SOURCE, TARGET
from segadapt.commands.options import experiment_from
from segadapt.config import Experiment
from segadapt.data.loading import Batch, training_batches
from segadapt.data.readers import find_pairs

CPU = torch.device("cpu")
SMALL_SIZE = (96, 192)


class Bf16Forward(nn.Module):
    """The segmenter under bf16 autocast; its output is float32 as the losses want it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(images)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def with_optimisers(state: TrainState, **how: bool) -> None:
    """The same optimisers over the same parameters, in another implementation."""
    for optimiser in (state.segmenter_optimiser, state.discriminator_optimiser):
        for group in optimiser.param_groups:
            group.update({"fused": None, "foreach": None} | how)


def prepared(experiment: Experiment, change: str) -> TrainState:
    """The state of a variant; its banks and running statistics are its own."""
    images = find_pairs(experiment.source, labelled=True)
    state = new_state(experiment, images.space, CPU)
    if "channels-last" in change:
        state.segmenter.to(memory_format=torch.channels_last)
        state.discriminator.to(memory_format=torch.channels_last)
    if "bf16" in change:
        state.parallel_segmenter = Bf16Forward(state.segmenter)
    if "fused" in change:
        with_optimisers(state, fused=True)
    if "foreach" in change:
        with_optimisers(state, foreach=True)
    return state


def batches(experiment: Experiment) -> tuple[Batch, Batch]:
    """The first batch of both domains; reading is not what is timed."""
    found = []
    for data, labelled, domain in ((experiment.source, True, SOURCE), (experiment.target, False, TARGET)):
        images = find_pairs(data, labelled)
        size = experiment.schedule.batch_size
        found.append(next(training_batches(images, images.space, data, experiment.augmentation, size, 0, domain, 0)))
    return found[0], found[1]


def step_variants(experiment: Experiment) -> dict[str, Callable[[], object]]:
    source, target = batches(experiment)

    def variant(change: str) -> Callable[[], object]:
        state = prepared(experiment, change)
        if change != "denormals flushed":
            return lambda: adaptation_step(state, source, target)

        def flushed() -> None:
            with flushed_denormals():
                adaptation_step(state, source, target)

        return flushed

    changes = ("plain", "channels-last", "bf16", "bf16, channels-last", "denormals flushed", "fused", "foreach")
    return {change: variant(change) for change in changes}


def forward_variants(experiment: Experiment) -> dict[str, Callable[[], object]]:
    images = batches(experiment)[1].images

    def variant(change: str) -> Callable[[], object]:
        state = prepared(experiment, change)
        segmenter = state.segmenter.eval()
        context = torch.inference_mode if change == "inference mode" else torch.no_grad

        def forward() -> None:
            with context():
                state.parallel_segmenter(segmenter.normalisation(images))

        return forward

    changes = ("plain", "inference mode", "channels-last", "bf16", "bf16, channels-last")
    return {change: variant(change) for change in changes}


def compare(title: str, variants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> None:
    """Print one row a variant: seconds, and how many times faster than the plain one, medians over the turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            start = clock()
            variant()
            if turn >= 2:
                seconds[name].append(clock() - start)
    for name, taken in seconds.items():
        ratios = [plain / own for plain, own in zip(seconds["plain"], taken, strict=True)]
        print(f"{title:34} {name:22} {statistics.median(taken):8.3f} s  {statistics.median(ratios):5.2f}", flush=True)


def small_resnet(demo: Experiment) -> Experiment:
    """ResNet-101 on the demo's pair, with the optimiser of the paper."""
    domains = {name: replace(getattr(demo, name), size=SMALL_SIZE) for name in ("source", "target")}
    return replace(
        demo,
        **domains,
        network=replace(demo.network, backbone="resnet101", weights="random"),
        optimiser=replace(demo.optimiser, algorithm="sgd", learning_rate=1e-5, warmup_steps=0),
        schedule=replace(demo.schedule, batch_size=1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, threads {options.threads}")
    demo = row_of(experiment_from("configs/demo.yaml"), "sim")
    resnet = small_resnet(demo)
    compare("demo step", step_variants(demo), options.rounds, clock)
    compare("demo forward", forward_variants(demo), options.rounds, clock)
    compare("ResNet-101 96x192 step", step_variants(resnet), options.rounds, clock)
    compare("ResNet-101 96x192 forward", forward_variants(resnet), options.rounds, clock)


if __name__ == "__main__":
    main()
