"""The memory S of source features, Eq. (5) and Algorithm 1, and the search in it, min_j of Eqs. (6) and (8).

In: source `Regions`, stored without gradient, one ring for each class. Out: for target features the distance
to the nearest stored feature of their class, differentiable in the target features alone. The rings'
positions are part of the state dict, so a resumed run overwrites the same slots as one that never stopped.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segadapt.data.label_spaces import LabelSpace
from segadapt.matching.regions import Regions, to_device

Distance = Literal["l1_mean", "l1_sum", "l1_squared", "l2", "cosine"]


class FeatureBank(nn.Module):
    """A ring of source features for each class.

    State, all in persistent buffers: `features` (slots, C) float32 holds the rings one after the other, and
    `pushed` (num_classes,) int64 counts all entries ever stored for a class, so that the next one goes to
    slot pushed mod size. The counts stay on the host wherever the features are: nobody waits for a GPU to know them.

    Paper: Eq. (5) stores stuff in slot i mod w, i the number of the image, which leaves holes for classes
    that are not in every image; here, as in the authors' program, each class counts its own entries.

    Args:
        space: Says which classes are stuff and which are things.
        channels: C of the features.
        stuff_size: w, entries kept for each stuff class.
        thing_size: z * w, entries kept for each thing class.

    Raises:
        ValueError: A size below 1.
    """

    features: Float[Tensor, "slots C"]
    pushed: Int[Tensor, " num_classes"]
    ring_size: Int[Tensor, " num_classes"]
    ring_start: Int[Tensor, " num_classes"]

    def __init__(self, space: LabelSpace, channels: int, stuff_size: int = 50, thing_size: int = 500) -> None:
        super().__init__()
        if min(channels, stuff_size, thing_size) < 1:
            sizes = f"channels {channels}, stuff_size {stuff_size}, thing_size {thing_size}"
            raise ValueError(f"{sizes}: each must be at least 1")
        ring_size = torch.zeros(space.num_classes, dtype=torch.int64)
        ring_size[list(space.stuff)] = stuff_size
        ring_size[list(space.things)] = thing_size
        ring_start = ring_size.cumsum(0) - ring_size
        self._host_ring_start: list[int] = ring_start.tolist()
        self._smallest_ring = int(ring_size.min())
        self.register_buffer("features", torch.zeros(int(ring_size.sum()), channels))
        self.register_buffer("pushed", torch.zeros(space.num_classes, dtype=torch.int64))
        self.register_buffer("ring_size", ring_size, persistent=False)
        self.register_buffer("ring_start", ring_start, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureBank":
        """What moves a module (`to`, `cuda`) or casts it, applied to the features alone."""
        self.features = fn(self.features)
        return self

    @property
    def filled(self) -> Int[Tensor, " num_classes"]:
        """Entries that each class holds, from 0 to the size of its ring."""
        return torch.minimum(self.pushed, self.ring_size)

    def entries(self, class_index: int) -> Float[Tensor, "n C"]:
        """A view of the entries that a class holds, in the order of their slots, not of their age."""
        start = self._host_ring_start[class_index]
        return self.features[start : start + int(self.filled[class_index])]

    @torch.no_grad()
    def store(self, regions: Regions) -> None:
        """Write the regions into the rings of their classes, in their order: Eq. (5), Algorithm 1.

        Gradients are not kept. The same as writing them one by one: where a push wraps around the ring's end
        nothing is lost, and of a push with more entries of a class than its ring holds the last ones stay.
        """
        class_index = regions.class_index
        nth, count = self._rank(class_index)
        size = self.ring_size[class_index]
        slot = self.ring_start[class_index] + (self.pushed[class_index] + nth) % size
        features = regions.features.to(self.features.dtype)
        if len(regions) > self._smallest_ring:  # only then can entries of one push meet in a slot
            survives = (nth >= count[class_index] - size).nonzero().flatten()
            slot, features = slot[survives], features.index_select(0, to_device(survives, features.device))
        self.features.index_copy_(0, to_device(slot, self.features.device), features)
        self.pushed += count

    def nearest(
        self,
        features: Float[Tensor, "R C"],
        class_index: Int[Tensor, " R"],
        distance: Distance = "l1_mean",
    ) -> Float[Tensor, " R"]:
        """Distance of each feature to the nearest entry of its class, min_j in Eqs. (6) and (8).

        Infinite where the class has no entry; unfilled slots are no candidates. Gradients flow to `features`
        alone (zero where the distance is infinite). Computed in the bank's float32 whatever autocast says.

        Paper: the printed distance is the squared L1 norm ('l1_squared'). The default is the mean absolute
        difference of the authors' program; at 2048 channels the printed one is some 4e5 times larger, and
        Table 3's weights only make sense with the mean.

        Args:
            features: Mean features of regions.
            class_index: Their classes.
            distance: With d the difference: 'l1_mean' mean |d|, 'l1_sum' sum |d|, 'l1_squared' (sum |d|)^2,
                'l2' its Euclidean norm; 'cosine' 1 - cos of the angle.

        Raises:
            ValueError: An unknown distance.
        """
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {get_args(Distance)}, not {distance!r}")
        class_index = class_index.cpu()
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.features.dtype)
            chosen = self.features.index_select(0, self._nearest_slots(features, class_index, distance))
            distances = _distances(features, chosen, distance)
            return distances.masked_fill(to_device(self.filled[class_index] == 0, features.device), float("inf"))

    @torch.no_grad()
    def _nearest_slots(
        self, features: Float[Tensor, "R C"], class_index: Int[Tensor, " R"], distance: Distance
    ) -> Int[Tensor, " R"]:
        """Slot of the nearest entry of each feature's class (any slot for a class without entries).

        Searching without gradient and measuring the chosen entry again keeps the backward pass at R x C.
        """
        # Regions sorted by class, then one search per class on a view of its ring. Measured at 2048 channels,
        # 8 stuff and 17 thing regions of 6 classes, rings full (50, 500), CPU, 1 | 2 threads:
        #   cdist per class on views (this)            14.3 |  6.6 ms
        #   cdist batched over classes, padded         30.4 | 13.0 ms   (copies rings, measures padding)
        #   broadcast difference per class, abs, sum   17.6 |  9.5 ms   (and 20 MB for 5 regions)
        # Broadcasting in blocks of 32 entries that stay in the cache takes 0.6 of the first with one thread,
        # but its many small parallel loops stall (up to seconds) with two threads on a busy machine.
        device, order = features.device, class_index.argsort(stable=True)
        counts = self._rank(class_index)[1].tolist()
        found = []
        for start, held, queries in zip(
            self._host_ring_start,
            self.filled.tolist(),
            features.index_select(0, to_device(order, device)).split(counts),
            strict=True,
        ):
            if len(queries):
                # of a class without entries any slot will do
                found.append(_nearest(queries, self.features[start : start + max(held, 1)], distance))
        if not found:
            return torch.zeros(0, dtype=torch.int64, device=device)
        place, ring = to_device(torch.stack([order.argsort(), self.ring_start[class_index]]), device)
        return torch.cat(found).index_select(0, place) + ring

    def _rank(self, class_index: Int[Tensor, " R"]) -> tuple[Int[Tensor, " R"], Int[Tensor, " num_classes"]]:
        """How many regions of the same class come before each one, and how many each class has."""
        classes = torch.arange(len(self.ring_size), device=class_index.device)
        is_class = (class_index[:, None] == classes).long()
        return is_class.cumsum(0).gather(1, class_index[:, None])[:, 0] - 1, is_class.sum(0)


def _nearest(queries: Float[Tensor, "n C"], entries: Float[Tensor, "held C"], distance: Distance) -> Int[Tensor, " n"]:
    """Index of the entry nearest to each query. All three forms of L1 have the same one."""
    match distance:
        case "l1_mean" | "l1_sum" | "l1_squared":
            return torch.cdist(queries, entries, p=1).argmin(1)
        case "l2":
            # Not through |a|^2 - 2ab + |b|^2: it cancels for near entries, which are the ones looked for.
            return torch.cdist(queries, entries, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        case "cosine":
            return (queries @ nn.functional.normalize(entries, dim=1).T).argmax(1)


def _distances(features: Float[Tensor, "R C"], chosen: Float[Tensor, "R C"], distance: Distance) -> Float[Tensor, " R"]:
    """Distance of each feature to its chosen entry, differentiable in the features."""
    match distance:
        case "l1_mean":
            return (features - chosen).abs().mean(1)
        case "l1_sum":
            return (features - chosen).abs().sum(1)
        case "l1_squared":
            return (features - chosen).abs().sum(1).square()
        case "l2":
            return torch.linalg.vector_norm(features - chosen, dim=1)
        case "cosine":
            return 1 - nn.functional.cosine_similarity(features, chosen, dim=1)
