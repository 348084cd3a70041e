"""The two-step procedure of section 4.3, and each single training of which it is made.

In: an experiment and a machine. Out: one run folder: `config.yaml`, `metrics.jsonl`, `model.safetensors`,
`selected.safetensors`, `best.safetensors`, `checkpoints/`, `result.json`; the whole procedure leaves its first step
beside them in `step1/`, its labels in `pseudo_labels/`, and what it was asked for in `experiment.yaml`. Called again on
a folder whose run was stopped, each function here continues it; with several processes all call it, and rank 0 writes.
"""

import json
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from segadapt.adaptation.apply_translation import apply_translation
from segadapt.adaptation.checkpoints import digest_of, restore
from segadapt.adaptation.fit_translation import GENERATOR_FILE, fit_translation
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.pseudo_labels import THRESHOLDS_FILE, LabellingReport, label_images
from segadapt.adaptation.run_folder import (
    BEST_FILE,
    CONFIG_FILE,
    EXPERIMENT_FILE,
    MODEL_FILE,
    RESULT_FILE,
    SELECTED_FILE,
    Check,
    config_text,
    finished_result,
    provenance_of,
    read_left,
    result_of,
)
from segadapt.adaptation.run_log import Metrics, command_line
from segadapt.adaptation.step import adapts_to_target
from segadapt.adaptation.trainer import new_state, train
from segadapt.config import (
    CycleGanConfig,
    DataConfig,
    Experiment,
    FolderTranslation,
    MatchingConfig,
    OnBadImage,
    PseudoLabelConfig,
    TranslationConfig,
    WarmUpConfig,
)
from segadapt.data.label_spaces import LabelSpace, common
from segadapt.data.loading import (
    Batch,
    EvaluationBatch,
    LeftOut,
    all_bad,
    evaluation_batches,
    fingerprint,
    training_batches,
)
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import evaluate
from segadapt.evaluation.label_free import label_free_scores
from segadapt.networks.weights import build_network, load_network, read_metadata, save_network
from segadapt.processes import Processes
from segadapt.translation import StyleTransfer
from segadapt.whole_file import whole_file

MADE_BY_FILE = "made_by.json"
EVALUATION_BATCH = 4
ADAPTING = ("adversarial", "translation", "sim", "sim_ssl")  # rows that begin with the warm-up, where there is one
SOURCE, TARGET = 0, 1  # the two streams draw from different seeds


def row_of(experiment: Experiment, name: str) -> Experiment:
    """One row of the paper's Tables 2 and 6 as a configuration: what the row leaves out has weight 0.

    Args:
        experiment: The whole method.
        name: source_only, adabn, adversarial, translation (adversarial with translated source images), sim (all of step
            1) or target_only (trained on the target's labels).

    Raises:
        InputError: another name, or a row of translated images where the experiment translates none.
    """
    loss, network = experiment.loss, experiment.network
    originals = replace(experiment, translation=TranslationConfig(), source=replace(experiment.source, translated=""))
    # without target images the running statistics must be those of the source batches
    separate = network.batch_norm == "source_target_separate"
    unadapted = replace(
        all_steps(originals),
        loss=replace(loss, adversarial=0.0, matching=0.0, target_segmentation=0.0),
        network=replace(network, batch_norm="batch") if separate else network,
    )
    if name == "source_only":
        return unadapted
    if name == "target_only":
        return replace(unadapted, source=experiment.target)
    if name == "adabn":
        return replace(unadapted, network=replace(network, batch_norm="source_target_separate"))
    without_matching = replace(loss, matching=0.0, target_segmentation=0.0)
    if name == "adversarial":
        return replace(originals, loss=without_matching)
    if name == "translation":
        if experiment == originals:
            raise InputError(
                "row translation: source images are not translated; set translation.method or source.translated"
            )
        return replace(experiment, loss=without_matching)
    if name == "sim":
        # Eq. (11) belongs to step 2: without pseudo-labels there is nothing to override with
        no_override = replace(experiment.pseudo_labels, override="off")
        return replace(experiment, loss=replace(loss, target_segmentation=0.0), pseudo_labels=no_override)
    raise InputError(f"row {name!r} is none of source_only, adabn, adversarial, translation, sim, target_only")


