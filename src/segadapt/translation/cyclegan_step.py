"""One training step of CycleGAN (Zhu et al. 2017) with the semantic loss of Hoffman et al. 2018.

In: a `CycleGanState`, a batch of source and one of target images. Out: the state moved on by one step of generators
and discriminators, and every loss. The paper's G is `to_target`, its F `to_source`, its D_Y `target_discriminator`, its
D_X `source_discriminator`.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segadapt.config import CycleGanConfig
from segadapt.networks.deeplab import DeepLab
from segadapt.processes import ONE_PROCESS, Processes
from segadapt.translation.cyclegan import Generator, PatchDiscriminator, draw_weights
from segadapt.translation.image_pool import ImagePool

BETAS = (0.5, 0.999)
_POOL = 3  # numbers drawn for the pools are no others' (data/loading.py has 0 to 2)


@dataclass
class CycleGanState:
    """Everything that a step changes, with the settings it reads; one state dict holds all that changes."""

    config: CycleGanConfig
    to_target: Generator
    to_source: Generator
    averaged: Generator
    target_discriminator: PatchDiscriminator
    source_discriminator: PatchDiscriminator
    generator_optimiser: torch.optim.Optimizer
    discriminator_optimiser: torch.optim.Optimizer
    target_pool: ImagePool
    source_pool: ImagePool
    segmenter: DeepLab | None
    seed: int
    device: torch.device
    processes: Processes
    step: int = 0
    seconds: float = 0.0

    @property
    def result(self) -> Generator:
        """The generator to keep: the running average of `to_target` if there is one."""
        return self.averaged if self.config.ema else self.to_target

    def state_dict(self) -> dict[str, Any]:
        """Parameters, pools, optimisers, the step counter and the seconds spent."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            **{name: getattr(self, name).state_dict() for name in _STATEFUL},
            "target_pool": self.target_pool.images,
            "source_pool": self.source_pool.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.seconds = state["step"], state["seconds"]
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.target_pool.images, self.source_pool.images = list(state["target_pool"]), list(state["source_pool"])


_STATEFUL = (
    "to_target", "to_source", "averaged", "target_discriminator", "source_discriminator", "generator_optimiser",
    "discriminator_optimiser",
)  # fmt: skip


def new_state(
    config: CycleGanConfig,
    segmenter: DeepLab | None,
    seed: int,
    device: torch.device,
    processes: Processes = ONE_PROCESS,
) -> CycleGanState:
    """The state before the first step, a function of the seed; the segmenter is frozen."""
    generators = [Generator(config.filters, config.blocks) for _ in range(2)]
    discriminators = [PatchDiscriminator(config.filters) for _ in range(2)]
    for number, network in enumerate((*generators, *discriminators)):
        draw_weights(network, 4 * seed + number)
        network.to(device)
    if segmenter is not None:
        segmenter.to(device).eval().requires_grad_(False)
    return CycleGanState(
        config=config,
        to_target=generators[0],
        to_source=generators[1],
        averaged=copy.deepcopy(generators[0]).requires_grad_(False),
        target_discriminator=discriminators[0],
        source_discriminator=discriminators[1],
        generator_optimiser=torch.optim.Adam(_parameters(generators), config.learning_rate, BETAS),
        discriminator_optimiser=torch.optim.Adam(_parameters(discriminators), config.learning_rate, BETAS),
        target_pool=ImagePool(config.pool_size),
        source_pool=ImagePool(config.pool_size),
        segmenter=segmenter,
        seed=seed,
        device=device,
        processes=processes,
    )


