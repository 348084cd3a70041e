"""Memory, file handles and threads of this process while it does much: they must not grow.

    python benchmarks/load.py

1. 3,000 pairs of 1024x512 (links to 30 different pictures) through evaluation and then through pseudo-labelling, read
   by 2 workers; the network sees them at 128x256.
2. 2,000 steps of all losses of step 2, with checkpoints and evaluations on the way.

Prints a line for each tenth, and at the end the growth of resident memory over the second half. Exits with 1 if that is
over 5 % or a handle or thread was not given back. (In the first half the heap still finds its size.)
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segadapt.adaptation.apply_model import evaluate_model, pseudo_label
from segadapt.adaptation.machine import Machine, keep_freed_memory
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.training import run_training
from segadapt.commands.options import experiment_from
from segadapt.config import DataConfig, NetworkConfig, PseudoLabelConfig
from segadapt.data.label_spaces import STREETS11
from segadapt.networks.weights import build_network, save_network

PAIRS, DIFFERENT, SIZE, NETWORK_SIZE = 3000, 30, (512, 1024), (128, 256)
CPU = torch.device("cpu")
ALLOWED_GROWTH = 0.05


class Watched(Terminal):
    """Notes what the process holds at every tenth of a bar."""

    def __init__(self, title: str, total: int) -> None:
        super().__init__(quiet=True)
        self.title, self.total, self.done, self.seen = title, total, 0, []
        self.started = time.perf_counter()

    def advance(self, note: str = "") -> None:
        self.done += 1
        if self.done % (self.total // 10) == 0:
            gc.collect()
            self.seen.append(holdings())
            memory, handles, threads = self.seen[-1]
            rate = self.done / (time.perf_counter() - self.started)
            held = f"{memory:.0f} MiB, {handles} files, {threads} threads"
            print(f"{self.title} {self.done}/{self.total}: {held}, {rate:.1f}/s", flush=True)

    def grew(self) -> list[str]:
        """What the end holds more than the middle."""
        (memory, handles, threads), (end_memory, end_handles, end_threads) = self.seen[4], self.seen[-1]
        print(f"{self.title}: resident memory {100 * (end_memory / memory - 1):+.1f} % over the second half")
        found = ["memory"] if end_memory > (1 + ALLOWED_GROWTH) * memory else []
        found += ["file handles"] if end_handles > handles else []
        found += ["threads"] if end_threads > threads else []
        return [f"{self.title}: {name} grew" for name in found]


def holdings() -> tuple[float, int, int]:
    """Resident memory in MiB, open files, threads; from /proc, so Linux only."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 2**10, len(os.listdir("/proc/self/fd")), int(fields["Threads"])


def make_pairs(folder: Path, pairs: int) -> None:
    """Pairs of noise with blocks of classes, most of them links."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    height, width = SIZE
    for number in range(pairs):
        image, label = folder / "images" / f"{number:05}.jpg", folder / "labels" / f"{number:05}.png"
        if number < DIFFERENT:
            small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(image)
            blocks = random.integers(0, 11, (height // 64, width // 64), np.uint8)
            Image.fromarray(np.kron(blocks, np.ones((64, 64), np.uint8))).save(label)
        else:
            image.hardlink_to(folder / "images" / f"{number % DIFFERENT:05}.jpg")
            label.hardlink_to(folder / "labels" / f"{number % DIFFERENT:05}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    keep_freed_memory()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pairs(folder / "data", options.pairs)
        model = folder / "model.safetensors"
        network = build_network(NetworkConfig("efficientnet_lite0", "random", batch_norm="frozen"), STREETS11, 0)
        save_network(model, network)
        data = DataConfig(root=str(folder / "data"), label_space="streets11", size=NETWORK_SIZE)

        watched = Watched("evaluation", options.pairs)
        scores = evaluate_model(model, data, Machine(CPU, watched), workers=2)
        assert scores["images"] == options.pairs
        found += watched.grew()

        watched = Watched("pseudo-labels", 2 * options.pairs)
        pseudo_label(model, data, PseudoLabelConfig(), 2, folder / "labels", Machine(CPU, watched))
        found += watched.grew()

        experiment = experiment_from("configs/smoke.yaml")
        small = {name: replace(getattr(experiment, name), size=(48, 64)) for name in ("source", "target", "test")}
        schedule = replace(
            experiment.schedule, steps=options.steps, save_every=100, evaluate_every=options.steps // 4, workers=1
        )
        watched = Watched("training", options.steps)
        run_training(replace(experiment, **small, schedule=schedule), folder / "run", Machine(CPU, watched), "soak")
        found += watched.grew()
    print("\n".join(found) if found else "nothing grew")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
