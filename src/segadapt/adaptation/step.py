"""The one training step of the method, Eqs. (12) and (13), in the order of the equations.

In: a `TrainState`, a labelled source batch, a target batch. Out: the state moved on by one optimiser step, and every
loss and count of the step. Step 1 and step 2 of the paper are this same function: in step 2 the target batch carries
pseudo-labels. Source only, adversarial, AdaBN and target only are weights of zero and other batches, not other code.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segadapt.adaptation.pseudo_labels import override
from segadapt.config import LossConfig, MatchingConfig, OptimiserConfig
from segadapt.data.label_spaces import IGNORE
from segadapt.data.loading import Batch
from segadapt.matching import (
    FeatureBank,
    Regions,
    correct_labels,
    matching_losses,
    on_host,
    region_means,
    shrink_labels,
    to_device,
)
from segadapt.matching.losses import matched
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.discriminator import Discriminator
from segadapt.processes import Processes


@dataclass
class TrainState:
    """Everything that a training step changes, with the settings it reads; one state dict holds all that changes."""

    segmenter: DeepLab
    discriminator: Discriminator
    bank: FeatureBank
    segmenter_optimiser: torch.optim.Optimizer
    discriminator_optimiser: torch.optim.Optimizer
    loss: LossConfig
    matching: MatchingConfig
    optimiser: OptimiserConfig
    override: str
    decay_steps: int
    accumulate: int
    one_size: bool
    device: torch.device
    processes: Processes
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.parallel_segmenter = self.parallel(self.segmenter)
        self.parallel_discriminator = self.parallel(self.discriminator)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients are averaged over the processes if there are several."""
        if self.processes.count == 1:
            return network
        return DistributedDataParallel(network)  # which also makes running statistics rank 0's everywhere

    def state_dict(self) -> dict[str, Any]:
        """Parameters, banks with ring positions, optimisers, the step counter and the seconds spent."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "segmenter": self.segmenter.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "bank": self.bank.state_dict(),
            "segmenter_optimiser": self.segmenter_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.segmenter.load_state_dict(state["segmenter"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.bank.load_state_dict(state["bank"])
        self.segmenter_optimiser.load_state_dict(state["segmenter_optimiser"])
        self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


def adapts_to_target(loss: LossConfig, batch_norm: str) -> bool:
    """Whether the step looks at target images; a source-only network must never see one, not even to normalise."""
    return (
        loss.adversarial > 0
        or loss.matching > 0
        or loss.target_segmentation > 0
        or batch_norm == "source_target_separate"
    )


def learning_rate_factor(step: int, decay_steps: int, power: float, warmup_steps: int) -> float:
    """Polynomial decay (1 - step / decay_steps) ** power, after a linear rise over `warmup_steps`."""
    decay = max(0.0, 1.0 - step / decay_steps) ** power
    return decay * min(1.0, (step + 1) / warmup_steps) if warmup_steps else decay


def adaptation_step(state: TrainState, source: Batch, target: Batch | None) -> dict[str, Tensor]:
    """One step of Eq. (12), or of Eq. (13) when `target.labels` are pseudo-labels.

    Args:
        state: Changed in place.
        source: Images (B, 3, H, W) uint8 and labels (B, H, W), 255 = ignore.
        target: The same of the target domain, labels 255 wherever there is no pseudo-label; None for source only.

    Returns:
        Losses before weighting ("loss/..."), and what was matched ("matched/..."), as detached scalars on the device;
        of this process.
    """
    segmenter, discriminator, bank = state.segmenter, state.discriminator, state.bank
    weights, matching, processes = state.loss, state.matching, state.processes
    adversarial, matches = weights.adversarial > 0, weights.matching > 0
    # AdaBN alone has no loss on the target: its forward pass, which moves the statistics, is the adaptation
    target_has_loss = target is not None and (adversarial or matches or weights.target_segmentation > 0)
    report: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=state.device))
    set_learning_rates(state)
    segmenter.train()
    half_precision = torch.autocast(state.device.type, torch.bfloat16, enabled=state.device.type == "cuda")
    state.segmenter_optimiser.zero_grad(set_to_none=True)
    source, target = on_device(source, state.device), on_device(target, state.device) if target is not None else None

    # Eq. (1): cross-entropy on the source.
    segmenter.update_running_statistics(target is None or segmenter.config.batch_norm != "source_target_separate")
    source_logits, source_regions = [], []
    labelled = labelled_pixels(source.labels, processes)
    for part, is_last in parts_of(source, state.accumulate):
        images, labels = part.images, part.labels
        with averaged_gradients(state.parallel_segmenter, is_last and not target_has_loss):
            with half_precision:
                output = state.parallel_segmenter(segmenter.normalisation(images))
            correct = region_labels(correct_labels, output.logits, labels, state) if matches else None
            logits = upsample(output.logits, labels)
            loss = cross_entropy(logits, labels, labelled)

            # Eqs. (4), (5), (7): mean features of the correctly classified regions. Before the backward pass, which a
            # GPU then has to do while the host picks those that are stored.
            if correct:
                regions = find_regions(output.features.detach(), correct(), state)
                stored = on_host(agrees(segmenter, regions)) if matching.classifier_agreement.source else None
                source_regions.append((regions, stored))
            (weights.segmentation * loss).backward()
        report["loss/segmentation"] += loss.detach()
        source_logits.append(logits.detach())

    # Algorithm 1: they enter the banks, which hold the same on all processes.
    if matches:
        chosen = [regions.select(stored()) if stored else regions for regions, stored in source_regions]
        bank.store(of_all_processes(chosen, processes))

    # The target's share of Eqs. (12), (13).
    target_logits = []
    if target is not None:
        segmenter.update_running_statistics(True)
        overridden = partial(override, mode=state.override)
        labelled = labelled_pixels(target.labels, processes)
        for part, is_last in parts_of(target, state.accumulate):
            images, labels = part.images, part.labels
            share = len(part.images) / len(target.images)
            with averaged_gradients(state.parallel_segmenter, is_last), torch.set_grad_enabled(target_has_loss):
                with half_precision:
                    output = state.parallel_segmenter(segmenter.normalisation(images))
                used_labels = region_labels(overridden, output.logits, labels, state) if matches else None
                logits = upsample(output.logits, labels)
                # every parameter has a gradient, if of 0: those that have none would be waited for in vain
                objective = 0.0 * output.logits.float().sum()

                # Eq. (2): the segmenter makes target predictions look like source ones; D gets no gradient.
                if adversarial:
                    discriminator.requires_grad_(False)
                    with half_precision:
                        judged = discriminator(logits.softmax(1))
                    loss = domain_loss(judged, is_target=False, gan=weights.gan)
                    report["loss/adversarial"] += share * loss.detach()
                    objective = objective + weights.adversarial * share * loss

                # Eqs. (6), (8), with the labels of Eq. (11): regions go to their nearest stored source region.
                if used_labels:
                    regions = find_regions(output.features, used_labels(), state)
                    among = may_match(segmenter, regions, matching)
                    stuff, instance = matching_losses(
                        regions, bank, matching.distance, matching.min_fill, matching.class_reduction, among
                    )
                    # a mean over the batch, so that lambda_ci means the same at any batch size
                    objective = objective + weights.matching * (stuff + instance) / len(target.images)
                    report["loss/stuff"] += stuff.detach() / len(target.images)
                    report["loss/instance"] += instance.detach() / len(target.images)
                    used = among & to_device(matched(regions, bank, matching.min_fill), state.device)
                    is_thing = to_device(regions.is_thing, state.device)
                    report["matched/stuff"] += (used & ~is_thing).sum()
                    report["matched/instances"] += (used & is_thing).sum()

                # Eq. (10): cross-entropy with the pseudo-labels.
                if weights.target_segmentation > 0:
                    loss = cross_entropy(logits, labels, labelled)
                    report["loss/target_segmentation"] += loss.detach()
                    objective = objective + weights.target_segmentation * loss

                if target_has_loss:
                    objective.backward()
            target_logits.append(logits.detach())
    state.segmenter_optimiser.step()

    # Eq. (3): the discriminator learns to tell the domains apart, each half weighted by 1/2.
    if adversarial and target is not None:
        discriminator.requires_grad_(True)
        state.discriminator_optimiser.zero_grad(set_to_none=True)
        shown = [(logits, False, len(source.images)) for logits in source_logits]
        shown += [(logits, True, len(target.images)) for logits in target_logits]
        for number, (logits, is_target, images) in enumerate(shown, start=1):
            with averaged_gradients(state.parallel_discriminator, number == len(shown)):
                with half_precision:
                    judged = state.parallel_discriminator(logits.softmax(1))
                loss = domain_loss(judged, is_target, weights.gan)
                loss = loss * len(logits) / images / 2
                (weights.discriminator * loss).backward()
            report["loss/discriminator"] += loss.detach()
        state.discriminator_optimiser.step()

    state.step += 1
    return dict(report)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where it is computed with; from pinned memory without waiting for what the device does."""
    images, labels = (each.to(device, non_blocking=True) for each in (batch.images, batch.labels))
    return Batch(images, labels, batch.names)


