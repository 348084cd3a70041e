"""The rows of the paper's tables, and the steps of its procedure, as configurations.

In: the experiment of the whole method. Out: that of one training: what it leaves out has weight 0. Nothing is trained
here.
"""

from dataclasses import replace

from segadapt.config import (
    CycleGanConfig,
    Experiment,
    MatchingConfig,
    PseudoLabelConfig,
    TranslationConfig,
    WarmUpConfig,
)
from segadapt.errors import InputError

ADAPTING = ("adversarial", "translation", "sim", "sim_ssl")  # rows that begin with the warm-up, where there is one


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


def step2_of(experiment: Experiment) -> Experiment:
    """Step 2 as a training of its own: the losses of Eq. (13)."""
    return replace(experiment, loss=replace(experiment.loss, matching=experiment.loss.matching_step2))
