"""Several pieces of work at once, each in a process of its own, on the cores and GPUs of this machine.

In: jobs and how many at once. Out: nothing but what the jobs write. A signal, or a job that fails, stops the others in
order: each saves what it has and leaves. They are asked through a pipe, not by a signal: whoever signals all processes
has signalled each job already, and a second signal would end it before it has saved.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
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
        machine: Where; a job has its share of the threads, be it alone or not, and of several GPUs each process has
            one.

    Raises:
        InputError: what a job says is wrong, with its name.
        Stopped: a signal asked to leave.
    """
    if min(at_once, len(jobs)) < 2:
        with threads_of(share_of_threads(at_once)):
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
            machine.leave_if_stopped()  # before a job that the same signal ended is taken for one that failed
            for slot, worker in list(running.items()):
                if worker.process.exitcode is not None:
                    del running[slot]
                    machine.terminal.say(f"{worker.job.name}: {worker.outcome()}")
                    machine.terminal.advance()
    finally:
        for worker in running.values():
            worker.ask.close()
        try:
            for worker in running.values():
                worker.process.join()
        except KeyboardInterrupt:  # a second Ctrl-C, which does not wait
            for worker in running.values():
                worker.process.kill()
            raise
        for worker in running.values():
            if (worker.process.exitcode or 0) < 0:
                machine.terminal.say(f"{worker.job.name}: {ending(worker.process.exitcode)}")
        machine.terminal.finish_progress()


@dataclass(frozen=True)
class Worker:
    """A process that does a job.

    Args:
        job: The job.
        process: The process.
        said: What it has to say, once it has ended.
        ask: Closed, by this process or with it, it asks the worker to save and leave.
    """

    job: Job
    process: SpawnProcess
    said: Connection
    ask: Connection

    def outcome(self) -> str:
        """What came of the job.

        Raises:
            InputError: it failed.
            Stopped: somebody asked it to leave, and it has saved.
        """
        code = self.process.exitcode
        try:
            text = self.said.recv()
        except EOFError:  # it was killed, or ended by an error of the program, which Python has printed
            text = ending(code)
        if code and code > 128:
            raise Stopped(code - 128)
        if code:
            raise InputError(f"{self.job.name}: {text}")
        return text


def ending(code: int | None) -> str:
    """How a process ended that said nothing, and what to do."""
    if code is None or code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return f"its process was killed ({name}), as the system does when memory is full; use fewer --jobs"
    return f"its process was ended by {name} before it could save; the same command continues from the last checkpoint"


def start(job: Job, slot: int, at_once: int, device: torch.device) -> Worker:
    """Begin a job in a process of its own."""
    if device.type == "cuda":
        device = torch.device("cuda", slot % torch.cuda.device_count())
    threads = share_of_threads(at_once)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    asked, ask = context.Pipe(duplex=False)
    deterministic = torch.are_deterministic_algorithms_enabled()
    process = context.Process(target=work, args=(job, device, threads, deterministic, send, asked), name=job.name)
    resource_tracker.ensure_running()  # which multiprocessing starts with the first process, and unblocks SIGINT then
    with ctrl_c_waits():  # for the child too, until it is ready
        process.start()
    send.close()
    asked.close()
    return Worker(job, process, receive, ask)


def share_of_threads(at_once: int) -> int:
    """Of each of so many jobs; torch rounds by their number, so that it does not depend on who else is at work."""
    return max(1, torch.get_num_threads() // at_once)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Lets torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Holds SIGINT back, here and in processes that are started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(
    job: Job, device: torch.device, threads: int, deterministic: bool, said: Connection, asked: Connection
) -> None:
    """What the process does."""
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which then asks its children
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(deterministic)
    keep_freed_memory()
    try:
        with StopSignals() as signals, Terminal(quiet=True) as terminal:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if asked.poll():
                raise Stopped(signal.SIGTERM)
            threading.Thread(target=leave_when_asked, args=(asked, signals), daemon=True).start()
            said.send(job.call(Machine(device, terminal, signals=signals)))
    except (InputError, NonFiniteLossError, OSError) as error:
        said.send(str(error))
        raise SystemExit(FAILED) from None
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signum) from None


def leave_when_asked(asked: Connection, signals: StopSignals) -> None:
    """Have the job end in order when its parent asks it to, or is gone."""
    asked.poll(None)  # nothing is ever sent: it ends when the other end is closed
    signals.received = signals.received or signal.SIGTERM