def parts_of(batch: Batch, parts: int) -> Iterator[tuple[Batch, bool]]:
    """A batch in equal parts, one after another (gradient accumulation), and whether it is the last of them."""
    size = len(batch.images) // parts
    for number in range(parts):
        here = slice(number * size, (number + 1) * size)
        yield Batch(batch.images[here], batch.labels[here], batch.names[here]), number == parts - 1


def averaged_gradients(network: nn.Module, average: bool) -> AbstractContextManager[None]:
    """Forward and backward inside add to the gradients; with `average` the sum is then averaged over the processes."""
    return nullcontext() if average or not isinstance(network, DistributedDataParallel) else network.no_sync()


def labelled_pixels(labels: Int[Tensor, "B H W"], processes: Processes) -> Float[Tensor, ""]:
    """Pixels of a batch that have a label, the mean of the processes'; at least 1, so that it can divide.

    Divided by it on each process and then averaged over them, a sum over pixels is the mean over all pixels.
    """
    count = (labels != IGNORE).sum().double()
    return (processes.sum(count) / processes.count).clamp(min=1 / processes.count).float()


def of_all_processes(regions: Sequence[Regions], processes: Processes) -> Regions:
    """Regions of all parts of all processes, in the order in which one process would have them in one batch."""
    return Regions(
        **{
            name: processes.concatenate(torch.cat([getattr(each, name) for each in regions]))
            for name in ("features", "class_index", "image_index", "area", "is_thing")
        }
    )


