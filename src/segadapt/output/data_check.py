"""What training will meet in the data, said before it is trained: files, sizes, ids, classes, instances, banks.

In: an experiment. Out: a `DataCheck`: for each domain what was counted, and a list of findings, of which those that
would stop a training say so. Nothing is changed on disk, and a bad file does not end the check: all are listed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Integer, UInt8, UInt16
from torch.utils.data import DataLoader, Dataset

from segadapt.adaptation.domains import refuse_unscorable
from segadapt.config import AugmentationConfig, DataConfig, Experiment, NetworkConfig
from segadapt.data.decoding import read_image, read_raw_ids, upright_size
from segadapt.data.label_spaces import IGNORE, RAW_IDS, LabelSpace, common, remap
from segadapt.data.readers import ImageSet, find_pairs, find_what_is_there
from segadapt.data.transforms import augment
from segadapt.errors import InputError, UnreadableFileError
from segadapt.matching import region_means, shrink_labels
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.normalisation import IMAGENET_RGB

Domain = Literal["source", "target", "test", "validation"]
DOMAINS: tuple[Domain, ...] = ("source", "target", "test", "validation")
SCORED: tuple[Domain, ...] = ("test", "validation")  # both may be left out
Size = tuple[int, int]
T = TypeVar("T")

_DOUBTFUL_SHARE = 0.25  # of labelled pixels in no class: more than any data set with the right label space has


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Args:
        stops: Whether a training of this experiment would end with an error.
        domain: Where it was found; empty: in the experiment as a whole.
        text: What, and what to do, in one line.
    """

    stops: bool
    domain: str
    text: str


@dataclass(frozen=True)
class ClassCount:
    """One class in the labels of a domain.

    Args:
        name: Of the class.
        kind: stuff or thing.
        share: Of the pixels that are in a trained class, 0 to 1.
        images: Images with a pixel of it.
        images_at_feature_size: Images that still have a region of it when labels have the size of the features.
        regions: Regions over all images at that size: for stuff one an image, for a thing its instances, the
            `matching.max_instances` largest of each image.
    """

    name: str
    kind: Literal["stuff", "thing"]
    share: float
    images: int
    images_at_feature_size: int
    regions: int


@dataclass(frozen=True)
class IdCount:
    """One id in label files: the class it is (None: unknown to the label space), its pixels, images with it."""

    id: int
    name: str | None
    pixels: int
    images: int


@dataclass(frozen=True)
class DomainCheck:
    """What was counted in a domain.

    Args:
        name: Reader, folder and split, as messages say it.
        images: Image files.
        pairs: Images with a label file, both good.
        missing_labels: Image files without a label file.
        bad_files: A line for each file that cannot be used.
        image_sizes: Images of each size, 'height x width'.
        feature_sizes: The same of the feature maps that training will see.
        ids: Ids in the label files, most frequent first.
        classes: The trained classes.
    """

    name: str
    images: int
    pairs: int
    missing_labels: tuple[str, ...]
    bad_files: tuple[str, ...]
    image_sizes: dict[str, int]
    feature_sizes: dict[str, int]
    ids: tuple[IdCount, ...]
    classes: tuple[ClassCount, ...]


@dataclass(frozen=True)
class BankForecast:
    """How the bank of a class fills, if every source region is classified right: no training does better.

    Args:
        name: Of the class.
        entries: Of its ring.
        per_step: Entries stored in a step, on average.
        steps_until_full: None if it never is.
        filled_at_end: Share of the ring that is filled after `schedule.steps`.
    """

    name: str
    entries: int
    per_step: float
    steps_until_full: int | None
    filled_at_end: float


