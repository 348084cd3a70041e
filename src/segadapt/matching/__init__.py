"""Stuff-and-instance matching, Eqs. (4)-(8) and Algorithm 1: the heart of the method, for any training loop.

In: feature maps and label maps of a source and a target batch. Out: two scalar losses that pull each target
region's mean feature towards the nearest stored source feature of its class. Knows tensors and a LabelSpace,
nothing else::

    bank = FeatureBank(space, channels=2048)
    right = correct_labels(source_predicted, source_labels)                       # Eq. (4)
    with torch.no_grad():
        bank.store(region_means(source_features, right, space))                   # Eqs. (5), (7), Algorithm 1
    regions = region_means(target_features, target_predicted, space)
    stuff_loss, instance_loss = matching_losses(regions, bank)                    # Eqs. (6), (8)
"""

from segadapt.matching.bank import Distance, FeatureBank
from segadapt.matching.losses import ClassReduction, MinFill, matched, matching_losses
from segadapt.matching.regions import (
    LabelSampling,
    Regions,
    correct_labels,
    on_host,
    region_means,
    shrink_labels,
    to_device,
)

__all__ = [
    "ClassReduction",
    "Distance",
    "FeatureBank",
    "LabelSampling",
    "MinFill",
    "Regions",
    "correct_labels",
    "matched",
    "matching_losses",
    "on_host",
    "region_means",
    "shrink_labels",
    "to_device",
]
