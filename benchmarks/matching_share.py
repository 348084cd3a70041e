"""What the matching costs within a complete training step: its share of the step's time.

    python benchmarks/matching_share.py

Times each call of the matching room inside the step (labels shrunk, regions found, banks written, losses) and, apart,
the backward pass of the losses on the step's own features; in step 1 of configs/demo.yaml on the bundled pair, banks
warm, and in one step of all losses with ResNet-101 at the paper's sizes, banks full (52 s on 2 cores). `ours_s` is the
matching, `peer_s` the whole step.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from full_size_step import random_batch
from segadapt.adaptation import step as step_module
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import TrainState
from segadapt.adaptation.trainer import new_state
from segadapt.adaptation.training import SOURCE, TARGET
from segadapt.commands.options import experiment_from
from segadapt.config import Experiment, NetworkConfig
from segadapt.data.label_spaces import CITYSCAPES, LabelSpace, common
from segadapt.data.loading import Batch, training_batches
from segadapt.data.readers import find_pairs
from segadapt.matching import matching_losses, region_means
from timing import Entry, compared, options_of, record, rounded

STEPS, WARM_UP = 12, 6
CPU = torch.device("cpu")
PARTS = ("shrink_labels", "correct_labels", "region_means", "matching_losses", "matched", "agrees", "may_match")


class Stopwatch:
    """Seconds spent in some functions, the outermost call counted."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self.depth += 1
            start = time.perf_counter()
            result = function(*arguments)
            self.depth -= 1
            self.seconds += (time.perf_counter() - start) if self.depth == 0 else 0.0
            return result

        return timed


def demo(size: tuple[int, int] | None) -> tuple[TrainState, Iterator[tuple[Batch, Batch]]]:
    """Step 1 of the demo, and its batches; at another size than its own if one is given."""
    experiment = row_of(experiment_from("configs/demo.yaml"), "sim")
    experiment = reduced(experiment, size) if size else experiment
    return new_state(experiment, space_of(experiment), CPU), batches_of(experiment)


def reduced(experiment: Experiment, size: tuple[int, int]) -> Experiment:
    """The experiment with its source and target images at another size."""
    source, target = replace(experiment.source, size=size), replace(experiment.target, size=size)
    return replace(experiment, source=source, target=target)


def space_of(experiment: Experiment) -> LabelSpace:
    """The classes that source and target have in common."""
    return common(find_pairs(experiment.source, True).space, find_pairs(experiment.target, False).space)


def batches_of(experiment: Experiment) -> Iterator[tuple[Batch, Batch]]:
    """Source and target batches, as a training of the experiment has them."""
    space, streams = space_of(experiment), []
    for data, labelled, domain in ((experiment.source, True, SOURCE), (experiment.target, False, TARGET)):
        images, batch_size = find_pairs(data, labelled), experiment.schedule.batch_size
        seed = experiment.seed
        streams.append(training_batches(images, space, data, experiment.augmentation, batch_size, seed, domain, 0))
    return zip(*streams, strict=True)


def full_size() -> tuple[TrainState, Iterator[tuple[Batch, Batch]]]:
    """ResNet-101 with the sizes of the paper, and one pair of batches of noise."""
    state = new_state(Experiment(network=NetworkConfig("resnet101", weights="random")), CITYSCAPES, CPU)
    state.bank.features.uniform_()
    state.bank.pushed.copy_(state.bank.ring_size)
    generator = torch.Generator().manual_seed(0)
    pair = random_batch((720, 1280), 0.9, generator), random_batch((512, 1024), 0.5, generator)
    return state, iter([pair])


def share_of_matching(
    state: TrainState, batches: Iterator[tuple[Batch, Batch]], warm_up: int, steps: int, watch: Stopwatch, case: str
) -> Entry:
    """Medians over `steps` steps after `warm_up` others."""
    state.bank.store = watch.around(state.bank.store)
    matching, whole = [], []
    for number in range(warm_up + steps):
        source, target = next(batches)
        watch.seconds = 0.0
        start = time.perf_counter()
        report = step_module.adaptation_step(state, source, target)
        seconds = time.perf_counter() - start
        if number >= warm_up:
            whole.append(seconds)
            matching.append(watch.seconds + backward_seconds(state, target.images))
            if not report["matched/stuff"] + report["matched/instances"] > 0:
                raise RuntimeError(f"{case}: nothing was matched, so there is nothing to measure")
    seconds = statistics.median(matching), statistics.median(whole)
    entry = compared("matching_share", case, seconds, "the whole training step, of which ours is the matching")
    return entry | {"share": rounded(seconds[0] / seconds[1]), "threads": torch.get_num_threads()}


def backward_seconds(state: TrainState, images: torch.Tensor) -> float:
    """Time of the gradient of the losses to the feature map, which the step takes together with all others."""
    with torch.no_grad():
        features, logits = state.segmenter(state.segmenter.normalisation(images))
    features.requires_grad_(True)
    regions = region_means(features, logits.argmax(1), state.segmenter.label_space)
    loss = sum(matching_losses(regions, state.bank))
    start = time.perf_counter()
    torch.autograd.backward(loss)
    return time.perf_counter() - start


def main() -> None:
    options = options_of(__doc__)
    keep_freed_memory()
    watch = Stopwatch()
    for name in PARTS:
        setattr(step_module, name, watch.around(getattr(step_module, name)))
    if options.quick:
        entries = [share_of_matching(*demo((48, 64)), 1, 1, watch, "demo at 48x64")]
    else:
        entries = [
            share_of_matching(*demo(None), WARM_UP, STEPS, watch, "demo"),
            share_of_matching(*full_size(), 0, 1, watch, "ResNet-101, 720x1280"),
        ]
    record(entries, options.result)
    for entry in entries:
        print(f"{entry['case']}: {100 * entry['share']:.1f} % of a step")


if __name__ == "__main__":
    main()
