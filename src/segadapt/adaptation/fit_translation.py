"""`segadapt translate fit`: a CycleGAN between two folders of images, with checkpoints, logs and its generator's file.

In: a `CycleGanConfig` and two sets of images, whose labels are never read. Out: a run folder: `config.yaml`,
`metrics.jsonl`, `checkpoints/`, `generator.safetensors` (source to target), `result.json`. Called again on a folder
whose run was stopped, it continues.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segadapt.adaptation.checkpoints import digest_of, restore, save_state
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_folder import (
    CONFIG_FILE,
    RESULT_FILE,
    alone_in,
    config_text,
    data_of,
    finished_result,
    versions,
)
from segadapt.adaptation.run_log import Metrics, command_line
from segadapt.adaptation.trainer import finite_losses, memory_mib
from segadapt.config import SMALLEST, AugmentationConfig, CycleGanConfig, DataConfig, refuse_wrong_seed
from segadapt.data.decoding import upright_size
from segadapt.data.loading import LeftOut, evaluation_batches, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError, Stopped, UnreadableFileError
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import load_network
from segadapt.translation.cyclegan import Generator, generate, save_generator
from segadapt.translation.cyclegan_step import CycleGanState, cyclegan_step, new_state, semantic_loss
from segadapt.whole_file import whole_file

GENERATOR_FILE = "generator.safetensors"
DRIFT_IMAGES = 50  # of the source, spread over the set, that the label drift in result.json is measured on
PROBED_IMAGES = 100  # of each domain, whose size is looked at before training
LABEL_FOLDERS = {"labels", "label", "gtfine", "gt", "annotations", "masks"}
_SOURCE, _TARGET = 0, 1  # the two streams draw from different seeds


def images_in(name: str, folder: str) -> ImageSet:
    """The images of a folder: those below its `images/` if it has one, else all; no labels are looked at.

    Args:
        name: What messages call the folder.
        folder: Its path.

    Raises:
        InputError: it is not there, or holds no images.
    """
    if not folder:
        raise InputError(f"{name}: is empty; give a folder of images")
    try:
        # some label space has to be named; nothing is read with it
        images = find_pairs(DataConfig(root=folder, label_space="cityscapes19"), labelled=False)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    for path in images.images:
        if LABEL_FOLDERS & {part.lower() for part in path.relative_to(images.root).parts[:-1]}:
            raise InputError(f"{name}: {images.root} holds labels too ({path}); give the folder of the images")
    return images


def fit_translation(
    config: CycleGanConfig,
    source: ImageSet,
    target: ImageSet,
    seed: int,
    run_dir: Path,
    machine: Machine,
    segmenter: Path | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Train until `config.steps`; a finished run of the same configuration is only read.

    Args:
        config: Networks, losses, schedule.
        source: Images to translate.
        target: Images of the style.
        seed: Of every random choice.
        run_dir: The run folder.
        machine: Where to train.
        segmenter: A model trained on the source, where `config.segmenter` names none; known by its content, so that a
            run folder can be moved.
        skip_bad: Whether another image takes the place of one that cannot be read.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another run, or another command trains there.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays as it was.
        Stopped: a signal asked to leave; the same call continues.
    """
    processes = machine.processes
    refuse_wrong_seed(seed)
    model = Path(config.segmenter) if config.segmenter else segmenter
    network = load_network(str(model)) if model else None
    configuration = configuration_of(config, source, target, seed, segmenter)
    digest = configuration["segmenter_digest"]
    finished = processes.share(finished_result(run_dir, configuration))
    if finished:
        return finished
    for images in (source, target):
        _refuse_small(images, config)
    if network is None:
        machine.terminal.say("no segmenter: nothing keeps labels valid, and the label drift is not measured")
    state = new_state(config, network, seed, machine.device, processes)
    restore(state, run_dir, machine)
    left_out = partial(_say_left_out, machine) if skip_bad else None
    streams = _streams(config, source, target, state, left_out)
    provenance = {
        "seed": seed,
        "segmenter": digest,
        "versions": versions(),
        "data": data_of({"source": source, "target": target}),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with alone_in(run_dir, processes):
        if processes.is_first:
            with whole_file(run_dir / CONFIG_FILE) as file:
                file.write(config_text(configuration).encode())
        with Metrics(run_dir, state.step, processes.is_first) as metrics:
            losses = _train(state, streams, run_dir, metrics, machine)
        result = {**losses, "step": state.step, **provenance, "command": command_line(), "seconds": state.seconds}
        if network is not None:
            result["label_drift"] = label_drift(network, state.result, source, config.size, machine.device, left_out)
        if processes.is_first:
            extra = {"provenance": json.dumps(provenance), "input_size": json.dumps(config.size)}
            save_generator(run_dir / GENERATOR_FILE, state.result, extra)
            with whole_file(run_dir / RESULT_FILE) as file:
                file.write(json.dumps(result, indent=1).encode())
    return processes.share(result)


def configuration_of(
    config: CycleGanConfig, source: ImageSet, target: ImageSet, seed: int, segmenter: Path | None
) -> dict[str, Any]:
    """What the config.yaml of `fit_translation` holds, which takes the same."""
    model = Path(config.segmenter) if config.segmenter else segmenter
    return {
        "source": str(source.root), "target": str(target.root), "seed": seed, **asdict(config),
        "segmenter_digest": digest_of(model) if model else None,
    }  # fmt: skip


@torch.inference_mode()
def label_drift(
    segmenter: DeepLab,
    generator: Generator,
    source: ImageSet,
    size: tuple[int, int] | None,
    device: torch.device,
    left_out: LeftOut | None = None,
) -> float:
    """Share of the source's pixels, 0 to 1, whose predicted class the generator changes; of up to 50 whole images."""
    chosen = source.spread(DRIFT_IMAGES)
    chosen = replace(chosen, labels=(None,) * len(chosen))
    drifts = []
    data = DataConfig(size=size)
    for batch in evaluation_batches(chosen, chosen.space, data, batch_size=1, workers=0, left_out=left_out):
        images = batch.images.to(device).float() / 255
        translated = generate(generator, images)
        _, drift = semantic_loss(segmenter, images * 2 - 1, translated * 2 - 1)
        drifts.append(float(drift))
    return sum(drifts) / len(drifts)


def _streams(
    config: CycleGanConfig, source: ImageSet, target: ImageSet, state: CycleGanState, left_out: LeftOut | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Source and target images from the state's step on."""
    processes, augmentation = state.processes, AugmentationConfig(flip=config.flip, crop=config.crop)

    def stream(images: ImageSet, domain: int) -> Iterator[Tensor]:
        batches = training_batches(
            images, images.space, DataConfig(size=config.size), augmentation, config.batch_size, state.seed, domain,
            config.workers, state.step * config.batch_size * processes.count,
            rank=processes.rank, processes=processes.count, left_out=left_out,
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


def _say_left_out(machine: Machine, _index: int, problem: str) -> None:
    machine.terminal.say(f"left out: {problem}")


def _refuse_small(images: ImageSet, config: CycleGanConfig) -> None:
    """Raises InputError where crops would be filled up with grey, which would be learned, or nothing would be left."""
    if config.size:
        return  # which was compared with the crop
    height, width = config.crop or (SMALLEST, SMALLEST)
    for path in images.spread(PROBED_IMAGES).images:
        try:
            size = upright_size(path)
        except UnreadableFileError:
            continue  # said where it is read
        if size[0] < height or size[1] < width:
            raise InputError(
                f"crop: {path} is {size[1]}x{size[0]} (width x height), smaller than {width}x{height}; "
                "use a smaller crop, or resize the images with size"
            )
