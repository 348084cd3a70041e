"""Jobs in processes of their own: they are done, their errors are said, a signal ends them in order."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.run_log import Terminal
from segadapt.errors import InputError, Stopped
from segadapt.studies.jobs import Job, run_jobs, threads_of

FOLDER = Path(__file__).parent


def leave_a_file(path: Path, machine: Machine) -> str:
    path.write_text(f"{machine.device} {torch.get_num_threads()} {os.getpid()}")
    return "written"


def wait_until_told(path: Path, machine: Machine) -> str:
    path.write_text("begun")
    while True:
        time.sleep(0.05)
        try:
            machine.leave_if_stopped()
        finally:
            if machine.signals.received:
                path.write_text("saved")


def step_slowly(path: Path, machine: Machine) -> str:
    path.write_text(str(os.getpid()))
    while not machine.signals.received:
        time.sleep(0.05)
    time.sleep(1.5)  # the step that is being computed
    path.write_text("saved")
    machine.leave_if_stopped()
    return ""


def never_leave(path: Path, machine: Machine) -> str:
    path.write_text(str(os.getpid()))
    time.sleep(60)
    return ""


def fail(path: Path, machine: Machine) -> str:
    while not path.exists():
        time.sleep(0.05)
    raise InputError("nonsense: is no value")


def quiet_machine() -> Machine:
    return Machine(torch.device("cpu"), Terminal(quiet=True))


def test_each_job_has_a_process_and_its_share_of_the_threads(tmp_path: Path) -> None:
    jobs = [Job(str(number), partial(leave_a_file, tmp_path / str(number))) for number in range(3)]
    run_jobs(jobs, 2, quiet_machine())
    found = [(tmp_path / str(number)).read_text().split() for number in range(3)]
    assert len({pid for _, _, pid in found} | {str(os.getpid())}) == 4
    share = str(max(1, torch.get_num_threads() // 2))
    assert [(device, threads) for device, threads, _ in found] == [("cpu", share)] * 3


def test_one_at_a_time_needs_no_process(tmp_path: Path) -> None:
    with threads_of(4):
        run_jobs([Job("0", partial(leave_a_file, tmp_path / "0"))], 2, quiet_machine())
        assert torch.get_num_threads() == 4
    # as many threads as it has beside another job: torch rounds by their number
    assert (tmp_path / "0").read_text().split()[1:] == ["2", str(os.getpid())]


def test_an_error_names_its_job_and_the_others_save(tmp_path: Path) -> None:
    jobs = [
        Job("the long one", partial(wait_until_told, tmp_path / "long")),
        Job("the wrong one", partial(fail, tmp_path / "long")),
        Job("the next one", partial(leave_a_file, tmp_path / "next")),
    ]
    with pytest.raises(InputError, match="the wrong one: nonsense: is no value"):
        run_jobs(jobs, 2, quiet_machine())
    assert (tmp_path / "long").read_text() == "saved"
    assert not (tmp_path / "next").exists()


def end_abruptly(machine: Machine) -> str:
    os._exit(7)


def test_a_job_that_is_killed_is_named() -> None:
    jobs = [Job("the killed one", end_abruptly), Job("the other one", end_abruptly)]
    with pytest.raises(InputError, match="one: its process ended with exit code 7"):
        run_jobs(jobs, 2, quiet_machine())


def end_by(signum: int, machine: Machine) -> str:
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    return ""


@pytest.mark.parametrize(
    ("signum", "said"),
    [(signal.SIGKILL, r"killed \(SIGKILL\).* memory .*fewer --jobs"), (signal.SIGTERM, "ended by SIGTERM before")],
)
def test_a_job_that_a_signal_ended_says_so(signum: int, said: str) -> None:
    with pytest.raises(InputError, match=f"one: its process was {said}"):
        run_jobs([Job("one", partial(end_by, signum))] * 2, 2, quiet_machine())


def leave_alone(machine: Machine) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    machine.leave_if_stopped()
    return ""


def test_a_job_that_was_asked_by_another_stops_all(tmp_path: Path) -> None:
    jobs = [Job("a", leave_alone), Job("b", partial(wait_until_told, tmp_path / "b"))]
    with pytest.raises(Stopped):
        run_jobs(jobs, 2, quiet_machine())
    assert not (tmp_path / "b").exists() or (tmp_path / "b").read_text() == "saved"


STOPPED = """
import sys
from functools import partial
from pathlib import Path
import torch
from segadapt.adaptation.machine import Machine, StopSignals
from segadapt.adaptation.run_log import Terminal
from segadapt.errors import Stopped
from segadapt.studies.jobs import Job, run_jobs
import test_jobs

if __name__ == "__main__":
    jobs = [Job(name, partial(getattr(test_jobs, sys.argv[1]), Path(name))) for name in ("a", "b")]
    Path("main").touch()
    with StopSignals() as signals:
        try:
            run_jobs(jobs, 2, Machine(torch.device("cpu"), Terminal(quiet=True), signals=signals))
        except Stopped as stopped:
            sys.exit(stopped.signum)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_in_order(tmp_path: Path, signum: int) -> None:
    process, files = started(tmp_path, wait_until_told), [tmp_path / "a", tmp_path / "b"]
    until(lambda: all(file.exists() for file in files))
    os.killpg(process.pid, signum)  # as Ctrl-C does; even one that cannot be caught does not leave jobs behind
    assert process.wait(60) == (signum if signum == signal.SIGINT else -signum)
    until(lambda: [file.read_text() for file in files] == ["saved", "saved"])


def test_a_signal_to_every_process_is_one_request_to_each(tmp_path: Path) -> None:
    process, files = started(tmp_path, step_slowly), [tmp_path / "a", tmp_path / "b"]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    for pid in (process.pid, *(int(file.read_text()) for file in files)):  # as scancel and systemd do
        os.kill(pid, signal.SIGTERM)
    assert process.wait(60) == signal.SIGTERM
    assert [file.read_text() for file in files] == ["saved", "saved"]


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    process, files = started(tmp_path, never_leave), [tmp_path / "a", tmp_path / "b"]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1)
    assert process.wait(30) == -signal.SIGINT
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_ctrl_c_while_processes_start_says_nothing(tmp_path: Path) -> None:
    process = started(tmp_path, wait_until_told)
    until(lambda: (tmp_path / "main").exists())
    time.sleep(0.7)  # they import torch
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == signal.SIGINT
    assert (tmp_path / "said").read_text() == ""
    assert all(file.read_text() == "saved" for file in (tmp_path / "a", tmp_path / "b") if file.exists())


def started(folder: Path, call) -> subprocess.Popen[bytes]:
    """A process of its own, in `folder`, that does two jobs at once."""
    (folder / "main.py").write_text(STOPPED)
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "main.py", call.__name__],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])},
            stderr=said,
            start_new_session=True,
        )


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
