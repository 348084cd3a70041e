"""A model file applied to a whole set of images: its pseudo-labels, Eq. (9), or its scores.

In: a model file, a domain. Out: a folder of label maps with `made_by.json`; or the scores of result.json.
"""

import json
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from segadapt.adaptation.checkpoints import digest_of
from segadapt.adaptation.domains import EVALUATION_BATCH, stoppable
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.pseudo_labels import COUNTED_FILE, THRESHOLDS_FILE, LabellingReport, label_images
from segadapt.adaptation.run_folder import read_left
from segadapt.config import DataConfig, OnBadImage, PseudoLabelConfig
from segadapt.data.loading import EvaluationBatch, all_bad, evaluation_batches, fingerprint, refuse_unlabelled
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import evaluate
from segadapt.networks.weights import load_network, read_metadata
from segadapt.whole_file import whole_file

MADE_BY_FILE = "made_by.json"


def pseudo_label(
    model: Path,
    data: DataConfig,
    options: PseudoLabelConfig,
    workers: int,
    out: Path,
    machine: Machine,
    on_bad_image: OnBadImage = "fail",
) -> LabellingReport:
    """Label the images of `data` with the network in `model`, Eq. (9), into `out`; finished labels are only read.

    Args:
        model: A file of weights.
        data: The images; their labels are not read. Label maps have its size, without one that of the images.
        options: Quantile and cap.
        workers: Processes that read images; 0: this one.
        out: Folder of the label maps.
        machine: Where to compute.
        on_bad_image: What to do about an image that cannot be read; 'skip' writes no label map of it.

    Raises:
        InputError: wrong input, or `out` holds the labels of another model or of other options, or files that are no
            pseudo-labels, or lies among the images.
        Stopped: a signal asked to leave; the same call continues.
    """
    network = load_network(model).to(machine.device)
    images, processes = find_pairs(data, labelled=False), machine.processes
    if images.root.resolve() in (out.resolve(), *out.resolve().parents):  # the next call would take labels for images
        raise InputError(f"out: {out} lies within the images {images.root}; choose a folder elsewhere")
    made_by = {
        "model": digest_of(model),
        "data": fingerprint(images),
        "size": data.size,
        "quantile": options.quantile,
        "cap": options.cap,
    }
    refuse_other_labels(out, made_by)
    refuse_strange_labels(out, images)
    may_lack = on_bad_image == "skip"
    if report := processes.share(finished_labels(out, images, may_lack) if processes.is_first else None):
        return report
    bad: dict[int, str] = {}

    def note_bad(index: int, problem: str) -> None:
        if index not in bad:
            bad[index] = problem
            machine.terminal.say(f"left out: {problem}")

    def read(known: Container[str], workers: int) -> Iterator[EvaluationBatch]:
        return evaluation_batches(
            images, network.label_space, data, EVALUATION_BATCH, workers, processes.rank, processes.count, known,
            note_bad if may_lack else None,
        )  # fmt: skip

    def batches_without(known: Container[str]) -> Iterator[EvaluationBatch]:
        yield from stoppable(read(known, workers), len(images), machine)
        if int(processes.sum(torch.tensor(len(bad)))) == len(images):
            raise all_bad(images, next(iter(bad.values()), "read by the other processes"))

    next(read((), workers=0), None)  # files that are wrong from the first on are refused before anything is written
    if len(bad) == len(images):
        raise all_bad(images, bad[0])
    if processes.is_first:
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out / MADE_BY_FILE) as file:
            file.write(json.dumps(made_by, indent=1).encode())
    names = [images.image_name(index) for index in range(processes.rank, len(images), processes.count)]
    machine.terminal.start_progress("pseudo-labels", 2 * len(names))
    report = label_images(network, names, batches_without, options, out, processes, machine.terminal.advance, may_lack)
    machine.terminal.finish_progress()
    return report


def finished_labels(out: Path, images: ImageSet, may_lack: bool) -> LabellingReport | None:
    """What a call that came to its end has left in `out`; None where something of it is missing.

    `may_lack` says whether images without a label map are none that is missing: they could not be read.
    """
    path = out / THRESHOLDS_FILE
    if not path.exists() or (out / COUNTED_FILE).exists():
        return None
    try:
        report = LabellingReport(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):  # changed since: made again
        return None
    labelled = sum((out / images.image_name(index)).exists() for index in range(len(images)))
    return report if labelled == report.images and (may_lack or labelled == len(images)) else None


def refuse_other_labels(out: Path, made_by: dict[str, Any]) -> None:
    """Raises InputError if `out` holds labels that were made by something else."""
    path = out / MADE_BY_FILE
    if not path.exists():
        return
    before = read_left(path, json.loads)
    differs = [name for name, value in made_by.items() if json.loads(json.dumps(value)) != before.get(name)]
    if differs:
        raise InputError(f"{out} holds pseudo-labels made with another {', '.join(differs)}; choose another folder")


def refuse_strange_labels(out: Path, images: ImageSet) -> None:
    """Raises InputError if `out` has files in the place of label maps and nothing says that they are ours."""
    if (out / MADE_BY_FILE).exists():
        return
    strange = next((file for name in map(images.image_name, range(len(images))) if (file := out / name).exists()), None)
    if strange:  # the labels of a data set, say, that a person drew
        raise InputError(f"out: no {MADE_BY_FILE} in {out} says what made {strange}; choose another folder")


def evaluate_model(
    model: Path, data: DataConfig, machine: Machine, restricted_argmax: bool = False, workers: int = 0
) -> dict[str, Any]:
    """Score a model file on labelled data: the scores of result.json with the provenance the file carries.

    Raises:
        InputError: wrong input, or no pixel has a class of the model.
        Stopped: a signal asked to leave.
    """
    network, data = load_network(model).to(machine.device), at_size_of(model, data)
    images, processes = find_pairs(data, labelled=True), machine.processes
    refuse_unlabelled(images, network.label_space)
    batches = evaluation_batches(
        images, network.label_space, data, EVALUATION_BATCH, workers, processes.rank, processes.count
    )
    machine.terminal.start_progress("evaluation", len(images))
    scores = evaluate(
        network, stoppable(batches, len(images), machine), restricted_argmax, processes, machine.terminal.advance
    )
    machine.terminal.finish_progress()
    return {**scores.as_json(), **json.loads(read_metadata(model).get("provenance", "{}"))}


def at_size_of(model: Path, data: DataConfig) -> DataConfig:
    """`data` at the input size that the model was tested at, unless it names a size of its own."""
    size = json.loads(read_metadata(model).get("input_size", "null"))
    return replace(data, size=tuple(size)) if size and data.size is None else data
