"""Every equation of the method again, as slow plain loops in float64: what the fast code is held against.

Nothing here is shared with the package, and nothing is torch: arrays hold numbers, loops compute. A region is a
`Region`, a bank is a list of slots for each class, an image of the network's output is an array (channels, h, w).

The last column names the files tests/*/test_*.py that hold the package against it.

| equation                          | here                                     | tests                                |
| --------------------------------- | ---------------------------------------- | ------------------------------------ |
| softmax S, resize of the logits   | softmax, softmax_map, resize             | equations                            |
| classifier C, on one mean feature | aspp, classify                           | equations, matching_golden           |
| (1), (10) cross-entropy           | cross_entropy_sum, cross_entropy_mean    | equations                            |
| (2) fooling the discriminator     | probability_of_target, adversarial_loss  | equations                            |
| (3) discriminator, its halves     | discriminator_halves, discriminator_loss | equations                            |
| (4) correctly classified labels   | correct_labels, prediction               | matching_labels, matching_equations  |
| labels at feature size            | shrink_labels                            | matching_labels                      |
| (5) stuff feature, (7) instances  | regions, mean_feature, connected_regions | matching_regions, matching_equations |
| (5) slot of a stuff feature       | Bank.store, Bank.store_by_image          | matching_bank, matching_golden       |
| Algorithm 1                       | regions, Bank.store                      | matching_bank, matching_equations    |
| (6) stuff, (8) instances, min_j   | matching_losses, Bank.nearest, DISTANCES | matching_losses, matching_equations  |
| (9) thresholds                    | class_thresholds                         | pseudo_labels                        |
| (9) labels, in both readings      | pseudo_label, pseudo_label_literal       | pseudo_labels                        |
| (11)                              | override                                 | pseudo_labels                        |
| (12), (13) all terms of a step    | step_terms                               | equations                            |
| polynomial decay with warm-up     | learning_rate                            | equations                            |
"""

import math
from dataclasses import dataclass

import numpy as np

IGNORE = 255
NEIGHBOURS = {
    4: [(-1, 0), (0, -1), (0, 1), (1, 0)],
    8: [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)],
}


def arg_max(scores):
    """Index of the largest; of equal ones the first."""
    best = 0
    for k in range(len(scores)):
        if scores[k] > scores[best]:
            best = k
    return best


def prediction(logits):
    """L_P of Eq. (4): the most likely class of each pixel of one image (N, h, w)."""
    labels = np.zeros(logits.shape[1:], dtype=np.int64)
    for row, column in np.ndindex(labels.shape):
        labels[row, column] = arg_max(logits[:, row, column])
    return labels


def softmax(scores):
    """S for one pixel."""
    largest = max(float(score) for score in scores)
    powers = [math.exp(float(score) - largest) for score in scores]
    return np.array([power / sum(powers) for power in powers])


def softmax_map(logits):
    """S for each pixel of one image (N, h, w)."""
    result = np.zeros(logits.shape)
    for row, column in np.ndindex(logits.shape[1:]):
        result[:, row, column] = softmax(logits[:, row, column])
    return result


def resize(maps, size):
    """One image (C, h, w) at another size: bilinear, the corners' pixels over each other (align_corners)."""
    axes = []
    for small, full in zip(maps.shape[1:], size, strict=True):
        axis = []
        for i in range(full):
            position = i * (small - 1) / (full - 1) if full > 1 else 0.0
            low = min(math.floor(position), small - 1)
            axis.append((low, min(low + 1, small - 1), position - low))
        axes.append(axis)
    maps = maps.astype(np.float64)
    result = np.zeros((len(maps), *size))
    for row, (top, bottom, down) in enumerate(axes[0]):
        for column, (left, right, across) in enumerate(axes[1]):
            above = (1 - across) * maps[:, top, left] + across * maps[:, top, right]
            below = (1 - across) * maps[:, bottom, left] + across * maps[:, bottom, right]
            result[:, row, column] = (1 - down) * above + down * below
    return result


def aspp(features, weights, biases, dilations):
    """C: the sum of 3x3 convolutions (N, C, 3, 3) of one image (C, h, w), padded with zeros."""
    _, height, width = features.shape
    result = np.zeros((len(biases[0]), height, width))
    for weight, bias, dilation in zip(weights, biases, dilations, strict=True):
        for row, column in np.ndindex(height, width):
            for n in range(len(bias)):
                result[n, row, column] += float(bias[n])
                for down, across in np.ndindex(3, 3):
                    y, x = row + (down - 1) * dilation, column + (across - 1) * dilation
                    if 0 <= y < height and 0 <= x < width:
                        tap, feature = weight[n, :, down, across], features[:, y, x]
                        result[n, row, column] += float(tap.astype(np.float64) @ feature.astype(np.float64))
    return result


def classify(feature, weights, biases, dilations):
    """The class that C gives one mean feature, as an image of one pixel."""
    return arg_max(aspp(np.asarray(feature)[:, None, None], weights, biases, dilations)[:, 0, 0])


