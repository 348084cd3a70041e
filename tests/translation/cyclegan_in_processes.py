"""Steps of CycleGAN with this process's share of a fixed batch; test_cyclegan_processes starts this under torchrun."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from segadapt.config import CycleGanConfig
from segadapt.processes import Processes, join, leave, started_processes
from segadapt.translation.cyclegan_step import CycleGanState, cyclegan_step, new_state

IMAGES, STEPS = 4, 2
CONFIG = CycleGanConfig(crop=None, filters=4, blocks=1, pool_size=6)


def share_of(seed: int, processes: Processes) -> Tensor:
    """The images of this process, of a batch of four."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=random)
    return images.tensor_split(processes.count)[processes.rank]


def gradients(state: CycleGanState) -> list[Tensor]:
    """Of all four networks, as the last step left them."""
    networks = (state.to_target, state.to_source, state.target_discriminator, state.source_discriminator)
    found = [parameter.grad for network in networks for parameter in network.parameters()]
    return [gradient.clone() for gradient in found if gradient is not None]


def states_after(processes: Processes) -> tuple[list[Tensor], CycleGanState]:
    """Gradients of the first step, and the state after the last."""
    state = new_state(CONFIG, None, 0, torch.device("cpu"), processes)
    first: list[Tensor] = []
    for step in range(STEPS):
        cyclegan_step(state, share_of(2 * step, processes), share_of(2 * step + 1, processes))
        first = first or gradients(state)
    return first, state


if __name__ == "__main__":
    here = started_processes()
    join(here)
    first, state = states_after(here)
    torch.save({"first": first, "state": state.state_dict()}, Path(sys.argv[1]) / f"rank{here.rank}.pt")
    leave(here)
