"""The two-step procedure of section 4.3, and each single training of which it is made.

In: an experiment. Out: one run folder: `config.yaml`, `metrics.jsonl`, `model.safetensors`, `best.safetensors`,
`train_state.pt`, `result.json`; the whole procedure leaves its first step beside them in `step1/`, its labels in
`pseudo_labels/`.
"""

import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

import segadapt
from segadapt.adaptation.checkpoints import load_state, whole_file
from segadapt.adaptation.pseudo_labels import LabellingReport, label_images
from segadapt.adaptation.run_log import Metrics, Terminal, command_line
from segadapt.adaptation.step import adapts_to_target
from segadapt.adaptation.trainer import new_state, train
from segadapt.config import DataConfig, Experiment, PseudoLabelConfig, TranslationConfig, WarmUpConfig
from segadapt.data.label_spaces import LabelSpace, common
from segadapt.data.loading import Batch, evaluation_batches, fingerprint, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import Evaluation, evaluate
from segadapt.networks.weights import load_network, read_metadata, save_network
from segadapt.translation import StyleTransfer

CONFIG_FILE, RESULT_FILE = "config.yaml", "result.json"
EVALUATION_BATCH = 4
SOURCE, TARGET = 0, 1  # the two streams draw from different seeds


def row_of(experiment: Experiment, name: str) -> Experiment:
    """One row of the paper's Tables 2 and 6 as a configuration: what the row leaves out has weight 0.

    Args:
        experiment: The whole method.
        name: source_only, adabn, adversarial, sim (all of step 1) or target_only (trained on the target's labels).

    Raises:
        InputError: another name.
    """
    loss, network = experiment.loss, experiment.network
    # without target images the running statistics must be those of the source batches
    separate = network.batch_norm == "source_target_separate"
    unadapted = replace(
        all_steps(experiment),
        loss=replace(loss, adversarial=0.0, matching=0.0, target_segmentation=0.0),
        network=replace(network, batch_norm="batch") if separate else network,
        translation=TranslationConfig(),
    )
    if name == "source_only":
        return unadapted
    if name == "target_only":
        return replace(unadapted, source=experiment.target)
    if name == "adabn":
        return replace(unadapted, network=replace(network, batch_norm="source_target_separate"))
    if name == "adversarial":
        return replace(experiment, loss=replace(loss, matching=0.0, target_segmentation=0.0))
    if name == "sim":
        # Eq. (11) belongs to step 2: without pseudo-labels there is nothing to override with
        no_override = replace(experiment.pseudo_labels, override="off")
        return replace(experiment, loss=replace(loss, target_segmentation=0.0), pseudo_labels=no_override)
    raise InputError(f"row {name!r} is none of source_only, adabn, adversarial, sim, target_only")


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


def warm_up(experiment: Experiment, run_dir: Path, device: torch.device, terminal: Terminal) -> Experiment:
    """Train on the source alone first, into `run_dir`; the experiment that starts from there has no warm-up left."""
    if not experiment.warm_up.steps:
        return experiment
    nothing_after = replace(experiment, schedule=replace(experiment.schedule, steps=0))
    run_training(row_of(nothing_after, "source_only"), run_dir, device, terminal, "warm-up")
    weights = str(run_dir / "model.safetensors")
    return replace(experiment, network=replace(experiment.network, weights=weights), warm_up=WarmUpConfig())


def step2_of(experiment: Experiment, step1_model: Path) -> Experiment:
    """Step 2 as a training of its own: the losses of Eq. (13) and the weights that it starts from."""
    loss, network = experiment.loss, experiment.network
    if experiment.pseudo_labels.init_from == "step1":
        network = replace(network, weights=str(step1_model))
    return replace(experiment, loss=replace(loss, matching=loss.matching_step2), network=network)


def adapt(experiment: Experiment, run_dir: Path, device: torch.device, terminal: Terminal) -> dict[str, Any]:
    """Step 1, pseudo-labels, step 2 (from the initial weights, as a rule), evaluation. A stopped call continues.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
    """
    experiment = warm_up(experiment, run_dir / "warm_up", device, terminal)
    step1_dir, labels_dir = run_dir / "step1", run_dir / "pseudo_labels"
    step1_experiment = row_of(experiment, "sim")
    step2_experiment = step2_of(experiment, step1_dir / "model.safetensors")
    options = experiment.pseudo_labels
    # both are asked first, so that the folder of another experiment costs no step 1
    finished_result(step1_dir, step1_experiment)
    finished = finished_result(run_dir, step2_experiment)
    if finished:
        return finished
    step1 = run_training(step1_experiment, step1_dir, device, terminal, "step 1")
    if not (labels_dir / "thresholds.json").exists():
        model = step1_dir / ("best.safetensors" if options.model == "best" else "model.safetensors")
        pseudo_label(model, experiment.target, options, experiment.schedule.workers, labels_dir, device, terminal)
    notes = {"step1": {"miou": step1["miou"], "seconds": step1["seconds"]}, "pseudo_labels_by": options.model}
    return run_training(step2_experiment, run_dir, device, terminal, "step 2", labels_dir, notes)


