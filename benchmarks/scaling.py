"""What things cost as they grow: image area, classes, instances, entries in the bank, processes.

    python benchmarks/scaling.py

Each cost is timed at several sizes in turns; the peer of each is the smallest size, `size` says how large it is and
`times_larger` how many times the smallest. A cost that grows in proportion has ratio * times_larger = 1, one that does
not grow has ratio 1. Processes are weak scaling: each has its own batch, one thread and gloo, so the best ratio is 1.
Before, the regions of the smallest size are verified beside a plain loop, and all processes to end with the same
parameters.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from full_size_step import random_batch
from matching_share import CPU, reduced, space_of
from matching_step import plain_regions
from segadapt.adaptation.machine import keep_freed_memory
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import adaptation_step
from segadapt.adaptation.trainer import new_state
from segadapt.commands.options import experiment_from
from segadapt.data.label_spaces import LabelSpace
from segadapt.evaluation.label_maps import predict_labels
from segadapt.evaluation.metrics import ConfusionMatrix
from segadapt.matching import FeatureBank, matching_losses, region_means
from segadapt.processes import Processes, join, leave, started_processes
from timing import Entry, compared, options_of, record, rounded, seconds_of

CHANNELS, QUICK_CHANNELS = 512, 16
STEP_SIZE, QUICK_STEP_SIZE = (160, 224), (64, 96)  # the demo's
ROUNDS, STEPS, WARM_UP = 7, 8, 2


@dataclass(frozen=True)
class Scene:
    """Features and labels of one image whose classes are half stuff, in blocks, and half things, in squares.

    Args:
        size: (height, width) of the feature map.
        classes: How many.
        instances: How many squares.
        thing_entries: Of each thing class in the bank; a stuff class has a tenth.
        channels: Of the features.
    """

    size: tuple[int, int] = (65, 129)
    classes: int = 20
    instances: int = 24
    thing_entries: int = 500
    channels: int = CHANNELS

    def space(self) -> LabelSpace:
        names = tuple(f"class{k}" for k in range(self.classes))
        half = self.classes // 2
        colours, ids = tuple((k, 0, 0) for k in range(self.classes)), tuple((k,) for k in range(self.classes))
        return LabelSpace(
            f"{self.classes} classes", names, colours, ids, tuple(range(half)), tuple(range(half, self.classes))
        )

    def labels(self) -> torch.Tensor:
        """(1, h, w); every class is there, if there are squares and pixels enough."""
        height, width = self.size
        half, columns = self.classes // 2, int(np.ceil(np.sqrt(self.instances)))
        stuff = np.arange(width) * half // width
        labels = np.broadcast_to(stuff, self.size).copy()
        tall, wide = height // columns, width // columns
        for number in range(self.instances):
            top, left = number // columns * tall, number % columns * wide
            labels[top : top + max(tall // 2, 1), left : left + max(wide // 2, 1)] = half + number % half
        return torch.from_numpy(labels)[None]

    def matching(self) -> Callable[[], None]:
        """Regions, their nearest entries in full banks, both losses and their gradient."""
        torch.manual_seed(0)
        space, labels = self.space(), self.labels()
        features = torch.randn(1, self.channels, *self.size).relu().requires_grad_()
        bank = FeatureBank(space, self.channels, max(self.thing_entries // 10, 1), self.thing_entries)
        bank.features.uniform_()
        bank.pushed.copy_(bank.ring_size)

        def step() -> None:
            features.grad = None
            torch.autograd.backward(sum(matching_losses(region_means(features, labels, space), bank)))

        return step

    def regions(self) -> Callable[[], Any]:
        """Finding the regions alone."""
        space, labels, nothing = self.space(), self.labels(), torch.zeros(1, 1, *self.size)
        return lambda: region_means(nothing, labels, space)

    def scoring(self) -> Callable[[], None]:
        """From logits to counts, at eight times the size of the features."""
        height, width = 8 * self.size[0], 8 * self.size[1]
        logits = torch.randn(self.classes, *self.size, generator=torch.Generator().manual_seed(0))
        labels = self.labels()[0].repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
        return lambda: ConfusionMatrix(self.classes).update(predict_labels(logits, (height, width)), labels)

    def verify(self) -> None:
        """Raises if the regions are others than those of a plain loop."""
        space, labels = self.space(), self.labels()
        features = torch.randn(1, self.channels, *self.size, generator=torch.Generator().manual_seed(0))
        expected = [mean for _, means in plain_regions(features[0], labels[0], space) for mean in means]
        torch.testing.assert_close(
            region_means(features, labels, space).features, torch.stack(expected), rtol=1e-4, atol=1e-5
        )


def growing(name: str, unit: str, costs: dict[int, Callable[[], Any]], rounds: int) -> list[Entry]:
    """An entry for each size, timed in turns; the sizes ascend."""
    seconds: dict[int, list[float]] = {size: [] for size in costs}
    for number in range(rounds + 1):
        for size, cost in costs.items():
            one = seconds_of(cost)
            if number:  # the first call of each is not counted
                seconds[size].append(one)
    return entries_of(name, unit, {size: statistics.median(values) for size, values in seconds.items()})


def entries_of(name: str, unit: str, seconds: dict[int, float]) -> list[Entry]:
    """An entry for each size, beside the smallest."""
    smallest = min(seconds)
    return [
        compared(f"scaling_{name}", f"{size} {unit}", (value, seconds[smallest]), f"{smallest} {unit}")
        | {"size": size, "times_larger": rounded(size / smallest), "threads": torch.get_num_threads()}
        for size, value in seconds.items()
    ]


def step_on_noise(size: tuple[int, int], processes: Processes) -> tuple[Any, Callable[[], Any]]:
    """The state of the demo's step 1, and a step of it on random tensors in memory."""
    experiment = reduced(row_of(experiment_from("configs/demo.yaml"), "sim"), size)
    space, random = space_of(experiment), torch.Generator().manual_seed(processes.rank)
    images, state = experiment.schedule.batch_size, new_state(experiment, space, CPU, processes)
    source, target = (random_batch(size, share, random, images, space.num_classes) for share in (0.9, 0.0))
    return state, lambda: adaptation_step(state, source, target)


