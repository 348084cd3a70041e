"""`segadapt adapt`: the whole two-step procedure."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import (
    add_experiment,
    add_machine,
    device_of,
    experiment_of,
    print_scores,
    terminal_of,
)

EXAMPLE = "segadapt adapt --config configs/smoke.yaml --run_dir runs/smoke"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    add_machine(command)
    command.add_argument("--run_dir", type=str, required=True, help="run folder")


def run(options: Namespace) -> int:
    """Adapt and print the scores."""
    from segadapt.adaptation.procedure import adapt

    experiment, run_dir, device = experiment_of(options), Path(options.run_dir), device_of(options)
    with terminal_of(options) as terminal:
        result = adapt(experiment, run_dir, device, terminal)
    print_scores(result, options.json)
    return 0
