"""Where a training runs and who may end it: the device, the processes, the terminal, the signals.

Nothing in here changes a result.
"""

import ctypes
import signal
from dataclasses import dataclass, field
from types import FrameType, TracebackType

import torch

from segadapt.adaptation.run_log import Terminal
from segadapt.errors import Stopped
from segadapt.processes import ONE_PROCESS, Processes

# SIGUSR1 is what SLURM's `--signal=USR1@60` sends before it takes the machine away
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Remembers a signal to stop until the training is at a place where it can; a second one acts at once.

    Used as a context; outside it signals do what they did before.
    """

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        for signum in SIGNALS:
            self.before[signum] = signal.signal(signum, self.receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def receive(self, signum: int, _frame: FrameType | None) -> None:
        """The handler."""
        self.received = signum
        # not what it did before: a shell that starts a program in the background has SIGINT ignored
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


@dataclass(frozen=True)
class Machine:
    """What a run is given besides its experiment.

    Args:
        device: Where to compute.
        terminal: Shows progress.
        processes: That train together.
        signals: To stop.
    """

    device: torch.device
    terminal: Terminal
    processes: Processes = ONE_PROCESS
    signals: StopSignals = field(default_factory=StopSignals)

    def leave_if_stopped(self) -> None:
        """Where it is safe to leave: all processes do if one of them was told to.

        Raises:
            Stopped: with the signal.
        """
        signum = self.processes.largest(self.signals.received)
        if signum:
            raise Stopped(signum)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next training step instead of returning them to the system.

    A step on the CPU frees and allocates the same hundreds of megabytes; fetching them from the system anew each time,
    page by page, made a step at 288x384 six times slower where page faults are dear (virtual machines).
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: nothing to set
        return
    mallopt(trim_threshold, -1)  # never trim
    mallopt(mmap_max, 0)  # never map a block of its own, which would be unmapped when freed
