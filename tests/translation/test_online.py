"""Style transfer while training: labels untouched, samples a function of seed and position, off unless asked for."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from segadapt.adaptation.rows import row_of
from segadapt.commands.options import experiment_from
from segadapt.config import AugmentationConfig, DataConfig, Experiment, TranslationConfig
from segadapt.data.loading import Batch, training_batches
from segadapt.data.readers import find_pairs
from segadapt.errors import InputError
from segadapt.studies.jobs import threads_of
from segadapt.translation import StyleTransfer
from segadapt.translation.online import translate
from streets import ROOT, few

ALL = AugmentationConfig(flip=0.5, scale=(0.8, 1.2), crop=(32, 40), colour_jitter=0.2)
METHODS = ["lab", "histogram", "fourier"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few(tmp_path_factory.mktemp("pair"), 4)


def batches(
    pair: Path, config: TranslationConfig, number: int = 3, start: int = 0, workers: int = 0, rank: int = 0,
    processes: int = 1, batch_size: int = 2,
) -> list[Batch]:  # fmt: skip
    data = DataConfig(root=str(pair / "clear"), split="train", size=(48, 64))
    target = find_pairs(DataConfig(root=str(pair / "adverse"), split="train"), labelled=False)
    source = find_pairs(data, labelled=True)
    style = None if config.method == "off" else StyleTransfer(config, target.images)
    stream = training_batches(
        source, source.space, data, ALL, batch_size, 3, 0, workers, start, translate=style, rank=rank,
        processes=processes,
    )  # fmt: skip
    return list(islice(stream, number))


@pytest.mark.parametrize("method", METHODS)
def test_labels_stay_and_images_change(pair: Path, method: str) -> None:
    for plain, styled in zip(batches(pair, TranslationConfig()), batches(pair, TranslationConfig(method)), strict=True):
        assert plain.names == styled.names
        assert torch.equal(plain.labels, styled.labels)
        assert (plain.images.float() - styled.images.float()).abs().mean() > 1


@pytest.mark.parametrize("method", METHODS)
def test_workers_starts_and_processes_see_the_same_samples(pair: Path, method: str) -> None:
    config = TranslationConfig(method)
    with threads_of(2):  # workers have one
        whole = batches(pair, config, 4)
    for same, expected in (
        (batches(pair, config, 4, workers=1), whole),
        (batches(pair, config, 2, start=4), whole[2:]),
        (batches(pair, config, 2, rank=1, processes=2), whole[1::2]),
    ):
        for one, other in zip(same, expected, strict=True):
            assert torch.equal(one.images, other.images)


def test_each_image_has_a_reference_of_its_own_and_another_one_later() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    target = find_pairs(DataConfig(root=str(ROOT / "data/streets/adverse"), split="train"), labelled=False)
    style = StyleTransfer(TranslationConfig("lab"), target.images)
    colours = {tuple(style(image, np.random.default_rng([0, 0, 2, position]))[0, 0]) for position in range(6)}
    assert len(colours) > 3


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 8, 24), (1.0, 32, 32)])
def test_a_share_of_the_images_is_translated(share: float, least: int, most: int, pair: Path) -> None:
    target = find_pairs(DataConfig(root=str(pair / "adverse"), split="train"), labelled=False)
    style = StyleTransfer(TranslationConfig("lab", share=share), target.images)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    changed = [not np.array_equal(style(image, np.random.default_rng(position)), image) for position in range(32)]
    assert least <= sum(changed) <= most


def test_off_is_the_default_and_returns_the_image() -> None:
    assert Experiment().translation == TranslationConfig() == TranslationConfig("off")
    assert experiment_from(ROOT / "configs/smoke.yaml").translation.method == "off"
    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(translate(images, images + 1, TranslationConfig()), images)


@pytest.mark.parametrize(
    ("row", "translated"),
    [
        ("source_only", False),
        ("target_only", False),
        ("adabn", False),
        ("adversarial", False),
        ("translation", True),
        ("sim", True),
    ],
)
def test_rows_above_translation_read_the_originals(row: str, translated: bool) -> None:
    online = replace(Experiment(), translation=TranslationConfig("lab"))
    assert (row_of(online, row).translation.method == "lab") is translated
    folder = replace(Experiment(), source=DataConfig(root="a", translated="b"))
    assert bool(row_of(folder, row).source.translated) is translated


def test_nothing_is_translated_twice_and_nothing_is_said_in_vain() -> None:
    with pytest.raises(InputError, match=r"translation\.method: lab .* source\.translated \(b\)"):
        Experiment(source=DataConfig(root="a", translated="b"), translation=TranslationConfig("lab"))
    with pytest.raises(InputError, match=r"translation\.share: 0\.5"):
        TranslationConfig("cyclegan", share=0.5)


@pytest.mark.parametrize(("option", "value"), [("beta", 0.6), ("beta", -0.1), ("share", 1.1)])
def test_options_out_of_range(option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"translation\.{option}: {value}"):
        TranslationConfig(**{option: value})
