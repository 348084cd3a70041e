"""The typed configuration of an experiment, whole, in the order in which the data flows.

Out: frozen dataclasses that jsonargparse fills from YAML and from the command line. Nothing here imports torch, so that
a wrong command line is refused in a fraction of a second; therefore the dataclasses stand together here and not
beside the code that reads them. Defaults are those of docs/method.md; sizes are (height, width).
"""

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

from segadapt.errors import InputError

ReaderName = Literal["folder", "gta5", "synthia", "cityscapes", "camvid"]
Backbone = Literal["resnet50", "resnet101", "vgg16", "vgg16_adaptsegnet", "efficientnet_lite0"]
BatchNorm = Literal["batch", "frozen", "source_target_separate"]
Distance = Literal["l1_mean", "l1_sum", "l1_squared", "l2", "cosine"]
OnBadImage = Literal["fail", "skip"]
ScoreName = Literal["entropy", "soft_neighbourhood_density", "information_maximisation", "source_validation"]

SMALLEST = 32  # pixels a side that the networks of CycleGAN can work on
_LARGEST_RATE = 1e6  # the product of two still fits into a 32-bit number
_LARGEST_RING = 10**6  # entries of a class; at 2048 channels they fill 8 GB
_LARGEST_SEED = 2**62 - 1  # the four networks of a CycleGAN draw from 4 * seed and on, which torch keeps in 64 bits


def _refuse_out_of_range(section: str, options: object, **ranges: tuple[int | float, int | float]) -> None:
    """Raises InputError for the first option that is outside its range; the largest value itself is allowed."""
    for name, (smallest, largest) in ranges.items():
        value = getattr(options, name)
        if isinstance(value, int | float) and not (smallest <= value <= largest and isfinite(value)):
            allowed = f"{smallest} or more" if largest == inf else f"{smallest} to {largest}"
            raise InputError(f"{section}.{name}: {value} is out of range; use {allowed}")


def refuse_wrong_seed(seed: int) -> None:
    """Raises InputError for a seed that not everything here can draw from."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise InputError(f"seed: {seed} is out of range; use 0 to {_LARGEST_SEED}")


@dataclass(frozen=True)
class DataConfig:
    """One domain: where its images lie and in which format.

    Args:
        reader: The format on disk.
        root: The folder that holds the data set.
        split: The part of it (train, val, test); empty where the format has none.
        label_space: A shipped label space or a YAML file; empty means the one that belongs to the reader.
        images: Of reader 'folder': where images lie below root and split, with * for what differs from one to the
            next: 'leftImg8bit/train/*_leftImg8bit'. The last * may reach through sub-folders; empty means 'images/*'.
        labels: Of reader 'folder': where their labels lie, with the same *; empty means 'labels/*'.
        size: (height, width) the images are resized to before they enter the network; null keeps their size (and for
            a model file means the size it was tested at).
        translated: A folder of the same images in another style ('segadapt translate apply'), read in their place;
            names are those of the images below their own folder, with any suffix. Labels stay; empty: none.
    """

    reader: ReaderName = "folder"
    root: str = ""
    split: str = ""
    label_space: str = ""
    images: str = ""
    labels: str = ""
    size: tuple[int, int] | None = None
    translated: str = ""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size: {list(self.size)} is not possible; use [height, width] of 1 or more pixels")


@dataclass(frozen=True)
class AugmentationConfig:
    """Random transforms of training pairs; the defaults change nothing.

    Args:
        flip: Probability of a horizontal flip.
        scale: Smallest and largest factor of a random resize before the crop, without which a batch is one image.
        crop: (height, width) cut from the image at random; null trains on whole images.
        colour_jitter: Largest relative change of brightness, contrast and saturation (and a tenth of it of hue).
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    colour_jitter: float = 0.0

    def __post_init__(self) -> None:
        _refuse_out_of_range("augmentation", self, flip=(0, 1), colour_jitter=(0, 1))
        smallest, largest = self.scale
        if not 0 < smallest <= largest < inf:
            raise InputError(f"augmentation.scale: {list(self.scale)} is no range; use [smallest, largest] above 0")
        if self.crop is not None and min(self.crop) < 1:
            raise InputError(f"augmentation.crop: {list(self.crop)} is not possible; use [height, width] of 1 or more")


