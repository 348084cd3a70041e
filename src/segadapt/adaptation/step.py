"""The one training step of the method, Eqs. (12) and (13), in the order of the equations.

In: a `TrainState`, a labelled source batch, a target batch. Out: the state moved on by one optimiser step, and every
loss and count of the step. Step 1 and step 2 of the paper are this same function: in step 2 the target batch carries
pseudo-labels. Source only, adversarial, AdaBN and target only are weights of zero and other batches, not other code.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from segadapt.adaptation.pseudo_labels import override
from segadapt.config import LossConfig, MatchingConfig, OptimiserConfig
from segadapt.data.label_spaces import IGNORE
from segadapt.data.loading import Batch
from segadapt.matching import (
    FeatureBank,
    Regions,
    correct_labels,
    matching_losses,
    region_means,
    shrink_labels,
)
from segadapt.matching.losses import matched
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.discriminator import Discriminator


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
    device: torch.device
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Parameters, banks with ring positions, optimisers and the step counter."""
        return {
            "step": self.step,
            "segmenter": self.segmenter.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "bank": self.bank.state_dict(),
            "segmenter_optimiser": self.segmenter_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step = state["step"]
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
        Losses before weighting ("loss/..."), and what was matched ("matched/..."), as detached scalars on the device.
    """
    segmenter, discriminator, bank = state.segmenter, state.discriminator, state.bank
    weights, matching = state.loss, state.matching
    adversarial, matches = weights.adversarial > 0, weights.matching > 0
    report: dict[str, Tensor] = {}
    set_learning_rates(state)
    segmenter.train()
    segmenter_autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=state.device.type == "cuda")
    state.segmenter_optimiser.zero_grad(set_to_none=True)

    # Eq. (1): cross-entropy on the source.
    segmenter.update_running_statistics(target is None or segmenter.config.batch_norm != "source_target_separate")
    with segmenter_autocast:
        source_output = segmenter(segmenter.normalisation(source.images.to(state.device)))
    source_labels = source.labels.to(state.device)
    source_logits = upsample(source_output.logits, source_labels)
    report["loss/segmentation"] = cross_entropy(source_logits, source_labels)
    (weights.segmentation * report["loss/segmentation"]).backward()

    # Eqs. (4), (5), (7), Algorithm 1: mean features of the correctly classified source regions enter the banks.
    if matches:
        size = (source_output.logits.shape[-2], source_output.logits.shape[-1])
        predicted = source_output.logits.argmax(1)
        correct = correct_labels(predicted, shrink_labels(source_labels, size, matching.label_sampling))
        regions = find_regions(source_output.features.detach(), correct, state)
        if matching.classifier_agreement.source:
            regions = regions.select(agrees(segmenter, regions))
        bank.store(regions)

    # The target's share of Eqs. (12), (13).
    target_logits = None
    if target is not None:
        segmenter.update_running_statistics(True)
        has_loss = adversarial or matches or weights.target_segmentation > 0
        # AdaBN alone has no loss on the target: its forward pass, which moves the statistics, is the adaptation
        with segmenter_autocast, torch.set_grad_enabled(has_loss):
            target_output = segmenter(segmenter.normalisation(target.images.to(state.device)))
        target_labels = target.labels.to(state.device)
        target_logits = upsample(target_output.logits, target_labels)
        objective = target_logits.new_zeros(())

        # Eq. (2): the segmenter makes target predictions look like source ones; D's parameters get no gradient.
        if adversarial:
            discriminator.requires_grad_(False)
            judged = discriminator(target_logits.softmax(1))
            report["loss/adversarial"] = domain_loss(judged, is_target=False, gan=weights.gan)
            objective = objective + weights.adversarial * report["loss/adversarial"]

        # Eqs. (6), (8), with the labels of Eq. (11): target regions go to their nearest stored source region.
        if matches:
            size = (target_output.logits.shape[-2], target_output.logits.shape[-1])
            pseudo = shrink_labels(target_labels, size, matching.label_sampling)
            labels = override(target_output.logits.detach().argmax(1), pseudo, state.override)
            regions = find_regions(target_output.features, labels, state)
            regions = regions.select(may_match(segmenter, regions, matching))
            stuff, instance = matching_losses(
                regions, bank, matching.distance, matching.min_fill, matching.class_reduction
            )
            # a mean over the batch, so that lambda_ci means the same at any batch size
            report["loss/stuff"] = stuff / len(target.images)
            report["loss/instance"] = instance / len(target.images)
            objective = objective + weights.matching * (report["loss/stuff"] + report["loss/instance"])
            used = matched(regions, bank, matching.min_fill)
            report["matched/stuff"] = (used & ~regions.is_thing).sum()
            report["matched/instances"] = (used & regions.is_thing).sum()

        # Eq. (10): cross-entropy with the pseudo-labels.
        if weights.target_segmentation > 0:
            report["loss/target_segmentation"] = cross_entropy(target_logits, target_labels)
            objective = objective + weights.target_segmentation * report["loss/target_segmentation"]

        if has_loss:
            objective.backward()
    state.segmenter_optimiser.step()

    # Eq. (3): the discriminator learns to tell the domains apart, each half weighted by 1/2.
    if adversarial and target_logits is not None:
        discriminator.requires_grad_(True)
        state.discriminator_optimiser.zero_grad(set_to_none=True)
        on_source = domain_loss(discriminator(source_logits.detach().softmax(1)), is_target=False, gan=weights.gan)
        on_target = domain_loss(discriminator(target_logits.detach().softmax(1)), is_target=True, gan=weights.gan)
        report["loss/discriminator"] = (on_source + on_target) / 2
        (weights.discriminator * report["loss/discriminator"]).backward()
        state.discriminator_optimiser.step()

    state.step += 1
    return {name: value.detach() for name, value in report.items()}


def upsample(logits: Float[Tensor, "B N h w"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, "B N H W"]:
    """Logits at the labels' size, float32."""
    return F.interpolate(logits.float(), size=(labels.shape[-2], labels.shape[-1]), mode="bilinear", align_corners=True)


def cross_entropy(logits: Float[Tensor, "B N H W"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Eqs. (1), (10): mean over the labelled pixels; 0, not NaN, where there is none.

    Paper: a sum over pixels; the mean is what its learning rate belongs to.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def domain_loss(judged: Float[Tensor, "B 1 h w"], is_target: bool, gan: str) -> Float[Tensor, ""]:
    """Eqs. (2), (3): how badly the discriminator's output says `is_target` (source 0, target 1), mean of positions."""
    wanted = torch.full_like(judged, float(is_target))
    if gan == "lsgan":
        return F.mse_loss(judged, wanted)
    return F.binary_cross_entropy_with_logits(judged, wanted)


def find_regions(features: Float[Tensor, "B C h w"], labels: Int[Tensor, "B h w"], state: TrainState) -> Regions:
    """Stuff classes and thing instances of a batch with their mean features, Eqs. (5) and (7)."""
    space, matching = state.segmenter.label_space, state.matching
    return region_means(features, labels, space, matching.max_instances, matching.connectivity, matching.min_area)


def agrees(segmenter: DeepLab, regions: Regions) -> Tensor:
    """Whether the classifier gives each region's mean feature the region's own class, (R,) bool."""
    with torch.no_grad():
        return segmenter.classify(regions.features.detach()).argmax(1) == regions.class_index


def may_match(segmenter: DeepLab, regions: Regions, matching: MatchingConfig) -> Tensor:
    """Target regions that pass the classifier filter where it is asked for, (R,) bool."""
    asked = torch.where(
        regions.is_thing,
        torch.tensor(matching.classifier_agreement.target_things, device=regions.is_thing.device),
        torch.tensor(matching.classifier_agreement.target_stuff, device=regions.is_thing.device),
    )
    return agrees(segmenter, regions) | ~asked


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