def all_steps(experiment: Experiment) -> Experiment:
    """One training as long as warm-up and adaptation together, at the warm-up's rate."""
    if not experiment.warm_up.steps:
        return experiment
    steps = experiment.warm_up.steps + experiment.schedule.steps
    return replace(
        experiment,
        schedule=replace(experiment.schedule, steps=steps, decay_steps=None),
        optimiser=replace(experiment.optimiser, learning_rate=experiment.warm_up.learning_rate),
        warm_up=WarmUpConfig(),
    )


def warm_up_of(experiment: Experiment) -> Experiment:
    """The training on the source alone that comes first; a function of nothing that only the steps after it use."""
    return replace(
        row_of(replace(experiment, schedule=replace(experiment.schedule, steps=0)), "source_only"),
        cyclegan=CycleGanConfig(),
        matching=MatchingConfig(),
        pseudo_labels=PseudoLabelConfig(),
    )


def warm_up(experiment: Experiment, run_dir: Path, machine: Machine) -> Path | None:
    """Train on the source alone first, into `run_dir`, if the experiment asks for it; the model to start from."""
    if not experiment.warm_up.steps:
        return None
    run_training(warm_up_of(experiment), run_dir, machine, "warm-up")
    return run_dir / MODEL_FILE


def step2_of(experiment: Experiment) -> Experiment:
    """Step 2 as a training of its own: the losses of Eq. (13)."""
    return replace(experiment, loss=replace(experiment.loss, matching=experiment.loss.matching_step2))


def train_row(
    experiment: Experiment,
    name: str,
    run_dir: Path,
    machine: Machine,
    title: str,
    start: Path | None = None,
    translated: Path | None = None,
) -> dict[str, Any]:
    """Train one row, or the whole procedure for `sim_ssl`; rows that adapt get warm-up and translation first.

    Args:
        experiment: The whole method.
        name: As `row_of` knows it, or sim_ssl.
        run_dir: The run folder.
        machine: Where to train.
        title: Of the progress bar.
        start: The model of a warm-up that was already made; None makes it, if the experiment asks for one.
        translated: A folder of translated source images that was already made; likewise.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
        Stopped: a signal asked to leave; the same call continues.
    """
    if name == "sim_ssl":
        return adapt(experiment, run_dir, machine, start, translated)
    row = row_of(experiment, name)
    if name in ADAPTING:
        start = start or warm_up(experiment, run_dir / "warm_up", machine)
        translated = translated or translated_source(row, run_dir / "translation", start, machine)
    return run_training(row, run_dir, machine, title, start, translated)


def adapt(
    experiment: Experiment, run_dir: Path, machine: Machine, start: Path | None = None, translated: Path | None = None
) -> dict[str, Any]:
    """Warm-up, translation, step 1, pseudo-labels, step 2 (from the initial weights, as a rule), evaluation.

    Args:
        experiment: The whole method.
        run_dir: The run folder.
        machine: Where to train.
        start: The model of a warm-up that was already made; None makes it, if the experiment asks for one.
        translated: A folder of translated source images that was already made; likewise.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
        Stopped: a signal asked to leave; the same call continues.
    """
    step1_dir, labels_dir = run_dir / "step1", run_dir / "pseudo_labels"
    step1_experiment, step2_experiment = row_of(experiment, "sim"), step2_of(experiment)
    options = experiment.pseudo_labels
    finished = finished_row(experiment, "sim_ssl", run_dir)
    if finished:
        return finished
    keep_experiment(experiment, run_dir, machine.processes, start)
    start = start or warm_up(experiment, run_dir / "warm_up", machine)
    translated = translated or translated_source(experiment, run_dir / "translation", start, machine)
    step1 = run_training(step1_experiment, step1_dir, machine, "step 1", start, translated)
    if not machine.processes.share((labels_dir / THRESHOLDS_FILE).exists()):
        model = step1_dir / {"last": MODEL_FILE, "selected": SELECTED_FILE, "best": BEST_FILE}[options.model]
        schedule = experiment.schedule
        pseudo_label(model, experiment.target, options, schedule.workers, labels_dir, machine, schedule.on_bad_image)
    notes = {"step1": {"miou": step1["miou"], "seconds": step1["seconds"]}, "pseudo_labels_by": options.model}
    if options.init_from == "step1":
        start = step1_dir / MODEL_FILE
    return run_training(step2_experiment, run_dir, machine, "step 2", start, translated, labels_dir, notes)


