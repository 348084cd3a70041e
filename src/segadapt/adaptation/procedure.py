"""The two-step procedure of section 4.3, and each single training of which it is made.

In: an experiment. Out: one run folder: `config.yaml`, `metrics.jsonl`, `model.safetensors`, `train_state.pt`, `result.json`;
the whole procedure leaves its first step beside them in `step1/`, and `pseudo_labels/`.
"""

import json
import math
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
from segadapt.adaptation.pseudo_labels import label_images
from segadapt.adaptation.run_log import RunLog
from segadapt.adaptation.step import adapts_to_target
from segadapt.adaptation.trainer import new_state, train
from segadapt.config import DataConfig, Experiment
from segadapt.data.label_spaces import LabelSpace, common
from segadapt.data.loading import Batch, EvaluationBatch, evaluation_batches, fingerprint, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import Evaluation, evaluate
from segadapt.networks.weights import load_network, read_metadata, save_network

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
    nothing = replace(loss, adversarial=0.0, matching=0.0, target_segmentation=0.0)
    # without target images the running statistics must be those of the source batches
    own = replace(network, batch_norm="frozen" if network.batch_norm == "frozen" else "batch")
    if name == "source_only":
        return replace(experiment, loss=nothing, network=own)
    if name == "target_only":
        return replace(experiment, loss=nothing, network=own, source=experiment.target)
    if name == "adabn":
        return replace(experiment, loss=nothing, network=replace(network, batch_norm="source_target_separate"))
    if name == "adversarial":
        return replace(experiment, loss=replace(loss, matching=0.0, target_segmentation=0.0))
    if name == "sim":
        return replace(experiment, loss=replace(loss, target_segmentation=0.0))
    raise InputError(f"row {name!r} is none of source_only, adabn, adversarial, sim, target_only")


def step2_of(experiment: Experiment) -> Experiment:
    """Eq. (13): the losses of step 2."""
    return replace(experiment, loss=replace(experiment.loss, matching=experiment.loss.matching_step2))


def adapt(experiment: Experiment, run_dir: Path, device: torch.device, log: RunLog) -> dict[str, Any]:
    """Step 1, pseudo-labels, step 2 from the initial weights, evaluation. A stopped call continues where it stood.

    Returns:
        The content of `run_dir/result.json`.

    Raises:
        InputError: wrong input, or `run_dir` holds another experiment.
    """
    step1_dir, labels_dir = run_dir / "step1", run_dir / "pseudo_labels"
    step1 = run_training(row_of(experiment, "sim"), step1_dir, device, log, "step 1")
    if not (labels_dir / "thresholds.json").exists():
        model = "best.safetensors" if experiment.pseudo_labels.model == "best" else "model.safetensors"
        pseudo_label(step1_dir / model, experiment.target, experiment, labels_dir, device, log)
    return run_training(
        step2_of(experiment),
        run_dir,
        device,
        log,
        "step 2",
        labels_dir,
        {
            "step1": {"miou": step1["miou"], "seconds": step1["seconds"]},
            "pseudo_labels_by": experiment.pseudo_labels.model,
        },
    )


