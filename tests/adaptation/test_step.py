"""The training step: what gets gradient, what each weight of zero leaves out, which images a row may see."""

import copy
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import (
    TrainState,
    adaptation_step,
    adapts_to_target,
    cross_entropy,
    domain_loss,
    interpolation,
    learning_rate_factor,
    upsample,
)
from segadapt.adaptation.trainer import finite_losses, new_state, weights_cast_once
from segadapt.config import (
    ClassifierAgreement,
    Experiment,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import Batch
from segadapt.errors import InputError, NonFiniteLossError
from segadapt.matching import matching_losses, region_means

GOLDEN = Path(__file__).parent.parent / "golden"
EXPERIMENT = Experiment(
    network=NetworkConfig("efficientnet_lite0", "random", batch_norm="source_target_separate"),
    loss=LossConfig(adversarial=0.1, matching=0.1),
    optimiser=OptimiserConfig(learning_rate=0.01),
    schedule=ScheduleConfig(steps=10),
)
NO_FILTER = ClassifierAgreement(source=False, target_stuff=False, target_things=False)


def batch(seed: int, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 11, (2, 6, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Batch(images, labels if labelled else torch.full_like(labels, 255), ("a.png", "b.png"))


def state_of(experiment: Experiment) -> TrainState:
    return new_state(experiment, STREETS11, torch.device("cpu"))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_step_1_reports_every_loss_and_moves_everything() -> None:
    state = state_of(row_of(EXPERIMENT, "sim"))
    before, discriminator = copy_of(state.segmenter), copy_of(state.discriminator)
    for seed in range(3):
        report = adaptation_step(state, batch(seed), batch(seed + 10, labelled=False))
    assert {name for name in report if name.startswith("loss/")} == {
        "loss/segmentation",
        "loss/adversarial",
        "loss/stuff",
        "loss/instance",
        "loss/discriminator",
    }
    assert state.step == 3
    assert int(state.bank.filled.sum()) > 0
    assert changed(discriminator, copy_of(state.discriminator)) == set(discriminator)
    trainable = {name for name, parameter in state.segmenter.named_parameters() if parameter.requires_grad}
    assert changed(before, copy_of(state.segmenter)) >= trainable


def test_step_2_adds_the_cross_entropy_with_pseudo_labels() -> None:
    state = state_of(EXPERIMENT)
    report = adaptation_step(state, batch(0), batch(1))
    assert float(report["loss/target_segmentation"]) > 0


@pytest.mark.parametrize(("small", "full"), [(1, 5), (9, 65), (20, 7), (3, 3)])
def test_upsampling_by_products_as_on_a_gpu(small: int, full: int) -> None:
    logits = torch.randn(2, 3, small, small + 4)
    rows, columns = (
        interpolation(small, full, torch.device("cpu")),
        interpolation(small + 4, 2 * full, torch.device("cpu")),
    )
    plain = upsample(logits, torch.zeros(2, full, 2 * full, dtype=torch.int64))
    torch.testing.assert_close(rows @ (logits @ columns.T), plain)


@pytest.mark.parametrize("row", ["source_only", "target_only"])
def test_a_source_only_network_never_sees_a_target_image(row: str) -> None:
    experiment = row_of(EXPERIMENT, row)
    assert not adapts_to_target(experiment.loss, experiment.network.batch_norm)
    state = state_of(experiment)
    before = copy_of(state.segmenter)
    report = adaptation_step(state, batch(0), None)
    assert set(report) == {"loss/segmentation"}
    running = {name for name in before if name.endswith("running_mean")}
    assert running <= changed(before, copy_of(state.segmenter)), "its own batches set the running statistics"


def test_adabn_differs_from_source_only_in_the_running_statistics_alone() -> None:
    states = [state_of(row_of(EXPERIMENT, row)) for row in ("source_only", "adabn")]
    adaptation_step(states[0], batch(0), None)
    adaptation_step(states[1], batch(0), batch(1, labelled=False))
    differing = changed(copy_of(states[0].segmenter), copy_of(states[1].segmenter))
    assert differing
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in differing)


def test_with_separate_statistics_the_running_ones_are_those_of_the_target() -> None:
    experiment = row_of(EXPERIMENT, "sim")
    one, other = state_of(experiment), state_of(experiment)
    adaptation_step(one, batch(0), batch(5, labelled=False))
    adaptation_step(other, batch(1), batch(5, labelled=False))
    # the same target image passed through the same weights: another source image must not have left a trace
    differing = changed(copy_of(one.segmenter), copy_of(other.segmenter))
    assert not any("running" in name for name in differing)


def gradient_arrivals(module: torch.nn.Module) -> dict[str, int]:
    """How many backward passes reach each parameter from now on."""
    arrivals: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            arrivals[name] = 0

            def count(_: torch.Tensor, name: str = name) -> None:
                arrivals[name] += 1

            parameter.register_post_accumulate_grad_hook(count)
    return arrivals


def test_eq_2_gives_the_discriminator_no_gradient_and_eq_3_the_segmenter_none() -> None:
    state = state_of(row_of(EXPERIMENT, "sim"))
    segmenter, discriminator = gradient_arrivals(state.segmenter), gradient_arrivals(state.discriminator)
    adaptation_step(state, batch(0), batch(1, labelled=False))
    # the segmenter: Eq. (1), then the target's share of Eq. (12); the discriminator: the two halves of Eq. (3)
    assert set(segmenter.values()) == {2}
    assert set(discriminator.values()) == {2}


def test_the_discriminators_gradient_is_that_of_eq_3_alone() -> None:
    state = state_of(row_of(EXPERIMENT, "adversarial"))
    before = copy.deepcopy(state)
    source, target = batch(0), batch(1, labelled=False)
    adaptation_step(state, source, target)
    halves = []
    for images, is_target in ((source.images, False), (target.images, True)):
        logits = before.segmenter.train()(before.segmenter.normalisation(images)).logits
        judged = before.discriminator(upsample(logits, source.labels).detach().softmax(1))
        halves.append(domain_loss(judged, is_target, "vanilla"))
    (sum(halves) / 2).backward()
    for found, expected in zip(state.discriminator.parameters(), before.discriminator.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_matching_sends_gradient_to_target_features_and_none_to_source_features_or_the_bank() -> None:
    loss = LossConfig(segmentation=0.0, adversarial=0.0, matching=1.0)
    experiment = row_of(replace(EXPERIMENT, loss=loss, matching=MatchingConfig(classifier_agreement=NO_FILTER)), "sim")
    state = state_of(experiment)
    features: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        features.append(output)

    state.segmenter.backbone.register_forward_hook(keep)
    for step in range(2):  # in the second step the bank holds features of an earlier graph, too
        classifier = copy.deepcopy(state.segmenter.classifier)
        report = adaptation_step(state, predicted_batch(state, step), batch(step + 10, labelled=False))
        assert float(report["loss/stuff"]) > 0
        assert float(report["loss/instance"]) > 0
        source, target = features[-2:]
        assert source.grad is not None
        assert torch.count_nonzero(source.grad) == 0, "Eq. (1) has weight 0; nothing else may reach the source"
        again = target.detach().clone().requires_grad_()
        labels = classifier(again).argmax(1)
        stuff, instance = matching_losses(region_means(again, labels, STREETS11), state.bank)
        ((stuff + instance) / 2).backward()  # two images; lambda_ci is 1
        assert torch.count_nonzero(again.grad) > 0
        torch.testing.assert_close(target.grad, again.grad)
        assert not state.bank.features.requires_grad
        assert state.bank.features.grad_fn is None


def predicted_batch(state: TrainState, seed: int) -> Batch:
    """Labelled with what the network predicts, so that much of it is right at the size of the features."""
    images = batch(seed).images
    segmenter = copy.deepcopy(state.segmenter).train()
    segmenter.backbone._forward_hooks.clear()
    with torch.no_grad():
        labels = segmenter(segmenter.normalisation(images)).logits.argmax(1)
    return Batch(images, labels.repeat_interleave(8, 1).repeat_interleave(8, 2), ("a.png", "b.png"))


def test_the_gradient_is_the_weighted_sum_of_eq_13() -> None:
    """Each term alone with weight 1, from the same state; together with its weights."""
    weights = {"segmentation": 0.5, "target_segmentation": 2.0, "adversarial": 0.25, "matching": 0.125}
    nothing = LossConfig(**dict.fromkeys(weights, 0.0))
    initial = state_of(replace(EXPERIMENT, matching=MatchingConfig(classifier_agreement=NO_FILTER)))
    source, target = predicted_batch(initial, 0), batch(1)

    def gradient(loss: LossConfig) -> torch.Tensor:
        state = copy.deepcopy(initial)
        state.loss = loss
        adaptation_step(state, source, target)
        return torch.cat([p.grad.flatten() for p in state.segmenter.parameters() if p.grad is not None])

    alone = {term: gradient(replace(nothing, **{term: 1.0})) for term in weights}
    assert all(torch.count_nonzero(each) > 0 for each in alone.values())
    together = gradient(replace(nothing, **weights))
    expected = sum(weight * alone[term] for term, weight in weights.items())
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-5 * float(together.abs().max()))
    more = gradient(replace(nothing, **weights, discriminator=1000.0))
    assert torch.equal(more, together), "the discriminator's own loss is none of the segmenter's business"


def test_a_state_dict_continues_the_run() -> None:
    straight, broken = state_of(row_of(EXPERIMENT, "sim")), state_of(row_of(EXPERIMENT, "sim"))
    for seed in range(4):
        adaptation_step(straight, batch(seed), batch(seed + 10, labelled=False))
    for seed in range(2):
        adaptation_step(broken, batch(seed), batch(seed + 10, labelled=False))
    resumed = state_of(replace(row_of(EXPERIMENT, "sim"), seed=7))
    resumed.load_state_dict(broken.state_dict())
    for seed in range(2, 4):
        adaptation_step(resumed, batch(seed), batch(seed + 10, labelled=False))
    assert not changed(copy_of(straight.segmenter), copy_of(resumed.segmenter))
    assert not changed(copy_of(straight.bank), copy_of(resumed.bank))
    assert not changed(copy_of(straight.discriminator), copy_of(resumed.discriminator))


def test_an_image_without_labels_costs_nothing_and_is_no_nan() -> None:
    logits = torch.randn(2, 11, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())


def test_polynomial_decay_is_the_reference_one() -> None:
    schedule = json.loads((GOLDEN / "maps_and_schedule.json").read_text())["lr_poly"]
    for base, name in ((2.5e-4, "base_2p5em4"), (1e-4, "base_1em4")):
        for step, rate in zip(schedule["iters"], schedule[name], strict=True):
            factor = learning_rate_factor(step, schedule["max_iter"], schedule["power"], 0)
            assert base * factor == pytest.approx(rate, rel=1e-12)


def test_warmup_rises_to_the_decay() -> None:
    factors = [learning_rate_factor(step, 100, 0.9, 10) for step in range(12)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[9] == learning_rate_factor(9, 100, 0.9, 0)


def test_the_losses_of_eqs_2_and_3_are_the_reference_ones() -> None:
    golden = np.load(GOLDEN / "discriminator.npz")
    judged = torch.from_numpy(golden["out"])
    as_source = float(domain_loss(judged, is_target=False, gan="vanilla"))
    as_target = float(domain_loss(judged, is_target=True, gan="vanilla"))
    assert as_source == pytest.approx(float(golden["loss_as_source_0"]), rel=1e-6)
    assert as_target == pytest.approx(float(golden["loss_as_target_1"]), rel=1e-6)
    # the paper's sums over positions
    assert as_source * judged.numel() == pytest.approx(float(golden["paper_eqn2_sum"]), rel=1e-6)
    assert as_target * judged.numel() == pytest.approx(float(golden["paper_eqn3_target_sum"]), rel=1e-6)
    assert as_source * judged.numel() == pytest.approx(float(golden["paper_eqn3_source_sum"]), rel=1e-6)


def test_lsgan_is_the_squared_distance_to_the_domain() -> None:
    judged = torch.tensor([[[[0.5, -1.0]]]])
    assert float(domain_loss(judged, False, "lsgan")) == pytest.approx((0.5**2 + 1.0**2) / 2)
    assert float(domain_loss(judged, True, "lsgan")) == pytest.approx((0.5**2 + 2.0**2) / 2)


def test_the_step_fools_with_eq_2_and_judges_with_both_halves_of_eq_3() -> None:
    state = state_of(row_of(EXPERIMENT, "adversarial"))
    for parameter in state.discriminator.parameters():
        parameter.data.mul_(2)  # a new one answers 0 nearly everywhere
    before = copy.deepcopy(state)
    source, target = batch(0), batch(1, labelled=False)
    report = adaptation_step(state, source, target)

    def judged(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = before.segmenter(before.segmenter.normalisation(images)).logits
            full = functional.interpolate(logits, (48, 64), mode="bilinear", align_corners=True)
            return before.discriminator(full.softmax(1))

    # -log(1 - sigmoid(x)) = softplus(x) and -log(sigmoid(x)) = softplus(-x); source is 0, target is 1
    on_source, on_target = judged(source.images), judged(target.images)
    fooling = functional.softplus(on_target).mean()
    halves = (functional.softplus(on_source).mean() + functional.softplus(-on_target).mean()) / 2
    assert float(report["loss/adversarial"]) == pytest.approx(float(fooling), rel=1e-5)
    assert float(report["loss/discriminator"]) == pytest.approx(float(halves), rel=1e-5)
    assert abs(float(fooling) - float(halves)) > 0.01


def test_a_loss_that_is_no_number_is_named_with_its_step() -> None:
    with pytest.raises(NonFiniteLossError, match=r"loss/stuff became nan at step 7"):
        finite_losses({"loss/segmentation": torch.tensor(1.0), "loss/stuff": torch.tensor(torch.nan)}, 7)


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(InputError, match="sim_sll"):
        row_of(EXPERIMENT, "sim_sll")


class Casts(TorchDispatchMode):
    """Counts the tensors that are cast."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_the_passes_of_a_step_share_the_cast_weights() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(2, 1, 3, 8, 8)

    def step(shared: AbstractContextManager[None]) -> tuple[Tensor, int]:
        layer.zero_grad()
        with shared, Casts() as casts:
            for image in images:  # as source and target: forward and backward, one after the other
                with torch.autocast("cpu", torch.bfloat16):
                    features = layer(image)
                features.float().square().mean().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone(), casts.count

    alone, cast_twice = step(nullcontext())
    shared, cast_once = step(weights_cast_once(torch.device("cpu")))
    assert torch.equal(alone, shared)
    assert cast_twice - cast_once == 2, "weight and bias"
