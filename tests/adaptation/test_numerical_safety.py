"""Numbers at their limits: losses and weights stay finite, or the training stops and says which loss and step."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from segadapt.adaptation.rows import row_of
from segadapt.adaptation.step import TrainState, adaptation_step
from segadapt.adaptation.trainer import finite_losses, new_state
from segadapt.cli import main
from segadapt.config import (
    ClassifierAgreement,
    Distance,
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
from streets import ROOT, few

ROAD, CAR = STREETS11.stuff[0], STREETS11.things[0]
WHOLE = Experiment(
    network=NetworkConfig("efficientnet_lite0", "random", batch_norm="source_target_separate"),
    # every loss with a weight at which it would be felt, and every region in the bank
    loss=LossConfig(adversarial=1.0, matching=1.0, target_segmentation=1.0),
    matching=MatchingConfig(classifier_agreement=ClassifierAgreement(source=False, target_stuff=False)),
    optimiser=OptimiserConfig(learning_rate=0.01),
    schedule=ScheduleConfig(steps=10),
)
NO_ADVERSARY = replace(WHOLE, loss=replace(WHOLE.loss, adversarial=0.0))


def state_of(experiment: Experiment) -> TrainState:
    return new_state(experiment, STREETS11, torch.device("cpu"))


def batch(label: int | None, size: tuple[int, int] = (48, 64), images: int = 2, seed: int = 0) -> Batch:
    """Noise, all of one label; of random classes for None."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 11, (images, *size), generator=generator)
    return Batch(pixels, labels if label is None else torch.full_like(labels, label), ("a", "b")[:images])


def blank(label: int, value: int) -> Batch:
    """Images of one colour."""
    noise = batch(label)
    return noise._replace(images=torch.full_like(noise.images, value))


def finite_after(state: TrainState, source: Batch, target: Batch | None, steps: int = 2) -> dict[str, float]:
    """The last report of a few steps, all of whose losses are finite, and so are all weights and banks."""
    report = {}
    for _ in range(steps):
        report = adaptation_step(state, source, target)
        finite_losses(report, state.step)
    for room in (state.segmenter, state.discriminator, state.bank):
        for name, value in room.state_dict().items():
            assert value.isfinite().all(), name
    return {name: float(value) for name, value in report.items()}


@pytest.mark.parametrize("target", [None, 255, ROAD, CAR])
@pytest.mark.parametrize("source", [None, 255, ROAD, CAR])
def test_labels_of_one_kind(source, target):
    report = finite_after(state_of(WHOLE), batch(source), batch(target, seed=1), steps=1)
    assert (report["loss/segmentation"] == 0) == (source == 255)
    assert (report["loss/target_segmentation"] == 0) == (target == 255)


@pytest.mark.parametrize("value", [0, 127, 255])
def test_images_of_one_colour(value):
    finite_after(state_of(WHOLE), blank(ROAD, value), blank(CAR, value))


def test_empty_banks_match_nothing():
    state = state_of(WHOLE)
    report = finite_after(state, batch(255), batch(None, seed=1))
    assert int(state.bank.filled.sum()) == 0
    assert [report[name] for name in ("loss/stuff", "loss/instance", "matched/stuff", "matched/instances")] == [0] * 4


def test_a_bank_without_the_classes_of_the_target():
    state = state_of(WHOLE)
    with torch.no_grad():  # all pixels are predicted as road, so that is what the source stores
        for branch in state.segmenter.classifier.branches:
            branch.bias[ROAD] = 100
    adaptation_step(state, batch(ROAD), batch(255, seed=1))
    assert state.bank.filled.nonzero().ravel().tolist() == [ROAD]
    report = finite_after(state, batch(ROAD), batch(CAR, seed=1), steps=1)
    assert report["matched/stuff"] == report["matched/instances"] == 0


@pytest.mark.parametrize("distance", get_args(Distance))
def test_features_of_zero(distance):
    """The steepest places of norms and the undefined ones of the cosine."""
    experiment = replace(WHOLE, matching=replace(WHOLE.matching, distance=distance))
    state = state_of(experiment)
    with torch.no_grad():
        for parameter in state.segmenter.backbone.parameters():
            parameter.zero_()
    output = state.segmenter(state.segmenter.normalisation(batch(ROAD).images))
    assert (output.features == 0).all()
    finite_after(state, batch(None), batch(None, seed=1))
    assert int(state.bank.filled.sum()) > 0, "features of zero were stored and matched"


