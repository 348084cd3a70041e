from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segadapt.errors import InputError
from segadapt.networks.discriminator import Discriminator

GOLDEN = Path(__file__).parents[1] / "golden" / "discriminator.npz"


def hashed(shape, tag, gain):
    """The integer hash that the golden numbers were made with: splitmix64 to uniform in [-1, 1)."""
    count, fan = int(np.prod(shape)), max(1, int(np.prod(shape[1:])))
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64(tag) * np.uint64(0x100000000) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2.0**53 * 2 - 1
    return torch.from_numpy((uniform * gain * np.sqrt(3.0 / fan)).reshape(shape).astype(np.float32))


def test_agrees_with_the_released_discriminator():
    golden = np.load(GOLDEN)
    discriminator = Discriminator(19)
    state = discriminator.state_dict()
    assert list(state) == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "conv3", "conv4", "classifier") for kind in ("weight", "bias")
    ]
    discriminator.load_state_dict(
        {
            key: hashed(value.shape, tag, 1.4 if value.dim() > 1 else 0.1)
            for tag, (key, value) in enumerate(state.items())
        }
    )
    logits = (hashed((2, 19, 66, 130), 100, 1.0) * np.sqrt(19 * 66 * 130 / 3) * 3).requires_grad_()
    output = discriminator(logits.softmax(1))
    torch.testing.assert_close(output.detach().numpy(), golden["out"], atol=1e-6, rtol=1e-5)

    as_source = F.binary_cross_entropy_with_logits(output, torch.zeros_like(output))
    as_target = F.binary_cross_entropy_with_logits(output, torch.ones_like(output))
    assert as_source.item() == pytest.approx(golden["loss_as_source_0"].item(), rel=1e-6)
    assert as_target.item() == pytest.approx(golden["loss_as_target_1"].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(as_source, logits)
    scale = np.abs(golden["grad_logits_sub"]).max()
    torch.testing.assert_close(
        gradient[:, :, ::13, ::17].numpy(), golden["grad_logits_sub"], atol=1e-5 * scale, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [((720, 1280), (22, 40)), ((512, 1024), (16, 32)), ((760, 1280), (23, 40)), ((32, 32), (1, 1))],
)
def test_sizes(size, expected):
    with torch.device("meta"):
        output = Discriminator(19)(torch.empty(1, 19, *size))
    assert output.shape == (1, 1, *expected)


def test_a_map_that_is_too_small_is_refused():
    with pytest.raises(InputError, match="size: 31x64 is too small"):
        Discriminator(3)(torch.rand(1, 3, 31, 64))
