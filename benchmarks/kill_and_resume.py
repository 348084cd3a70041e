"""Kills a real run at random moments and shows that it ends as one that was left alone.

    python benchmarks/kill_and_resume.py --kills 50

Runs `segadapt adapt` (configs/smoke.yaml with few images, a checkpoint every other step) once undisturbed. Then again,
killed by SIGKILL after a random time, continued by `--resume`, killed again, and so on until it ends; and again, until
the kills are used up. Compared are all parameters, banks, optimisers, metrics, pseudo-labels and scores; everything
must be equal bit by bit but for times and memory. Exits with 1 where something differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from segadapt.adaptation.checkpoints import load_state, newest_whole

ROOT = Path(__file__).parent.parent
IMAGES = 40  # of each part
MEASURED = ("images_per_second", "memory_mib", "seconds", "command")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40, help="of each of the two trainings of a run")
    parser.add_argument("--longest", type=float, default=15, help="seconds that a call lives at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, alone = Path(folder) / "data", Path(folder) / "alone"
        link_data(data)
        started = time.monotonic()
        subprocess.run(begin(data, alone, options.steps), env=ENVIRONMENT, check=True, capture_output=True)
        print(f"an undisturbed run took {time.monotonic() - started:.0f} s", flush=True)
        where: Counter[str] = Counter()
        found: list[str] = []
        runs = 0
        while where.total() < options.kills:
            killed = Path(folder) / f"killed{runs}"
            runs += 1
            # a call needs a few seconds to start: most moments lie in what it does then
            while where.total() < options.kills:
                if kill_after(go_on(data, killed, options.steps), moments.uniform(0.1, options.longest)):
                    break
                where[stage(killed)] += 1
                print(f"kill {where.total()}: run {runs}, {stage(killed)}, {steps_of(killed)}", flush=True)
            subprocess.run(go_on(data, killed, options.steps), env=ENVIRONMENT, check=True, capture_output=True)
            found += [f"run {runs}: {name}" for name in differences(alone, killed)]
        print(f"{where.total()} kills of {runs} runs: {dict(where)}")
        print("\n".join(found or ["parameters, banks, optimisers, metrics, pseudo-labels and scores are equal"]))
        return 1 if found else 0


def link_data(folder: Path) -> None:
    """The bundled pair with some of the images."""
    source = ROOT / "data" / "streets"
    for part in ("clear/train", "adverse/train", "adverse/val"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
            for file in sorted((source / part / kind).iterdir())[:IMAGES]:
                (folder / part / kind / file.name).symlink_to(file)
    (folder / "label_space.yaml").symlink_to(source / "label_space.yaml")


def begin(data: Path, run_dir: Path, steps: int) -> list[str]:
    """The command of the run."""
    roots = (("source", "clear"), ("target", "adverse"), ("test", "adverse"))
    return [
        *(sys.executable, "-m", "segadapt", "adapt", f"--config={ROOT}/configs/smoke.yaml", f"--run_dir={run_dir}"),
        *(f"--{name}.root={data}/{part}" for name, part in roots),
        *(f"--schedule.steps={steps}", "--schedule.save_every=2", "--schedule.log_every=1"),
        *("--schedule.evaluate_every=10", "--schedule.workers=1", "--device=cpu"),
    ]


def go_on(data: Path, run_dir: Path, steps: int) -> list[str]:
    """The command that continues it, or begins it where it was killed before it had begun."""
    if not (run_dir / "experiment.yaml").exists():
        return begin(data, run_dir, steps)
    return [sys.executable, "-m", "segadapt", "adapt", f"--resume={run_dir}", "--device=cpu"]


def kill_after(command: list[str], seconds: float) -> bool:
    """Start a command and kill it, with its workers, after a time; whether it had ended by then."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def stage(run_dir: Path) -> str:
    """Where in the procedure a run stands."""
    if (run_dir / "config.yaml").exists():
        return "in step 2"
    if (run_dir / "pseudo_labels").exists():
        return "while labelling"
    return "in step 1" if (run_dir / "step1" / "config.yaml").exists() else "before step 1"


def steps_of(run_dir: Path) -> str:
    """Steps that the newest checkpoints have behind them."""
    saved = {name: newest_whole(run_dir / name)[0] for name in ("step1", ".")}
    return ", ".join(f"{name} {int(path.name.split('-')[0])}" for name, path in saved.items() if path) or "no step"


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal in two run folders."""
    found = []
    for step in ("step1", "."):
        for name in ("model.safetensors", "selected.safetensors", "best.safetensors"):
            found += unequal(load_file(one / step / name), load_file(other / step / name), f"{step}/{name}")
        states = []
        for run in (one, other):
            path, _ = newest_whole(run / step)
            assert path is not None
            states.append({**load_state(path, torch.device("cpu")), "seconds": 0})
        found += unequal(states[0], states[1], f"{step}/checkpoint")
        for name in ("metrics.jsonl", "result.json"):
            lines = [[unmeasured(json.loads(line)) for line in read(run / step / name)] for run in (one, other)]
            found += [] if lines[0] == lines[1] else [f"{step}/{name}"]
    names = {path.name for run in (one, other) for path in (run / "pseudo_labels").iterdir()} - {"made_by.json"}
    for name in sorted(names):
        maps = [run / "pseudo_labels" / name for run in (one, other)]
        if not all(path.exists() for path in maps) or maps[0].read_bytes() != maps[1].read_bytes():
            found.append(f"pseudo_labels/{name}")
    return found


def read(path: Path) -> list[str]:
    """A JSON lines file, or one that is a single value."""
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


def unmeasured(value: Any) -> Any:
    """A value without what depends on the clock and the machine's memory."""
    if isinstance(value, dict):
        return {key: unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return value


def unequal(one: Any, other: Any, name: str) -> list[str]:
    """The names of unequal parts."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        keys = [*one, *(key for key in other if key not in one)]
        missing = [f"{name}/{key}" for key in keys if key not in one or key not in other]
        return missing or [text for key in keys for text in unequal(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple):
        same = len(one) == len(other)
        return [t for a, b in zip(one, other, strict=True) for t in unequal(a, b, name)] if same else [name]
    return [] if one == other else [name]


if __name__ == "__main__":
    sys.exit(main())
