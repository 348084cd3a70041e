"""From a feature map and a label map to one mean feature per region: Eqs. (4), (5) and (7).

In: features (B, C, h, w) and labels at the features' size. Out: `Regions`, a flat list in which each stuff
class of an image is one region and each connected region of a thing class is one. Regions are found on the
host (integers only), and what they are is kept there; their means are one matrix product on the features' own
device, so gradients reach the features and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cc3d
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from segadapt.data.label_spaces import LabelSpace

LabelSampling = Literal["aligned", "nearest"]


@dataclass(frozen=True, eq=False)
class Regions:
    """Mean features of the regions of a batch, A^b(L, f) of Eq. (5) and I(r, f) of Eq. (7).

    Ordered by image; within an image the stuff classes ascending, then the thing classes ascending, the
    instances of a class by area descending (equal areas: the one whose first pixel comes first in raster
    order). R may be 0.

    All but the features lie on the host, whatever the features' device: who stores, groups or counts regions then
    never waits for a GPU.

    Args:
        features: Mean feature of each region.
        class_index: Train id of each region's class, int64.
        image_index: Position of its image in the batch, int64.
        area: Its size in feature pixels, int64.
        is_thing: Whether its class is a thing, so that the region is one instance.
    """

    features: Float[Tensor, "R C"]
    class_index: Int[Tensor, " R"]
    image_index: Int[Tensor, " R"]
    area: Int[Tensor, " R"]
    is_thing: Bool[Tensor, " R"]

    def __len__(self) -> int:
        return self.features.shape[0]

    def select(self, chosen: Bool[Tensor, " R"] | Int[Tensor, " n"]) -> "Regions":
        """The regions that a mask keeps, or that indices name in their order; gradients pass."""
        chosen = chosen.cpu()
        index = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        return Regions(
            features=self.features.index_select(0, to_device(index, self.features.device)),
            class_index=self.class_index.index_select(0, index),
            image_index=self.image_index.index_select(0, index),
            area=self.area.index_select(0, index),
            is_thing=self.is_thing.index_select(0, index),
        )


def correct_labels(
    predicted: Integer[Tensor, "B h w"], labels: Integer[Tensor, "B h w"], ignore: int = 255
) -> Integer[Tensor, "B h w"]:
    """The correctly classified label map L_C of Eq. (4): labels where the prediction is right, else `ignore`.

    Raises:
        ValueError: The two maps differ in size.
    """
    if predicted.shape != labels.shape:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} must have one size; "
            "shrink_labels brings labels to the size of the features"
        )
    return torch.where(predicted == labels, labels, ignore)


def shrink_labels(
    labels: Integer[Tensor, "B H W"], size: tuple[int, int], sampling: LabelSampling = "aligned"
) -> Integer[Tensor, "B h w"]:
    """Labels at the size (height, width) of a feature map, by picking pixels; ids are never mixed.

    'aligned' takes pixel i * (H - 1) / (h - 1), rounded with halves up: the pixel over which feature i lies
    when logits are resized with align_corners, as they are everywhere here. 'nearest' takes floor(i * H / h),
    torch's legacy mode.

    Paper: silent. The authors shrink with torch's nearest, which drifts up to 7 pixels from the features' own
    grid towards the far edges; 'aligned' does not.

    Raises:
        ValueError: An unknown sampling, or a size without pixels.
    """
    if sampling not in get_args(LabelSampling):
        raise ValueError(f"sampling must be one of {get_args(LabelSampling)}, not {sampling!r}")
    if min(size) < 1:
        raise ValueError(f"size must be at least (1, 1), not {size}")
    pick = _aligned_pixels if sampling == "aligned" else _nearest_pixels
    rows, columns = (pick(full, small, labels.device) for full, small in zip(labels.shape[1:], size, strict=True))
    return labels[:, rows[:, None], columns]


def _aligned_pixels(full: int, small: int, device: torch.device) -> Int[Tensor, " small"]:
    """Integer arithmetic, so that a half is a half: floor(i * (full - 1) / (small - 1) + 1/2)."""
    steps = max(small - 1, 1)  # a single feature lies over pixel 0, as in torch
    return (2 * torch.arange(small, device=device) * (full - 1) + steps) // (2 * steps)


def _nearest_pixels(full: int, small: int, device: torch.device) -> Int[Tensor, " small"]:
    """In float32 like torch's own table: exact arithmetic would differ where i * full / small is whole."""
    scale = float(np.float32(full) / np.float32(small))
    return (torch.arange(small, dtype=torch.float32, device=device) * scale).floor().long().clamp(max=full - 1)


