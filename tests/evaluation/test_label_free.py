"""The scores that need no target labels, against values that are known by other means."""

import math

import pytest
import torch

from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.evaluation.evaluate import evaluate, predict_logits
from segadapt.evaluation.label_free import (
    HIGHER_IS_BETTER,
    better,
    entropy,
    label_free_scores,
    neighbourhood_density,
    selected_steps,
)
from segadapt.networks.weights import build_network
from streets import few, tiny


def test_entropy_in_nats() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert entropy(rows).tolist() == pytest.approx([math.log(4), 0.0, math.log(2)])


@pytest.mark.parametrize("members", [2, 5, 50])
def test_the_density_of_equal_clusters_is_that_of_their_size(members: int) -> None:
    # three classes predicted with certainty: a pixel's neighbours are the others of its class, exp(20) times the rest
    predictions = torch.eye(3).repeat_interleave(members, 0)
    assert float(neighbourhood_density(predictions)) == pytest.approx(math.log(members - 1), abs=1e-4)


def test_the_density_of_a_uniform_image_is_the_largest() -> None:
    uniform = torch.full((30, 3), 1 / 3)
    assert float(neighbourhood_density(uniform)) == pytest.approx(math.log(29), abs=1e-5)


def test_the_density_written_out_for_three_pixels() -> None:
    predictions = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    rows = [[float(v) for v in row] for row in predictions]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    expected = 0.0
    for i, row in enumerate(rows):
        weights = [math.exp(cosine(row, other) / 0.05) for j, other in enumerate(rows) if j != i]
        shares = [weight / sum(weights) for weight in weights]
        expected -= sum(share * math.log(share) for share in shares) / len(rows)
    assert float(neighbourhood_density(predictions)) == pytest.approx(expected, abs=1e-5)


def test_a_single_pixel_has_no_neighbours() -> None:
    assert float(neighbourhood_density(torch.tensor([[0.5, 0.5]]))) == 0


def test_large_images_are_looked_at_in_part() -> None:
    predictions = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert 0 < float(neighbourhood_density(predictions)) <= math.log(511)


@pytest.mark.parametrize("score", HIGHER_IS_BETTER)
def test_which_value_is_better(score: str) -> None:
    assert better(score, 2.0, 1.0) == (score != "entropy")
    assert better(score, 1.0, 2.0) == (score == "entropy")
    assert not better(score, 1.0, 1.0)


def test_the_first_of_equal_checkpoints_is_selected() -> None:
    checks = [(10, {"entropy": 0.5, "source_validation": 1.0}), (20, {"entropy": 0.4, "source_validation": 3.0}),
              (30, {"entropy": 0.4, "source_validation": 2.0})]  # fmt: skip
    assert selected_steps(checks) == {"entropy": 20, "source_validation": 20}
    assert selected_steps([(10, {})]) == {}


def test_all_scores_of_a_network(tmp_path) -> None:
    experiment = tiny(few(tmp_path, images=3))
    target, source = find_pairs(experiment.target, False), find_pairs(experiment.source, True)
    network = build_network(experiment.network, source.space, seed=0)

    def read(images, data):
        return evaluation_batches(images, source.space, data, 2, workers=0)

    found = label_free_scores(network, read(target, experiment.target), read(source, experiment.source))
    assert network.training, "as it was before"

    network.eval()
    with torch.inference_mode():
        logits = torch.cat([predict_logits(network, batch.images) for batch in read(target, experiment.target)])
    probabilities = logits.double().softmax(1).movedim(1, -1)  # (3, h, w, N)
    entropies = -(probabilities * probabilities.log()).sum(-1)
    of_mean = probabilities.mean((0, 1, 2))
    assert found["entropy"] == pytest.approx(float(entropies.mean()), abs=1e-5)
    assert found["information_maximisation"] == pytest.approx(
        float(-(of_mean * of_mean.log()).sum() - entropies.mean()), abs=1e-5
    )
    densities = [float(neighbourhood_density(image.flatten(0, 1).float())) for image in probabilities]
    assert found["soft_neighbourhood_density"] == pytest.approx(sum(densities) / 3, abs=1e-4)
    assert found["source_validation"] == evaluate(network, read(source, experiment.source)).miou
