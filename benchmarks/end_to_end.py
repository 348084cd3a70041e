"""Images a second of a real training beside those of its steps on random tensors: the data path must not be the limit.

    python benchmarks/end_to_end.py

Ours is `run_training` of step 1 of configs/demo.yaml on the bundled pair: files read and transformed, steps, log. The
peer is `adaptation_step` of the same experiment on random images and labels that lie in memory. They take turns, once
with the reading in the training's own process (workers 0, as the demo has it), once in another one. Before, a training
is verified to end with the same parameters as steps on the same batches in memory.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from full_size_step import random_batch
from matching_share import CPU, batches_of, reduced, space_of
from segadapt.adaptation.machine import Machine, keep_freed_memory
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.run_folder import MODEL_FILE
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.step import adaptation_step
from segadapt.adaptation.trainer import new_state
from segadapt.adaptation.training import run_training
from segadapt.commands.options import experiment_from
from segadapt.config import DataConfig, Experiment
from timing import compared, options_of, record, rounded

STEPS, WARM_UP, ROUNDS, VERIFIED_STEPS = 12, 3, 3, 2
QUICK_SIZE = (48, 64)
PEER = "the same steps on random tensors in memory"


class Clock(Terminal):
    """Notes when each step ended."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []

    def advance(self, note: str = "") -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    options = options_of(__doc__)
    keep_freed_memory()
    experiment = replace(row_of(experiment_from("configs/demo.yaml", selection__images=0), "sim"), test=DataConfig())
    steps, warm_up, rounds = (1, 1, 1) if options.quick else (STEPS, WARM_UP, ROUNDS)
    if options.quick:
        experiment = reduced(experiment, QUICK_SIZE)
    verify(of_length(experiment, VERIFIED_STEPS, workers=0))
    entries = []
    cases = {"demo, no worker": 0} if options.quick else {"demo, no worker": 0, "demo, 1 worker": 1}
    for case, workers in cases.items():
        timed = of_length(experiment, warm_up + steps, workers)
        ours, peer = [], []
        for _ in range(rounds):
            ours += between(trained(timed)[0][warm_up - 1 :])
            peer += between(on_tensors(timed)[warm_up - 1 :])
        seconds, images = (statistics.median(ours), statistics.median(peer)), 2 * experiment.schedule.batch_size
        entry = compared("end_to_end", case, seconds, PEER)
        rates = {"images_per_second": images / entry["ours_s"], "peer_images_per_second": images / entry["peer_s"]}
        rates = {name: rounded(rate) for name, rate in rates.items()}
        entries.append(entry | rates | {"threads": torch.get_num_threads()})
    record(entries, options.result)


def of_length(experiment: Experiment, steps: int, workers: int) -> Experiment:
    """The first steps of the experiment."""
    schedule = replace(experiment.schedule, steps=steps, decay_steps=experiment.schedule.steps, workers=workers)
    return replace(experiment, schedule=schedule)


def between(ends: list[float]) -> list[float]:
    """Seconds from each moment to the next."""
    return [end - start for start, end in pairwise(ends)]


def trained(experiment: Experiment) -> tuple[list[float], dict[str, torch.Tensor]]:
    """When each step of a real training ended, and the parameters after the last."""
    with tempfile.TemporaryDirectory() as folder, Clock() as clock:
        run_training(experiment, Path(folder), Machine(CPU, clock), "timed")
        return clock.ends[: experiment.schedule.steps], load_file(Path(folder) / MODEL_FILE)


def on_tensors(experiment: Experiment) -> list[float]:
    """When each step on the same random tensors ended."""
    space, random = space_of(experiment), torch.Generator().manual_seed(0)
    size, images = experiment.source.size, experiment.schedule.batch_size
    assert size is not None
    state = new_state(experiment, space, CPU)
    source, target = (random_batch(size, share, random, images, space.num_classes) for share in (0.9, 0.0))
    ends = []
    for _ in range(experiment.schedule.steps):
        report = adaptation_step(state, source, target)
        assert all(torch.isfinite(value) for value in report.values())  # as a training asks after every step
        ends.append(time.perf_counter())
    return ends


def verify(experiment: Experiment) -> None:
    """Raises if a training and steps on its batches in memory do not end with equal parameters."""
    batches = batches_of(experiment)
    in_memory = [next(batches) for _ in range(experiment.schedule.steps)]
    state = new_state(experiment, space_of(experiment), CPU)
    for source, target in in_memory:
        adaptation_step(state, source, target)
    _, parameters = trained(experiment)
    for name, value in state.segmenter.state_dict().items():
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=0, msg=f"{name} differs")


if __name__ == "__main__":
    main()