def region_means(
    features: Float[Tensor, "B C h w"],
    labels: Integer[Tensor, "B h w"],
    space: LabelSpace,
    max_instances: int = 10,
    connectivity: Literal[4, 8] = 8,
    min_area: int = 1,
) -> Regions:
    """Mean feature of every stuff class, Eq. (5), and of the largest instances of every thing class, Eq. (7).

    Computed in float32 whatever autocast says (float64 features stay float64) and differentiable in
    `features`, contiguous or channels_last. The labels cross to the host once (`on_host` lets them do so while the
    device goes on). Under `torch.set_float32_matmul_precision("high")` the product is as exact as TF32.

    Args:
        features: Feature map f.
        labels: Label map L at the features' size: L_C of Eq. (4) for the source, the prediction for the
            target. `space.ignore` and every value outside the space belong to no region.
        space: Says which classes are stuff and which are things.
        max_instances: z of Algorithm 1: instances of a class taken from an image, the largest first.
        connectivity: 8, or 4: which neighbours connect pixels to an instance. Paper: "disconnected regions",
            without a number; the authors use 8.
        min_area: Smallest instance, in feature pixels. Stuff has no minimum.

    Raises:
        ValueError: Shapes that do not fit, or an option out of range.
    """
    if features.ndim != 4 or labels.shape != (features.shape[0], *features.shape[2:]):
        raise ValueError(
            f"features {tuple(features.shape)} need labels (B, h, w) of their size, "
            f"not {tuple(labels.shape)}; "
            "shrink_labels brings labels to the size of the features"
        )
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, not {connectivity}")
    if max_instances < 1 or min_area < 1:
        raise ValueError(f"max_instances ({max_instances}) and min_area ({min_area}) must be at least 1")

    row_map, table = _find_regions(labels.cpu().numpy(), space, max_instances, connectivity, min_area)
    class_index, image_index, area, is_thing, row = torch.from_numpy(table)
    largest = int(table[4].max(initial=-1)) + 1  # regions of the image that has most

    device = features.device
    with torch.autocast(device.type, enabled=False):
        sums = _RegionSums.apply(features.flatten(2), to_device(torch.from_numpy(row_map), device), largest)
        index, areas = to_device(torch.stack([image_index * largest + row, area]), device)
        means = sums.flatten(0, 1).index_select(0, index) / areas[:, None].to(sums.dtype)
    return Regions(means, class_index, image_index, area, is_thing.bool())


