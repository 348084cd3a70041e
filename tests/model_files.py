"""A model file for tests that predict: the small backbone with its ImageNet weights and a classifier that was drawn."""

import json
from pathlib import Path

import torch

from segadapt.config import NetworkConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.networks.deeplab import DeepLab
from segadapt.networks.weights import build_network, save_network

SIZE = (48, 64)


def network(seed: int = 0) -> DeepLab:
    """The network, with logits that differ enough for labels of several classes."""
    made = build_network(NetworkConfig("efficientnet_lite0"), STREETS11, seed).eval()
    with torch.no_grad():
        for branch in made.classifier.branches:
            branch.get_parameter("weight").mul_(10)
    return made


def write_model(path: Path, seed: int = 0, size: tuple[int, int] | None = SIZE) -> Path:
    """A model that was tested at `size`."""
    save_network(path, network(seed), {"provenance": '{"seed": 3}', "input_size": json.dumps(size)})
    return path