def upsample(logits: Float[Tensor, "B N h w"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, "B N H W"]:
    """Logits at the labels' size, float32."""
    height, width = labels.shape[-2:]
    logits = logits.float()
    if logits.is_cuda:
        # as products, because the gradient of `interpolate` is a sum of atomic additions there: slow, in no fixed order
        rows = interpolation(logits.shape[-2], height, logits.device)
        columns = interpolation(logits.shape[-1], width, logits.device)
        return rows @ (logits.contiguous() @ columns.T)
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)


@lru_cache(maxsize=8)
def interpolation(small: int, full: int, device: torch.device) -> Float[Tensor, "full small"]:
    """The matrix of linear interpolation from `small` values to `full`, ends on ends (align_corners)."""
    with torch.inference_mode(False):  # it is kept
        unit_vectors = torch.eye(small)[None]
        return F.interpolate(unit_vectors, size=full, mode="linear", align_corners=True)[0].T.contiguous().to(device)


def cross_entropy(
    logits: Float[Tensor, "B N H W"], labels: Int[Tensor, "B H W"], labelled: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Eqs. (1), (10): mean over the labelled pixels; 0, not NaN, where there is none.

    `labelled` is their number where the logits are only a part of what the mean is over.

    Paper: a sum over pixels; the mean is what its learning rate belongs to.
    """
    # summed by itself, because a GPU has no deterministic way to do both at once
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum()
    return total / ((labels != IGNORE).sum().clamp(min=1) if labelled is None else labelled)


def domain_loss(judged: Float[Tensor, "B 1 h w"], is_target: bool, gan: str) -> Float[Tensor, ""]:
    """Eqs. (2), (3): how badly the discriminator's output says `is_target` (source 0, target 1), mean of positions."""
    judged = judged.to(torch.promote_types(judged.dtype, torch.float32))
    wanted = torch.full_like(judged, float(is_target))
    if gan == "lsgan":
        return F.mse_loss(judged, wanted)
    return F.binary_cross_entropy_with_logits(judged, wanted)


def region_labels(
    choose: Callable[[Tensor, Tensor], Tensor],
    logits: Float[Tensor, "B N h w"],
    labels: Int[Tensor, "B H W"],
    state: TrainState,
) -> Callable[[], Int[Tensor, "B h w"]]:
    """What `choose` makes of predictions and labels, at the features' size, on its way to the host."""
    small = shrink_labels(labels, (logits.shape[-2], logits.shape[-1]), state.matching.label_sampling)
    return on_host(choose(logits.detach().argmax(1), small))


def find_regions(features: Float[Tensor, "B C h w"], labels: Int[Tensor, "B h w"], state: TrainState) -> Regions:
    """Stuff classes and thing instances of a batch with their mean features, Eqs. (5) and (7)."""
    space, matching = state.segmenter.label_space, state.matching
    return region_means(features, labels, space, matching.max_instances, matching.connectivity, matching.min_area)


def agrees(segmenter: DeepLab, regions: Regions) -> Tensor:
    """Whether the classifier gives each region's mean feature the region's own class, (R,) bool."""
    with torch.no_grad():
        classes = to_device(regions.class_index, regions.features.device)
        return segmenter.classify(regions.features.detach()).argmax(1) == classes


def may_match(segmenter: DeepLab, regions: Regions, matching: MatchingConfig) -> Tensor:
    """Target regions that pass the classifier filter where it is asked for, (R,) bool."""
    agreement, is_thing = matching.classifier_agreement, regions.is_thing
    asked = (is_thing & agreement.target_things) | (~is_thing & agreement.target_stuff)
    return agrees(segmenter, regions) | to_device(~asked, regions.features.device)


def set_learning_rates(state: TrainState) -> None:
    """Put the schedule's rates of this step into both optimisers."""
    options = state.optimiser
    factor = learning_rate_factor(state.step, state.decay_steps, options.power, options.warmup_steps)
    backbone, head = state.segmenter_optimiser.param_groups
    backbone["lr"] = options.learning_rate * factor
    head["lr"] = backbone["lr"] * options.head_multiplier
    (group,) = state.discriminator_optimiser.param_groups
    group["lr"] = options.discriminator_learning_rate * factor


def learning_rates(state: TrainState) -> dict[str, float]:
    """The rates last used."""
    backbone, head = state.segmenter_optimiser.param_groups
    return {
        "backbone": backbone["lr"],
        "head": head["lr"],
        "discriminator": state.discriminator_optimiser.param_groups[0]["lr"],
    }