@dataclass(frozen=True)
class DataCheck:
    """All that `check_data` found."""

    domains: dict[str, DomainCheck]
    banks: tuple[BankForecast, ...]
    steps: int
    findings: tuple[Finding, ...]

    @property
    def stops(self) -> bool:
        """Whether a training of this experiment would end with an error."""
        return any(finding.stops for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain types, ready for json.dump."""
        return asdict(self) | {"stops": self.stops}


@dataclass(frozen=True)
class PairCount:
    """What one image and its label hold, as a worker process counts it.

    `bad` says what is wrong with a file, and `stops` whether a training would end with that.
    """

    index: int
    bad: str | None = None
    stops: bool = False
    image_size: Size | None = None
    feature_size: Size | None = None
    raw_ids: tuple[tuple[int, int], ...] = ()
    regions: tuple[tuple[int, int], ...] = ()


class _OtherSizeError(InputError):
    """A label has another size than its image."""


class PairCounter(Dataset[PairCount]):
    """Counts one pair by its index: decodes both files whole, then goes the way of a training sample.

    Args:
        name: Of the domain.
        images: The set; pairs whose label is None have only their image looked at.
        space: Trained classes.
        experiment: For the size that images are trained at, random scale and crop (drawn once for each image), the size
            of the features, how regions are found, and what stops a training.
    """

    def __init__(self, name: Domain, images: ImageSet, space: LabelSpace, experiment: Experiment) -> None:
        data: DataConfig = getattr(experiment, name)
        augmentation = AugmentationConfig() if name in SCORED else experiment.augmentation
        self.images = images
        self.space = space
        self.table = remap(images.space, space)[images.table]
        self.size = data.size
        # neither flips nor colours change what is counted
        self.augmentation = replace(augmentation, flip=0.0, colour_jitter=0.0)
        self.matching = experiment.matching
        self.seed = experiment.seed
        self.network = experiment.network
        self.reads_labels = name != "target"
        self.skips = skips_bad(name, experiment)
        self.leaves_out = leaves_out(data)

    def __getitem__(self, index: int) -> PairCount:
        try:
            image = read_image(self.images.file(index))
            size = upright_size(self.images.images[index]) if self.images.translations else image.shape[:2]
        except InputError as error:
            return PairCount(index, bad=str(error), stops=not self._skipped(error))
        size = (size[0], size[1])
        path = self.images.labels[index]
        try:
            raw_ids = None if path is None else read_raw_ids(path)
            if raw_ids is not None and raw_ids.shape != size:
                raise _OtherSizeError(
                    f"{path}: is {by(raw_ids.shape)}, its image is {by(size)}; replace or remove the pair"
                )
        except InputError as error:
            if self.reads_labels:
                return PairCount(index, bad=str(error), stops=not self._skipped(error))
            return replace(self._count(index, image, size, None), bad=str(error))
        return self._count(index, image, size, raw_ids)

    def _skipped(self, error: InputError) -> bool:
        if isinstance(error, UnreadableFileError):
            return self.skips
        return self.leaves_out and isinstance(error, _OtherSizeError)

    def _count(
        self,
        index: int,
        image: UInt8[np.ndarray, "h w 3"],
        size: Size,
        raw_ids: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"] | None,
    ) -> PairCount:
        labels = np.full(size, IGNORE, np.uint8) if raw_ids is None else self.table[raw_ids]
        _, labels = augment(image, labels, self.size, self.augmentation, np.random.default_rng([self.seed, index]))
        small = feature_size(self.network, self.space, (labels.shape[0], labels.shape[1]))
        return PairCount(
            index,
            image_size=size,
            feature_size=small,
            raw_ids=() if raw_ids is None else counted(raw_ids),
            regions=() if raw_ids is None else self._regions(labels, small),
        )

    def _regions(self, labels: UInt8[np.ndarray, "H W"], size: Size) -> tuple[tuple[int, int], ...]:
        options = self.matching
        small = shrink_labels(torch.from_numpy(labels.astype(np.int64))[None], size, options.label_sampling)
        regions = region_means(
            torch.zeros(1, 1, *size), small, self.space, options.max_instances, options.connectivity, options.min_area
        )
        return counted(regions.class_index.numpy())


def skips_bad(name: Domain, experiment: Experiment) -> bool:
    """Whether a training leaves out images of the domain of which a file is missing or damaged."""
    return name != "test" and experiment.schedule.on_bad_image == "skip"


def leaves_out(data: DataConfig) -> bool:
    """Whether the reader leaves out images without a label of their size: published GTA5 has some."""
    return data.reader == "gta5"


def counted(values: Integer[np.ndarray, "*size"]) -> tuple[tuple[int, int], ...]:
    """(value, how often) of every value that is met, ascending."""
    counts = np.bincount(values.ravel(), minlength=1)
    met = np.flatnonzero(counts)
    return tuple(zip(met.tolist(), counts[met].tolist(), strict=True))


@lru_cache(maxsize=4096)
def feature_size(network: NetworkConfig, space: LabelSpace, size: Size) -> Size:
    """(height, width) of the features of images of a size; nothing is computed, and no weights are needed."""
    with torch.device("meta"):
        segmenter = DeepLab(network, space, IMAGENET_RGB).eval()
        features = segmenter.backbone(torch.empty(1, 3, *size))
    return features.shape[-2], features.shape[-1]


def by(shape: Iterable[int]) -> str:
    """A size for the reader."""
    return "x".join(str(length) for length in shape)


def check_data(
    experiment: Experiment,
    workers: int = 0,
    start: Callable[[str, int], None] = lambda _title, _total: None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[DataCheck, dict[Domain, ImageSet]]:
    """Count everything in the files of an experiment.

    Args:
        experiment: The whole of it.
        workers: Processes that read; 0: this one.
        start: Is told a domain and its number of images before they are read.
        advance: Is called after each image.

    Returns:
        What was found, and for each domain whose files were found the set of its good images, for the contact sheets.
    """
    findings: list[Finding] = []
    sets: dict[Domain, ImageSet] = {}
    for name in DOMAINS:
        if images := _find(name, experiment, findings):
            sets[name] = images
    space = _trained_space(experiment, sets, findings)
    domains: dict[str, DomainCheck] = {}
    good: dict[Domain, ImageSet] = {}
    for name, images in sets.items():
        start(name, len(images))
        counter = PairCounter(name, images, space or images.space, experiment)
        pairs = list(_count_all(counter, workers, advance))
        domains[name] = summary(images, space or images.space, pairs)
        findings += findings_of_domain(name, domains[name], pairs, experiment)
        usable = [pair.index for pair in pairs if pair.bad is None]
        good[name] = replace(
            images,
            images=tuple(images.images[index] for index in usable),
            labels=tuple(images.labels[index] for index in usable),
        )
    banks: tuple[BankForecast, ...] = ()
    if "source" in domains and space:
        banks = forecast(domains["source"], experiment)
        findings += findings_of_classes(domains, banks, experiment)
    return DataCheck(domains, banks, experiment.schedule.steps, tuple(findings)), good


def _find(name: Domain, experiment: Experiment, findings: list[Finding]) -> ImageSet | None:
    config: DataConfig = getattr(experiment, name)
    if name in SCORED and not config.root:
        return None
    try:
        return find_what_is_there(config)
    except InputError as error:
        problem = error
    if name == "target":  # trained without labels, so they need not be where they would be looked for
        try:
            return find_pairs(config, labelled=False)
        except InputError as error:
            problem = error
    findings.append(Finding(True, name, str(problem)))
    return None


def _trained_space(experiment: Experiment, sets: dict[Domain, ImageSet], findings: list[Finding]) -> LabelSpace | None:
    """The classes that are trained, as the training finds them; None where it would not get that far."""
    if "source" not in sets or "target" not in sets:
        return None
    try:
        space = common(sets["source"].space, sets["target"].space)
        space = space.restrict(experiment.classes) if experiment.classes else space
    except InputError as error:
        findings.append(Finding(True, "", str(error)))
        return None
    for name, images in sets.items():
        if name in SCORED:
            try:
                refuse_unscorable(name, images, space)
            except InputError as error:
                findings.append(Finding(True, "", str(error)))
        if left_out := [member for member in images.space.names if member not in space.names]:
            findings.append(Finding(False, name, f"classes that are not trained: {', '.join(left_out)}"))
    return space


def _count_all(counter: PairCounter, workers: int, advance: Callable[[], None]) -> Iterator[PairCount]:
    loader = DataLoader(
        counter,
        batch_size=None,
        sampler=range(len(counter.images)),
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_one_thread,
        prefetch_factor=8 if workers else None,
        generator=torch.Generator(),
    )
    for pair in loader:
        advance()
        yield pair


def _unchanged(pair: T) -> T:
    return pair


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def summary(images: ImageSet, space: LabelSpace, pairs: Sequence[PairCount]) -> DomainCheck:
    """The counts of all pairs of a domain, added up.

    Args:
        images: The set.
        space: The trained classes.
        pairs: One for each image of the set.
    """
    good = [pair for pair in pairs if pair.bad is None]
    pixels, images_with_id = np.zeros(RAW_IDS, np.int64), np.zeros(RAW_IDS, np.int64)
    class_images, regions, images_with_region = (np.zeros(256, np.int64) for _ in range(3))
    table = remap(images.space, space)[images.table]
    for pair in good:
        if pair.raw_ids:
            ids, counts = (np.array(column) for column in zip(*pair.raw_ids, strict=True))
            pixels[ids] += counts
            images_with_id[ids] += 1
            class_images[np.unique(table[ids])] += 1
        for class_index, count in pair.regions:
            regions[class_index] += count
            images_with_region[class_index] += 1
    class_pixels = np.bincount(table, weights=pixels, minlength=256)
    labelled = max(class_pixels[: space.num_classes].sum(), 1)
    known = [None if train_id == IGNORE else images.space.names[train_id] for train_id in images.table.tolist()]
    met = sorted(np.flatnonzero(pixels).tolist(), key=lambda raw: -pixels[raw])
    return DomainCheck(
        name=images.name,
        images=len(images),
        pairs=sum(images.labels[pair.index] is not None for pair in good),
        missing_labels=tuple(
            str(image) for image, label in zip(images.images, images.labels, strict=True) if label is None
        ),
        bad_files=tuple(pair.bad for pair in pairs if pair.bad is not None),
        image_sizes=_sizes(pair.image_size for pair in pairs),
        feature_sizes=_sizes(pair.feature_size for pair in pairs),
        ids=tuple(IdCount(raw, known[raw], int(pixels[raw]), int(images_with_id[raw])) for raw in met),
        classes=tuple(
            ClassCount(
                name=name,
                kind="thing" if train_id in space.things else "stuff",
                share=float(class_pixels[train_id] / labelled),
                images=int(class_images[train_id]),
                images_at_feature_size=int(images_with_region[train_id]),
                regions=int(regions[train_id]),
            )
            for train_id, name in enumerate(space.names)
        ),
    )


def _sizes(sizes: Iterable[Size | None]) -> dict[str, int]:
    return {by(size): count for size, count in Counter(sizes).most_common() if size}


def findings_of_domain(
    name: Domain, domain: DomainCheck, pairs: Sequence[PairCount], experiment: Experiment
) -> list[Finding]:
    """What the files of one domain say; bad files and missing labels stop a training that reads them."""
    data: DataConfig = getattr(experiment, name)
    needs_labels = name != "target"
    findings: list[Finding] = []

    def find(stops: bool, text: str) -> None:
        findings.append(Finding(stops, name, text))

    if needs_labels and domain.missing_labels:
        count = f"{len(domain.missing_labels)} of {domain.images} images have no label file"
        stops = not (leaves_out(data) or skips_bad(name, experiment))
        find(stops, f"{count}, the first is {domain.missing_labels[0]}; add the labels or remove the images")
    elif 0 < len(domain.missing_labels) < domain.images:
        find(False, f"{len(domain.missing_labels)} of {domain.images} images have no label file (none is needed)")
    for pair in pairs:
        if pair.bad is not None:
            find(pair.stops, pair.bad)
    if not (domain.pairs if needs_labels else domain.image_sizes) and not any(finding.stops for finding in findings):
        find(True, f"none of its {domain.images} images can be used; replace what is missing or damaged")
    if needs_labels and domain.pairs and not any(entry.name for entry in domain.ids):
        find(True, "no id in the label files is one of the label space; set label_space to the one of these files")
    unknown = [entry for entry in domain.ids if entry.name is None and entry.id != IGNORE]
    total = sum(entry.pixels for entry in domain.ids if entry.name or entry.id != IGNORE)
    if unknown and total:
        share = sum(entry.pixels for entry in unknown) / total
        listed = ", ".join(f"{entry.id} ({entry.pixels} pixels in {entry.images} images)" for entry in unknown[:6])
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        advice = "; set label_space to the one of these files" if share > _DOUBTFUL_SHARE else ""
        find(
            False, f"{100 * share:.2g} % of the pixels are of no class and will be ignored: ids {listed}{more}{advice}"
        )
    batched = name not in SCORED and experiment.augmentation.crop is None and experiment.schedule.batch_size > 1
    if len(domain.image_sizes) > 1 and data.size is None and batched:
        find(True, f"images have {len(domain.image_sizes)} sizes; set {name}.size, for batches need one")
    return findings


def findings_of_classes(
    domains: dict[str, DomainCheck], banks: Sequence[BankForecast], experiment: Experiment
) -> list[Finding]:
    """Classes that cannot be learned, matched or scored."""
    findings: list[Finding] = []
    for entry in domains["source"].classes:
        if not entry.images:
            findings.append(Finding(False, "source", f"{entry.name}: no pixel in any label; it cannot be learned"))
        elif not entry.regions:
            text = f"{entry.name}: too small to be left at feature size; it is never stored and never matched"
            findings.append(Finding(False, "source", text))
    if part := [bank for bank in banks if bank.per_step and bank.filled_at_end < 1]:
        listed = ", ".join(f"{bank.name} {100 * bank.filled_at_end:.0f} %" for bank in part)
        then = (
            "these classes are never matched (matching.min_fill: full)"
            if experiment.matching.min_fill == "full"
            else "they are matched with what is there"
        )
        text = f"banks that are not full after {experiment.schedule.steps} steps, even at best: {listed}; {then}"
        findings.append(Finding(False, "source", text))
    for entry in domains["test"].classes if "test" in domains else ():
        if domains["test"].pairs and not entry.images:
            text = f"{entry.name}: no pixel in any label; it has no score unless it is predicted somewhere"
            findings.append(Finding(False, "test", text))
    return findings


def forecast(source: DomainCheck, experiment: Experiment) -> tuple[BankForecast, ...]:
    """Steps until each bank is full: regions of an image, times images a step, into the ring.

    Assumes that every region is classified right. Early in a training few are, of rare classes longest.
    """
    matching, schedule = experiment.matching, experiment.schedule
    banks = []
    for entry in source.classes:
        ring = matching.thing_size if entry.kind == "thing" else matching.stuff_size
        per_step = schedule.batch_size * entry.regions / max(source.pairs, 1)
        banks.append(
            BankForecast(
                name=entry.name,
                entries=ring,
                per_step=per_step,
                steps_until_full=int(np.ceil(ring / per_step)) if per_step else None,
                filled_at_end=min(1.0, per_step * schedule.steps / ring),
            )
        )
    return tuple(banks)
