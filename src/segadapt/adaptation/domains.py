"""The image sets of an experiment, and how all processes go through one of them.

In: the domains of an experiment. Out: image sets whose errors say which domain they are about; the classes that are
trained; batches before each of which all processes leave if one was told to.
"""

from collections.abc import Iterator
from math import ceil

from segadapt.adaptation.machine import Machine
from segadapt.config import DataConfig, Experiment
from segadapt.data.label_spaces import LabelSpace, common
from segadapt.data.loading import EvaluationBatch
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError

EVALUATION_BATCH = 4


def find_domain(name: str, data: DataConfig, labelled: bool, skip_bad: bool = False) -> ImageSet:
    """`find_pairs`, whose errors say which domain they are about."""
    try:
        return find_pairs(data, labelled, skip_bad)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def trained_space(experiment: Experiment, source: ImageSet, target: ImageSet) -> LabelSpace:
    """The classes source and target have in common, or those of them that the experiment names."""
    space = common(source.space, target.space)
    return space.restrict(experiment.classes) if experiment.classes else space


def refuse_unscorable(name: str, images: ImageSet, space: LabelSpace) -> None:
    """Raises InputError where the labels of a domain have none of the trained classes: nothing could be scored."""
    try:
        common(images.space, space)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def stoppable(batches: Iterator[EvaluationBatch], images: int, machine: Machine) -> Iterator[EvaluationBatch]:
    """The batches of this process; before each, all processes leave if one was told to.

    A process with fewer batches than the others asks as often as they do: once for each image that one of them has.
    """
    for _ in range(ceil(images / machine.processes.count)):
        machine.leave_if_stopped()
        batch = next(batches, None)
        if batch is not None:
            yield batch
