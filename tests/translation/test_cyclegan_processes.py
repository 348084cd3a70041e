"""Two processes train a CycleGAN as one does with their images in one batch, and hold the same, pools and all."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from cyclegan_in_processes import IMAGES, STEPS, states_after

from segadapt.processes import ONE_PROCESS
from streets import ROOT


def test_two_processes_together_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    script = ROOT / "tests/translation/cyclegan_in_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/tests"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(ranks[1]["state"], ranks[0]["state"], rtol=0, atol=0)
    first, state = states_after(ONE_PROCESS)
    # biases before a normalisation have no effect: their gradients are rounding alone
    torch.testing.assert_close(ranks[0]["first"], first, rtol=1e-3, atol=1e-5)
    assert len(state.target_pool.images) == 6 < IMAGES * STEPS
    torch.testing.assert_close(ranks[0]["state"]["target_pool"][:IMAGES], state.target_pool.images[:IMAGES])
