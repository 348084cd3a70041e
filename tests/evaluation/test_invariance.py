"""The scores of a network are those of its images: how they are read and who counts them changes nothing, not a digit.

All equalities here are exact. They can be, because the network sees one image at a time: in a batch of another size the
CPU's convolutions may add up in another order, and a pixel with two equally likely classes would go to the other one.
(So it may with another number of threads, by some pixels in a million: the 60 images of streets/adverse/val at 160x224
scored 2e-7 apart with one and with two. All here have one thread, as torchrun gives them.)
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scores_in_processes import SIZE, scores

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.evaluation.evaluate import Evaluation, predict_logits
from segadapt.networks.weights import build_network
from streets import few

SCRIPT = Path(__file__).parent / "scores_in_processes.py"
pytestmark = pytest.mark.usefixtures("one_thread")
LABEL_SIZES = ((288, 384), (144, 200), (300, 200))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven labelled images of several sizes, all larger than what the network sees."""
    root = few(tmp_path_factory.mktemp("streets"), images=7)
    for kind in ("images", "labels"):
        for number, file in enumerate(sorted((root / "adverse" / "val" / kind).iterdir())):
            height, width = LABEL_SIZES[number % len(LABEL_SIZES)]
            assert min(height, width) > max(SIZE)
            with Image.open(file) as whole:
                resized = whole.resize((width, height), Image.Resampling.NEAREST)
            file.unlink()  # a link
            resized.save(file)
    return root


@pytest.fixture(scope="module")
def alone(root: Path) -> Evaluation:
    found = scores(root, batch_size=1)
    assert found.images == 7
    assert sum(value is not None and value > 0 for value in found.iou.values()) > 3, "scores that could differ"
    return found


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_scores_are_those_at_any_batch_size(root: Path, alone: Evaluation, batch_size: int) -> None:
    assert scores(root, batch_size) == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_are_those_with_any_number_of_workers(root: Path, alone: Evaluation, workers: int) -> None:
    assert scores(root, 2, workers) == alone


def test_scores_are_those_of_any_number_of_processes(root: Path, alone: Evaluation, tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), "3", root, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    said = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    by_three, by_two = (json.loads(line) for line in said[0][0].splitlines())
    assert by_three == by_two == alone.as_json()


def test_logits_of_an_image_are_the_same_bits_in_any_batch() -> None:
    """Without this the labels of a pixel could depend on the image beside it; see `predict_logits`."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 96, 160), dtype=np.uint8))
    network = build_network(NetworkConfig("efficientnet_lite0"), STREETS11, 0).eval()
    with torch.inference_mode():
        together, alone = predict_logits(network, images), predict_logits(network, images[2:3])
    assert torch.equal(together[2:3], alone)
