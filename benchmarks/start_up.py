"""Times how long the commands take to answer, beside `import torch` alone.

    python benchmarks/start_up.py

`segadapt --help` and `segadapt adapt --help`, which need no torch, and `segadapt adapt` on the bundled pair
(configs/smoke.yaml) from the shell to the end of its first training step, which needs it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import compared, options_of, paired_seconds, record

SEGADAPT = Path(sys.executable).parent / "segadapt"
ROUNDS, POLL_SECONDS, LONGEST_SECONDS = 5, 0.005, 300
PEER = "python -c 'import torch'"


def answer(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def first_step() -> None:
    """Start a training, wait for the first line of its log, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [SEGADAPT, "adapt", "--config", "configs/smoke.yaml", f"--run_dir={run_dir}", "--quiet"]
        log = run_dir / "step1" / "metrics.jsonl"
        process = subprocess.Popen([*command, "--schedule.log_every=1", "--device=cpu"])
        try:
            started = time.monotonic()
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None or time.monotonic() - started > LONGEST_SECONDS:
                    raise RuntimeError(f"{' '.join(map(str, command))} made no step")
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    options = options_of(__doc__)
    if "usage: segadapt COMMAND" not in answer(SEGADAPT, "--help") or "--loss.matching" not in answer(
        SEGADAPT, "adapt", "--help"
    ):
        raise RuntimeError("the help does not help")

    def peer() -> str:
        return answer(sys.executable, "-c", "import torch")

    cases = {
        "segadapt --help": lambda: answer(SEGADAPT, "--help"),
        "segadapt adapt --help": lambda: answer(SEGADAPT, "adapt", "--help"),
        "first training step": first_step,
    }
    rounds = 1 if options.quick else ROUNDS
    record(
        [compared("start_up", case, paired_seconds(ours, peer, rounds), PEER) for case, ours in cases.items()],
        options.result,
    )


if __name__ == "__main__":
    main()
