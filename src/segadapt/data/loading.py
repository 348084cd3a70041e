"""From an ImageSet to batches, in a stream without end whose samples depend on seed and position alone.

In: an ImageSet, the trained label space, the configuration, a seed. Out: Batch for training, EvaluationBatch
for scoring. A run that resumes somewhere, or reads with other workers or processes, sees the same samples.
"""

import signal
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Generic, NamedTuple, TypedDict, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segadapt.config import AugmentationConfig, DataConfig
from segadapt.data.decoding import read_image, read_labels, read_raw_ids, upright_size
from segadapt.data.label_spaces import IGNORE, RAW_IDS, LabelSpace, remap
from segadapt.data.readers import ImageSet, fingerprint
from segadapt.data.transforms import augment, resize_image
from segadapt.errors import InputError, UnreadableFileError

__all__ = [
    "Batch",
    "EvaluationBatch",
    "LeftOut",
    "Sample",
    "TrainingSet",
    "all_bad",
    "evaluation_batches",
    "fingerprint",
    "refuse_unlabelled",
    "training_batches",
]

T = TypeVar("T")

# What a generator seeded by (seed, domain, use, number) is used for, so that no two uses share their numbers.
_ORDER, _AUGMENTATION, _TRANSLATION = 0, 1, 2

# An 8-bit RGB image (H, W, 3) to one of the same size and another style, at random.
Translate = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Told the index of an image that is left out, and what is wrong with its files.
LeftOut = Callable[[int, str], None]


class Sample(TypedDict):
    """One training pair: RGB image, labels in train ids of the trained space, index in the ImageSet.

    And the pairs in whose place it stands: their indices, and what is wrong with their files.
    """

    image: UInt8[Tensor, "3 H W"]
    labels: Int64[Tensor, "H W"]
    index: int
    left_out: tuple[tuple[int, str], ...]


class Batch(NamedTuple):
    """Training pairs: RGB images, labels in train ids (all 255 where there are none), names of the images."""

    images: UInt8[Tensor, "B 3 H W"]
    labels: Int64[Tensor, "B H W"]
    names: tuple[str, ...]


