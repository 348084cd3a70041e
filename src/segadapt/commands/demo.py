"""`segadapt demo`: `ablate` on the bundled pair."""

from jsonargparse import ArgumentParser

from segadapt.commands import ablate

EXAMPLE = "segadapt demo --config configs/demo.yaml"
run = ablate.run


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    ablate.add_options(command, "runs/demo")