def run_training(
    experiment: Experiment,
    run_dir: Path,
    device: torch.device,
    terminal: Terminal,
    title: str,
    pseudo_labels: Path | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train once, evaluate, and leave a run folder; a finished folder of the same experiment is only read.

    Args:
        experiment: Losses, data and schedule of this training.
        run_dir: The run folder; nothing is written there before the input was found right.
        device: Where to train.
        terminal: Shows progress.
        title: Of the progress bar.
        pseudo_labels: Folder of target labels for step 2.
        notes: Further entries of result.json.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
    """
    finished = finished_result(run_dir, experiment)
    if finished:
        return finished
    started = time.perf_counter()
    schedule = experiment.schedule
    uses_target = adapts_to_target(experiment.loss, experiment.network.batch_norm)
    source = find_domain("source", experiment.source, labelled=True)
    target = find_domain("target", experiment.target, labelled=False)
    test = find_domain("test", experiment.test, labelled=True)
    space = trained_space(experiment, source, target)
    left_out = [name for name in source.space.names if name not in space.names]
    if left_out:
        terminal.say(f"trained on the {space.num_classes} classes in common; left out: {', '.join(left_out)}")

    def stream(
        images: ImageSet, data: DataConfig, domain: int, step: int, labels: Path | None, style: StyleTransfer | None
    ) -> Iterator[Batch]:
        return training_batches(
            images, space, data, experiment.augmentation, schedule.batch_size, experiment.seed, domain,
            schedule.workers, step * schedule.batch_size, labels, style,
        )  # fmt: skip

    translation = experiment.translation
    style = None if translation.method == "off" else StyleTransfer(translation, target.images)

    def streams(step: int) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
        return (
            stream(source, experiment.source, SOURCE, step, None, style),
            stream(target, experiment.target, TARGET, step, pseudo_labels, None) if uses_target else None,
        )

    state = new_state(experiment, space, device)
    saved = load_state(run_dir, device)
    if saved:
        state.load_state_dict(saved)
    streams(state.step)  # reads nothing yet, but refuses options that are out of range
    provenance = provenance_of(experiment, space, {"source": source, "target": target, "test": test})

    def evaluate_now() -> Evaluation:
        return evaluate(
            state.segmenter, evaluation_batches(test, space, experiment.test, EVALUATION_BATCH, schedule.workers)
        )

    def save_model(name: str) -> None:
        extra = {"provenance": json.dumps(provenance), "input_size": json.dumps(experiment.test.size)}
        save_network(run_dir / name, state.segmenter, extra)

    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(config_text(experiment))
    with Metrics(run_dir, state.step) as metrics:
        evaluations = train(state, schedule, streams, evaluate_now, save_model, run_dir, metrics, terminal, title)
    result = {
        **result_of(evaluations, schedule.last_k),
        **provenance,
        "command": command_line(),
        "seconds": time.perf_counter() - started,
        **(notes or {}),
    }
    with whole_file(run_dir / RESULT_FILE) as file:
        file.write(json.dumps(result, indent=1).encode())
    return result


def pseudo_label(
    model: Path,
    data: DataConfig,
    options: PseudoLabelConfig,
    workers: int,
    out: Path,
    device: torch.device,
    terminal: Terminal,
) -> LabellingReport:
    """Label the images of `data` with the network in `model`, Eq. (9), into `out`."""
    network, data = load_network(model).to(device), at_size_of(model, data)
    images = find_pairs(data, labelled=False)
    terminal.start_progress("pseudo-labels", 2 * len(images))
    batches = evaluation_batches(images, network.label_space, data, EVALUATION_BATCH, workers)
    report = label_images(network, batches, options, out, terminal.advance)
    terminal.finish_progress()
    return report


def evaluate_model(
    model: Path, data: DataConfig, device: torch.device, restricted_argmax: bool = False
) -> dict[str, Any]:
    """Score a model file on labelled data: the scores of result.json with the provenance the file carries."""
    network, data = load_network(model).to(device), at_size_of(model, data)
    images = find_pairs(data, labelled=True)
    batches = evaluation_batches(images, network.label_space, data, EVALUATION_BATCH, workers=0)
    scores = evaluate(network, batches, restricted_argmax)
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


def result_of(evaluations: list[tuple[int, Evaluation]], last_k: int) -> dict[str, Any]:
    """Scores of the last model, beside the mean of the last k and the best, which was chosen on labels."""
    last_step, last = evaluations[-1]
    best_step, best = max(evaluations, key=lambda pair: pair[1].miou)
    return {
        **last.as_json(),
        "step": last_step,
        "mean_last_k": {
            "k": len(evaluations[-last_k:]),
            "miou": statistics.fmean(e.miou for _, e in evaluations[-last_k:]),
        },
        "best": {"miou": best.miou, "step": best_step, "chosen_on": "test labels"},
    }


def provenance_of(experiment: Experiment, space: LabelSpace, sets: dict[str, ImageSet]) -> dict[str, Any]:
    """What a score depends on besides the configuration."""
    return {
        "seed": experiment.seed,
        "classes": list(space.names),
        "initial_weights": f"{experiment.network.backbone}: {experiment.network.weights}",
        "versions": {
            "segadapt": segadapt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "data": {
            name: {"name": images.name, "images": len(images), "fingerprint": fingerprint(images)}
            for name, images in sets.items()
        },
    }


def finished_result(run_dir: Path, experiment: Experiment) -> dict[str, Any] | None:
    """What the result.json of a finished run says; None where `run_dir` is new or its run is not finished.

    Raises:
        InputError: `run_dir` holds another experiment.
    """
    config, result = run_dir / CONFIG_FILE, run_dir / RESULT_FILE
    if config.exists() and config.read_text() != config_text(experiment):
        raise InputError(f"{run_dir} holds a run with another configuration (config.yaml); choose another --run_dir")
    return json.loads(result.read_text()) if result.exists() else None


def config_text(experiment: Experiment) -> str:
    """The content of config.yaml."""
    return yaml.safe_dump(plain(asdict(experiment)), sort_keys=False)


def plain(value: Any) -> Any:
    """Tuples as lists, so that the configuration is ordinary YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
