"""benchmarks/gpu_step.py where there is no GPU: every part runs, at toy size, and counts what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streets import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # the benchmarks are scripts, which import one another by name

import gpu_step

VARIANTS = [gpu_step.PEER, gpu_step.SHIPPED, *gpu_step.CHANGES]


def test_all_parts_run_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "gpu_step.py", "--device=cpu", "--quick", "--batches=1"]
    command += ["--out", tmp_path, "--variants", *VARIANTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for one another cost more than toys need
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [name for name, part in found.items() if "failed" in part] == []
    assert found["losses"]["agree"]
    assert found["matching"]["agree"]
    assert min(found["losses"]["float32"].values()) > 0, "all losses take part"
    lines = found["batch 1"]
    assert list(lines) == VARIANTS
    assert [name for name, line in lines.items() if "failed" in line] == []
    assert all(line["milliseconds"] > 0 for line in lines.values())
    assert all(line["times_faster_than_eager"] > 0 and line["losses_agree"] for line in lines.values())
    assert found["matching alone, batch 1"]["milliseconds"] > 0
    assert "convolution_backward" in (tmp_path / "gpu_profile.batch1.shipped.txt").read_text()


def test_a_part_that_fails_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = gpu_step.Bench(torch.device("cpu"), gpu_step.QUICK, tmp_path, deadline=0.0)
    bench.part("of no use", lambda: torch.zeros(2) @ torch.zeros(3))
    assert "Traceback" in capsys.readouterr().err
    bench.part("of use", lambda: {"value": 1})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "RuntimeError" in found["of no use"]["failed"]
    assert found["of use"] == {"value": 1}


def test_operations_of_a_step_at_the_papers_sizes() -> None:
    """By hand: a branch of the classifier does 2 * 9 * 2048 * 19 operations at each position of the features."""
    four, two = (gpu_step.counted_flop(gpu_step.Sizes(), branches) for branches in (4, 2))
    positions = 91 * 161 + 65 * 129
    of_a_branch = 3 * 2 * 9 * 2048 * 19 * positions / 1e9  # forward, and the gradients of input and weights
    assert four["segmenter"] - two["segmenter"] == pytest.approx(2 * of_a_branch, rel=1e-6)
    assert four["discriminator"] == two["discriminator"] == pytest.approx(303, abs=0.5)
    assert two["step"] == pytest.approx(6359, rel=0.005)
