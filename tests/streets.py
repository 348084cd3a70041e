"""The smallest experiments on the bundled pair of street scenes, for tests that train."""

from dataclasses import replace
from pathlib import Path

from segadapt.commands.options import experiment_from
from segadapt.config import Experiment

ROOT = Path(__file__).parent.parent
SIZE = (48, 64)


def tiny(data: Path = ROOT / "data" / "streets", steps: int = 4) -> Experiment:
    """configs/smoke.yaml at postage-stamp size; what evaluates and logs does so every other step or each."""
    experiment = experiment_from(ROOT / "configs/smoke.yaml")
    here = {
        name: replace(getattr(experiment, name), root=str(data / Path(getattr(experiment, name).root).name), size=SIZE)
        for name in ("source", "target", "test")
    }
    schedule = replace(experiment.schedule, steps=steps, log_every=1, evaluate_every=2)
    return replace(experiment, **here, schedule=schedule, selection=replace(experiment.selection, images=4))


def few(folder: Path, images: int = 6) -> Path:
    """A copy of the pair, by links, with the first few images of each part."""
    data = ROOT / "data" / "streets"
    (folder / "label_space.yaml").symlink_to(data / "label_space.yaml")
    for part in ("clear/train", "adverse/train", "adverse/val"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
            for file in sorted((data / part / kind).iterdir())[:images]:
                (folder / part / kind / file.name).symlink_to(file)
    return folder
