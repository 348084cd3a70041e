"""Some adaptation steps of this process's share of a fixed batch; test_processes starts this under torchrun."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from segadapt.adaptation.step import TrainState, adaptation_step
from segadapt.adaptation.trainer import new_state
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import Batch
from segadapt.processes import Processes, join, leave, started_processes
from streets import tiny

IMAGES, STEPS, CPU = 6, 2, torch.device("cpu")


def share_of(batch: Batch, processes: Processes) -> Batch:
    """The images of this process: as many as the others have, in the order of the ranks."""
    size = len(batch.images) // processes.count
    here = slice(processes.rank * size, (processes.rank + 1) * size)
    return Batch(batch.images[here], batch.labels[here], batch.names[here])


def batch(seed: int) -> Batch:
    """Blocks of classes, of which each image has another number that are labelled."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (IMAGES, 3, 48, 64), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 11, (IMAGES, 3, 4), generator=random)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for number in range(IMAGES):
        labels[number, :, : 8 * number] = 255
    return Batch(images, labels, tuple(str(number) for number in range(IMAGES)))


def state_after(processes: Processes, accumulate: int = 1) -> TrainState:
    """All losses of step 2, both networks by SGD: Adam would make a large step of a rounding error."""
    experiment = tiny()
    experiment = replace(
        experiment,
        network=replace(experiment.network, batch_norm="frozen"),
        loss=replace(experiment.loss, adversarial=0.1, matching=0.1),
        matching=replace(experiment.matching, classifier_agreement=NO_FILTER, stuff_size=3, thing_size=5),
        optimiser=replace(experiment.optimiser, algorithm="sgd", learning_rate=1e-3, head_multiplier=1.0),
        schedule=replace(experiment.schedule, batch_size=IMAGES // processes.count, accumulate=accumulate, steps=10),
    )
    state = new_state(experiment, STREETS11, CPU, processes)
    state.discriminator_optimiser = torch.optim.SGD(state.discriminator.parameters(), lr=1.0)
    state.optimiser = replace(state.optimiser, discriminator_learning_rate=0.1)
    for step in range(STEPS):
        adaptation_step(state, share_of(batch(2 * step), processes), share_of(batch(2 * step + 1), processes))
    return state


NO_FILTER = replace(tiny().matching.classifier_agreement, source=False, target_stuff=False)

if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = started_processes()
    join(processes)
    state = state_after(processes)
    torch.save(
        {"segmenter": state.segmenter.state_dict(), "discriminator": state.discriminator.state_dict()}
        | {"bank": state.bank.state_dict()},
        Path(sys.argv[1]) / f"rank{processes.rank}.pt",
    )
    leave(processes)