def cyclegan_step(
    state: CycleGanState, source: UInt8[Tensor, "B 3 H W"], target: UInt8[Tensor, "B 3 h w"]
) -> dict[str, Tensor]:
    """One step of Eq. (3) of Zhu et al., with the semantic loss, Eq. (4) of Hoffman et al.

    Args:
        state: Changed in place.
        source: RGB images in 0..255.
        target: The same of the target.

    Returns:
        Losses before weighting ("loss/..."), each the sum of both directions unless it names one, and the
        "label_drift", as detached scalars on the device; of this process.
    """
    config, processes = state.config, state.processes
    report: dict[str, Tensor] = {}
    generators, discriminators = (
        [state.to_target, state.to_source],
        [state.target_discriminator, state.source_discriminator],
    )
    _set_learning_rate(state)
    autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=state.device.type == "cuda")
    source, target = _signed(source.to(state.device)), _signed(target.to(state.device))

    # The generators: what they make shall pass for real, come back as it was, and keep its labels.
    _train(discriminators, False)
    state.generator_optimiser.zero_grad(set_to_none=True)
    with autocast:
        as_target, as_source = state.to_target(source).float(), state.to_source(target).float()
        source_again, target_again = state.to_source(as_target).float(), state.to_target(as_source).float()
        report["loss/adversarial_target"] = lsgan_loss(state.target_discriminator(as_target), 1.0)
        report["loss/adversarial_source"] = lsgan_loss(state.source_discriminator(as_source), 1.0)
    report["loss/cycle"] = F.l1_loss(source_again, source) + F.l1_loss(target_again, target)
    objective = report["loss/adversarial_target"] + report["loss/adversarial_source"]
    objective = objective + config.cycle * report["loss/cycle"]
    if config.identity:
        # Sec. 5.2: an image that has the style already stays, so that colours do not wander.
        with autocast:
            same_target, same_source = state.to_target(target).float(), state.to_source(source).float()
        report["loss/identity"] = F.l1_loss(same_target, target) + F.l1_loss(same_source, source)
        objective = objective + config.cycle * config.identity * report["loss/identity"]
    if state.segmenter is not None:
        with autocast, torch.set_grad_enabled(config.semantic > 0):
            source_loss, drift = semantic_loss(state.segmenter, source, as_target)
            target_loss, _ = semantic_loss(state.segmenter, target, as_source)
        report["loss/semantic"], report["label_drift"] = source_loss + target_loss, drift
        objective = objective + config.semantic * report["loss/semantic"]
    objective.backward()
    average_gradients(generators, processes)
    state.generator_optimiser.step()

    # The discriminators: real images are 1, generated ones, some of earlier steps, 0.
    _train(discriminators, True)
    state.discriminator_optimiser.zero_grad(set_to_none=True)
    random = np.random.default_rng([state.seed, _POOL, state.step])
    for name, real, generated, pool, discriminator in (
        ("target", target, as_target, state.target_pool, state.target_discriminator),
        ("source", source, as_source, state.source_pool, state.source_discriminator),
    ):
        # one pool of all processes, the same on each, so that one of them can save it
        shown = _own(pool.exchange(processes.concatenate(generated.detach()), random), processes)
        with autocast:
            loss = (lsgan_loss(discriminator(real), 1.0) + lsgan_loss(discriminator(shown), 0.0)) / 2
        loss.backward()
        report[f"loss/discriminator_{name}"] = loss
    average_gradients(discriminators, processes)
    state.discriminator_optimiser.step()

    if config.ema:
        update_average(state.averaged, state.to_target, config.ema, state.step)
    state.step += 1
    return {name: value.detach() for name, value in report.items()}


def lsgan_loss(judged: Float[Tensor, "B 1 h w"], wanted: float) -> Float[Tensor, ""]:
    """Mean squared distance of the judgements from 1 (real) or 0 (generated): LSGAN, Mao et al. 2017."""
    return ((judged.float() - wanted) ** 2).mean()


def semantic_loss(
    segmenter: DeepLab, before: Float[Tensor, "B 3 H W"], after: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Whether a network trained on the source sees the same classes after translation, Eq. (4) of Hoffman et al. 2018.

    Args:
        segmenter: Frozen, in evaluation mode.
        before: Images in -1..1.
        after: Their translations.

    Returns:
        Cross-entropy with the most likely classes before, and the label drift: the share of positions, at the stride of
        the network's logits, whose most likely class is another after translation.
    """
    with torch.no_grad():
        labels = segmenter(segmenter.normalisation(_bytes(before))).logits.argmax(1)
    logits = segmenter(segmenter.normalisation(_bytes(after))).logits.float()
    # the mean by itself, because a GPU has no deterministic way to do both at once
    return F.cross_entropy(logits, labels, reduction="none").mean(), (logits.argmax(1) != labels).float().mean()


@torch.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move `averaged` towards `network`; faster in the first steps, so that the initial weights are soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def learning_rate_factor(step: int, steps: int, constant_steps: int | None) -> float:
    """1, then from `constant_steps` (half of all steps if None) on a straight line that ends at 0."""
    constant = steps // 2 if constant_steps is None else constant_steps
    return 1.0 if step < constant else max(0.0, (steps - step) / (steps - constant + 1))


def average_gradients(networks: Iterable[nn.Module], processes: Processes) -> None:
    """Replace each gradient by its mean over the processes."""
    if processes.count == 1:
        return
    gradients = [parameter.grad for parameter in _parameters(networks) if parameter.grad is not None]
    mean = processes.sum(torch.cat([gradient.flatten() for gradient in gradients])) / processes.count
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _set_learning_rate(state: CycleGanState) -> None:
    config = state.config
    factor = learning_rate_factor(state.step, config.steps, config.constant_steps)
    for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * factor


def _own(images: Tensor, processes: Processes) -> Tensor:
    """This process's part of the images of all."""
    return images.tensor_split(processes.count)[processes.rank]


def _parameters(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for network in networks for parameter in network.parameters()]


def _train(networks: list[PatchDiscriminator], trained: bool) -> None:
    for network in networks:
        network.requires_grad_(trained)


def _signed(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    return images.float() / 127.5 - 1


def _bytes(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    return (images + 1) * 127.5