@dataclass(frozen=True)
class TranslationConfig:
    """Source images in the target's style (the paper's IT), for the rows + IT, + SIM and + SSL.

    Args:
        method: While training, each with a target image drawn at random: 'lab': mean and deviation of the Lab channels
            (Reinhard et al. 2001); 'histogram': of each RGB channel; 'fourier': amplitudes of the lowest frequencies
            (FDA, Yang and Soatto 2020). 'cyclegan': `adapt` trains a generator before step 1 and translates all once.
        beta: Of 'fourier': half the window's side as a share of the image's.
        share: Of source images, how many are translated while training.
    """

    method: Literal["off", "lab", "histogram", "fourier", "cyclegan"] = "off"
    beta: float = 0.01
    share: float = 1.0

    def __post_init__(self) -> None:
        _refuse_out_of_range("translation", self, beta=(0, 0.5), share=(0, 1))
        if self.method == "cyclegan" and self.share != 1:
            raise InputError(
                f"translation.share: {self.share} with method cyclegan, which translates all images; use 1"
            )


@dataclass(frozen=True)
class FolderTranslation:
    """A folder of images rewritten in the style of another ('segadapt translate apply').

    Args:
        method: As TranslationConfig has them; 'cyclegan': the generator that 'segadapt translate fit' left.
        beta: Of 'fourier': half the window's side as a share of the image's.
        model: Of 'cyclegan': the generator.safetensors.
        size: (height, width) the images are resized to before; null keeps their size, or, for a generator, takes the
            size it was trained at.
        seed: Decides which target image goes with which source image.
        batch_size: Images a batch; changes nothing but speed and memory.
        jpeg_quality: Writes JPEG of this quality, a tenth of the space; null writes PNG, without loss.
    """

    method: Literal["lab", "histogram", "fourier", "cyclegan"]
    beta: float = 0.01
    model: str = ""
    size: tuple[int, int] | None = None
    seed: int = 0
    batch_size: int = 8
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        _refuse_out_of_range(
            "translate", self, beta=(0, 0.5), seed=(0, _LARGEST_SEED), batch_size=(1, inf), jpeg_quality=(1, 100)
        )
        if (self.method == "cyclegan") != bool(self.model):
            raise InputError(
                f"model: '{self.model}' with method {self.method}; a generator.safetensors belongs to cyclegan, "
                "and to it alone"
            )
        smallest = SMALLEST if self.method == "cyclegan" else 1
        if self.size is not None and min(self.size) < smallest:
            raise InputError(f"size: {list(self.size)} is too small; use [height, width] of {smallest} or more pixels")