def in_a_process(size: tuple[int, int], steps: int) -> None:
    """One of the processes that torchrun started: its median seconds a step, printed by the first."""
    torch.set_num_threads(1)
    keep_freed_memory()
    processes = started_processes()
    join(processes)
    state, step = step_on_noise(size, processes)
    seconds = statistics.median([seconds_of(step) for _ in range(WARM_UP + steps)][WARM_UP:])
    for parameter in state.segmenter.parameters():
        of_first = parameter.detach().clone()
        processes.copy_from_first([of_first])
        if not torch.equal(of_first, parameter):
            raise RuntimeError("the processes have other parameters")
    if processes.is_first:
        print(json.dumps({"seconds": seconds}))
    del state, step
    leave(processes)


def seconds_with(processes: int, size: tuple[int, int], steps: int) -> float:
    """Seconds of a step of as many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*torchrun, __file__, "--process", *map(str, (*size, steps))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout)["seconds"]


def main() -> None:
    options = options_of(__doc__)
    keep_freed_memory()
    torch.set_num_threads(1)
    if options.quick:
        few, step_size, rounds, steps = Scene(channels=QUICK_CHANNELS), QUICK_STEP_SIZE, 1, 1
        areas, classes, instances, entries_held, factors = ((33, 65), (65, 129)), (10, 20), (16, 64), (50, 500), (1, 2)
    else:
        few, step_size, rounds, steps = Scene(), STEP_SIZE, ROUNDS, STEPS
        areas, classes = ((33, 65), (65, 129), (129, 257)), (10, 20, 40, 80, 160)
        instances, entries_held, factors = (16, 64, 256, 1024), (100, 500, 2500, 12500), (1, 2, 3)
    replace(few, size=areas[0]).verify()

    def by_area(cost: Callable[[Scene], Callable[[], Any]]) -> dict[int, Callable[[], Any]]:
        return {height * width: cost(replace(few, size=(height, width))) for height, width in areas}

    sizes = [(factor * step_size[0] // 2, factor * step_size[1] // 2) for factor in factors]
    whole = {height * width: step_on_noise((height, width), Processes())[1] for height, width in sizes}
    entries = [
        *growing("area_matching", "feature pixels", by_area(Scene.matching), rounds),
        *growing("area_scoring", "feature pixels", by_area(Scene.scoring), min(rounds, 3)),
        *growing("area_step", "image pixels", whole, min(rounds, 3)),
        *growing("classes_matching", "classes", {n: replace(few, classes=n).matching() for n in classes}, rounds),
        *growing("classes_scoring", "classes", {n: replace(few, classes=n).scoring() for n in classes}, min(rounds, 3)),
        *growing("instances", "instances", {n: replace(few, instances=n).regions() for n in instances}, rounds),
        *growing("bank", "entries", {n: replace(few, thing_entries=n).matching() for n in entries_held}, rounds),
    ]
    counts = (1, 2)
    turns = [{count: seconds_with(count, step_size, steps) for count in counts} for _ in range(min(rounds, 3))]
    medians = {count: statistics.median(turn[count] for turn in turns) for count in counts}
    record(entries + entries_of("processes", "processes", medians), options.result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        height, width, steps = map(int, sys.argv[2:])
        in_a_process((height, width), steps)
    else:
        main()
