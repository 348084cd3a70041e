"""A training: the adaptation step, repeated; around it everything periodic (evaluate, log, save, leave when told to).

In: an experiment whose losses are already those of the step of the procedure, two endless streams. Out: the trained
state and the evaluations met on the way.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segadapt.adaptation.checkpoints import save_state
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_folder import (
    BEST_FILE,
    MODEL_FILE,
    SELECTED_FILE,
    Check,
    best_step,
    checks_of,
)
from segadapt.adaptation.run_log import METRICS_FILE, Metrics
from segadapt.adaptation.step import TrainState, adaptation_step, learning_rates
from segadapt.config import Experiment, OptimiserConfig, ScheduleConfig, ScoreName
from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import Batch
from segadapt.errors import InputError, NonFiniteLossError, Stopped
from segadapt.evaluation.label_free import selected_steps
from segadapt.matching import FeatureBank
from segadapt.networks.deeplab import DeepLab, batch_norms, parameter_groups
from segadapt.networks.discriminator import Discriminator
from segadapt.networks.weights import build_network
from segadapt.processes import ONE_PROCESS, Processes


def new_state(
    experiment: Experiment, space: LabelSpace, device: torch.device, processes: Processes = ONE_PROCESS
) -> TrainState:
    """The state before the first step: initial weights, a new discriminator, empty banks; a function of the seed.

    Raises:
        InputError: the weights cannot be had, or batch norm cannot be synchronised here.
    """
    network = experiment.network
    segmenter = build_network(network, space, experiment.seed).to(device)
    if network.sync_batch_norm:
        if device.type != "cuda" or network.batch_norm == "frozen":
            raise InputError(
                "network.sync_batch_norm: needs GPUs and a batch norm that is not frozen; leave it out, or use "
                "--device cuda and network.batch_norm batch"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.backbone)  # in place: the backbone itself is none
    for layer in batch_norms(segmenter):
        layer.num_batches_tracked = None  # read by nobody, and one more piece of work for a GPU in each forward pass
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
            discriminator.parameters(),
            lr=options.discriminator_learning_rate,
            betas=(0.9, 0.99),
            fused=device.type == "cuda",
        ),
        loss=experiment.loss,
        matching=matching,
        optimiser=options,
        override=experiment.pseudo_labels.override,
        decay_steps=experiment.schedule.decay_steps or experiment.schedule.steps,
        accumulate=experiment.schedule.accumulate,
        one_size=experiment.augmentation.crop is not None
        or None not in (experiment.source.size, experiment.target.size),
        device=device,
        processes=processes,
    )


def segmenter_optimiser(segmenter: DeepLab, options: OptimiserConfig) -> torch.optim.Optimizer:
    """SGD of section 5.2, or AdamW, over two groups: backbone and classifier."""
    groups = parameter_groups(segmenter, options.learning_rate, options.head_multiplier, options.weight_decay)
    fused = groups[0]["params"][0].is_cuda
    if options.algorithm == "adamw":
        return torch.optim.AdamW(groups, betas=(options.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, fused=fused)


def train(
    state: TrainState,
    schedule: ScheduleConfig,
    streams: Callable[[int], tuple[Iterator[Batch], Iterator[Batch] | None]],
    check: Callable[[int], Check] | None,
    selection: ScoreName,
    save_model: Callable[[str], None],
    run_dir: Path,
    metrics: Metrics,
    machine: Machine,
    title: str,
) -> list[Check]:
    """Train `state` up to `schedule.steps`, from wherever it stands.

    Args:
        state: Changed in place.
        schedule: Steps, batch size and periods.
        streams: Source and target batches from a given step on; no target stream for a source-only network.
        check: Scores the segmenter as it is at this step; None where there is nothing to score it by.
        selection: The score without labels by which `selected.safetensors` is chosen.
        save_model: Keeps the segmenter as it is under a file name: that of the best, the selected, the last.
        run_dir: Where the training state is saved.
        metrics: Of this training; evaluations before `state.step` are taken from it.
        machine: Shows progress, and says when to leave.
        title: Of the progress bar.

    Returns:
        The scores of each evaluation, the last model's at the end.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays as it was.
        Stopped: a signal asked to leave; the state is saved.
    """
    processes, terminal = machine.processes, machine.terminal
    checks = checks_of(metrics.earlier, run_dir / METRICS_FILE)
    clock, seconds_before = time.perf_counter(), state.seconds

    def save() -> None:
        state.seconds = seconds_before + time.perf_counter() - clock
        metrics.sync()  # a checkpoint never knows of more evaluations than the disk does
        if processes.is_first:
            save_state(run_dir, state.step, state.state_dict())

    def check_now(check: Callable[[int], Check]) -> None:
        processes.copy_from_first(list(state.segmenter.buffers()))
        checks.append(check(state.step))
        if best_step(checks) == state.step:
            save_model(BEST_FILE)
        if selected_steps((each.step, each.label_free) for each in checks).get(selection) == state.step:
            save_model(SELECTED_FILE)
        # last: a run that goes on from here takes what is written as done
        metrics.write(state.step, checks[-1].as_json())

    def check_is_due() -> bool:
        if checks and checks[-1].step == state.step:
            return False
        every = schedule.evaluate_every
        return state.step >= schedule.steps or bool(every and state.step and state.step % every == 0)

    source_stream, target_stream = streams(state.step)
    terminal.start_progress(title, schedule.steps, state.step)
    logged, logged_step = time.perf_counter(), state.step
    try:
        while True:
            if check and check_is_due():
                check_now(check)
                logged, logged_step = time.perf_counter(), state.step
            if state.step >= schedule.steps:
                break
            machine.leave_if_stopped()
            target = next(target_stream) if target_stream is not None else None
            with fastest_convolutions(state.one_size), weights_cast_once(state.device):
                report = adaptation_step(state, next(source_stream), target)
            losses = finite_losses(report, state.step)
            last = state.step == schedule.steps
            if last or state.step % schedule.log_every == 0:
                seconds, steps = time.perf_counter() - logged, state.step - logged_step
                images = steps * schedule.batch_size * (1 if target is None else 2) * processes.count
                metrics.write(state.step, line_of(state, report, images / max(seconds, 1e-9)))
                logged, logged_step = time.perf_counter(), state.step
            terminal.advance(f"loss {losses['loss/segmentation']:.3f}")
            if not last and schedule.save_every and state.step % schedule.save_every == 0:
                save()
    except Stopped:
        save()
        raise
    save_model(MODEL_FILE)
    save()
    terminal.finish_progress()
    return checks


@contextmanager
def fastest_convolutions(one_size: bool) -> Iterator[None]:
    """Lets cuDNN try all its algorithms when it first sees a size; where sizes keep changing it would never end."""
    torch.backends.cudnn.benchmark = one_size and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


@contextmanager
def weights_cast_once(device: torch.device) -> Iterator[None]:
    """Lets all of a step share the bf16 copies of the weights: autocast drops them where its outermost context ends."""
    with torch.autocast(device.type, enabled=False):
        yield


def finite_losses(report: dict[str, Tensor], step: int, rate: str = "--optimiser.learning_rate") -> dict[str, float]:
    """The losses as numbers, read in one wait for the device; `rate` is the option that would be lowered.

    Raises:
        NonFiniteLossError: one is NaN or infinite; names it and the step.
    """
    losses = {name: value for name, value in report.items() if name.startswith("loss/")}
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{name} became {value} at step {step}; the last checkpoint is kept. "
                f"Lower {rate}, or the weight of this loss"
            )
    return values


def line_of(state: TrainState, report: dict[str, Tensor], images_per_second: float) -> dict[str, Any]:
    """One line of metrics.jsonl: losses as the mean of the processes, counts as their sum."""
    names, processes = state.segmenter.label_space.names, state.processes
    sums = processes.sum(torch.stack([value.float() for value in report.values()])).tolist()
    return {
        **{
            name: value / (processes.count if name.startswith("loss/") else 1)
            for name, value in zip(report, sums, strict=True)
        },
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