@dataclass(frozen=True)
class CycleGanConfig:
    """A training of 'segadapt translate fit': CycleGAN, losses and rates of Zhu et al. 2017, labels kept valid.

    Args:
        size: (height, width) the images are resized to; null keeps their size.
        crop: (height, width) cut from them at random; null trains on whole images.
        flip: Probability of a horizontal flip.
        filters: Channels of the first convolution, of generators and discriminators alike.
        blocks: Residual blocks of a generator.
        cycle: Weight of the cycle loss, lambda.
        identity: Weight of the identity loss as a share of `cycle`.
        segmenter: model.safetensors of a network trained on the source; empty: no semantic loss, no label drift.
        semantic: Weight of the semantic loss (Hoffman et al. 2018), with a segmenter; 0 only measures the drift.
        pool_size: Generated images that are kept to show the discriminators again.
        learning_rate: Of Adam (betas 0.5 and 0.999), for all four networks.
        steps: Optimiser steps.
        constant_steps: Steps before the rate falls linearly to zero; null: half of them.
        ema: Decay of the running average of the generator's weights that is kept instead of the last; 0: the last.
        batch_size: Images of each domain in a batch.
        save_every: Steps between checkpoints; 0: only the last.
        log_every: Steps between lines of metrics.jsonl.
        workers: Processes that read images, for each domain; 0: in the training process.
    """

    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = (256, 256)
    flip: float = 0.5
    filters: int = 64
    blocks: int = 9
    cycle: float = 10.0
    identity: float = 0.5
    segmenter: str = ""
    semantic: float = 1.0
    pool_size: int = 50
    learning_rate: float = 2e-4
    steps: int = 200_000
    constant_steps: int | None = None
    ema: float = 0.0
    batch_size: int = 1
    save_every: int = 1000
    log_every: int = 100
    workers: int = 2

    def __post_init__(self) -> None:
        positive = ("cycle", "identity", "semantic", "pool_size", "learning_rate", "constant_steps", "workers")
        _refuse_out_of_range(
            "cyclegan",
            self,
            **dict.fromkeys((*positive, "save_every"), (0, inf)),
            **dict.fromkeys(("filters", "blocks", "steps", "batch_size", "log_every"), (1, inf)),
            flip=(0, 1),
            ema=(0, 0.99999),
        )
        for name in ("size", "crop"):
            if min(getattr(self, name) or (SMALLEST,)) < SMALLEST:
                raise InputError(
                    f"{name}: {getattr(self, name)} is too small; use [height, width] of {SMALLEST} or more"
                )
        if self.size and self.crop and any(cut > whole for cut, whole in zip(self.crop, self.size, strict=True)):
            raise InputError(f"crop: {self.crop} is larger than size {self.size}; use a smaller crop, or null")


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network.

    Args:
        backbone: Feature extractor F of the paper (VGG-16 and ResNet-101 there); vgg16_adaptsegnet: the variant of
            AdaptSegNet's checkpoint.
        weights: 'imagenet' (comes with efficientnet_lite0), 'random', a file of ImageNet weights or a checkpoint of
            another program ('segadapt weights' lists them), or the model.safetensors of another run, classifier and
            all.
        aspp_branches: Dilated branches of the classifier, of (6, 12, 18, 24); 2 as in the authors' code.
        batch_norm: 'batch': statistics of each batch, running mixture of both domains at test; 'frozen': the
            statistics the weights came with; 'source_target_separate': each domain its own batches, target statistics
            at test.
        sync_batch_norm: With torchrun on GPUs, statistics of the batches of all processes together.
    """

    backbone: Backbone = "resnet101"
    weights: str = "imagenet"
    aspp_branches: Literal[2, 4] = 4
    batch_norm: BatchNorm = "batch"
    sync_batch_norm: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Weights of Eqs. (12) and (13); 0 leaves the term, and what only it needs, out of the step.

    Args:
        segmentation: lambda_seg of the source cross-entropy, Eq. (1).
        target_segmentation: Weight of the cross-entropy with pseudo-labels, Eq. (10), in step 2.
        adversarial: lambda_adv, Eq. (2).
        discriminator: lambda_D, Eq. (3).
        matching: lambda_ci of Eqs. (6) and (8) in step 1.
        matching_step2: lambda_ci in step 2.
        gan: Form of the adversary.
    """

    segmentation: float = 1.0
    target_segmentation: float = 1.0
    adversarial: float = 0.001
    discriminator: float = 1.0
    matching: float = 0.01
    matching_step2: float = 0.001
    gan: Literal["vanilla", "lsgan"] = "vanilla"

    def __post_init__(self) -> None:
        weights = ("segmentation", "target_segmentation", "adversarial", "discriminator", "matching", "matching_step2")
        _refuse_out_of_range("loss", self, **dict.fromkeys(weights, (0, inf)))


@dataclass(frozen=True)
class ClassifierAgreement:
    """Whether a region counts only if the classifier, applied to its mean feature, gives its class.

    Args:
        source: Asked of source regions before they are stored.
        target_stuff: Asked of target stuff before it is matched.
        target_things: Asked of target instances before they are matched.
    """

    source: bool = True
    target_stuff: bool = True
    target_things: bool = False