def cross_entropy_sum(logits, labels):
    """Eqs. (1), (10): the sum over the labelled pixels of a batch (B, N, H, W), and how many there are."""
    total, counted = 0.0, 0
    for image, row, column in np.ndindex(labels.shape):
        k = int(labels[image, row, column])
        if k != IGNORE:
            total -= math.log(softmax(logits[image, :, row, column])[k])
            counted += 1
    return total, counted


def cross_entropy_mean(logits, labels):
    """What is trained: the mean over the labelled pixels, 0 if there are none."""
    total, counted = cross_entropy_sum(logits, labels)
    return total / counted if counted else 0.0


def probability_of_target(judged):
    """D of Eqs. (2), (3) from one raw output of the discriminator."""
    return 1 / (1 + math.exp(-float(judged)))


def adversarial_loss(judged_target, gan="vanilla", reduction="mean"):
    """Eq. (2): -log(1 - D) of target images; with 'lsgan' the squared distance of the raw output to source, 0."""
    terms = []
    for judged in judged_target.reshape(-1):
        if gan == "lsgan":
            terms.append(float(judged) ** 2)
        else:
            terms.append(-math.log(1 - probability_of_target(judged)))
    return sum(terms) / (len(terms) if reduction == "mean" else 1)


def discriminator_halves(judged_source, judged_target, gan="vanilla", reduction="mean"):
    """The two sums of Eq. (3), -log(1 - D) of source and -log(D) of target images, or their means."""
    on_target = []
    for judged in judged_target.reshape(-1):
        if gan == "lsgan":
            on_target.append((float(judged) - 1) ** 2)
        else:
            on_target.append(-math.log(probability_of_target(judged)))
    half = sum(on_target) / (len(on_target) if reduction == "mean" else 1)
    return adversarial_loss(judged_source, gan, reduction), half


def discriminator_loss(judged_source, judged_target, gan="vanilla"):
    """What D is trained with: each half of Eq. (3) a mean, and divided by two."""
    on_source, on_target = discriminator_halves(judged_source, judged_target, gan)
    return on_source / 2 + on_target / 2


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


def shrink_labels(labels, size, sampling="aligned"):
    """One label map (H, W) at the features' size, by picking pixels.

    'aligned': the pixel nearest to i * (H - 1) / (h - 1), halves up. 'nearest': floor(i * H / h), the product in
    float32, where torch and therefore the authors' program take it.
    """
    picked = []
    for full, small in zip(labels.shape, size, strict=True):
        axis = []
        for i in range(small):
            if sampling == "nearest":
                axis.append(min(int(np.float32(i) * (np.float32(full) / np.float32(small))), full - 1))
            else:
                axis.append(math.floor(i * (full - 1) / (small - 1) + 0.5) if small > 1 else 0)
        picked.append(axis)
    result = np.zeros(size, dtype=labels.dtype)
    for row, column in np.ndindex(size):
        result[row, column] = labels[picked[0][row], picked[1][column]]
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

    def store_by_image(self, stored, number):
        """Eq. (5) read literally for stuff, slot j = i mod w with `number` i of the image; things as in `store`."""
        for region in stored:
            if not region.is_thing:
                ring = self.slots[region.class_index]
                ring[number % len(ring)] = region.feature
        self.store([region for region in stored if region.is_thing])

    def entries(self, k):
        return [entry for entry in self.slots[k] if entry is not None]

    def nearest(self, feature, k, distance="l1_mean"):
        """min_j over the slots that were written; infinite where none was."""
        return min([DISTANCES[distance](feature, entry) for entry in self.entries(k)], default=np.inf)

    def nearest_slot(self, feature, k):
        """j of that minimum, -1 where no slot was written."""
        best, best_distance = -1, np.inf
        for slot, entry in enumerate(self.slots[k]):
            if entry is not None and DISTANCES["l1_sum"](feature, entry) < best_distance:
                best, best_distance = slot, DISTANCES["l1_sum"](feature, entry)
        return best

    def is_matched(self, k, min_fill=1):
        """'overfilled' is the released program's condition: more was stored than the ring holds."""
        if min_fill == "overfilled":
            return self.counter[k] > len(self.slots[k])
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


def class_thresholds(confidences, quantile=0.5, cap=0.9, rank="interpolated"):
    """y^k of Eq. (9) from all confidences of each class, a list a class; NaN for a class without any.

    'interpolated' at quantile 0.5 is the median. 'rounded' is the released program's element: number
    round(n * quantile), halves to even, of the ascending list.
    """
    thresholds = []
    for values in confidences:
        ascending = sorted(float(value) for value in values)
        if not ascending:
            thresholds.append(math.nan)
            continue
        if rank == "rounded":
            value = ascending[round(len(ascending) * quantile)]
        else:
            position = (len(ascending) - 1) * quantile
            low, high = math.floor(position), math.ceil(position)
            value = ascending[low] + (position - low) * (ascending[high] - ascending[low])
        thresholds.append(min(value, cap))
    return np.array(thresholds)


