"""Every equation of matching again, as slow plain loops in float64: what the fast code is held against.

Nothing here is shared with the package. A region is a `Region`; a bank is a list of slots for each class.
"""

from dataclasses import dataclass

import numpy as np

IGNORE = 255
NEIGHBOURS = {
    4: [(-1, 0), (0, -1), (0, 1), (1, 0)],
    8: [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)],
}


@dataclass
class Region:
    """One row of segadapt's Regions."""

    image: int
    class_index: int
    is_thing: bool
    pixels: list[tuple[int, int]]
    feature: np.ndarray

    @property
    def area(self) -> int:
        return len(self.pixels)


def correct_labels(predicted, labels):
    """Eq. (4)."""
    result = np.full(labels.shape, IGNORE, dtype=labels.dtype)
    for pixel in np.ndindex(labels.shape):
        if predicted[pixel] == labels[pixel]:
            result[pixel] = labels[pixel]
    return result


def class_pixels(labels, class_index):
    """Pixels of a class in one label map (h, w), in raster order."""
    return [pixel for pixel in np.ndindex(labels.shape) if labels[pixel] == class_index]


def connected_regions(labels, class_index, connectivity=8):
    """T(L, k) of Eq. (7): the regions of a class as lists of pixels, ordered by their first pixels."""
    left = set(class_pixels(labels, class_index))
    regions = []
    for start in class_pixels(labels, class_index):
        if start not in left:
            continue
        left.remove(start)
        region, stack = [], [start]
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for down, right in NEIGHBOURS[connectivity]:
                neighbour = (row + down, column + right)
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        regions.append(sorted(region))
    return regions


def mean_feature(features, pixels):
    """A^b of Eq. (5) and I of Eq. (7) for one image (C, h, w): sum over the pixels / their number."""
    total = np.zeros(features.shape[0])
    for row, column in pixels:
        total = total + features[:, row, column].astype(np.float64)
    return total / len(pixels)


def regions(features, labels, stuff, things, max_instances=10, connectivity=8, min_area=1):
    """All regions of a batch in segadapt's order."""
    result = []
    for image in range(len(labels)):
        for k in stuff:
            pixels = class_pixels(labels[image], k)
            if pixels:
                result.append(Region(image, k, False, pixels, mean_feature(features[image], pixels)))
        for k in things:
            instances = connected_regions(labels[image], k, connectivity)
            instances = [pixels for pixels in instances if len(pixels) >= min_area]
            # Stable: of equal areas the one whose first pixel comes first stays first.
            instances.sort(key=len, reverse=True)
            result += [
                Region(image, k, True, pixels, mean_feature(features[image], pixels))
                for pixels in instances[:max_instances]
            ]
    return result


class Bank:
    """Algorithm 1 for things, and the same ring of w slots for stuff."""

    def __init__(self, stuff, things, stuff_size, thing_size):
        self.slots = {k: [None] * stuff_size for k in stuff} | {k: [None] * thing_size for k in things}
        self.counter = dict.fromkeys(self.slots, 0)

    def store(self, stored):
        for region in stored:
            ring = self.slots[region.class_index]
            ring[self.counter[region.class_index] % len(ring)] = region.feature
            self.counter[region.class_index] += 1

    def entries(self, k):
        return [entry for entry in self.slots[k] if entry is not None]

    def nearest(self, feature, k, distance="l1_mean"):
        """min_j over the slots that were written; infinite where none was."""
        return min([DISTANCES[distance](feature, entry) for entry in self.entries(k)], default=np.inf)

    def is_matched(self, k, min_fill=1):
        return len(self.entries(k)) >= (len(self.slots[k]) if min_fill == "full" else min_fill)


def cosine(a, b):
    return 1 - float(a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b))


DISTANCES = {
    "l1_mean": lambda a, b: sum(abs(a - b)) / len(a),
    "l1_sum": lambda a, b: sum(abs(a - b)),
    "l1_squared": lambda a, b: sum(abs(a - b)) ** 2,
    "l2": lambda a, b: sum((a - b) ** 2) ** 0.5,
    "cosine": cosine,
}


def matching_losses(found, bank, distance="l1_mean", min_fill=1, class_reduction="sum"):
    """Eq. (6) and Eq. (8): a term for each image and class, summed (or averaged over an image's classes)."""
    losses = []
    for is_thing in (False, True):
        loss = 0.0
        for image in sorted({region.image for region in found}):
            terms = []
            for k in bank.slots:
                same = [r for r in found if (r.image, r.class_index, r.is_thing) == (image, k, is_thing)]
                if same and bank.is_matched(k, min_fill):
                    terms.append(sum(bank.nearest(r.feature, k, distance) for r in same) / len(same))
            if terms:
                loss += sum(terms) / (len(terms) if class_reduction == "mean" else 1)
        losses.append(loss)
    return tuple(losses)