@dataclass(frozen=True)
class MatchingConfig:
    """Stuff-and-instance matching, Eqs. (4)-(8) and Algorithm 1.

    Args:
        stuff_size: w, entries kept for each stuff class.
        thing_size: z * w, entries kept for each thing class.
        max_instances: z, instances of a class taken from one image, the largest first.
        connectivity: Neighbours that connect pixels to an instance.
        min_area: Smallest instance, in feature pixels.
        distance: Between a target feature and its nearest stored one.
        min_fill: Entries a class must hold before it is matched; 'full': its whole ring.
        class_reduction: Whether the terms of the classes are summed (Eqs. 6, 8) or averaged.
        label_sampling: How labels are shrunk to the feature grid; 'aligned' samples the align_corners grid.
        classifier_agreement: Filter of regions by the classifier.
    """

    stuff_size: int = 50
    thing_size: int = 500
    max_instances: int = 10
    connectivity: Literal[4, 8] = 8
    min_area: int = 1
    distance: Distance = "l1_mean"
    min_fill: int | Literal["full"] = 1
    class_reduction: Literal["sum", "mean"] = "sum"
    label_sampling: Literal["aligned", "nearest"] = "aligned"
    classifier_agreement: ClassifierAgreement = field(default_factory=ClassifierAgreement)

    def __post_init__(self) -> None:
        _refuse_out_of_range(
            "matching",
            self,
            **dict.fromkeys(("stuff_size", "thing_size"), (1, _LARGEST_RING)),
            **dict.fromkeys(("max_instances", "min_area", "min_fill"), (1, inf)),
        )


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimisers of the segmenter and the discriminator (Adam), both with polynomial decay.

    Args:
        algorithm: Of the segmenter: 'sgd' as in the paper; 'adamw' reaches in hundreds of steps what SGD needs
            thousands for, because its rates do not depend on the scale of the features.
        learning_rate: Initial rate of the backbone.
        head_multiplier: Factor of the classifier's rate over the backbone's.
        momentum: Of SGD, and beta 1 of AdamW.
        nesterov: Nesterov's form of momentum.
        weight_decay: Of the segmenter.
        power: Of the polynomial decay.
        warmup_steps: Steps over which both rates rise linearly from zero.
        discriminator_learning_rate: Initial rate of Adam (betas 0.9 and 0.99).
    """

    algorithm: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 2.5e-4
    head_multiplier: float = 10.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup_steps: int = 0
    discriminator_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        rates = ("learning_rate", "head_multiplier", "discriminator_learning_rate")
        _refuse_out_of_range(
            "optimiser",
            self,
            **dict.fromkeys(rates, (0, _LARGEST_RATE)),
            **dict.fromkeys(("weight_decay", "power", "warmup_steps"), (0, inf)),
            momentum=(0, 0.9999),
        )
        if self.nesterov and self.algorithm == "sgd" and self.momentum == 0:
            raise InputError("optimiser.nesterov: needs optimiser.momentum above 0")


@dataclass(frozen=True)
class WarmUpConfig:
    """Training on the source alone, before step 1; both steps then start from its network, not from `network.weights`.

    Rows that are not adapted (source only, target only, AdaBN) train for these steps and those of the schedule
    together, at this rate, so that no row has seen fewer labelled images than another.

    Args:
        steps: Optimiser steps; 0: none, as in the paper.
        learning_rate: Initial rate of the backbone.
    """

    steps: int = 0
    learning_rate: float = 2.5e-4

    def __post_init__(self) -> None:
        _refuse_out_of_range("warm_up", self, steps=(0, inf), learning_rate=(0, _LARGEST_RATE))


@dataclass(frozen=True)
class ScheduleConfig:
    """How long a step of the procedure trains, and what happens meanwhile.

    Args:
        steps: Optimiser steps of one training; the last model is always evaluated.
        decay_steps: Steps at which the polynomial schedule reaches zero; null: steps.
        batch_size: Images of each domain in a batch; with torchrun, of each process.
        accumulate: Parts in which a batch is computed, one after another, for batches larger than the memory.
        evaluate_every: Steps between evaluations, on the test split and by the scores without labels; 0: only the last
            model.
        last_k: Evaluations averaged into the mean of the last k.
        save_every: Steps between checkpoints, which a killed run loses at most; 0: only the last.
        log_every: Steps between lines of metrics.jsonl.
        workers: Processes that read and transform images, for each domain; 0: in the training process.
        on_bad_image: What a training does about a source or target image whose file, or label file, is missing or
            damaged: 'fail' ends it; 'skip' leaves the image out and counts it in result.json. Test images are never
            left out: a score must not lose any.
    """

    steps: int = 250_000
    decay_steps: int | None = None
    batch_size: int = 1
    accumulate: int = 1
    evaluate_every: int = 0
    last_k: int = 5
    save_every: int = 500
    log_every: int = 20
    workers: int = 2
    on_bad_image: OnBadImage = "fail"

    def __post_init__(self) -> None:
        counts = ("steps", "evaluate_every", "save_every", "workers")
        _refuse_out_of_range("schedule", self, **dict.fromkeys(counts, (0, inf)), batch_size=(1, inf))
        positive = ("decay_steps", "accumulate", "last_k", "log_every")
        _refuse_out_of_range("schedule", self, **dict.fromkeys(positive, (1, inf)))
        if self.batch_size % self.accumulate:
            raise InputError(
                f"schedule.accumulate: {self.accumulate} parts do not divide a batch of {self.batch_size}; "
                "use a divisor of schedule.batch_size"
            )


@dataclass(frozen=True)
class SelectionConfig:
    """The checkpoint that is chosen without a label of the target, `selected.safetensors`.

    Args:
        score: What decides; every evaluation computes all four (docs/results.md says how they follow the true score).
        images: Of the target's training images and of the validation images, how many the scores are computed on,
            spread evenly; 0 leaves the scores out.
    """

    score: ScoreName = "information_maximisation"
    images: int = 64

    def __post_init__(self) -> None:
        _refuse_out_of_range("selection", self, images=(0, inf))


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Labels of step 2, Eqs. (9)-(11).

    Args:
        quantile: Of a class's confidences over the target set, its threshold (0.5: the median).
        cap: Largest threshold.
        override: Eq. (11): 'fill' puts a confident pseudo-label over the prediction, 'literal' takes the pseudo-label
            with its don't-cares, 'off' matches with the prediction alone.
        model: The model of step 1 that labels; 'selected' was chosen without labels (`selection`), 'best' on labels,
            and the result says so.
        init_from: What step 2 starts from: the initial weights, as step 1 did, or the last model of step 1.
    """

    quantile: float = 0.5
    cap: float = 0.9
    override: Literal["fill", "literal", "off"] = "fill"
    model: Literal["last", "selected", "best"] = "last"
    init_from: Literal["initial", "step1"] = "initial"

    def __post_init__(self) -> None:
        _refuse_out_of_range("pseudo_labels", self, quantile=(0, 1), cap=(0, 1))


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a result, apart from the machine.

    Args:
        source: Labelled images.
        target: Images to adapt to; labels, where there are any, are read only by the target-only row.
        test: Labelled images of the target domain, for evaluation alone; without a root nothing is scored.
        validation: Labelled images of the source domain that are kept out of training, for the score
            `source_validation`; without a root those of the source itself.
        classes: Class names to train; empty: all that source and target have in common.
        augmentation: Random transforms of both domains.
        translation: Source images in the target's style, for the rows + IT, + SIM and + SSL.
        cyclegan: How the generator of translation method 'cyclegan' is trained.
        network: The segmentation network.
        loss: Weights of the losses.
        matching: Stuff-and-instance matching.
        optimiser: Learning rates.
        warm_up: Training on the source alone that comes first.
        schedule: Steps and batch size.
        selection: The checkpoint that is chosen without labels.
        pseudo_labels: Labels of step 2.
        seed: Of every random choice.
    """

    source: DataConfig = field(default_factory=DataConfig)
    target: DataConfig = field(default_factory=DataConfig)
    test: DataConfig = field(default_factory=DataConfig)
    validation: DataConfig = field(default_factory=DataConfig)
    classes: tuple[str, ...] = ()
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    translation: TranslationConfig = field(default_factory=TranslationConfig)
    cyclegan: CycleGanConfig = field(default_factory=CycleGanConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_wrong_seed(self.seed)
        smallest, largest = self.augmentation.scale
        if smallest != largest and self.augmentation.crop is None and self.schedule.batch_size > 1:
            raise InputError(
                f"augmentation.scale: {[smallest, largest]} gives each image of a batch another size; set "
                "augmentation.crop, or schedule.batch_size 1"
            )
        if self.source.translated and self.translation.method != "off":
            raise InputError(
                f"translation.method: {self.translation.method} would translate the images of source.translated "
                f"({self.source.translated}) once more; leave one of the two out"
            )