def finished_row(experiment: Experiment, name: str, run_dir: Path) -> dict[str, Any] | None:
    """The result of a row in `run_dir`; None where it is not finished.

    Raises:
        InputError: `run_dir` holds another experiment.
    """
    if name != "sim_ssl":
        return finished_result(run_dir, asdict(row_of(experiment, name)))
    finished_result(run_dir / "step1", asdict(row_of(experiment, "sim")))  # another one there costs no step 1
    return finished_result(run_dir, asdict(step2_of(experiment)))


def translated_source(experiment: Experiment, run_dir: Path, segmenter: Path | None, machine: Machine) -> Path | None:
    """Train a CycleGAN and write all source images in the target's style, if the experiment asks for it.

    Args:
        experiment: Its `translation`, `cyclegan`, source and target.
        run_dir: Folder of the generator's training; the images go to `images/` in it.
        segmenter: A model trained on the source, for the semantic loss where `cyclegan.segmenter` names none.
        machine: Where to train.

    Returns:
        The folder of the translated images; None without them.
    """
    if experiment.translation.method != "cyclegan":
        return None
    config = experiment.cyclegan
    if segmenter and not config.segmenter:
        config = replace(config, segmenter=str(segmenter))
    source = find_domain("source", experiment.source, labelled=False)
    target = find_domain("target", experiment.target, labelled=False)
    fit_translation(config, source, target, experiment.seed, run_dir, machine)
    options = FolderTranslation("cyclegan", model=str(run_dir / GENERATOR_FILE), seed=experiment.seed)
    apply_translation(options, source, None, run_dir / "images", machine)
    machine.processes.wait()
    return run_dir / "images"


def keep_experiment(experiment: Experiment, run_dir: Path, processes: Processes, start: Path | None) -> None:
    """Write what `adapt` was asked for, for `--resume`, before anything is trained.

    Raises:
        InputError: the input is not there; then nothing is written.
    """
    source = find_domain("source", experiment.source, labelled=True)
    target = find_domain("target", experiment.target, labelled=False)
    if experiment.test.root:
        find_domain("test", experiment.test, labelled=True)
    elif experiment.pseudo_labels.model == "best":
        raise InputError("pseudo_labels.model: 'best' is chosen on test labels, and test.root is empty; use 'selected'")
    if experiment.pseudo_labels.model == "selected" and not experiment.selection.images:
        raise InputError("pseudo_labels.model: 'selected' needs scores without labels; set selection.images above 0")
    space = trained_space(experiment, source, target)
    if processes.is_first:
        if start is None and not (run_dir / EXPERIMENT_FILE).exists():
            build_network(experiment.network, space, experiment.seed)  # weights that do not fit are found out here
        run_dir.mkdir(parents=True, exist_ok=True)
        with whole_file(run_dir / EXPERIMENT_FILE) as file:
            file.write(config_text(asdict(experiment)).encode())