@pytest.mark.parametrize("size", [(9, 9), (9, 40), (31, 17)])
def test_images_smaller_than_the_receptive_field(size):
    finite_after(state_of(row_of(WHOLE, "source_only")), batch(None, size, images=1), None)
    finite_after(state_of(NO_ADVERSARY), batch(None, size, images=1), batch(None, size, images=1, seed=1))
    with pytest.raises(InputError, match=r"size: \d+x\d+ is too small for the discriminator; use 32x32 or more"):
        adaptation_step(state_of(WHOLE), batch(None, size, images=1), batch(None, size, images=1, seed=1))


def test_one_image_of_one_feature_has_no_batch_statistics():
    tiny = batch(None, (8, 8), images=1)
    with pytest.raises(InputError, match="size: 8x8 is too small for the batch statistics of a single image"):
        adaptation_step(state_of(row_of(WHOLE, "source_only")), tiny, None)
    frozen = replace(NO_ADVERSARY, network=replace(WHOLE.network, batch_norm="frozen"))
    finite_after(state_of(frozen), tiny, tiny)
    finite_after(state_of(NO_ADVERSARY), batch(None, (8, 8)), batch(None, (8, 8)))


def blow_up_segmenter(state: TrainState) -> None:
    with torch.no_grad():
        state.segmenter.classifier.branches[0].weight.fill_(1e38)


def blow_up_discriminator(state: TrainState) -> None:
    with torch.no_grad():
        state.discriminator.classifier.bias.fill_(-torch.inf)


def blow_up_bank(state: TrainState) -> None:
    for label in (None, ROAD, CAR):
        adaptation_step(state, batch(label), batch(None, seed=1))
    state.bank.features.fill_(3e38)
    state.bank.pushed.fill_(1)


@pytest.mark.parametrize(
    ("blow_up", "loss"),
    [
        (blow_up_segmenter, "loss/segmentation"),
        (blow_up_discriminator, "loss/adversarial"),
        (blow_up_bank, "loss/(stuff|instance)"),
    ],
)
def test_an_overflow_stops_by_name_and_step(blow_up, loss):
    state = state_of(replace(WHOLE, matching=replace(WHOLE.matching, distance="l1_sum")))
    blow_up(state)
    report = adaptation_step(state, batch(None), batch(None, seed=1))
    with pytest.raises(NonFiniteLossError, match=rf"^{loss} became (nan|inf) at step {state.step}; .*Lower"):
        finite_losses(report, state.step)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The smallest training of all losses, as a user starts it."""
    data = few(tmp_path_factory.mktemp("data"), images=2)
    size = [f"--{name}.size=[48,64]" for name in ("source", "target", "test")]
    roots = [f"--source.root={data}/clear", f"--target.root={data}/adverse", f"--test.root={data}/adverse"]
    schedule = ["--schedule.steps=2", "--schedule.log_every=1", "--network.weights=random"]
    return ["train", f"--config={ROOT}/configs/smoke.yaml", *roots, *size, *schedule, "--quiet", "--json"]


def test_a_training_that_breaks_down_leaves_no_model(command, tmp_path, capsys):
    options = ["--optimiser.algorithm=sgd", "--optimiser.learning_rate=1e6", "--optimiser.head_multiplier=1e6"]
    assert main([*command, *options, "--schedule.steps=9", f"--run_dir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"loss/\w+ became (nan|inf) at step [2-9]; ", said), said
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_last_step_that_breaks_the_weights_leaves_no_model(command, tmp_path, capsys):
    """The loss of the only step is finite, what the step does to the weights is not."""
    options = ["--optimiser.algorithm=sgd", "--optimiser.learning_rate=1e6", "--optimiser.weight_decay=1e38"]
    assert main([*command, *options, "--schedule.steps=1", f"--run_dir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "safetensors is not written, because weights are no longer finite" in said
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What --deterministic sets holds for the process, so it is put back."""
    yield
    torch.use_deterministic_algorithms(False)


def losses(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_mib")} for line in lines]


def test_the_same_run_twice_bit_for_bit(command, deterministic, tmp_path, capsys):
    for name in ("one", "two"):
        torch.rand(3)  # whatever came before must not matter
        assert main([*command, "--deterministic", f"--run_dir={tmp_path}/{name}"]) == 0
        assert torch.are_deterministic_algorithms_enabled()
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
