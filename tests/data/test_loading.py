"""Loading: the stream is decided by seed and position, whatever the workers, the processes or the start."""

from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segadapt.config import AugmentationConfig, DataConfig
from segadapt.data.label_spaces import STREETS11, LabelSpace
from segadapt.data.loading import Batch, TrainingSet, evaluation_batches, training_batches
from segadapt.data.readers import ImageSet, find_pairs
from segadapt.errors import InputError

ALL = AugmentationConfig(flip=0.5, scale=(0.7, 1.4), crop=(20, 24), colour_jitter=0.3)
NONE = AugmentationConfig()
IMAGES = 7


@pytest.fixture
def domain(tmp_path) -> DataConfig:
    """Seven noise images of 24x32 with labels of the classes sky, road, car and one unknown id."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
        image = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        labels = random.choice(np.array([0, 3, 8, 200], np.uint8), (24, 32))
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
    return DataConfig(root=str(tmp_path), label_space="streets11")


def batches(
    config: DataConfig, number: int, *, batch_size: int = 2, workers: int = 0, labelled: bool = True, **others
) -> list[Batch]:
    image_set = find_pairs(config, labelled)
    augmentation = others.pop("augmentation", ALL)
    space = others.pop("space", image_set.space)
    seed = others.pop("seed", 5)
    domain = others.pop("domain", 0)
    stream = training_batches(image_set, space, config, augmentation, batch_size, seed, domain, workers, **others)
    return list(islice(stream, number))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_shapes_types_and_labels(domain):
    for batch in batches(domain, 5):
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (2, 3, 20, 24))
        assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (2, 20, 24))
        assert set(batch.labels.unique().tolist()) <= {0, 3, 8, 255}


def test_without_augmentation_a_batch_is_the_files(domain):
    (batch,) = batches(domain, 1, augmentation=NONE)
    for image, labels, name in zip(*batch, strict=True):
        file = np.asarray(Image.open(Path(domain.root) / "images" / name))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), file)
        raw = np.asarray(Image.open(Path(domain.root) / "labels" / name))
        np.testing.assert_array_equal(labels.numpy(), np.where(raw == 200, 255, raw))


def test_every_epoch_has_every_image_once_in_another_order(domain):
    names = [batch.names[0] for batch in batches(domain, 3 * IMAGES, batch_size=1)]
    epochs = [names[start : start + IMAGES] for start in range(0, len(names), IMAGES)]
    assert all(len(set(epoch)) == IMAGES for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_stream_from_a_position_is_the_tail_of_the_whole(domain):
    whole = batches(domain, 9)
    assert_same(whole[4:], batches(domain, 5, start_position=8))


def test_workers_change_nothing(domain):
    assert_same(batches(domain, 6), batches(domain, 6, workers=2))


def test_two_processes_together_read_what_one_reads(domain):
    whole = batches(domain, 4, batch_size=4, start_position=4)
    parts = [batches(domain, 4, batch_size=2, rank=rank, processes=2, start_position=4) for rank in (0, 1)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert one.names == first.names + second.names
        assert torch.equal(one.images, torch.cat([first.images, second.images]))


def test_seed_domain_and_epoch_change_the_samples(domain):
    first = batches(domain, 3)
    for other in (batches(domain, 3, seed=6), batches(domain, 3, domain=1)):
        assert any(not torch.equal(one.images, two.images) for one, two in zip(first, other, strict=True))
    pairs = TrainingSet(find_pairs(domain, True), STREETS11, domain, ALL, 5, 0)
    again = next(position for position in range(IMAGES, 2 * IMAGES) if pairs.index(position) == pairs.index(0))
    assert not torch.equal(pairs[0]["image"], pairs[again]["image"])


def test_global_random_states_are_left_alone(domain):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches(domain, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_size_resizes_images_and_labels(domain):
    config = DataConfig(root=domain.root, label_space="streets11", size=(12, 40))
    (batch,) = batches(config, 1, augmentation=NONE)
    assert batch.images.shape == (2, 3, 12, 40)
    assert set(batch.labels.unique().tolist()) == {0, 3, 8, 255}


def test_labels_arrive_in_the_trained_space(domain):
    space = STREETS11.restrict(["car", "road"])
    counts = Counter()
    for batch, full in zip(batches(domain, 4, space=space), batches(domain, 4, space=STREETS11), strict=True):
        assert torch.equal(batch.labels == space.names.index("car"), full.labels == 8)
        assert torch.equal(batch.labels == space.names.index("road"), full.labels == 3)
        counts.update(batch.labels.unique().tolist())
    assert set(counts) == {0, 1, 255}


def test_unlabelled_batches_are_all_ignored(domain):
    for batch in batches(domain, 3, labelled=False):
        assert (batch.labels == 255).all()


def pseudo_labels(folder: Path, image_set: ImageSet, size: tuple[int, int], value: int = 1) -> Path:
    for index in range(len(image_set)):
        labels = np.full(size, 255, np.uint8)
        labels[: size[0] // 2] = value
        path = folder / image_set.image_name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
    return folder


@pytest.mark.parametrize("size", [(24, 32), (12, 16)])
def test_pseudo_labels_replace_labels_at_either_size(domain, size, tmp_path):
    config = DataConfig(root=domain.root, label_space="streets11", size=(12, 16))
    folder = pseudo_labels(tmp_path / "pseudo", find_pairs(domain, False), size)
    space = STREETS11.restrict(["car", "road"])
    (batch,) = batches(config, 1, labelled=False, augmentation=NONE, space=space, pseudo_labels=folder)
    assert (batch.labels[:, :6] == 1).all()
    assert (batch.labels[:, 6:] == 255).all()


def test_a_pseudo_label_that_is_all_ignore_stays_so(domain, tmp_path):
    folder = pseudo_labels(tmp_path / "pseudo", find_pairs(domain, False), (24, 32), value=255)
    for batch in batches(domain, 3, labelled=False, pseudo_labels=folder):
        assert (batch.labels == 255).all()


def test_wrong_pseudo_labels_are_named(domain, tmp_path):
    with pytest.raises(InputError, match="absent: no such folder; make the pseudo-labels of folder"):
        batches(domain, 1, pseudo_labels=tmp_path / "absent")
    found = find_pairs(domain, False)
    folder = pseudo_labels(tmp_path / "many", found, (24, 32), value=40)
    with pytest.raises(InputError, match=r"\.png: id 40 is no train id of the 11 trained classes; make"):
        batches(domain, 1, pseudo_labels=folder)
    folder = pseudo_labels(tmp_path / "small", found, (10, 10))
    with pytest.raises(InputError, match=r"\.png: is 10x10, its image 24x32; make the pseudo-labels again"):
        batches(domain, 1, pseudo_labels=folder)
    (folder / found.image_name(0)).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"\.png: label file is missing"):
        batches(domain, 1, pseudo_labels=tmp_path / "empty")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_file_ends_in_one_line_also_from_a_worker(domain, workers):
    for label in (Path(domain.root) / "labels").glob("*.png"):
        Image.fromarray(np.full((24, 31), 3, np.uint8)).save(label)
    message = r"\.png: is 24x31, its image .*\.png is 24x32; replace or remove the pair$"
    with pytest.raises(InputError, match=message) as caught:
        batches(domain, 1, workers=workers)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        list(evaluation_batches(find_pairs(domain, True), STREETS11, domain, 2, workers))


def test_images_of_several_sizes_need_a_size_or_a_crop(domain):
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(Path(domain.root) / "images" / "3.png")
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(Path(domain.root) / "labels" / "3.png")
    with pytest.raises(InputError, match=r"size: images of one batch differ \(.*\); set size, or a crop"):
        batches(domain, 1, batch_size=IMAGES, augmentation=NONE)
    (cropped,) = batches(domain, 1, batch_size=IMAGES, augmentation=AugmentationConfig(crop=(20, 20)))
    assert cropped.images.shape == (IMAGES, 3, 20, 20)
    shapes = {batch.images.shape[2:] for batch in batches(domain, IMAGES, batch_size=1, augmentation=NONE)}
    assert shapes == {(24, 32), (30, 30)}
    evaluated = evaluation_batches(find_pairs(domain, True), STREETS11, domain, 4, 0)
    assert {batch.images.shape[2:] for batch in evaluated} == shapes, "a score needs neither"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "augmentation.flip: 1.5 is out of range"),
        ({"scale": (1.0, 0.5)}, "augmentation.scale: .* is no range"),
        ({"scale": (0.0, 1.0)}, "augmentation.scale: .* is no range"),
        ({"crop": (0, 4)}, "augmentation.crop: .* is not possible"),
        ({"colour_jitter": 2.0}, "augmentation.colour_jitter: 2.0 is out of range"),
    ],
)
def test_augmentation_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        AugmentationConfig(**options)


def test_a_size_without_pixels_is_refused():
    with pytest.raises(InputError, match=r"size: \[0, 10\] is not possible"):
        DataConfig(size=(0, 10))


def test_numbers_out_of_range_are_refused_before_reading(domain):
    found = find_pairs(domain, True)
    for (batch_size, seed, workers), message in {
        (0, 0, 0): "batch_size: 0 is too small",
        (1, -1, 0): "seed: -1 is negative",
        (1, 0, -1): "workers: -1 is negative",
    }.items():
        with pytest.raises(InputError, match=message):
            training_batches(found, STREETS11, domain, NONE, batch_size, seed, 0, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_everything_once_in_order_with_labels_at_their_own_size(domain, workers):
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(Path(domain.root) / "images" / "3.png")
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(Path(domain.root) / "labels" / "3.png")
    config = DataConfig(root=domain.root, label_space="streets11", size=(16, 20))
    found = find_pairs(config, True)
    read = list(evaluation_batches(found, STREETS11, config, 3, workers))
    assert [name for batch in read for name in batch.names] == [f"{number}.png" for number in range(IMAGES)]
    assert [len(batch.names) for batch in read] == [3, 3, 1]
    assert all(batch.images.shape[1:] == (3, 16, 20) for batch in read)
    labels = [each for batch in read for each in batch.labels]
    assert [tuple(each.shape) for each in labels] == [(24, 32)] * 3 + [(30, 30)] + [(24, 32)] * 3
    raw = np.asarray(Image.open(Path(domain.root) / "labels" / "0.png"))
    np.testing.assert_array_equal(labels[0].numpy(), np.where(raw == 200, 255, raw))


def test_evaluation_of_an_unlabelled_set_has_labels_of_ignore_only(domain):
    config = DataConfig(root=domain.root, label_space="streets11", size=(8, 8))
    (batch, *_) = evaluation_batches(find_pairs(config, False), STREETS11, config, 1, 0)
    assert batch.labels[0].shape == (24, 32)
    assert (batch.labels[0] == 255).all()


def test_processes_share_an_evaluation(domain):
    found = find_pairs(domain, True)
    names = [
        [name for batch in evaluation_batches(found, STREETS11, domain, 2, 0, rank, 3) for name in batch.names]
        for rank in range(3)
    ]
    assert sorted(chain(*names)) == [f"{number}.png" for number in range(IMAGES)]
    assert names[1] == ["1.png", "4.png"]


def test_ids_of_16_bits_reach_their_class(tmp_path):
    space = LabelSpace("deep", ("road", "car"), ((0, 0, 0), (1, 1, 1)), ((7,), (26001, 26002)), (0,), (1,))
    (tmp_path / "label_space.yaml").write_text(space.to_yaml())
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.array([[7, 26001, 26002, 26003]], np.uint16)).save(tmp_path / "labels" / "a.png")
    config = DataConfig(root=str(tmp_path))
    (batch,) = batches(config, 1, batch_size=1, augmentation=NONE)
    assert batch.labels.ravel().tolist() == [0, 1, 1, 255]
