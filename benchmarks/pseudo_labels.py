"""Images a second and peak memory of pseudo-labelling 50, 500 and 3000 images, beside the usual way.

    python benchmarks/pseudo_labels.py

JPEGs are labelled by an EfficientNet-Lite0 with random weights at 64x128, each number of images in a process of its
own, whose peak resident memory the system reports. The usual way, with the same reading and the same network, keeps the
labels and confidences of the whole set in memory and takes np.median of each class; the labels of both are compared.
`growth_mib` is the peak above that of the smallest number: ours must not grow with the number of images.
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from segadapt.config import DataConfig
from timing import Entry, compared, options_of, record, rounded

NUMBERS, QUICK_NUMBERS = (50, 500, 3000), (8,)
DIFFERENT = 200  # pictures; further ones are links to them
PICTURE, SIZE = (256, 512), (64, 128)
CAP, IGNORE = 0.9, 255
PEER = "labels and confidences of all images in memory, np.median of each class"


def write_pictures(folder: Path, images: int) -> None:
    """Blocks of random colours, so that all classes and confidences occur."""
    folder.mkdir(parents=True)
    for number in range(images):
        path = folder / f"{number:05}.jpg"
        if number < DIFFERENT:
            blocks = np.random.default_rng(number).integers(0, 256, (8, 16, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize(PICTURE[::-1], Image.Resampling.BICUBIC).save(path)
        else:
            path.hardlink_to(folder / f"{number % DIFFERENT:05}.jpg")


def label(root: Path, way: str) -> None:
    """In a process of its own: label the pictures of `root` one way and print seconds and peak memory in MiB."""
    # Not above: the system hands a process's peak on to the one it starts, so the starting one stays small.
    import torch

    from segadapt.adaptation.apply_model import pseudo_label
    from segadapt.adaptation.machine import Machine
    from segadapt.adaptation.run_log import Terminal
    from segadapt.config import NetworkConfig, PseudoLabelConfig
    from segadapt.data.label_spaces import STREETS11
    from segadapt.networks.weights import build_network, save_network

    torch.set_num_threads(1)
    model = root / "model.safetensors"
    if not model.exists():
        save_network(model, build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0))
    data = DataConfig(root=str(root), label_space="streets11", size=SIZE)
    before, start = peak_so_far(), time.perf_counter()
    if way == "ours":
        with Terminal(quiet=True) as terminal:
            pseudo_label(model, data, PseudoLabelConfig(cap=CAP), 0, root / way, Machine(torch.device("cpu"), terminal))
        seconds, peak = time.perf_counter() - start, peak_so_far()
    else:
        labels, confidence, thresholds = label_the_usual_way(model, data, root / way)
        seconds, peak = time.perf_counter() - start, peak_so_far()
        verify(root, labels, confidence, thresholds)
    if peak <= before:
        raise RuntimeError(f"the peak of {peak:.0f} MiB was reached before labelling began, so it says nothing of it")
    print(seconds, peak)


def label_the_usual_way(model: Path, data: DataConfig, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (images, H, W), confidences likewise, and the threshold of each class."""
    import torch

    from segadapt.adaptation.pseudo_labels import confident_prediction
    from segadapt.data.loading import evaluation_batches
    from segadapt.data.readers import find_pairs
    from segadapt.evaluation.evaluate import predict_logits
    from segadapt.networks.weights import load_network

    network, images = load_network(model).eval(), find_pairs(data, labelled=False)
    labels, confidence = (np.zeros((len(images), *SIZE)) for _ in range(2))
    number = 0
    with torch.inference_mode():
        for batch in evaluation_batches(images, network.label_space, data, batch_size=4, workers=0):
            for logits in predict_logits(network, batch.images):
                labels[number], confidence[number] = confident_prediction(logits, SIZE)
                number += 1
    thresholds = np.full(network.label_space.num_classes, np.nan)
    for k in np.unique(labels).astype(int):
        thresholds[k] = min(np.median(confidence[labels == k]), CAP)
    out.mkdir()
    for number in range(len(images)):
        one = labels[number].astype(np.uint8)
        kept = np.where(confidence[number] >= thresholds[one], one, IGNORE).astype(np.uint8)
        Image.fromarray(kept).save(out / images.image_name(number))
    return labels, confidence, thresholds


def verify(root: Path, labels: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray) -> None:
    """Raises if labels differ elsewhere than where a confidence is the threshold, to the step of our histogram."""
    names = sorted(path.name for path in (root / "usual").glob("*.png"))
    if names != sorted(path.name for path in (root / "ours").glob("*.png")):
        raise RuntimeError("the two ways labelled other images")
    step = 2 / (1 << 16)
    for number, name in enumerate(names):
        ours, usual = (np.asarray(Image.open(root / way / name)) for way in ("ours", "usual"))
        margin = np.abs(confidence[number] - thresholds[labels[number].astype(int)])
        if (margin[ours != usual] > step).any():
            raise RuntimeError(f"{name}: the two ways give other labels")


def peak_so_far() -> float:
    """Of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def measured(root: Path, way: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a process that labels the pictures of `root` one way."""
    shutil.rmtree(root / way, ignore_errors=True)
    command = [sys.executable, __file__, "--label", str(root), way]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = map(float, finished.stdout.split())
    return seconds, peak


def of_number(images: int, rounds: int) -> Entry:
    """Both ways in turns; the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "images", images)
        runs = [(measured(root, "ours"), measured(root, "usual")) for _ in range(rounds)]
    seconds = [statistics.median(run[way][0] for run in runs) for way in (0, 1)]
    peaks = [statistics.median(run[way][1] for run in runs) for way in (0, 1)]
    return compared("pseudo_labels", f"{images} images", (seconds[0], seconds[1]), PEER) | {
        "images": images,
        "images_per_second": rounded(images / seconds[0]),
        "peer_images_per_second": rounded(images / seconds[1]),
        "peak_mib": rounded(peaks[0]),
        "peer_peak_mib": rounded(peaks[1]),
        "threads": 1,
    }


def main() -> None:
    options = options_of(__doc__)
    numbers, rounds = (QUICK_NUMBERS, 1) if options.quick else (NUMBERS, 3)
    entries = [of_number(images, rounds if images == numbers[0] else 1) for images in numbers]
    for entry in entries:
        for peak in ("peak_mib", "peer_peak_mib"):
            entry[peak.replace("peak", "growth")] = rounded(entry[peak] - entries[0][peak])
    record(entries, options.result)
    for entry in entries:
        ours, usual = entry["peak_mib"], entry["peer_peak_mib"]
        print(f"{entry['case']}: peak memory {ours:.0f} MiB, the usual way {usual:.0f} MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--label"]:
        label(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
