"""Several processes do together what one does with their images in one batch; one that fails ends all."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from steps_in_processes import state_after

from segadapt.adaptation.checkpoints import saved_states
from segadapt.adaptation.step import TrainState
from segadapt.cli import main
from segadapt.config import AugmentationConfig, DataConfig
from segadapt.data.loading import training_batches
from segadapt.data.readers import find_pairs
from segadapt.processes import ONE_PROCESS, Processes, started_processes
from streets import ROOT, few

TESTS = ROOT / "tests"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{TESTS}/adaptation"}


def torchrun(count: int, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, f"--nproc_per_node={count}", *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_equal_states(found: dict[str, dict[str, torch.Tensor]], wanted: TrainState) -> None:
    parts = {"segmenter": wanted.segmenter, "discriminator": wanted.discriminator, "bank": wanted.bank}
    for name, module in parts.items():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.fixture(scope="module")
def alone() -> TrainState:
    return state_after(ONE_PROCESS)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_are_one_process_with_the_whole_batch(count: int, alone: TrainState, tmp_path: Path) -> None:
    done = torchrun(count, str(TESTS / "adaptation" / "steps_in_processes.py"), str(tmp_path))
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, said
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(count)]
    assert_equal_states(states[0], alone)
    assert alone.bank.filled.sum() > 10
    for other in states[1:]:
        for part, tensors in states[0].items():
            assert all(torch.equal(other[part][key], value) for key, value in tensors.items()), part


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_is_the_batch(parts: int, alone: TrainState) -> None:
    state = state_after(ONE_PROCESS, parts)
    found = {"segmenter": state.segmenter, "discriminator": state.discriminator, "bank": state.bank}
    assert_equal_states({name: module.state_dict() for name, module in found.items()}, alone)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert started_processes() == ONE_PROCESS
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert started_processes() == Processes(rank=3, count=4, local_rank=1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "2"}, "environment: RANK=, WORLD_SIZE=2, LOCAL_RANK=0 are no numbers"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR expected, but not set; start with torchrun"),
    ],
)
def test_half_an_environment_of_torchrun_is_refused_in_a_line(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--run_dir=nowhere", "--device=cpu"]) == 2
    assert words in capsys.readouterr().err


def test_more_processes_than_devices_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main(["train", "--run_dir=nowhere"]) == 2
    assert "has 2 CUDA devices, and this is its process 3" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few(tmp_path_factory.mktemp("pair"), images=5)


def command(data: Path, run_dir: Path, batch_size: int) -> list[str]:
    return [
        *("-m", "segadapt", "adapt", f"--config={ROOT}/configs/smoke.yaml", f"--run_dir={run_dir}", "--json"),
        *(f"--{name}.root={data}/{part}" for name, part in PARTS),
        *(f"--{name}.size=[48,64]" for name, _ in PARTS),
        *("--network.batch_norm=frozen", f"--schedule.batch_size={batch_size}", "--schedule.steps=4"),
        *("--schedule.save_every=1", "--schedule.log_every=1", "--schedule.evaluate_every=2"),
        *("--optimiser.algorithm=sgd", "--optimiser.learning_rate=0.001", "--device=cpu"),
    ]


PARTS = (("source", "clear"), ("target", "adverse"), ("test", "adverse"))


@pytest.fixture(scope="module")
def two(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole procedure by two processes with one image each."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(2, *command(pair, run_dir, batch_size=1))
    output, said = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert json.loads(output)["images"] == 5, "printed once"
    return run_dir


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_procedure_by_two_processes_is_that_of_one(two: Path, pair: Path, tmp_path: Path) -> None:
    one = tmp_path / "run"
    subprocess.run(
        [sys.executable, *command(pair, one, batch_size=2)], env=ENVIRONMENT, check=True, capture_output=True
    )
    for step in ("step1", "."):
        for ours, theirs in zip(lines(two / step), lines(one / step), strict=True):
            assert ours["step"] == theirs["step"]
            for name in ours.keys() & theirs.keys():
                if name.startswith(("loss/", "matched/")):
                    assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (step, ours["step"], name)
    for name in (path.name for path in (one / "pseudo_labels").glob("*.png")):
        assert (two / "pseudo_labels" / name).exists()
    ours, theirs = (json.loads((run / "pseudo_labels" / "thresholds.json").read_text()) for run in (two, one))
    assert ours["images"] == theirs["images"] == 5
    for name, value in theirs["thresholds"].items():
        assert ours["thresholds"][name] == pytest.approx(value, abs=1e-3)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (two, one))
    assert ours["images"] == theirs["images"] == 5, "no image is counted twice"
    assert ours["miou"] == pytest.approx(theirs["miou"], abs=0.05)


def test_a_killed_process_ends_all_and_the_same_command_continues(two: Path, pair: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    running = torchrun(2, *command(pair, run_dir, batch_size=1))
    deadline = time.monotonic() + 200
    while not saved_states(run_dir / "step1") and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    running.communicate(timeout=200)
    assert running.returncode != 0
    assert not (run_dir / "result.json").exists()

    again = torchrun(2, "-m", "segadapt", "adapt", f"--resume={run_dir}", "--device=cpu")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    for step in ("step1", "."):
        for file in ("model.safetensors", "selected.safetensors", "best.safetensors"):
            ours, theirs = load_file(run_dir / step / file), load_file(two / step / file)
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert [scores(line) for line in lines(run_dir / step)] == [scores(line) for line in lines(two / step)]


def scores(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in ("images_per_second", "memory_mib")}


def test_a_signal_to_one_process_makes_all_save_and_leave(pair: Path, two: Path, tmp_path: Path) -> None:
    """As SLURM starts them: without torchrun, by the environment alone."""
    run_dir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, *command(pair, run_dir, batch_size=1)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 200
    while not saved_states(run_dir / "step1") and time.monotonic() < deadline:
        time.sleep(0.02)
    running[1].send_signal(signal.SIGUSR1)
    said = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [138, 138], said
    assert f"segadapt adapt --resume {run_dir}" in said[0]
    again = torchrun(2, "-m", "segadapt", "adapt", f"--resume={run_dir}", "--device=cpu")
    _, said_again = again.communicate(timeout=300)
    assert again.returncode == 0, said_again
    for step in ("step1", "."):
        assert [scores(line) for line in lines(run_dir / step)] == [scores(line) for line in lines(two / step)]


def test_every_bad_image_is_named_whichever_process_met_it(pair: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pair, tmp_path / "data")
    for path in sorted((data / "clear" / "train" / "images").iterdir())[:3]:
        path.unlink()
        path.write_bytes(b"no image")
    config, met = DataConfig(root=str(data / "clear"), split="train", size=(48, 64)), list[int]()
    images = find_pairs(config, labelled=True)
    alone = training_batches(
        images, images.space, config, AugmentationConfig(), 2, 0, 0, 0, left_out=lambda index, _: met.append(index)
    )
    for _ in range(2):
        next(alone)
    train = command(data, tmp_path / "run", batch_size=1)
    train[2:3] = ["train", "--row=source_only", "--schedule.on_bad_image=skip", "--network.weights=random"]
    done = torchrun(2, *train, "--schedule.steps=2", "--schedule.evaluate_every=0", "--selection.images=0")
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, said
    noted = [line["bad_image"][1] for line in lines(tmp_path / "run") if "bad_image" in line]
    assert noted == list(dict.fromkeys(met)), "as one process with all images notes them"
    assert said.count("left out: ") == len(noted)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bad_images"] == len(noted)


def test_a_process_that_fails_ends_all_with_its_message(pair: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pair, data)
    for path in sorted((data / "clear" / "train" / "images").iterdir())[1:]:
        path.unlink()
        path.write_bytes(b"no image")
    started = time.monotonic()
    done = torchrun(2, *command(data, tmp_path / "run", batch_size=1))
    _, said = done.communicate(timeout=200)
    assert done.returncode != 0
    assert "segadapt: error: " in said
    assert "clear/train/images" in said
    assert time.monotonic() - started < 150, "the others do not wait for it"