class _RegionSums(torch.autograd.Function):
    """Sums (B, n, C) of the pixels (B, C, P) of each region, of which `rows` (B, P) has the number, -1 for none.

    A matrix product with zeros and ones, whose gradient is no product but a copy: each pixel has that of its region, in
    the memory layout of the pixels. At 2048x65x129, 30 regions, 1 thread of an EPYC: 8 ms against 38 as a product.
    Sums are float32 or float64; a GPU adds pixels of half precision so without a copy of them in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, pixels: Float[Tensor, "B C P"], rows: Int[Tensor, "B P"], regions: int
    ) -> Float[Tensor, "B n C"]:
        ctx.save_for_backward(rows)
        ctx.channels_last, ctx.dtype = pixels.stride(1) == 1 and pixels.shape[1] > 1, pixels.dtype
        dtype = torch.promote_types(pixels.dtype, torch.float32)
        is_member = rows[:, None] == torch.arange(regions, device=rows.device)[:, None]
        if pixels.is_cuda and pixels.dtype != dtype:
            return torch.bmm(is_member.to(pixels.dtype), pixels.transpose(1, 2), out_dtype=dtype)
        return torch.bmm(is_member.to(dtype), pixels.to(dtype).transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, "B n C"]) -> tuple[Float[Tensor, "B C P"], None, None]:
        (rows,), gradient = ctx.saved_tensors, grad_outputs[0].to(ctx.dtype)
        batch, regions, channels = gradient.shape
        of_regions = torch.cat([gradient, gradient.new_zeros(batch, 1, channels)], 1)  # the last: no region
        index = rows.long().where(rows >= 0, regions)
        if ctx.channels_last:
            of_pixels = gradient.new_empty(batch, rows.shape[1], channels)
            for image, numbers in enumerate(index):
                torch.index_select(of_regions[image], 0, numbers, out=of_pixels[image])
            return of_pixels.transpose(1, 2), None, None
        of_pixels = gradient.new_empty(batch, channels, rows.shape[1])
        for image, numbers in enumerate(index):
            torch.index_select(of_regions[image].T.contiguous(), 1, numbers, out=of_pixels[image])
        return of_pixels, None, None


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for what the device does."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def on_host(values: Tensor) -> Callable[[], Tensor]:
    """Begin to bring a tensor to the host.

    Returns:
        Gives it, and waits for it if need be, but not for what the device has been given to do since.
    """
    if values.device.type != "cuda":
        return lambda: values
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def arrived_copy() -> Tensor:
        arrived.synchronize()
        return copy

    return arrived_copy


def _find_regions(
    labels: np.ndarray, space: LabelSpace, max_instances: int, connectivity: Literal[4, 8], min_area: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel its region, and for each region what it is.

    Returns:
        An int32 array (B, h * w): number of the pixel's region within its image, -1 for none; and an int64
        array (5, R) of class, image, area, is-thing and number within the image, a column for each region in
        the order of `Regions`.
    """
    batch, height, width = labels.shape
    classes = space.num_classes
    labels = labels.astype(np.int64)
    labels[(labels < 0) | (labels >= classes) | (labels == space.ignore)] = classes
    is_stuff = np.zeros(classes + 1, dtype=bool)
    is_stuff[list(space.stuff)] = True
    thing_number = np.zeros(classes + 1, dtype=np.uint16)
    thing_number[list(space.things)] = np.asarray(space.things) + 1  # 0 is background to cc3d

    # Each pixel's region in the batch: 0 for none, then one id per image and class, then the instances.
    first_instance = 1 + batch * classes
    image_start = (1 + classes * np.arange(batch))[:, None, None]
    ids = np.where(is_stuff[labels], image_start + labels, 0)
    found = 0
    for image, things in enumerate(thing_number[labels]):
        instances, count = cc3d.connected_components(things, connectivity=connectivity, return_N=True)
        ids[image] += np.where(instances > 0, instances.astype(np.int64) + (first_instance + found - 1), 0)
        found += count

    ids = ids.reshape(-1)
    areas = np.bincount(ids, minlength=1)
    first_pixels = np.zeros(len(areas), dtype=np.int64)
    # Backwards: of several assignments to one id the last one stays, which is that of its first pixel.
    first_pixels[ids[::-1]] = np.arange(len(ids))[::-1]

    region = np.flatnonzero(areas)
    region = region[(region > 0) & ((region < first_instance) | (areas[region] >= min_area))]
    first_pixel, area, is_thing = first_pixels[region], areas[region], region >= first_instance
    class_index, image_index = labels.reshape(-1)[first_pixel], first_pixel // (height * width)

    group = (image_index * 2 + is_thing) * classes + class_index
    order = np.lexsort((first_pixel, -area, group))
    group = group[order]
    order = order[np.arange(len(group)) - np.searchsorted(group, group) < max_instances]
    region, class_index, image_index = region[order], class_index[order], image_index[order]

    number = np.arange(len(order)) - np.searchsorted(image_index, image_index)
    number_of_id = np.full(len(areas), -1, dtype=np.int32)
    number_of_id[region] = number
    table = np.stack([class_index, image_index, area[order], is_thing[order], number]).astype(np.int64)
    return number_of_id[ids].reshape(batch, height * width), table
