"""Several pieces of work at once, each in a process of its own, on the cores and GPUs of this machine.

In: jobs and how many at once. Out: nothing but what the jobs write. A signal, or a job that fails, stops the others in
order: each saves what it has and leaves.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from segadapt.adaptation.machine import Machine, StopSignals, keep_freed_memory
from segadapt.adaptation.run_log import Terminal
from segadapt.errors import InputError, NonFiniteLossError, Stopped

POLL_SECONDS = 0.5  # between looks at the signals
FAILED = 2


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Args:
        name: For messages.
        call: Does it, on the machine it is given, and says in a word what came of it. It can be pickled.
    """

    name: str
    call: Callable[[Machine], str]


def run_jobs(jobs: Sequence[Job], at_once: int, machine: Machine) -> None:
    """Do all jobs.

    Args:
        jobs: In the order in which they are begun.
        at_once: Processes; with one, or a single job, this process does the work.
        machine: Where; its threads are shared out, and of several GPUs each process has one.

    Raises:
        InputError: what a job says is wrong, with its name.
        Stopped: a signal asked to leave.
    """
    if min(at_once, len(jobs)) < 2:
        for job in jobs:
            machine.terminal.say(f"{job.name}: {job.call(machine)}")
        return
    waiting = deque(jobs)
    running: dict[int, Worker] = {}
    machine.terminal.start_progress("jobs", len(jobs))
    try:
        while waiting or running:
            machine.leave_if_stopped()
            for slot in range(min(at_once, len(running) + len(waiting))):
                if slot not in running and waiting:
                    running[slot] = start(waiting.popleft(), slot, at_once, machine.device)
            wait([worker.process.sentinel for worker in running.values()], POLL_SECONDS)
            for slot, worker in list(running.items()):
                if worker.process.exitcode is not None:
                    del running[slot]
                    machine.terminal.say(f"{worker.job.name}: {worker.outcome()}")
                    machine.terminal.advance()
    finally:
        for worker in running.values():
            worker.process.terminate()  # which a training takes as the wish to save and leave
        for worker in running.values():
            worker.process.join()
        machine.terminal.finish_progress()


@dataclass(frozen=True)
class Worker:
    """A process that does a job.

    Args:
        job: The job.
        process: The process.
        said: What it has to say, once it has ended.
    """

    job: Job
    process: SpawnProcess
    said: Connection

    def outcome(self) -> str:
        """What came of the job.

        Raises:
            InputError: it failed.
        """
        try:
            text = self.said.recv()
        except EOFError:  # it was killed, or ended by an error of the program, which Python has printed
            text = f"its process ended with exit code {self.process.exitcode}"
        if self.process.exitcode:
            raise InputError(f"{self.job.name}: {text}")
        return text


def start(job: Job, slot: int, at_once: int, device: torch.device) -> Worker:
    """Begin a job in a process of its own."""
    if device.type == "cuda":
        device = torch.device("cuda", slot % torch.cuda.device_count())
    threads = max(1, torch.get_num_threads() // at_once)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    deterministic = torch.are_deterministic_algorithms_enabled()
    process = context.Process(target=work, args=(job, device, threads, deterministic, send), name=job.name)
    process.start()
    send.close()
    return Worker(job, process, receive)


def work(job: Job, device: torch.device, threads: int, deterministic: bool, said: Connection) -> None:
    """What the process does."""
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which then asks its children once
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(deterministic)
    keep_freed_memory()
    try:
        with StopSignals() as signals, Terminal(quiet=True) as terminal:
            said.send(job.call(Machine(device, terminal, signals=signals)))
    except (InputError, NonFiniteLossError, OSError) as error:
        said.send(str(error))
        raise SystemExit(FAILED) from None
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signum) from None


def leave_with_parent() -> None:
    """End this process in order when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
