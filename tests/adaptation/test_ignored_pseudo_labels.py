"""Step 2 with a target image whose pseudo-label is all ignore: no term becomes NaN, and none invents a label."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from segadapt.adaptation.step import adaptation_step
from segadapt.adaptation.trainer import new_state
from segadapt.config import (
    ClassifierAgreement,
    Experiment,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    PseudoLabelConfig,
)
from segadapt.data.label_spaces import STREETS11
from segadapt.data.loading import Batch

EXPERIMENT = Experiment(
    network=NetworkConfig("efficientnet_lite0", "random", batch_norm="source_target_separate"),
    loss=LossConfig(adversarial=0.1, matching=0.1),
    matching=MatchingConfig(classifier_agreement=ClassifierAgreement(False, False, False)),
)


def noise(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 11, (2, 6, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Batch(images, labels, ("a.png", "b.png"))


@pytest.mark.parametrize("override", ["fill", "literal", "off"])
@pytest.mark.parametrize("ignored", [1, 2])
def test_images_without_any_pseudo_label(override: Literal["fill", "literal", "off"], ignored: int) -> None:
    state = new_state(
        replace(EXPERIMENT, pseudo_labels=PseudoLabelConfig(override=override)), STREETS11, torch.device("cpu")
    )
    target = noise(1)
    target.labels[:ignored] = 255
    report = adaptation_step(state, noise(0), target)
    assert all(bool(value.isfinite()) for value in report.values())
    assert all(bool(value.isfinite().all()) for value in state.segmenter.state_dict().values())
    assert (float(report["loss/target_segmentation"]) == 0) == (ignored == 2)
    # Eq. (11) read literally lets the don't-cares win: no target region is left to match.
    nothing_left = ignored == 2 and override == "literal"
    assert (int(report["matched/stuff"] + report["matched/instances"]) == 0) == nothing_left
