"""A model for the tiny data set, made once, and a fresh copy of the data set for each test."""

from pathlib import Path

import pytest
from mistakes import SPACE, write_site

from segadapt.config import NetworkConfig
from segadapt.networks.weights import build_network, save_network


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_network(path, build_network(NetworkConfig("efficientnet_lite0", "random"), SPACE, 0))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path)