def run_training(
    experiment: Experiment,
    run_dir: Path,
    device: torch.device,
    log: RunLog,
    title: str,
    pseudo_labels: Path | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train once, evaluate, and leave a run folder; a finished folder of the same experiment is only read.

    Args:
        experiment: Losses, data and schedule of this training.
        run_dir: The run folder.
        device: Where to train.
        log: For the terminal; metrics go to a log of the run folder's own.
        title: Of the progress bar.
        pseudo_labels: Folder of target labels for step 2.
        notes: Further entries of result.json.
    """
    claim(run_dir, experiment)
    result_path = run_dir / "result.json"
    if result_path.exists():
        return json.loads(result_path.read_text())
    started = time.perf_counter()
    uses_target = adapts_to_target(experiment.loss, experiment.network.batch_norm)
    source = find_pairs(experiment.source, labelled=True)
    target = find_pairs(experiment.target, labelled=False)
    test = find_pairs(experiment.test, labelled=True)
    space = trained_space(experiment, source, target)
    left_out = [name for name in source.space.names if name not in space.names]
    if left_out:
        log.say(f"trained on the {space.num_classes} classes in common; left out: {', '.join(left_out)}")

    def stream(images: ImageSet, data: DataConfig, domain: int, step: int, labels: Path | None) -> Iterator[Batch]:
        schedule = experiment.schedule
        return training_batches(
            images, space, data, experiment.augmentation, schedule.batch_size, experiment.seed, domain,
            schedule.workers, step * schedule.batch_size, labels,
        )  # fmt: skip

    def streams(step: int) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
        return (
            stream(source, experiment.source, SOURCE, step, None),
            stream(target, experiment.target, TARGET, step, pseudo_labels) if uses_target else None,
        )

    state = new_state(experiment, space, device)
    provenance = provenance_of(experiment, space, {"source": source, "target": target, "test": test})
    best = -math.inf

    def evaluate_now() -> Evaluation:
        nonlocal best
        scores = evaluate(state.segmenter, test_batches(test, space, experiment.test), space)
        if scores.miou > best:
            best = scores.miou
            save_network(run_dir / "best.safetensors", state.segmenter, space, {"provenance": json.dumps(provenance)})
        return scores

    with RunLog(run_dir) as metrics:
        metrics.console = log.console
        evaluations = train(state, experiment.schedule, streams, evaluate_now, run_dir, metrics, title)
    save_network(run_dir / "model.safetensors", state.segmenter, space, {"provenance": json.dumps(provenance)})
    result = {
        **result_of(evaluations, experiment.schedule.last_k),
        **provenance,
        "seconds": time.perf_counter() - started,
        **(notes or {}),
    }
    result_path.write_text(json.dumps(result, indent=1))
    return result


def pseudo_label(
    model: Path, data: DataConfig, experiment: Experiment, out: Path, device: torch.device, log: RunLog
) -> None:
    """Label the images of `data` with the network in `model`, Eq. (9), into `out`."""
    network = load_network(model).to(device)
    images = find_pairs(data, labelled=False)
    log.start_progress("pseudo-labels", 2 * len(images.images))
    batches = evaluation_batches(images, network.label_space, data, EVALUATION_BATCH, experiment.schedule.workers)
    label_images(network, network.label_space, batches, experiment.pseudo_labels, out, log.advance)
    log.finish_progress()


def evaluate_model(model: Path, data: DataConfig, device: torch.device) -> dict[str, Any]:
    """Score a model file on labelled data: the scores of result.json with the provenance the file carries."""
    network = load_network(model).to(device)
    images = find_pairs(data, labelled=True)
    space = network.label_space
    scores = evaluate(network, test_batches(images, space, data), space)
    return {**scores.as_json(), **json.loads(read_metadata(model).get("provenance", "{}"))}


def trained_space(experiment: Experiment, source: ImageSet, target: ImageSet) -> LabelSpace:
    """The classes source and target have in common, or those of them that the experiment names."""
    space = common(source.space, target.space)
    return space.restrict(experiment.classes) if experiment.classes else space


def test_batches(images: ImageSet, space: LabelSpace, data: DataConfig, workers: int = 0) -> Iterator[EvaluationBatch]:
    """Each labelled image once, in order."""
    return evaluation_batches(images, space, data, EVALUATION_BATCH, workers)


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
            name: {"name": images.name, "images": len(images.images), "fingerprint": fingerprint(images)}
            for name, images in sets.items()
        },
    }


def claim(run_dir: Path, experiment: Experiment) -> None:
    """Make `run_dir` the folder of this experiment.

    Raises:
        InputError: it holds another one.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.yaml"
    text = yaml.safe_dump(plain(asdict(experiment)), sort_keys=False)
    if path.exists() and path.read_text() != text:
        raise InputError(f"{run_dir} holds a run with another configuration (config.yaml); choose another --run_dir")
    path.write_text(text)


def plain(value: Any) -> Any:
    """Tuples as lists, so that the configuration is ordinary YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
