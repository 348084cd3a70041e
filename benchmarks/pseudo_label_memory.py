"""Peak memory of pseudo-labelling 10 and 1000 images: it must not grow with their number.

    python benchmarks/pseudo_label_memory.py

Synthetic JPEGs are written to a temporary folder and labelled by an EfficientNet-Lite0 with random weights at 64x128,
each number of images in a process of its own, whose peak resident memory the system reports. Were labels and
confidences kept in memory, as 3 bytes a pixel, 1000 images would take 23 MiB more. A table is printed and
runs/bench/bench.json written.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (10, 1000)
PICTURE, SIZE = (256, 512), (64, 128)
RESULT = Path("runs/bench/bench.json")


def write_pictures(folder: Path, count: int) -> None:
    """Blocks of random colours, each picture other ones, so that all classes and confidences occur."""
    folder.mkdir(parents=True)
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 256, (8, 16, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(PICTURE[::-1], Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg")


def label(root: Path) -> None:
    """In a process of its own: label the pictures of `root` and print its peak memory in MiB, before and after."""
    # Not above: the system hands a process's peak on to the one it starts, so the starting one stays small.
    import torch

    from segadapt.adaptation.machine import Machine
    from segadapt.adaptation.procedure import pseudo_label
    from segadapt.adaptation.run_log import Terminal
    from segadapt.config import DataConfig, NetworkConfig, PseudoLabelConfig
    from segadapt.data.label_spaces import STREETS11
    from segadapt.networks.weights import build_network, save_network

    torch.set_num_threads(1)
    save_network(root / "model.safetensors", build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0))
    data = DataConfig(root=str(root), label_space="streets11", size=SIZE)
    before = peak_so_far()
    with Terminal() as terminal:
        machine = Machine(torch.device("cpu"), terminal)
        pseudo_label(root / "model.safetensors", data, PseudoLabelConfig(), 0, root / "out", machine)
    print(before, peak_so_far())


def peak_so_far() -> float:
    """Of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def peak_mib(count: int) -> float:
    """Of a process that labels `count` pictures."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "images", count)
        command = [sys.executable, __file__, folder]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        labelled = len(list((Path(folder) / "out").glob("*.png")))
        if labelled != count:
            raise RuntimeError(f"{labelled} of {count} pictures were labelled")
    before, peak = map(float, finished.stdout.split())
    if peak <= before:
        raise RuntimeError(
            f"the peak of {peak:.0f} MiB was reached before labelling began, so it says nothing about it"
        )
    return peak


def main() -> None:
    peaks = [peak_mib(count) for count in COUNTS]
    print("images   peak memory [MiB]")
    for count, peak in zip(COUNTS, peaks, strict=True):
        print(f"{count:6d} {peak:19.1f}")
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f}")

    RESULT.parent.mkdir(parents=True, exist_ok=True)
    others = json.loads(RESULT.read_text()) if RESULT.exists() else []
    others = [row for row in others if row["name"] != "pseudo_label_memory"]
    results = [
        {"name": "pseudo_label_memory", "images": count, "peak_mib": round(peak, 1)}
        for count, peak in zip(COUNTS, peaks, strict=True)
    ]
    results[-1]["ratio"] = round(ratio, 3)
    RESULT.write_text(json.dumps(others + results, indent=1) + "\n")
    print(f"\nwritten to {RESULT}")


if __name__ == "__main__":
    if sys.argv[1:]:
        label(Path(sys.argv[1]))
    else:
        main()
