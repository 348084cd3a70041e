"""One training: data found, state made or restored, the training loop, scores, and the run folder that is left.

In: an experiment whose losses are those of the training, and a machine. Out: `config.yaml`, `metrics.jsonl`,
`model.safetensors`, `selected.safetensors`, `best.safetensors`, `checkpoints/`, `result.json`. Called again on a folder
whose run was stopped, it continues; with several processes all call it, and rank 0 writes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from segadapt.adaptation.checkpoints import restore
from segadapt.adaptation.domains import EVALUATION_BATCH, find_domain, refuse_unscorable, stoppable, trained_space
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_folder import (
    CONFIG_FILE,
    RESULT_FILE,
    Check,
    alone_in,
    config_text,
    finished_result,
    provenance_of,
    result_of,
)
from segadapt.adaptation.run_log import Metrics, command_line
from segadapt.adaptation.step import adapts_to_target
from segadapt.adaptation.trainer import new_state, train
from segadapt.config import DataConfig, Experiment
from segadapt.data.loading import (
    Batch,
    EvaluationBatch,
    LeftOut,
    evaluation_batches,
    refuse_unlabelled,
    training_batches,
)
from segadapt.data.readers import ImageSet
from segadapt.evaluation.evaluate import evaluate
from segadapt.evaluation.label_free import label_free_scores
from segadapt.networks.weights import save_network
from segadapt.translation import StyleTransfer
from segadapt.whole_file import whole_file

SOURCE, TARGET = 0, 1  # the two streams draw from different seeds


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
        InputError: wrong input, or `run_dir` holds another experiment, or another command trains there.
        Stopped: a signal asked to leave; the same call continues.
    """
    processes, terminal = machine.processes, machine.terminal
    finished = processes.share(finished_result(run_dir, asdict(experiment)))
    if finished:
        return finished
    schedule = experiment.schedule
    uses_target = adapts_to_target(experiment.loss, experiment.network.batch_norm)
    of_source = replace(experiment.source, translated=str(translated)) if translated else experiment.source
    skip_bad = schedule.on_bad_image == "skip"
    source = find_domain("source", of_source, labelled=True, skip_bad=skip_bad)
    target = find_domain("target", experiment.target, labelled=False)
    test = find_domain("test", experiment.test, labelled=True) if experiment.test.root else None
    # the originals, in any case: a translated image is no image of the source
    held_out = experiment.validation if experiment.validation.root else replace(experiment.source, translated="")
    validation = find_domain("validation", held_out, labelled=True, skip_bad=skip_bad)
    space = trained_space(experiment, source, target)
    for name, images in (("test", test), ("validation", validation)):
        if images:
            refuse_unscorable(name, images, space)  # the first evaluation would, after all the steps before it
    left_out = [name for name in source.space.names if name not in space.names]
    if left_out:
        terminal.say(f"trained on the {space.num_classes} classes in common; left out: {', '.join(left_out)}")

    bad: dict[str, set[int]] = {"source": set(), "target": set()}

    met: list[tuple[str, int, str]] = []  # by this process in the batch that it now reads

    def note_bad(batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; what any process left out of one is then known to all, and written down."""
        for batch in batches:
            for domain, index, problem in processes.gather(met):
                if index not in bad[domain]:
                    bad[domain].add(index)
                    terminal.say(f"left out: {problem}")
                    count = sum(map(len, bad.values()))
                    metrics.write(state.step + 1, {"bad_images": count, "bad_image": [domain, index, problem]})
            met.clear()
            yield batch

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
        step: int, workers: int, note: Callable[[str, int, str], None]
    ) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
        of_source, of_target = partial(note, "source"), partial(note, "target")
        return (
            stream(source, experiment.source, SOURCE, step, None, style, workers, of_source),
            stream(target, experiment.target, TARGET, step, pseudo_labels, None, workers, of_target)
            if uses_target
            else None,
        )

    def noted_streams(step: int) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
        of_source, of_target = streams(
            step, schedule.workers, lambda domain, index, problem: met.append((domain, index, problem))
        )
        if not skip_bad:
            return of_source, of_target
        return note_bad(of_source), note_bad(of_target) if of_target else None

    weights = replace(experiment.network, weights=str(start)) if start else experiment.network
    state = new_state(replace(experiment, network=weights), space, machine.device, processes)
    restore(state, run_dir, machine)
    if state.step < schedule.steps:
        # options out of range, and files that are wrong from the first on, are refused before anything is written
        for first in streams(state.step, workers=0, note=lambda domain, index, problem: None):
            next(first or iter([None]))
    if test:
        refuse_unlabelled(test, space)
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
    with alone_in(run_dir, processes):
        if processes.is_first:
            with whole_file(run_dir / CONFIG_FILE) as file:
                file.write(config_text(asdict(experiment)).encode())
        with Metrics(run_dir, state.step, processes.is_first) as metrics:
            for domain, index, _ in (line["bad_image"] for line in metrics.earlier if "bad_image" in line):
                bad[domain].add(index)
            checks = train(
                state, schedule, noted_streams, check if test or experiment.selection.images else None,
                experiment.selection.score, save_model, run_dir, metrics, machine, title,
            )  # fmt: skip
        result = {
            **result_of(checks, schedule.last_k),
            **provenance,
            "bad_images": sum(map(len, bad.values())),
            "command": command_line(),
            "seconds": state.seconds,
            **(notes or {}),
        }
        if processes.is_first:
            with whole_file(run_dir / RESULT_FILE) as file:
                file.write(json.dumps(result, indent=1).encode())
    return processes.share(result)
