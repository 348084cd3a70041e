"""A training: the adaptation step, repeated; around it everything periodic (evaluate, log, save).

In: an experiment whose losses are already those of the step of the procedure, two endless streams. Out: the trained
state and the evaluations met on the way.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segadapt.adaptation import checkpoints
from segadapt.adaptation.run_log import Metrics, Terminal
from segadapt.adaptation.step import TrainState, adaptation_step, learning_rates
from segadapt.config import Experiment, OptimiserConfig, ScheduleConfig
from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import Batch
from segadapt.errors import NonFiniteLossError
from segadapt.evaluation.evaluate import Evaluation
from segadapt.matching import FeatureBank
from segadapt.networks.deeplab import DeepLab, parameter_groups
from segadapt.networks.discriminator import Discriminator
from segadapt.networks.weights import build_network


def new_state(experiment: Experiment, space: LabelSpace, device: torch.device) -> TrainState:
    """The state before the first step: initial weights, a new discriminator, empty banks; a function of the seed."""
    segmenter = build_network(experiment.network, space, experiment.seed).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        discriminator = Discriminator(space.num_classes).to(device)
    matching, options = experiment.matching, experiment.optimiser
    return TrainState(
        segmenter=segmenter,
        discriminator=discriminator,
        bank=FeatureBank(space, segmenter.channels, matching.stuff_size, matching.thing_size).to(device),
        segmenter_optimiser=segmenter_optimiser(segmenter, options),
        discriminator_optimiser=torch.optim.Adam(
            discriminator.parameters(), lr=options.discriminator_learning_rate, betas=(0.9, 0.99)
        ),
        loss=experiment.loss,
        matching=matching,
        optimiser=options,
        override=experiment.pseudo_labels.override,
        decay_steps=experiment.schedule.decay_steps or experiment.schedule.steps,
        device=device,
    )


def segmenter_optimiser(segmenter: DeepLab, options: OptimiserConfig) -> torch.optim.Optimizer:
    """SGD of section 5.2, or AdamW, over two groups: backbone and classifier."""
    groups = parameter_groups(segmenter, options.learning_rate, options.head_multiplier, options.weight_decay)
    if options.algorithm == "adamw":
        return torch.optim.AdamW(groups, betas=(options.momentum, 0.999))
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov)


def train(
    state: TrainState,
    schedule: ScheduleConfig,
    streams: Callable[[int], tuple[Iterator[Batch], Iterator[Batch] | None]],
    evaluate: Callable[[], Evaluation],
    save_model: Callable[[str], None],
    run_dir: Path,
    metrics: Metrics,
    terminal: Terminal,
    title: str,
) -> list[tuple[int, Evaluation]]:
    """Train `state` up to `schedule.steps`, from wherever it stands.

    Args:
        state: Changed in place.
        schedule: Steps, batch size and periods.
        streams: Source and target batches from a given step on; no target stream for a source-only network.
        evaluate: Scores the segmenter as it is.
        save_model: Keeps the segmenter as it is under a file name: `best.safetensors`, `model.safetensors`.
        run_dir: Where the training state is saved.
        metrics: Of this training; evaluations before `state.step` are taken from it.
        terminal: Shows progress.
        title: Of the progress bar.

    Returns:
        (step, evaluation) of each evaluation, the last model's at the end.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays as it was.
    """
    evaluations = [(line["step"], Evaluation(**line["evaluation"])) for line in metrics.earlier if "evaluation" in line]

    def evaluate_now() -> None:
        scores = evaluate()
        if scores.miou > max((earlier.miou for _, earlier in evaluations), default=-math.inf):
            save_model("best.safetensors")
        evaluations.append((state.step, scores))
        metrics.write(state.step, {"evaluation": scores.as_json()})

    source_stream, target_stream = streams(state.step)
    terminal.start_progress(title, schedule.steps, state.step)
    clock, clock_step = time.perf_counter(), state.step
    while state.step < schedule.steps:
        report = adaptation_step(state, next(source_stream), next(target_stream) if target_stream is not None else None)
        refuse_non_finite(report, state.step)
        last = state.step == schedule.steps
        if last or state.step % schedule.log_every == 0:
            seconds = time.perf_counter() - clock
            domains = 1 if target_stream is None else 2
            rate = (state.step - clock_step) * schedule.batch_size * domains / max(seconds, 1e-9)
            metrics.write(state.step, line_of(state, report, rate))
            clock, clock_step = time.perf_counter(), state.step
        terminal.advance(f"loss {float(report['loss/segmentation']):.3f}")
        if not last and schedule.evaluate_every and state.step % schedule.evaluate_every == 0:
            evaluate_now()
            clock, clock_step = time.perf_counter(), state.step
        if not last and schedule.save_every and state.step % schedule.save_every == 0:
            checkpoints.save_state(run_dir, state.state_dict())
    if not evaluations or evaluations[-1][0] < state.step:
        evaluate_now()
    save_model("model.safetensors")
    checkpoints.save_state(run_dir, state.state_dict())
    terminal.finish_progress()
    return evaluations


def refuse_non_finite(report: dict[str, Tensor], step: int) -> None:
    """Stop at the first loss that is no number.

    Raises:
        NonFiniteLossError: names the loss and the step.
    """
    for name, value in report.items():
        if name.startswith("loss/") and not math.isfinite(float(value)):
            raise NonFiniteLossError(
                f"{name} became {float(value)} at step {step}; the last checkpoint is kept. "
                "Lower --optimiser.learning_rate, or the weight of this loss"
            )


def line_of(state: TrainState, report: dict[str, Tensor], images_per_second: float) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    names = state.segmenter.label_space.names
    return {
        **{name: float(value) for name, value in report.items()},
        "bank_fill": dict(zip(names, state.bank.filled.tolist(), strict=True)),
        "learning_rate": learning_rates(state),
        "images_per_second": images_per_second,
        "memory_mib": memory_mib(state.device),
    }


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere
