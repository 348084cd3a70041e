"""`segadapt translate fit`: a CycleGAN between two folders of images, with checkpoints, logs and its generator's file.

In: a `CycleGanConfig` and two sets of images, whose labels are never read. Out: a run folder: `config.yaml`,
`metrics.jsonl`, `checkpoints/`, `generator.safetensors` (source to target), `result.json`. Called again on a folder
whose run was stopped, it continues.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segadapt.adaptation.checkpoints import digest_of, restore, save_state
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_folder import CONFIG_FILE, RESULT_FILE, config_text, data_of, finished_result, versions
from segadapt.adaptation.run_log import Metrics, command_line
from segadapt.adaptation.trainer import finite_losses, memory_mib
from segadapt.config import AugmentationConfig, CycleGanConfig, DataConfig
from segadapt.data.loading import evaluation_batches, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError, Stopped
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import load_network
from segadapt.translation.cyclegan import Generator, generate, save_generator
from segadapt.translation.cyclegan_step import CycleGanState, cyclegan_step, new_state, semantic_loss
from segadapt.whole_file import whole_file

GENERATOR_FILE = "generator.safetensors"
DRIFT_IMAGES = 50  # of the source, spread over the set, that the label drift in result.json is measured on
_SOURCE, _TARGET = 0, 1  # the two streams draw from different seeds


def images_in(name: str, folder: str) -> ImageSet:
    """The images of a folder: those below its `images/` if it has one, else all; no labels are looked at.

    Args:
        name: What messages call the folder.
        folder: Its path.

    Raises:
        InputError: it is not there, or holds no images.
    """
    try:
        # some label space has to be named; nothing is read with it
        return find_pairs(DataConfig(root=folder, label_space="cityscapes19"), labelled=False)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def fit_translation(
    config: CycleGanConfig, source: ImageSet, target: ImageSet, seed: int, run_dir: Path, machine: Machine
) -> dict[str, Any]:
    """Train until `config.steps`; a finished run of the same configuration is only read.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another run.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays as it was.
        Stopped: a signal asked to leave; the same call continues.
    """
    processes = machine.processes
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; use 0 or more")
    segmenter = load_network(config.segmenter) if config.segmenter else None
    configuration = _configuration(config, source, target, seed)
    finished = processes.share(finished_result(run_dir, configuration))
    if finished:
        return finished
    state = new_state(config, segmenter, seed, machine.device, processes)
    restore(state, run_dir, machine)
    streams = _streams(config, source, target, state)
    provenance = {
        "seed": seed,
        "segmenter": digest_of(Path(config.segmenter)) if config.segmenter else None,
        "versions": versions(),
        "data": data_of({"source": source, "target": target}),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    if processes.is_first:
        with whole_file(run_dir / CONFIG_FILE) as file:
            file.write(config_text(configuration).encode())
    with Metrics(run_dir, state.step, processes.is_first) as metrics:
        losses = _train(state, streams, run_dir, metrics, machine)
    result = {**losses, "step": state.step, **provenance, "command": command_line(), "seconds": state.seconds}
    if segmenter is not None:
        result["label_drift"] = label_drift(segmenter, state.result, source, config.size, machine.device)
    if processes.is_first:
        extra = {"provenance": json.dumps(provenance), "input_size": json.dumps(config.size)}
        save_generator(run_dir / GENERATOR_FILE, state.result, extra)
        with whole_file(run_dir / RESULT_FILE) as file:
            file.write(json.dumps(result, indent=1).encode())
    return processes.share(result)


@torch.inference_mode()
def label_drift(
    segmenter: DeepLab, generator: Generator, source: ImageSet, size: tuple[int, int] | None, device: torch.device
) -> float:
    """Share of the source's pixels, 0 to 1, whose predicted class the generator changes; of up to 50 whole images."""
    indices = np.unique(np.linspace(0, len(source) - 1, DRIFT_IMAGES).round().astype(int))
    chosen = replace(source, images=tuple(source.images[index] for index in indices), labels=(None,) * len(indices))
    drifts = []
    for batch in evaluation_batches(chosen, chosen.space, DataConfig(size=size), batch_size=1, workers=0):
        images = batch.images.to(device).float() / 255
        translated = generate(generator, images)
        _, drift = semantic_loss(segmenter, images * 2 - 1, translated * 2 - 1)
        drifts.append(float(drift))
    return sum(drifts) / len(drifts)


def _streams(
    config: CycleGanConfig, source: ImageSet, target: ImageSet, state: CycleGanState
) -> Iterator[tuple[Tensor, Tensor]]:
    """Source and target images from the state's step on."""
    processes, augmentation = state.processes, AugmentationConfig(flip=config.flip, crop=config.crop)

    def stream(images: ImageSet, domain: int) -> Iterator[Tensor]:
        batches = training_batches(
            images, images.space, DataConfig(size=config.size), augmentation, config.batch_size, state.seed, domain,
            config.workers, state.step * config.batch_size * processes.count,
            rank=processes.rank, processes=processes.count,
        )  # fmt: skip
        return (batch.images for batch in batches)

    return zip(stream(source, _SOURCE), stream(target, _TARGET), strict=True)


def _train(
    state: CycleGanState, batches: Iterator[tuple[Tensor, Tensor]], run_dir: Path, metrics: Metrics, machine: Machine
) -> dict[str, float]:
    """Train up to the last step, from wherever the state stands; the numbers of the last logged step."""
    config, processes = state.config, state.processes
    clock, seconds_before = time.perf_counter(), state.seconds

    def save() -> None:
        state.seconds = seconds_before + time.perf_counter() - clock
        metrics.sync()
        if processes.is_first:
            save_state(run_dir, state.step, state.state_dict())

    last_line = metrics.earlier[-1] if metrics.earlier else {}
    numbers = {name: value for name, value in last_line.items() if name.startswith("loss/")}
    machine.terminal.start_progress("translation", config.steps, state.step)
    logged, logged_step = time.perf_counter(), state.step
    try:
        while state.step < config.steps:
            machine.leave_if_stopped()
            source, target = next(batches)
            report = cyclegan_step(state, source, target)
            losses = finite_losses(report, state.step, "--learning_rate")
            last = state.step == config.steps
            if last or state.step % config.log_every == 0:
                means = processes.sum(torch.stack(list(report.values()))) / processes.count
                numbers = dict(zip(report, means.tolist(), strict=True))
                images = (state.step - logged_step) * 2 * config.batch_size * processes.count
                line = {
                    "learning_rate": state.generator_optimiser.param_groups[0]["lr"],
                    "images_per_second": images / max(time.perf_counter() - logged, 1e-9),
                    "memory_mib": memory_mib(state.device),
                }
                metrics.write(state.step, {**numbers, **line})
                logged, logged_step = time.perf_counter(), state.step
            machine.terminal.advance(f"cycle {losses['loss/cycle']:.3f}")
            if not last and config.save_every and state.step % config.save_every == 0:
                save()
    except Stopped:
        save()
        raise
    save()
    machine.terminal.finish_progress()
    return numbers


def _configuration(config: CycleGanConfig, source: ImageSet, target: ImageSet, seed: int) -> dict[str, Any]:
    """What decides the run."""
    return {"source": str(source.root), "target": str(target.root), "seed": seed, **asdict(config)}
