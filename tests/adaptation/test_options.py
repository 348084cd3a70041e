"""Both sides of the options that decide between steps, and of the optimiser; those of one step are in test_step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segadapt.adaptation.apply_model import pseudo_label
from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import adapt
from segadapt.adaptation.rows import step2_of
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.trainer import segmenter_optimiser
from segadapt.config import Experiment, NetworkConfig, OptimiserConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.networks.weights import build_network, save_network
from streets import few, tiny

CPU = torch.device("cpu")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    data = tmp_path / "data"
    data.mkdir()
    return tiny(few(data), steps=2)


def first_loss(run_dir: Path) -> float:
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])["loss/segmentation"]


def test_lambda_ci_of_step_2_is_a_weight_of_its_own(experiment: Experiment) -> None:
    loss = replace(experiment.loss, matching=0.01, matching_step2=0.001)
    assert step2_of(replace(experiment, loss=loss)).loss.matching == 0.001


def test_step_2_starts_from_the_initial_weights_or_from_step_1(experiment: Experiment, tmp_path: Path) -> None:
    # a rate at which one step leaves the initial weights far behind
    experiment = replace(experiment, optimiser=replace(experiment.optimiser, learning_rate=0.01, warmup_steps=0))
    losses, starts = {}, {}
    for init_from in ("initial", "step1"):
        run_dir = tmp_path / init_from
        options = replace(experiment.pseudo_labels, init_from=init_from)
        result = adapt(replace(experiment, pseudo_labels=options), run_dir, Machine(CPU, Terminal()))
        losses[init_from], starts[init_from] = first_loss(run_dir), result["initial_weights"]
    # the same seed draws the same images: from the same weights the first loss on the source is the same
    assert losses["initial"] == pytest.approx(first_loss(tmp_path / "initial" / "step1"), rel=1e-5)
    assert losses["step1"] != pytest.approx(losses["initial"], rel=0.02)
    assert starts["initial"] == "efficientnet_lite0: imagenet"
    assert starts["step1"].endswith("step1/model.safetensors")


@pytest.mark.parametrize("model", ["last", "selected", "best"])
def test_the_model_that_labels(model: str, experiment: Experiment, tmp_path: Path) -> None:
    options = replace(experiment.pseudo_labels, model=model)
    experiment, run_dir = replace(experiment, pseudo_labels=options), tmp_path / "run"
    with pytest.raises(InterruptedError):
        adapt(experiment, run_dir, Machine(CPU, InterruptedAtLabels()))
    # whichever labels, the others are another network
    files = {"last": "model.safetensors", "selected": "selected.safetensors", "best": "best.safetensors"}
    used = run_dir / "step1" / files.pop(model)
    other = build_network(replace(experiment.network, weights="random"), STREETS11, seed=5)
    unused = [run_dir / "step1" / name for name in files.values()]
    for path in unused:
        save_network(path, other)
    result = adapt(experiment, run_dir, Machine(CPU, Terminal()))
    assert result["pseudo_labels_by"] == model
    for name, file in (("used", used), ("unused", unused[0])):
        pseudo_label(file, experiment.target, options, 0, tmp_path / name, Machine(CPU, Terminal()))
    thresholds = (run_dir / "pseudo_labels" / "thresholds.json").read_text()
    assert thresholds == (tmp_path / "used" / "thresholds.json").read_text()
    assert thresholds != (tmp_path / "unused" / "thresholds.json").read_text()


class InterruptedAtLabels(Terminal):
    """A user who stops the program when the labelling begins."""

    def start_progress(self, title: str, total: int, done: int = 0) -> None:
        if title == "pseudo-labels":
            raise InterruptedError
        super().start_progress(title, total, done)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_and_without_nesterov(nesterov: bool) -> None:
    network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0)
    bias = network.classifier.branches[0].get_parameter("bias")
    options = OptimiserConfig(learning_rate=0.1, head_multiplier=1.0, weight_decay=0.0, nesterov=nesterov)
    optimiser = segmenter_optimiser(network, options)
    for _ in range(2):
        bias.grad = torch.ones_like(bias)
        optimiser.step()
    # velocities 1 and 1.9; Nesterov steps by gradient + 0.9 * velocity
    moved = 1 + 0.9 * 1 + 1 + 0.9 * 1.9 if nesterov else 1 + 1.9
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, -0.1 * moved))


def test_adamw_moves_by_its_rate_whatever_the_scale_of_the_gradient() -> None:
    network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0)
    bias = network.classifier.branches[0].get_parameter("bias")
    options = OptimiserConfig("adamw", learning_rate=0.1, head_multiplier=2.0, weight_decay=0.0)
    optimiser = segmenter_optimiser(network, options)
    bias.grad = torch.full_like(bias, 1e-3)
    optimiser.step()
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, -0.2), rtol=1e-3, atol=0)
