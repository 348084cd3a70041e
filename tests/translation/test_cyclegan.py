"""CycleGAN: shapes and sizes of the networks, losses against hand computation, the pool, the average, the step."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segadapt.config import CycleGanConfig, NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.errors import InputError
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network
from segadapt.translation.cyclegan import (
    Generator,
    PatchDiscriminator,
    ReflectedConv2d,
    draw_weights,
    generate,
    load_generator,
    save_generator,
)
from segadapt.translation.cyclegan_step import (
    CycleGanState,
    cyclegan_step,
    learning_rate_factor,
    lsgan_loss,
    new_state,
    semantic_loss,
    update_average,
)
from segadapt.translation.image_pool import ImagePool

CPU = torch.device("cpu")
SIZE = (32, 40)


def pictures(seed: int, size: tuple[int, int] = SIZE, batch: int = 1) -> Tensor:
    """Smooth colours, so that a few steps can learn them."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(40, 216, (batch, 3, 3, 3), generator=random).float()
    return nn.functional.interpolate(coarse, size, mode="bilinear").round().byte()


def signed(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@pytest.fixture(scope="module")
def segmenter() -> DeepLab:
    return build_network(NetworkConfig("efficientnet_lite0", "imagenet"), STREETS11, 0)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        assert parameters(Generator()) == 11_378_179
        assert parameters(PatchDiscriminator()) == 2_764_737


@pytest.mark.parametrize("size", [(32, 40), (33, 42), (35, 39)])
def test_a_generator_keeps_the_size_and_the_range(size: tuple[int, int]) -> None:
    generator = Generator(4, 2)
    draw_weights(generator, 0)
    out = generator(3 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 3, *size)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("side", [3, 7])
def test_a_reflected_convolution_is_torchs_in_both_ways(side: int) -> None:
    ours = ReflectedConv2d(2, 3, side)
    theirs = nn.Conv2d(2, 3, side, padding=side // 2, padding_mode="reflect")
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 2, 9, 12)

    def outcome(layer: nn.Module) -> tuple[Tensor, Tensor]:
        values = images.clone().requires_grad_()
        output = layer(values)
        output.square().sum().backward()
        assert values.grad is not None
        return output.detach(), values.grad

    wanted = outcome(theirs)
    torch.testing.assert_close(outcome(ours), wanted)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(outcome(ours), wanted)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_judgement_sees_70_by_70_pixels() -> None:
    discriminator = PatchDiscriminator(2)
    draw_weights(discriminator, 0)
    # normalisation reaches over the whole image, convolutions do not
    layers = nn.Sequential(*(layer for layer in discriminator.layers if not isinstance(layer, nn.InstanceNorm2d)))
    images = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0)).requires_grad_()
    judged = layers(images)
    assert judged.shape == (1, 1, 18, 18)
    (gradient,) = torch.autograd.grad(judged[0, 0, 9, 9], images)
    seen = gradient.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_initial_weights_are_of_deviation_2_hundredths_and_of_the_seed() -> None:
    one, other = Generator(16, 2), Generator(16, 2)
    draw_weights(one, 1)
    draw_weights(other, 1)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    weights = torch.cat([value.flatten() for name, value in one.state_dict().items() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all((value == 0).all() for name, value in one.state_dict().items() if name.endswith("bias"))
    draw_weights(other, 2)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


def test_a_generator_comes_back_from_its_file(tmp_path) -> None:
    generator = Generator(4, 1)
    draw_weights(generator, 0)
    save_generator(tmp_path / "generator.safetensors", generator, {"input_size": "[32, 40]"})
    loaded, metadata = load_generator(tmp_path / "generator.safetensors")
    images = pictures(0).float() / 255
    assert torch.equal(generate(loaded, images), generate(generator, images))
    assert metadata["input_size"] == "[32, 40]"
    assert 0 <= generate(loaded, images).min() <= generate(loaded, images).max() <= 1


@pytest.mark.parametrize("content", ["nothing", "text", "other"])
def test_a_file_that_is_no_generator(content: str, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    if content == "text":
        path.write_text("this is no generator")
    if content == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"model: .*x\.safetensors"):
        load_generator(path)


def test_lsgan_loss_by_hand() -> None:
    judged = torch.tensor([[[[0.5, 1.0], [2.0, -1.0]]]])
    assert lsgan_loss(judged, 1.0).item() == pytest.approx((0.25 + 0 + 1 + 4) / 4)
    assert lsgan_loss(judged, 0.0).item() == pytest.approx((0.25 + 1 + 4 + 1) / 4)


def test_the_rate_is_constant_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 10, 6) for step in range(11)]
    assert factors[:6] == [1.0] * 6
    assert factors[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert learning_rate_factor(4, 10, None) == 1.0
    assert learning_rate_factor(9, 10, None) == pytest.approx(1 / 6)
    assert learning_rate_factor(9, 10, 10) == 1.0


def test_losses_and_gradients_of_a_step_by_hand(segmenter: DeepLab) -> None:
    config = CycleGanConfig(crop=None, filters=4, blocks=1, steps=9, cycle=7.0, identity=0.3, semantic=2.0)
    state = new_state(config, segmenter, 3, CPU)
    source, target = pictures(0), pictures(1)
    before = copy.deepcopy(state)
    report = cyclegan_step(state, source, target)

    x, y = signed(source), signed(target)
    to_target, to_source = before.to_target, before.to_source
    judge_target, judge_source = before.target_discriminator, before.source_discriminator
    fake_y, fake_x = to_target(x), to_source(y)
    cycle = (to_source(fake_y) - x).abs().mean() + (to_target(fake_x) - y).abs().mean()
    identity = (to_target(y) - y).abs().mean() + (to_source(x) - x).abs().mean()
    adversarial = ((judge_target(fake_y) - 1) ** 2).mean() + ((judge_source(fake_x) - 1) ** 2).mean()
    semantic, drift = torch.zeros(()), 0.0
    for real, fake in ((x, fake_y), (y, fake_x)):
        normalised = [before.segmenter.normalisation((images + 1) * 127.5) for images in (real, fake)]
        logits = [before.segmenter(images).logits for images in normalised]
        labels = logits[0].argmax(1)
        chosen = logits[1].log_softmax(1).gather(1, labels[:, None])
        semantic = semantic - chosen.mean()
        drift = drift or (logits[1].argmax(1) != labels).float().mean().item()
    assert report["loss/cycle"].item() == pytest.approx(cycle.item(), rel=1e-5)
    assert report["loss/identity"].item() == pytest.approx(identity.item(), rel=1e-5)
    assert report["loss/semantic"].item() == pytest.approx(semantic.item(), rel=1e-4)
    assert report["label_drift"].item() == pytest.approx(drift)
    found = report["loss/adversarial_target"] + report["loss/adversarial_source"]
    assert found.item() == pytest.approx(adversarial.item(), rel=1e-5)
    (adversarial + 7 * cycle + 7 * 0.3 * identity + 2 * semantic).backward()
    for mine, by_hand in zip(state.to_target.parameters(), to_target.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, by_hand.grad, rtol=1e-3, atol=1e-5)

    for name, real, fake, judge in (("target", y, fake_y, judge_target), ("source", x, fake_x, judge_source)):
        judge.zero_grad()
        loss = ((judge(real) - 1) ** 2).mean() / 2 + (judge(fake.detach()) ** 2).mean() / 2
        assert report[f"loss/discriminator_{name}"].item() == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        trained = getattr(state, f"{name}_discriminator")
        for mine, by_hand in zip(trained.parameters(), judge.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, by_hand.grad, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in segmenter.parameters())


class OtherImage(ImagePool):
    """A pool that always gives back one and the same old image."""

    def exchange(self, images: Tensor, random: np.random.Generator) -> Tensor:
        return torch.full_like(images, 0.25)


def test_the_discriminators_are_shown_what_the_pool_gives() -> None:
    state = new_state(CycleGanConfig(crop=None, filters=4, blocks=1), None, 0, CPU)
    state.target_pool = state.source_pool = OtherImage(1)
    source, target = pictures(0), pictures(1)
    before = copy.deepcopy(state)
    report = cyclegan_step(state, source, target)
    for name, real in (("target", signed(target)), ("source", signed(source))):
        judge = getattr(before, f"{name}_discriminator")
        old = torch.full_like(real, 0.25)
        loss = ((judge(real) - 1) ** 2).mean() / 2 + (judge(old) ** 2).mean() / 2
        assert report[f"loss/discriminator_{name}"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_both_optimisers_follow_the_schedule() -> None:
    config = CycleGanConfig(crop=None, filters=4, blocks=1, steps=4, constant_steps=2, learning_rate=1e-3)
    state = new_state(config, None, 0, CPU)
    for wanted in (1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3):
        cyclegan_step(state, pictures(0), pictures(1))
        for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
            assert [group["lr"] for group in optimiser.param_groups] == [pytest.approx(wanted)]


def test_without_weights_the_terms_are_left_out(segmenter: DeepLab) -> None:
    config = CycleGanConfig(crop=None, filters=4, blocks=1, identity=0.0)
    report = cyclegan_step(new_state(config, None, 0, CPU), pictures(0), pictures(1))
    assert not {"loss/identity", "loss/semantic", "label_drift"} & report.keys()
    config = CycleGanConfig(crop=None, filters=4, blocks=1, semantic=0.0)
    measured = cyclegan_step(new_state(config, segmenter, 0, CPU), pictures(0), pictures(1))
    free = cyclegan_step(new_state(config, None, 0, CPU), pictures(0), pictures(1))
    assert {"loss/semantic", "label_drift"} <= measured.keys()
    assert measured["loss/cycle"] == free["loss/cycle"]


def test_the_pool_fills_then_mixes_old_images_in() -> None:
    pool, random = ImagePool(5), np.random.default_rng(0)
    images = [torch.full((1, 3, 2, 2), float(number)) for number in range(405)]
    returned = [int(pool.exchange(image, random)[0, 0, 0, 0]) for image in images]
    assert returned[:5] == [0, 1, 2, 3, 4]
    own = [number for number, value in enumerate(returned) if value == number]
    assert 160 < len(own) - 5 < 240  # half of 400, within four deviations
    older = [value for number, value in enumerate(returned) if value != number]
    assert len(set(older)) == len(older)  # what came back has left the pool
    assert max(number - value for number, value in enumerate(returned)) > 10
    assert len(pool.images) == 5


def test_a_pool_of_none_and_images_of_another_size() -> None:
    random, image = np.random.default_rng(0), torch.zeros(1, 3, 2, 2)
    assert torch.equal(ImagePool(0).exchange(image, random), image)
    pool = ImagePool(1)
    pool.exchange(image, random)
    for number in range(20):
        assert pool.exchange(torch.full((1, 3, 4, 4), float(number)), random)[0, 0, 0, 0] == number


def test_the_pool_keeps_no_graph_and_no_view_of_what_it_is_given() -> None:
    pool, image = ImagePool(1), torch.zeros(1, 3, 2, 2, requires_grad=True)
    pool.exchange(image * 1, np.random.default_rng(0))
    with torch.no_grad():
        image += 1
    assert not pool.images[0].requires_grad
    assert pool.images[0].sum() == 0


def test_the_average_follows_its_recursion() -> None:
    mean, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    expected = mean.weight.item()
    for step in range(40):
        nn.init.constant_(network.weight, float(step))
        update_average(mean, network, 0.7, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert mean.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_result_is_the_average_only_where_there_is_one() -> None:
    for ema in (0.0, 0.9):
        config = CycleGanConfig(crop=None, filters=4, blocks=1, ema=ema)
        state = new_state(config, None, 0, CPU)
        cyclegan_step(state, pictures(0), pictures(1))
        cyclegan_step(state, pictures(0), pictures(1))
        assert state.result is (state.averaged if ema else state.to_target)
    last, mean = (next(network.parameters()) for network in (state.to_target, state.averaged))
    start = next(new_state(config, None, 0, CPU).to_target.parameters())
    assert 0 < (mean - start).norm() < (last - start).norm()
    assert not mean.requires_grad


def trained(state: CycleGanState, steps: int, source: Tensor, target: Tensor) -> dict[str, float]:
    for _ in range(steps):
        report = cyclegan_step(state, source, target)
    return {name: value.item() for name, value in report.items()}


def test_it_overfits_two_images() -> None:
    config = CycleGanConfig(crop=None, filters=8, blocks=1, steps=60, constant_steps=60, learning_rate=2e-3, flip=0.0)
    state = new_state(config, None, 0, CPU)
    source, target = pictures(0), pictures(1)
    first = trained(state, 1, source, target)
    last = trained(state, 59, source, target)
    assert last["loss/cycle"] < 0.25 * first["loss/cycle"]
    assert last["loss/identity"] < 0.25 * first["loss/identity"]
    translated = generate(state.to_target, source.float() / 255) * 255
    mean = [images.float().mean((0, 2, 3)) for images in (source, target, translated)]
    assert (mean[2] - mean[1]).abs().sum() < 0.5 * (mean[0] - mean[1]).abs().sum()


def test_the_semantic_loss_pulls_predictions_together(segmenter: DeepLab) -> None:
    ends = {}
    for semantic in (0.0, 20.0):
        config = CycleGanConfig(
            crop=None, filters=8, blocks=1, steps=8, constant_steps=8, learning_rate=2e-3, semantic=semantic
        )
        ends[semantic] = trained(new_state(config, segmenter, 0, CPU), 8, pictures(2), pictures(3))
    assert ends[20.0]["loss/semantic"] < 0.7 * ends[0.0]["loss/semantic"]


def test_drift_is_0_for_equal_images_and_counts_what_changed(segmenter: DeepLab) -> None:
    segmenter.eval()
    images = signed(pictures(4, (64, 64)))
    loss, drift = semantic_loss(segmenter, images, images)
    assert drift == 0
    assert 0 < loss < math.log(STREETS11.num_classes)
    other = signed(pictures(5, (64, 64)))
    classes = [segmenter(segmenter.normalisation((x + 1) * 127.5)).logits.argmax(1) for x in (images, other)]
    changed = (classes[0] != classes[1]).float().mean()
    assert semantic_loss(segmenter, images, other)[1] == changed > 0


@pytest.mark.parametrize("split", [1, 3])
def test_a_state_that_was_saved_continues_bit_by_bit(split: int, tmp_path) -> None:
    config = CycleGanConfig(crop=None, filters=4, blocks=1, steps=6, constant_steps=2, pool_size=2, ema=0.9)
    images = [(pictures(2 * step), pictures(2 * step + 1)) for step in range(6)]
    whole = new_state(config, None, 0, CPU)
    for pair in images:
        cyclegan_step(whole, *pair)
    part = new_state(config, None, 0, CPU)
    for pair in images[:split]:
        cyclegan_step(part, *pair)
    torch.save(part.state_dict(), tmp_path / "state.pt")
    again = new_state(config, None, 0, CPU)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for pair in images[split:]:
        cyclegan_step(again, *pair)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert len(whole.target_pool.images) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crop": (16, 64)}, "crop"),
        ({"size": (64, 64), "crop": (96, 64)}, "crop"),
        ({"ema": 1.0}, "cyclegan.ema"),
        ({"blocks": 0}, "cyclegan.blocks"),
        ({"learning_rate": -1.0}, "cyclegan.learning_rate"),
        ({"flip": 2.0}, "cyclegan.flip"),
        ({"batch_size": 0}, "cyclegan.batch_size"),
        ({"steps": 0}, "cyclegan.steps"),
    ],
)
def test_options_out_of_range(options: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        CycleGanConfig(**options)
