"""The two matching losses, Eqs. (6) and (8).

In: the `Regions` of a target batch and the bank of source features. Out: two scalars, differentiable in the
regions' features. What is skipped contributes exactly 0 to the value and to the gradient, never NaN.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segadapt.matching.bank import Distance, FeatureBank
from segadapt.matching.regions import Regions, to_device

MinFill = int | Literal["full"]
ClassReduction = Literal["sum", "mean"]


def matched(regions: Regions, bank: FeatureBank, min_fill: MinFill = 1) -> Bool[Tensor, " R"]:
    """Which regions can be matched, on the host: those whose class holds at least `min_fill` entries.

    Paper: a class is always matched. The authors' program waits until its ring is full ('full'), and then for
    one more entry, which is not copied here.

    Raises:
        ValueError: `min_fill` below 1.
    """
    if min_fill == "full":
        needed = bank.ring_size
    elif min_fill >= 1:
        needed = min_fill
    else:
        raise ValueError(f"min_fill must be 'full' or at least 1, not {min_fill}: nothing can match an empty ring")
    return (bank.filled >= needed)[regions.class_index]


def matching_losses(
    regions: Regions,
    bank: FeatureBank,
    distance: Distance = "l1_mean",
    min_fill: MinFill = 1,
    class_reduction: ClassReduction = "sum",
    among: Bool[Tensor, " R"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_stf of Eq. (6) and L_ins of Eq. (8).

    Stuff: the sum over images and stuff classes of the distance to the nearest entry. Instances: for each
    image and thing class the mean over its regions, summed over images and classes.

    Paper: Eq. (8) divides by the number of all regions while Section 6.2 uses the ten largest; here the mean
    is over the regions used, those in `regions`.

    Args:
        regions: Of the target batch.
        bank: Of source features.
        distance: See `FeatureBank.nearest`.
        min_fill: Entries that a class must hold before it is matched; 'full': its whole ring.
        class_reduction: 'mean' averages the terms of an image's matched classes (stuff and things apart)
            instead of summing them; images are summed in both.
        among: The regions that are there at all, as if `regions.select(among)` were given; on the features' device,
            which then need not be waited for. None: all.

    Returns:
        The stuff loss and the instance loss, each 0 where nothing is matched.

    Raises:
        ValueError: An option out of range.
    """
    if class_reduction not in get_args(ClassReduction):
        raise ValueError(f"class_reduction must be one of {get_args(ClassReduction)}, not {class_reduction!r}")
    device = regions.features.device
    facts = [regions.class_index, regions.image_index, regions.is_thing, matched(regions, bank, min_fill)]
    # compared there: what takes each region beside each other one is more than the host should do at every step
    class_index, image_index, is_thing, can_match = to_device(torch.stack([each.long() for each in facts]), device)
    is_thing, there = is_thing.bool(), torch.ones_like(is_thing, dtype=torch.bool) if among is None else among
    use = there & can_match.bool()
    distances = bank.nearest(regions.features, regions.class_index, distance).masked_fill(~use, 0.0)

    same_image = image_index[:, None] == image_index
    same_class = same_image & (class_index[:, None] == class_index) & there
    # One rule for both kinds: a stuff class has one region in an image, and the mean of one is itself.
    weights = 1 / same_class.sum(1).clamp(min=1).to(distances.dtype)
    if class_reduction == "mean":
        same_kind = same_image & (is_thing[:, None] == is_thing) & use
        weights = weights / (same_kind * weights).sum(1).clamp(min=1)  # the sum counts classes
    terms = weights * distances
    stuff_loss = terms.masked_fill(is_thing, 0.0).sum()
    instance_loss = terms.masked_fill(~is_thing, 0.0).sum()
    return stuff_loss, instance_loss
