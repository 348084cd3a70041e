"""The two-step procedure of section 4.3: warm-up, translation, step 1, pseudo-labels, step 2.

In: the experiment of the whole method and a machine. Out: the run folder of step 2, with that of step 1 in `step1/`,
the labels in `pseudo_labels/`, and what was asked for in `experiment.yaml`. Called again on a folder whose run was
stopped, each function here continues it; with several processes all call it, and rank 0 writes.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from segadapt.adaptation.apply_model import pseudo_label
from segadapt.adaptation.apply_translation import apply_translation
from segadapt.adaptation.domains import find_domain, refuse_unscorable, trained_space
from segadapt.adaptation.fit_translation import GENERATOR_FILE, configuration_of, fit_translation
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.pseudo_labels import THRESHOLDS_FILE
from segadapt.adaptation.rows import ADAPTING, row_of, step2_of, warm_up_of
from segadapt.adaptation.run_folder import (
    BEST_FILE,
    EXPERIMENT_FILE,
    MODEL_FILE,
    SELECTED_FILE,
    config_text,
    finished_result,
)
from segadapt.adaptation.training import run_training
from segadapt.config import CycleGanConfig, Experiment, FolderTranslation
from segadapt.errors import InputError
from segadapt.networks.weights import build_network, load_network
from segadapt.processes import Processes
from segadapt.whole_file import whole_file


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
        refuse_wrong_generator(row)
        start = start or warm_up(experiment, run_dir / "warm_up", machine)
        translated = translated or translated_source(row, run_dir / "translation", start, machine)
    return run_training(row, run_dir, machine, title, start, translated)


def warm_up(experiment: Experiment, run_dir: Path, machine: Machine) -> Path | None:
    """Train on the source alone first, into `run_dir`, if the experiment asks for it; the model to start from."""
    if not experiment.warm_up.steps:
        return None
    run_training(warm_up_of(experiment), run_dir, machine, "warm-up")
    return run_dir / MODEL_FILE


def translated_source(experiment: Experiment, run_dir: Path, segmenter: Path | None, machine: Machine) -> Path | None:
    """Train a CycleGAN and write all source images in the target's style, if the experiment asks for it.

    Args:
        experiment: Its `translation`, `cyclegan`, source, target, and what it does about bad images.
        run_dir: Folder of the generator's training; the images go to `images/` in it.
        segmenter: A model trained on the source, for the semantic loss where `cyclegan.segmenter` names none.
        machine: Where to train.

    Returns:
        The folder of the translated images; None without them.
    """
    if experiment.translation.method != "cyclegan":
        return None
    source = find_domain("source", experiment.source, labelled=False)
    target = find_domain("target", experiment.target, labelled=False)
    config, skip_bad = generator_config(experiment), experiment.schedule.on_bad_image == "skip"
    fit_translation(config, source, target, experiment.seed, run_dir, machine, segmenter, skip_bad)
    # one image at a time: whole ones fill a machine, and several may not fit into its memory
    options = FolderTranslation("cyclegan", model=str(run_dir / GENERATOR_FILE), seed=experiment.seed, batch_size=1)
    apply_translation(options, source, None, run_dir / "images", machine, skip_bad=skip_bad)
    machine.processes.wait()
    return run_dir / "images"


def generator_config(experiment: Experiment) -> CycleGanConfig:
    """`cyclegan`, at the size at which the source is trained on where it names none; a crop is no larger than that.

    The network that keeps labels valid was trained at that size, and would err at another.
    """
    config, size = experiment.cyclegan, experiment.source.size
    if config.size or not size:
        return config
    crop = config.crop and (min(config.crop[0], size[0]), min(config.crop[1], size[1]))
    return replace(config, size=size, crop=crop)


def refuse_wrong_generator(experiment: Experiment) -> None:
    """Raises InputError for what `translated_source` would find wrong after the warm-up."""
    if experiment.translation.method == "cyclegan" and generator_config(experiment).segmenter:
        try:
            load_network(experiment.cyclegan.segmenter)
        except InputError as error:
            raise InputError(f"cyclegan.segmenter: {error}") from None


def finished_row(experiment: Experiment, name: str, run_dir: Path) -> dict[str, Any] | None:
    """The result of a row in `run_dir`; None where it is not finished.

    Raises:
        InputError: `run_dir` holds another experiment.
    """
    if name != "sim_ssl":
        return finished_result(run_dir, asdict(row_of(experiment, name)))
    # another one there costs no step 1, and is not written over
    finished_result(run_dir / "warm_up", asdict(warm_up_of(experiment)))
    finished_result(run_dir / "step1", asdict(row_of(experiment, "sim")))
    return finished_result(run_dir, asdict(step2_of(experiment)))


def keep_experiment(experiment: Experiment, run_dir: Path, processes: Processes, start: Path | None) -> None:
    """Write what `adapt` was asked for, for `--resume`, before anything is trained.

    Raises:
        InputError: the input is not there, or `run_dir` holds another experiment; then nothing is written.
    """
    skip_bad = experiment.schedule.on_bad_image == "skip"
    source = find_domain("source", experiment.source, labelled=True, skip_bad=skip_bad)
    target = find_domain("target", experiment.target, labelled=False)
    space = trained_space(experiment, source, target)
    if experiment.test.root:
        refuse_unscorable("test", find_domain("test", experiment.test, labelled=True), space)
    elif experiment.pseudo_labels.model == "best":
        raise InputError("pseudo_labels.model: 'best' is chosen on test labels, and test.root is empty; use 'selected'")
    if experiment.pseudo_labels.model == "selected" and not experiment.selection.images:
        raise InputError("pseudo_labels.model: 'selected' needs scores without labels; set selection.images above 0")
    refuse_wrong_generator(experiment)
    if experiment.translation.method == "cyclegan":
        warmed = run_dir / "warm_up" / MODEL_FILE
        segmenter = start or (warmed if warmed.exists() else None)
        config = generator_config(experiment)
        finished_result(run_dir / "translation", configuration_of(config, source, target, experiment.seed, segmenter))
    if processes.is_first:
        if start is None and not (run_dir / EXPERIMENT_FILE).exists():
            build_network(experiment.network, space, experiment.seed)  # weights that do not fit are found out here
        run_dir.mkdir(parents=True, exist_ok=True)
        with whole_file(run_dir / EXPERIMENT_FILE) as file:
            file.write(config_text(asdict(experiment)).encode())