class EvaluationBatch(NamedTuple):
    """Images at the network's size; the labels of each at their own size, which may differ."""

    images: UInt8[Tensor, "B 3 H W"]
    labels: tuple[UInt8[Tensor, "h w"], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Read(Generic[T]):
    """What came of reading one batch: the batch (none if all of its images were left out), or why there is none.

    A worker hands an InputError back as a value: raised there, it would reach the user inside the text of a traceback.
    """

    batch: T | None
    left_out: tuple[tuple[int, str], ...] = ()
    error: InputError | None = None


class TrainingSet(Dataset[Sample]):
    """The endless stream of training pairs, indexed by position.

    Position p is image p mod n of a new order of all n images in each epoch p div n. Where bad images are left out, the
    next position whose files can be read takes the place of one whose files cannot: that too is a function of p alone,
    so it does not matter where a run began or which worker reads.

    Args:
        image_set: Where the files are.
        space: Classes that are trained; labels of all others become 255.
        data_config: For the size.
        augmentation: Random transforms.
        seed: Of the run, not negative.
        domain: Number of the domain, so that source and target draw differently.
        pseudo_labels: A folder of 8-bit PNGs that replaces the labels, in train ids of `space`, named as
            `ImageSet.image_name` says; None reads the labels of the set.
        translate: Gives images another style before they are augmented; None leaves them.
        skip_bad: Whether pairs of which a file is missing or damaged are left out, instead of ending the training.

    Raises:
        InputError: The seed is negative or the folder of pseudo-labels is missing; and, when a sample is
            read, what is wrong with its files.
    """

    def __init__(
        self,
        image_set: ImageSet,
        space: LabelSpace,
        data_config: DataConfig,
        augmentation: AugmentationConfig,
        seed: int,
        domain: int,
        pseudo_labels: Path | None = None,
        translate: Translate | None = None,
        skip_bad: bool = False,
    ) -> None:
        if seed < 0:
            raise InputError(f"seed: {seed} is negative; use 0 or more")
        if pseudo_labels is not None and not pseudo_labels.is_dir():
            raise InputError(f"{pseudo_labels}: no such folder; make the pseudo-labels of {image_set.name} first")
        self.image_set = image_set
        self.space = space
        self.size = data_config.size
        self.augmentation = augmentation
        self.seed = seed
        self.domain = domain
        self.pseudo_labels = pseudo_labels
        self.translate = translate
        self.skip_bad = skip_bad
        self.table = _table(image_set, space)

    def index(self, position: int) -> int:
        """Index in the ImageSet of the image at a position of the stream."""
        epoch, offset = divmod(position, len(self.image_set))
        return int(_order(self.seed, self.domain, epoch, len(self.image_set))[offset])

    def __getitem__(self, position: int) -> Sample:
        index, image, labels, left_out = self._pair(position)
        if self.translate:
            random = np.random.default_rng([self.seed, self.domain, _TRANSLATION, position])
            image = self.translate(resize_image(image, self.size or image.shape[:2]), random)
        random = np.random.default_rng([self.seed, self.domain, _AUGMENTATION, position])
        image, labels = augment(image, labels, self.size, self.augmentation, random)
        return Sample(
            image=_channels_first(image),
            labels=torch.from_numpy(labels.astype(np.int64)),
            index=index,
            left_out=left_out,
        )

    def _pair(
        self, position: int
    ) -> tuple[int, UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w"], tuple[tuple[int, str], ...]]:
        """Index, image and labels of a position, or of the first one after it that can be read; what was left out."""
        left_out: dict[int, str] = {}
        for place in count(position):
            index = self.index(place)
            if index in left_out:
                continue
            try:
                image = read_image(self.image_set.file(index))
                labels = self._labels(index, _original_size(self.image_set, index, image))
                return index, image, labels, tuple(left_out.items())
            except UnreadableFileError as error:
                if not self.skip_bad:
                    raise
                left_out[index] = str(error)
            if len(left_out) == len(self.image_set):
                raise all_bad(self.image_set, next(iter(left_out.values())))
        raise AssertionError  # count has no end

    def _labels(self, index: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        if self.pseudo_labels is not None:
            path = self.pseudo_labels / self.image_set.image_name(index)
            ids = read_raw_ids(path)
            wrong = ids[(ids >= self.space.num_classes) & (ids != IGNORE)]
            if wrong.size:
                raise InputError(
                    f"{path}: id {wrong[0]} is no train id of the {self.space.num_classes} trained classes; "
                    "make the pseudo-labels again with these classes"
                )
            if ids.shape not in (size, self.size):
                raise InputError(f"{path}: is {_by(ids.shape)}, its image {_by(size)}; make the pseudo-labels again")
            return ids.astype(np.uint8)
        path = self.image_set.labels[index]
        if path is None:
            return np.full(size, IGNORE, np.uint8)
        return _labels_of(self.image_set.images[index], path, size, self.table)


def training_batches(
    image_set: ImageSet,
    space: LabelSpace,
    data_config: DataConfig,
    augmentation: AugmentationConfig,
    batch_size: int,
    seed: int,
    domain: int,
    workers: int,
    start_position: int = 0,
    pseudo_labels: Path | None = None,
    translate: Translate | None = None,
    rank: int = 0,
    processes: int = 1,
    left_out: LeftOut | None = None,
) -> Iterator[Batch]:
    """Endless batches of a TrainingSet, read ahead by worker processes.

    Args:
        image_set: As TrainingSet.
        space: As TrainingSet.
        data_config: As TrainingSet.
        augmentation: As TrainingSet.
        batch_size: Images a batch, of this process.
        seed: As TrainingSet.
        domain: As TrainingSet.
        workers: Processes that read ahead; 0 reads in this one.
        start_position: Samples that all processes together have consumed so far.
        pseudo_labels: As TrainingSet.
        translate: As TrainingSet.
        rank: Number of this training process.
        processes: Training processes; together they read what one with `processes * batch_size` would.
        left_out: Called when a batch is handed out, for each pair that another takes the place of because a file of it
            is missing or damaged; None: such a file is an error.

    Raises:
        InputError: As TrainingSet, or the images of a batch differ in size.
    """
    _check_batches(batch_size, workers)
    pairs = TrainingSet(
        image_set, space, data_config, augmentation, seed, domain, pseudo_labels, translate, left_out is not None
    )
    starts = count(start_position + rank * batch_size, processes * batch_size)
    positions = (tuple(range(start, start + batch_size)) for start in starts)
    return _read_ahead(_TrainingBatches(pairs), positions, workers, left_out)


def all_bad(image_set: ImageSet, first: str) -> InputError:
    """The error where all images were left out, with what is wrong with the first."""
    return InputError(f"{image_set.name}: none of its {len(image_set)} images can be read ({first})")


def evaluation_batches(
    image_set: ImageSet,
    space: LabelSpace,
    data_config: DataConfig,
    batch_size: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
    skip: Container[str] = (),
    left_out: LeftOut | None = None,
) -> Iterator[EvaluationBatch]:
    """Every image of a set once, in order, without augmentation.

    Args:
        image_set: Where the files are; without labels, all labels are 255 at the image's own size.
        space: Classes that are scored; labels of all others become 255.
        data_config: For the size that images, not labels, are resized to.
        batch_size: Images a batch; the last may be smaller. Without a size, where images may differ, they come singly.
        workers: Processes that read ahead; 0 reads in this one.
        rank: Number of this process.
        processes: Processes that share the set; each reads every `processes`-th image.
        skip: Names of images; a batch of nothing but these is left out. Others stay as they are, because a network
            may give an image other last digits in another batch.
        left_out: Called for each image that is left out because a file of it is missing or damaged; None: such a file
            is an error.

    Raises:
        InputError: A file is wrong.
    """
    _check_batches(batch_size, workers)
    if data_config.size is None:
        batch_size = 1
    indices = range(rank, len(image_set), processes)
    batches = (tuple(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size))
    groups = (group for group in batches if not all(image_set.image_name(index) in skip for index in group))
    dataset = _EvaluationBatches(image_set, space, data_config.size, left_out is not None)
    return _read_ahead(dataset, groups, workers, left_out)


def refuse_unlabelled(image_set: ImageSet, space: LabelSpace) -> None:
    """Raises InputError where no label of the set is of a class of `space`: the mean over nothing is no score."""
    table = _table(image_set, space)
    if not any((read_labels(path, table) != IGNORE).any() for path in image_set.labels if path is not None):
        raise InputError(
            f"{image_set.name}: no label of its {len(image_set)} images is of a trained class "
            f"({', '.join(space.names)}); give images that show one of them"
        )


class _TrainingBatches(Dataset[Read[Batch]]):
    # A whole batch is one item of the DataLoader.
    def __init__(self, pairs: TrainingSet) -> None:
        self.pairs = pairs

    def __getitem__(self, positions: tuple[int, ...]) -> Read[Batch]:
        try:
            samples = [self.pairs[position] for position in positions]
            names = tuple(self.pairs.image_set.image_name(sample["index"]) for sample in samples)
            images = _stack([sample["image"] for sample in samples], names)
            batch = Batch(images, torch.stack([sample["labels"] for sample in samples]), names)
            return Read(batch, tuple(each for sample in samples for each in sample["left_out"]))
        except InputError as error:
            return Read(None, error=error)


class _EvaluationBatches(Dataset[Read[EvaluationBatch]]):
    def __init__(
        self, image_set: ImageSet, space: LabelSpace, size: tuple[int, int] | None, skip_bad: bool = False
    ) -> None:
        self.image_set = image_set
        self.table = _table(image_set, space)
        self.size = size
        self.skip_bad = skip_bad

    def __getitem__(self, indices: tuple[int, ...]) -> Read[EvaluationBatch]:
        images, labels, names, left_out = [], [], [], []
        try:
            for index in indices:
                try:
                    image, own = self._pair(index)
                except UnreadableFileError as error:
                    if not self.skip_bad:
                        raise
                    left_out.append((index, str(error)))
                    continue
                images.append(_channels_first(resize_image(image, self.size or image.shape[:2])))
                labels.append(own)
                names.append(self.image_set.image_name(index))
            if not images:
                return Read(None, tuple(left_out))
            return Read(EvaluationBatch(_stack(images, tuple(names)), tuple(labels), tuple(names)), tuple(left_out))
        except InputError as error:
            return Read(None, error=error)

    def _pair(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[Tensor, "h w"]]:
        image = read_image(self.image_set.file(index))
        size = _original_size(self.image_set, index, image)
        path = self.image_set.labels[index]
        if path is None:
            return image, torch.full(size, IGNORE, dtype=torch.uint8)
        return image, torch.from_numpy(_labels_of(self.image_set.images[index], path, size, self.table))


def _read_ahead(
    dataset: Dataset[Read[T]], items: Iterable[tuple[int, ...]], workers: int, left_out: LeftOut | None = None
) -> Iterator[T]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_prepare_worker,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # The workers' own seeds are never used; a generator of their own leaves torch's global one as it was.
        generator=torch.Generator(),
    )
    for read in loader:
        if read.error is not None:
            raise read.error
        if left_out is not None:
            for index, problem in read.left_out:
                left_out(index, problem)
        if read.batch is not None:
            yield read.batch


def _unchanged(batch: T) -> T:
    return batch


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # a signal to stop, sent to the whole process group by Ctrl-C or SLURM, is the training process's to answer
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


@lru_cache(maxsize=4)
def _order(seed: int, domain: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, domain, _ORDER, epoch]).permutation(length)


def _table(image_set: ImageSet, space: LabelSpace) -> UInt8[np.ndarray, " 65536"]:
    """Raw id to train id of the trained space, in one lookup."""
    table = remap(image_set.space, space)[image_set.table]
    assert table.shape == (RAW_IDS,)
    if image_set.labelled and (table == IGNORE).all():
        raise InputError(
            f"{image_set.name}: its label space {image_set.space.name} ({', '.join(image_set.space.names)}) has no "
            f"class in common with {space.name} ({', '.join(space.names)}); give the same classes the same names"
        )
    return table


def _original_size(image_set: ImageSet, index: int, image: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int]:
    """The size that labels have to have: that of the image, of which a translation may be a smaller copy."""
    return upright_size(image_set.images[index]) if image_set.translations else image.shape[:2]


def _labels_of(
    image: Path, path: Path, size: tuple[int, int], table: UInt8[np.ndarray, " 65536"]
) -> UInt8[np.ndarray, "H W"]:
    labels = read_labels(path, table)
    if labels.shape != size:
        raise InputError(
            f"{path}: is {_by(labels.shape)}, its image {image} is {_by(size)}; replace or remove the pair"
        )
    return labels


def _channels_first(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _stack(images: list[Tensor], names: tuple[str, ...]) -> UInt8[Tensor, "B 3 H W"]:
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                f"size: images of one batch differ ({names[0]} is {_by(images[0].shape[1:])}, {name} "
                f"{_by(image.shape[1:])}); set size, or a crop, or use batch size 1"
            )
    return torch.stack(images)


def _check_batches(batch_size: int, workers: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is too small; use 1 or more")
    if workers < 0:
        raise InputError(f"workers: {workers} is negative; use 0 or more")


def _by(shape: Iterable[int]) -> str:
    return "x".join(str(length) for length in shape)
