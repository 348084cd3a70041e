"""`segadapt evaluate`: a model's scores."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, add_switch, machine_of, print_scores
from segadapt.config import DataConfig

EXAMPLE = "segadapt evaluate --model runs/smoke/model.safetensors --data.root data/streets/adverse --data.split val"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("--config", action="config", help="YAML file with these options")
    command.add_argument("--model", type=str, required=True, help="model.safetensors of a run")
    command.add_class_arguments(DataConfig, "data")
    add_switch(command, "--restricted_argmax", "score subsets by the best of their own classes")
    command.add_argument("--workers", type=int, default=0, help="processes that read images; 0: this one")
    add_machine(command)


def run(options: Namespace) -> int:
    """Score and print."""
    from segadapt.adaptation.apply_model import evaluate_model

    with machine_of(options) as machine:
        result = evaluate_model(Path(options.model), options.data, machine, options.restricted_argmax, options.workers)
        if machine.processes.is_first:
            print_scores(result, options.json)
    return 0
