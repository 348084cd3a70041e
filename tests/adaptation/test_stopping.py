"""A run that is told to stop saves and leaves within a step, says how to go on, and goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segadapt.adaptation.checkpoints import saved_states
from segadapt.adaptation.machine import Machine, StopSignals
from segadapt.adaptation.procedure import adapt
from segadapt.adaptation.rows import row_of
from segadapt.adaptation.run_log import Terminal
from segadapt.adaptation.training import run_training
from segadapt.cli import main
from segadapt.config import Experiment
from segadapt.errors import Stopped
from streets import ROOT, few, tiny

CPU = torch.device("cpu")


class Impatient(Terminal):
    """Somebody who sends a signal when so many steps are shown as done."""

    def __init__(self, steps: int, signum: int) -> None:
        super().__init__()
        self.steps, self.signum = steps, signum

    def advance(self, note: str = "") -> None:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = tiny(few(tmp_path_factory.mktemp("data")))
    return replace(experiment, schedule=replace(experiment.schedule, evaluate_every=2, save_every=0))


@pytest.fixture(scope="module")
def whole(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_training(row_of(experiment, "sim"), run_dir, Machine(CPU, Terminal()), "whole")
    return run_dir


def unmeasured(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_mib")} for line in lines]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("after", [1, 2, 3])  # after step 2 it comes before the evaluation that is due there
def test_a_stopped_training_continues_bit_by_bit(
    signum: int, after: int, experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    sim, before = row_of(experiment, "sim"), signal.getsignal(signum)
    with StopSignals() as signals, pytest.raises(Stopped) as stopped:
        run_training(sim, tmp_path, Machine(CPU, Impatient(after, signum), signals=signals), "stopped")
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is before
    assert [int(path.name.split("-")[0]) for path in saved_states(tmp_path)] == [after]
    run_training(sim, tmp_path, Machine(CPU, Terminal()), "continued")
    assert unmeasured(tmp_path) == unmeasured(whole)
    for name in ("model.safetensors", "selected.safetensors", "best.safetensors"):
        ours, theirs = load_file(tmp_path / name), load_file(whole / name)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_run_that_ends_while_its_best_model_is_saved_continues_bit_by_bit(
    experiment: Experiment, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = row_of(replace(experiment, schedule=replace(experiment.schedule, save_every=2)), "sim")

    def second_signal(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segadapt.adaptation.training.save_network", second_signal)
    with pytest.raises(KeyboardInterrupt):
        run_training(sim, tmp_path, Machine(CPU, Terminal()), "ended in the evaluation of step 2")
    monkeypatch.undo()
    with StopSignals() as signals, pytest.raises(Stopped):
        run_training(sim, tmp_path, Machine(CPU, Impatient(1, signal.SIGTERM), signals=signals), "stopped after step 3")
    for name in ("selected.safetensors", "best.safetensors"):
        assert (tmp_path / name).exists(), "of step 2, which no later one need be better than"
    run_training(sim, tmp_path, Machine(CPU, Terminal()), "continued")
    assert unmeasured(tmp_path) == unmeasured(whole)


def test_the_seconds_of_both_calls_are_counted(experiment: Experiment, tmp_path: Path) -> None:
    sim = row_of(experiment, "sim")
    with StopSignals() as signals, pytest.raises(Stopped):
        run_training(sim, tmp_path, Machine(CPU, Impatient(2, signal.SIGTERM), signals=signals), "stopped")
    first = torch.load(saved_states(tmp_path)[0])["seconds"]
    assert first > 0
    assert run_training(sim, tmp_path, Machine(CPU, Terminal()), "continued")["seconds"] > first


def test_a_damaged_checkpoint_is_passed_over_with_a_message(
    experiment: Experiment, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = row_of(replace(experiment, schedule=replace(experiment.schedule, save_every=1)), "sim")
    with StopSignals() as signals, pytest.raises(Stopped):
        run_training(sim, tmp_path, Machine(CPU, Impatient(3, signal.SIGTERM), signals=signals), "stopped")
    newest = saved_states(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    run_training(sim, tmp_path, Machine(CPU, Terminal()), "continued")
    said = " ".join(capsys.readouterr().err.split())
    assert "damaged" in said
    assert "continuing from 000000002-" in said
    assert unmeasured(tmp_path) == unmeasured(whole)


def test_a_second_signal_acts_at_once() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_the_command_says_how_to_continue(signum: int, code: int, experiment: Experiment, tmp_path: Path) -> None:
    """A real process with a worker, signalled as a whole group, as Ctrl-C and SLURM do."""
    run_dir = tmp_path / "my run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "segadapt", "adapt", f"--config={ROOT}/configs/smoke.yaml"),
            *(f"--{name}.root={getattr(experiment, name).root}" for name in ("source", "target", "test")),
            *(f"--{name}.size=[48,64]" for name in ("source", "target", "test")),
            *("--schedule.steps=100000", "--schedule.log_every=1", "--schedule.workers=1", f"--run_dir={run_dir}"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics, deadline = run_dir / "step1" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 500) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"stopped by {signal.Signals(signum).name}" in said
    assert f"segadapt adapt --resume '{run_dir}'" in said, "as a shell takes it"
    assert "Traceback" not in said
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert int(saved_states(run_dir / "step1")[0].name.split("-")[0]) == steps[-1], "the last step is not lost"


def test_resume_takes_the_experiment_from_the_folder(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with StopSignals() as signals, pytest.raises(Stopped):
        adapt(experiment, run_dir, Machine(CPU, Impatient(3, signal.SIGTERM), signals=signals))
    for wrong, named in (
        (["--resume", str(tmp_path / "other")], "experiment.yaml is missing"),
        (["--resume", str(run_dir), "--seed", "3"], "leave out --config"),
        (["--resume", str(run_dir), "--run_dir", "elsewhere"], "elsewhere is not the folder"),
        ([], "--run_dir: required"),
    ):
        assert main(["adapt", *wrong]) == 2
        assert named in capsys.readouterr().err
    assert main(["adapt", "--resume", str(run_dir), "--json", "--quiet"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((run_dir / "result.json").read_text())
    assert output.err == ""