def reaches(confidence, threshold, strict):
    """Nothing reaches the NaN of a class without a threshold."""
    return confidence > threshold if strict else confidence >= threshold


def pseudo_label(probabilities, thresholds, strict=False):
    """Eq. (9) for one pixel: its most likely class if that is confident, else 255."""
    k = arg_max(probabilities)
    return k if reaches(probabilities[k], thresholds[k], strict) else IGNORE


def pseudo_label_literal(probabilities, thresholds, strict=True):
    """Eq. (9) word by word: the most likely of those classes whose own threshold is passed, else 255."""
    passing = [k for k in range(len(probabilities)) if reaches(probabilities[k], thresholds[k], strict)]
    return passing[arg_max([probabilities[k] for k in passing])] if passing else IGNORE


def override(predicted, pseudo, mode):
    """Eq. (11) pixel by pixel: 'literal' overrides with don't-cares too, 'fill' does not, 'off' never."""
    result = predicted.copy()
    for pixel in np.ndindex(predicted.shape):
        differs = predicted[pixel] != pseudo[pixel]
        if differs and (mode == "literal" or (mode == "fill" and pseudo[pixel] != IGNORE)):
            result[pixel] = pseudo[pixel]
    return result


def learning_rate(base, step, decay_steps, power=0.9, warmup_steps=0):
    """base * (1 - step / decay_steps)^power, not below 0, after a linear rise over the first steps."""
    rate = base * max(0.0, 1 - step / decay_steps) ** power
    if step + 1 < warmup_steps:
        rate *= (step + 1) / warmup_steps
    return rate


@dataclass
class Domain:
    """What a step sees of a domain: features (B, C, h, w), logits (B, N, h, w), labels (B, H, W), as arrays."""

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    def full_logits(self):
        return np.stack([resize(logits, self.labels.shape[1:]) for logits in self.logits])

    def predicted(self):
        return np.stack([prediction(logits) for logits in self.logits])

    def small_labels(self, sampling):
        return np.stack([shrink_labels(labels, self.logits.shape[2:], sampling) for labels in self.labels])


@dataclass
class StepOptions:
    """The options that change the terms of a step."""

    gan: str = "vanilla"
    sampling: str = "aligned"
    max_instances: int = 10
    connectivity: int = 8
    min_area: int = 1
    distance: str = "l1_mean"
    min_fill: int | str = 1
    class_reduction: str = "sum"
    agreement_source: bool = True
    agreement_target_stuff: bool = True
    agreement_target_things: bool = False
    override: str = "fill"


def step_terms(source, target, stuff, things, bank, classifier, discriminator, options):
    """The terms of Eqs. (12), (13) before weighting, and the bank after the source's regions entered it.

    Args:
        source: Domain with its labels.
        target: Domain with its pseudo-labels; all 255 in step 1.
        stuff: Train ids.
        things: Train ids.
        bank: Changed in place.
        classifier: Class of one mean feature.
        discriminator: Raw outputs for probability maps (B, N, H, W).
        options: StepOptions.
    """
    found_by = (stuff, things, options.max_instances, options.connectivity, options.min_area)
    terms = {"loss/segmentation": cross_entropy_mean(source.full_logits(), source.labels)}

    correct = correct_labels(source.predicted(), source.small_labels(options.sampling))
    stored = regions(source.features, correct, *found_by)
    if options.agreement_source:
        stored = [region for region in stored if classifier(region.feature) == region.class_index]
    bank.store(stored)

    judged_source, judged_target = (
        discriminator(np.stack([softmax_map(logits) for logits in domain.full_logits()])) for domain in (source, target)
    )
    terms["loss/adversarial"] = adversarial_loss(judged_target, options.gan)
    terms["loss/discriminator"] = discriminator_loss(judged_source, judged_target, options.gan)

    labels = override(target.predicted(), target.small_labels(options.sampling), options.override)
    found = []
    for region in regions(target.features, labels, *found_by):
        asked = options.agreement_target_things if region.is_thing else options.agreement_target_stuff
        if not asked or classifier(region.feature) == region.class_index:
            found.append(region)
    stuff_loss, instance_loss = matching_losses(
        found, bank, options.distance, options.min_fill, options.class_reduction
    )
    terms["loss/stuff"] = stuff_loss / len(target.labels)
    terms["loss/instance"] = instance_loss / len(target.labels)
    used = [region for region in found if bank.is_matched(region.class_index, options.min_fill)]
    terms["matched/stuff"] = sum(not region.is_thing for region in used)
    terms["matched/instances"] = sum(region.is_thing for region in used)
    terms["loss/target_segmentation"] = cross_entropy_mean(target.full_logits(), target.labels)
    return terms
