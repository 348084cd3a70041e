"""The examples do what they say."""

import importlib.util
import re
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from segadapt.matching import matched, matching_losses, region_means
from streets import ROOT


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sim_in_the_loop_of_a_segformer(capsys: pytest.CaptureFixture[str]) -> None:
    assert len((ROOT / "examples/segformer.py").read_text().splitlines()) < 60
    segformer = example("segformer")
    assert "torchvision" not in sys.modules
    model, bank = segformer.main(steps=12)
    lines = capsys.readouterr().out.splitlines()
    numbers = [list(map(float, re.findall(r"(?<=[ /])[\d.]+|\d+(?=/)", line))) for line in lines]
    assert len(lines) == 12
    assert numbers[-1][0] < numbers[0][0] / 1.5  # it learns the source
    assert torch.isfinite(torch.tensor(numbers)).all()

    features, _, predicted = segformer.forward(model, segformer.scenes(4, 0.2)[0])
    regions = region_means(features, predicted, segformer.SPACE)
    assert matched(regions, bank).sum() > 0
    model.zero_grad()
    loss = sum(matching_losses(regions, bank))
    assert 0 < loss.item() < 100
    loss.backward()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0
