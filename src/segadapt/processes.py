"""The processes that torchrun started, as far as anything outside a training step must know of them.

In: tensors or values of this process. Out: those of all processes together. With one process everything is what it was,
and torch.distributed is not touched.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segadapt.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are.

    Args:
        rank: 0 is the one that writes.
        count: 1 without torchrun.
        local_rank: Number on this machine, and so of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def concatenate(self, rows: Tensor) -> Tensor:
        """Rows (R, ...) of all processes, those of rank 0 first; R may differ. Gradients do not pass."""
        if self.count == 1:
            return rows
        length = torch.tensor([len(rows)], device=rows.device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length)
        longest = int(torch.cat(lengths).max())
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        gathered = [torch.zeros_like(padded) for _ in range(self.count)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[: int(n)] for part, n in zip(gathered, lengths, strict=True)])

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def share(self, value: T) -> T:
        """Rank 0's value; every process waits for it."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, values: list[T]) -> list[T]:
        """The values of all processes, those of rank 0 first."""
        if self.count == 1 or not self.largest(len(values)):
            return values
        boxes: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(boxes, values)
        return [value for box in boxes for value in box]

    def largest(self, value: int) -> int:
        """The largest `value` of all processes; by way of the CPU, so a GPU goes on computing."""
        if self.count == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.largest(0)


ONE_PROCESS = Processes()


def started_processes() -> Processes:
    """What the environment of torchrun (RANK, WORLD_SIZE, LOCAL_RANK) says; one process without it.

    Raises:
        InputError: it says only a part of that.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ONE_PROCESS
    said = {
        name: os.environ.get(name, absent) for name, absent in (("RANK", ""), ("WORLD_SIZE", ""), ("LOCAL_RANK", "0"))
    }
    try:
        return Processes(*map(int, said.values()))
    except ValueError:
        raise InputError(
            f"environment: {', '.join(f'{name}={value}' for name, value in said.items())} are no numbers of processes; "
            "start several with torchrun, which sets them, or one with WORLD_SIZE unset"
        ) from None


def join(processes: Processes) -> None:
    """Connect the processes: NCCL between GPUs, gloo for everything on CPUs.

    Raises:
        InputError: the environment does not say where they meet.
    """
    if processes.count > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend)
        except ValueError as error:  # names the variable
            raise InputError(f"environment: {error}; start with torchrun, or set it as docs/scaling.md does") from None


def leave(processes: Processes) -> None:
    """Disconnect, at the end of a command."""
    if processes.count > 1 and dist.is_initialized():
        processes.wait()
        gc.collect()  # networks that still held the group would keep its threads to the end, where they abort
        dist.destroy_process_group()
