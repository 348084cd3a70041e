"""The report's pictures of translated images."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segadapt.adaptation.run_folder import plain
from segadapt.config import DataConfig, Experiment, TranslationConfig
from segadapt.data.readers import find_pairs
from segadapt.output.report.translations import translations, way_of
from segadapt.studies.runs import Row, Run
from streets import few, tiny


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "data").mkdir()
    return tiny(few(tmp_path / "data", images=3))


def row(experiment: Experiment, folder: Path) -> Row:
    return Row("translation", "+ IT", (Run(folder, plain(asdict(experiment)), (), None),))


def write_translations(source: DataConfig, folder: Path) -> None:
    images = find_pairs(source, labelled=False)
    for index in range(len(images)):
        path = folder / images.image_name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(path)


def captions(html: str) -> list[str]:
    return [part.split("</p>")[0] for part in html.split("<p>")[1:]]


def test_every_way_stands_beside_the_source(experiment: Experiment, tmp_path: Path) -> None:
    lab = row(replace(experiment, translation=TranslationConfig("lab")), tmp_path / "lab/seed0")
    gan = replace(experiment, source=replace(experiment.source, translated=str(tmp_path / "gan_images")))
    write_translations(experiment.source, tmp_path / "gan_images")
    section = translations([lab, row(gan, tmp_path / "gan/seed0"), row(experiment, tmp_path / "plain/seed0")], 2)
    assert section is not None
    assert captions(section.content) == 2 * ["source", "lab", "gan_images", "target"]
    assert section.content.count("<figure") == 2
    assert way_of(lab.runs[0].config) == "lab"
    assert way_of(row(experiment, tmp_path).runs[0].config) == ""


@pytest.mark.parametrize("place", ["table/generator/seed0/images", "table/sim/seed0/translation/images"])
def test_the_images_of_a_generator_are_found(experiment: Experiment, tmp_path: Path, place: str) -> None:
    trained = row(replace(experiment, translation=TranslationConfig("cyclegan")), tmp_path / "table/sim/seed0")
    section = translations([trained], 1)
    assert section is not None
    assert captions(section.content) == ["source", "target"], "the generator's folder is gone"
    write_translations(experiment.source, tmp_path / place)
    section = translations([trained], 1)
    assert section is not None
    assert captions(section.content) == ["source", "cyclegan", "target"]


def test_nothing_where_nothing_is_translated_or_the_images_are_gone(experiment: Experiment, tmp_path: Path) -> None:
    assert translations([row(experiment, tmp_path)], 2) is None
    gone = replace(experiment.source, root=str(tmp_path / "nowhere"))
    lost = replace(experiment, translation=TranslationConfig("lab"), source=gone)
    assert translations([row(lost, tmp_path)], 2) is None