def run_training(
    experiment: Experiment,
    run_dir: Path,
    machine: Machine,
    title: str,
    start: Path | None = None,
    translated: Path | None = None,
    pseudo_labels: Path | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train once, evaluate, and leave a run folder; a finished folder of the same experiment is only read.

    Args:
        experiment: Losses, data and schedule of this training.
        run_dir: The run folder; nothing is written there before the input was found right.
        machine: Where to train.
        title: Of the progress bar.
        start: A model of ours to start from in place of `network.weights`; not part of the experiment, so that a
            run folder can be moved.
        translated: Folder of images that are read in place of the source's.
        pseudo_labels: Folder of target labels for step 2.
        notes: Further entries of result.json.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
        Stopped: a signal asked to leave; the same call continues.
    """
    processes, terminal = machine.processes, machine.terminal
    finished = processes.share(finished_result(run_dir, asdict(experiment)))
    if finished:
        return finished
    schedule = experiment.schedule
    uses_target = adapts_to_target(experiment.loss, experiment.network.batch_norm)
    of_source = replace(experiment.source, translated=str(translated)) if translated else experiment.source
    source = find_domain("source", of_source, labelled=True)
    target = find_domain("target", experiment.target, labelled=False)
    test = find_domain("test", experiment.test, labelled=True) if experiment.test.root else None
    # the originals, in any case: a translated image is no image of the source
    held_out = experiment.validation if experiment.validation.root else replace(experiment.source, translated="")
    validation = find_domain("validation", held_out, labelled=True)
    space = trained_space(experiment, source, target)
    left_out = [name for name in source.space.names if name not in space.names]
    if left_out:
        terminal.say(f"trained on the {space.num_classes} classes in common; left out: {', '.join(left_out)}")

    skip_bad = schedule.on_bad_image == "skip"
    bad = {
        name: torch.zeros(len(images), dtype=torch.int64) for name, images in (("source", source), ("target", target))
    }

    def note_bad(domain: str, index: int, problem: str) -> None:
        if not bad[domain][index]:
            bad[domain][index] = 1
            terminal.say(f"left out: {problem}")
            count = sum(int(each.sum()) for each in bad.values())
            metrics.write(state.step + 1, {"bad_images": count, "bad_image": [domain, index, problem]})

    def stream(
        images: ImageSet,
        data: DataConfig,
        domain: int,
        step: int,
        labels: Path | None,
        style: StyleTransfer | None,
        workers: int,
        left_out: LeftOut,
    ) -> Iterator[Batch]:
        return training_batches(
            images, space, data, experiment.augmentation, schedule.batch_size, experiment.seed, domain,
            workers, step * schedule.batch_size * processes.count, labels, style,
            processes.rank, processes.count, left_out if skip_bad else None,
        )  # fmt: skip

    translation = experiment.translation
    online = translation.method not in ("off", "cyclegan")
    style = StyleTransfer(translation, target.images, skip_bad) if online else None

    def streams(
        step: int, workers: int = schedule.workers, note: Callable[[str, int, str], None] = note_bad
    ) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
        of_source, of_target = partial(note, "source"), partial(note, "target")
        return (
            stream(source, experiment.source, SOURCE, step, None, style, workers, of_source),
            stream(target, experiment.target, TARGET, step, pseudo_labels, None, workers, of_target)
            if uses_target
            else None,
        )

    weights = replace(experiment.network, weights=str(start)) if start else experiment.network
    state = new_state(replace(experiment, network=weights), space, machine.device, processes)
    restore(state, run_dir, machine)
    if state.step < schedule.steps:
        # options out of range, and files that are wrong from the first on, are refused before anything is written
        for first in streams(state.step, workers=0, note=lambda domain, index, problem: None):
            next(first or iter([None]))
    sets = {"source": source, "target": target, **({"test": test} if test else {})}
    provenance = provenance_of(experiment, space, sets, start)

    def whole(images: ImageSet, data: DataConfig, left_out: LeftOut | None = None) -> Iterator[EvaluationBatch]:
        batches = evaluation_batches(
            images, space, data, EVALUATION_BATCH, schedule.workers, processes.rank, processes.count, (), left_out
        )
        return stoppable(batches, len(images), machine)

    def check(step: int) -> Check:
        scores, count = None, experiment.selection.images
        if test:
            scores = evaluate(state.segmenter, whole(test, experiment.test), processes=processes)
        if not count:
            return Check(step, scores, {})
        pass_over = (lambda index, problem: None) if skip_bad else None
        unlabelled = whole(target.spread(count), experiment.target, pass_over)
        labelled = whole(validation.spread(count), held_out, pass_over)
        return Check(step, scores, label_free_scores(state.segmenter, unlabelled, labelled, processes))

    def save_model(name: str) -> None:
        if not processes.is_first:
            return
        extra = {
            "provenance": json.dumps(provenance),
            "input_size": json.dumps((experiment.test if test else experiment.target).size),
        }
        save_network(run_dir / name, state.segmenter, extra)

    run_dir.mkdir(parents=True, exist_ok=True)
    if processes.is_first:
        with whole_file(run_dir / CONFIG_FILE) as file:
            file.write(config_text(asdict(experiment)).encode())
    with Metrics(run_dir, state.step, processes.is_first) as metrics:
        for domain, index, _ in (line["bad_image"] for line in metrics.earlier if "bad_image" in line):
            bad[domain][index] = 1
        checks = train(
            state, schedule, streams, check if test or experiment.selection.images else None,
            experiment.selection.score, save_model, run_dir, metrics, machine, title,
        )  # fmt: skip
    result = {
        **result_of(checks, schedule.last_k),
        **provenance,
        "bad_images": sum(int((processes.sum(each) > 0).sum()) for each in bad.values()),
        "command": command_line(),
        "seconds": state.seconds,
        **(notes or {}),
    }
    if processes.is_first:
        with whole_file(run_dir / RESULT_FILE) as file:
            file.write(json.dumps(result, indent=1).encode())
    return processes.share(result)


def stoppable(batches: Iterator[EvaluationBatch], images: int, machine: Machine) -> Iterator[EvaluationBatch]:
    """The batches of this process; before each, all processes leave if one was told to.

    A process with fewer batches than the others asks as often as they do.
    """
    rounds = ceil(ceil(images / machine.processes.count) / EVALUATION_BATCH)
    for _ in range(rounds):
        machine.leave_if_stopped()
        batch = next(batches, None)
        if batch is not None:
            yield batch


def pseudo_label(
    model: Path,
    data: DataConfig,
    options: PseudoLabelConfig,
    workers: int,
    out: Path,
    machine: Machine,
    on_bad_image: OnBadImage = "fail",
) -> LabellingReport:
    """Label the images of `data` with the network in `model`, Eq. (9), into `out`.

    Args:
        model: A file of weights.
        data: The images; their labels are not read.
        options: Quantile and cap.
        workers: Processes that read images; 0: this one.
        out: Folder of the label maps.
        machine: Where to compute.
        on_bad_image: What to do about an image that cannot be read; 'skip' writes no label map of it.

    Raises:
        InputError: wrong input, or `out` holds the labels of another model or of other options.
        Stopped: a signal asked to leave; the same call continues.
    """
    network, data = load_network(model).to(machine.device), at_size_of(model, data)
    images, processes = find_pairs(data, labelled=False), machine.processes
    made_by = {
        "model": digest_of(model),
        "data": fingerprint(images),
        "size": data.size,
        "quantile": options.quantile,
        "cap": options.cap,
    }
    refuse_other_labels(out, made_by)
    bad: dict[int, str] = {}

    def note_bad(index: int, problem: str) -> None:
        if index not in bad:
            bad[index] = problem
            machine.terminal.say(f"left out: {problem}")

    def read(known: Container[str], workers: int) -> Iterator[EvaluationBatch]:
        return evaluation_batches(
            images, network.label_space, data, EVALUATION_BATCH, workers, processes.rank, processes.count, known,
            note_bad if on_bad_image == "skip" else None,
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
    report = label_images(
        network, names, batches_without, options, out, processes, machine.terminal.advance, on_bad_image == "skip"
    )
    machine.terminal.finish_progress()
    return report


def refuse_other_labels(out: Path, made_by: dict[str, Any]) -> None:
    """Raises InputError if `out` holds labels that were made by something else."""
    path = out / MADE_BY_FILE
    if not path.exists():
        return
    before = read_left(path, json.loads)
    differs = [name for name, value in made_by.items() if json.loads(json.dumps(value)) != before.get(name)]
    if differs:
        raise InputError(f"{out} holds pseudo-labels made with another {', '.join(differs)}; choose another folder")


def evaluate_model(
    model: Path, data: DataConfig, machine: Machine, restricted_argmax: bool = False, workers: int = 0
) -> dict[str, Any]:
    """Score a model file on labelled data: the scores of result.json with the provenance the file carries."""
    network, data = load_network(model).to(machine.device), at_size_of(model, data)
    images, processes = find_pairs(data, labelled=True), machine.processes
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


def find_domain(name: str, data: DataConfig, labelled: bool) -> ImageSet:
    """`find_pairs`, whose errors say which domain they are about."""
    try:
        return find_pairs(data, labelled)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def trained_space(experiment: Experiment, source: ImageSet, target: ImageSet) -> LabelSpace:
    """The classes source and target have in common, or those of them that the experiment names."""
    space = common(source.space, target.space)
    return space.restrict(experiment.classes) if experiment.classes else space
