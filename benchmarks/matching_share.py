"""What the matching costs within a complete training step of the demo: its share of the step's time.

    python benchmarks/matching_share.py

Runs step 1 of configs/demo.yaml on the bundled pair, banks warm, and times each call of the matching room inside the
step (labels shrunk, regions found, banks written, losses) and, apart, the backward pass of the losses on the step's
own features. A table is printed and runs/bench/bench.json extended.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segadapt.adaptation import step as step_module
from segadapt.adaptation.procedure import SOURCE, TARGET, row_of
from segadapt.adaptation.trainer import new_state
from segadapt.commands.options import experiment_from, keep_freed_memory
from segadapt.data.loading import training_batches
from segadapt.data.readers import find_pairs
from segadapt.matching import matching_losses, region_means

STEPS, WARM_UP = 12, 6
RESULT = Path("runs/bench/bench.json")
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


def main() -> None:
    keep_freed_memory()
    experiment = row_of(experiment_from("configs/demo.yaml"), "sim")
    domains = [(experiment.source, True, SOURCE), (experiment.target, False, TARGET)]
    batch_size = experiment.schedule.batch_size
    streams = []
    for data, labelled, domain in domains:
        images = find_pairs(data, labelled)
        streams.append(training_batches(images, images.space, data, experiment.augmentation, batch_size, 0, domain, 0))
    state = new_state(experiment, images.space, torch.device("cpu"))

    watch = Stopwatch()
    for name in PARTS:
        setattr(step_module, name, watch.around(getattr(step_module, name)))
    state.bank.store = watch.around(state.bank.store)
    shares, steps = [], []
    for number in range(WARM_UP + STEPS):
        batches = [next(stream) for stream in streams]
        watch.seconds = 0.0
        start = time.perf_counter()
        step_module.adaptation_step(state, *batches)
        whole = time.perf_counter() - start
        if number >= WARM_UP:
            matching = watch.seconds + backward_seconds(state, batches[1].images)
            steps.append(whole)
            shares.append(matching / whole)
    share = statistics.median(shares)
    print(f"step {statistics.median(steps):.3f} s, matching {100 * share:.1f} % of it (median of {STEPS})")
    entries = json.loads(RESULT.read_text()) if RESULT.exists() else []
    entries = [entry for entry in entries if entry["name"] != "matching_share"]
    entries.append({"name": "matching_share", "share": share, "step_s": statistics.median(steps)})
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(entries, indent=1))


def backward_seconds(state: step_module.TrainState, images: torch.Tensor) -> float:
    """Time of the gradient of the losses to the feature map, which the step takes together with all others."""
    with torch.no_grad():
        features, logits = state.segmenter(state.segmenter.normalisation(images))
    features.requires_grad_(True)
    regions = region_means(features, logits.argmax(1), state.segmenter.label_space)
    loss = sum(matching_losses(regions, state.bank))
    start = time.perf_counter()
    torch.autograd.backward(loss)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
