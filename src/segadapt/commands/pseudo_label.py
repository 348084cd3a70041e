"""`segadapt pseudo-label`: Eq. (9) on its own."""

import json
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, machine_of
from segadapt.config import DataConfig, OnBadImage, PseudoLabelConfig

EXAMPLE = "segadapt pseudo-label --model runs/smoke/model.safetensors --data.root my_images --out labels"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("--config", action="config", help="YAML file with these options")
    command.add_argument("--model", type=str, required=True, help="model.safetensors of a run")
    command.add_class_arguments(DataConfig, "data")
    command.add_class_arguments(PseudoLabelConfig, "pseudo_labels", skip={"override", "model", "init_from"})
    command.add_argument(
        "--on_bad_image", type=OnBadImage, default="fail", help="skip: no label map of an image that cannot be read"
    )
    command.add_argument("--out", type=str, required=True, help="folder for the label maps")
    command.add_argument("--workers", type=int, default=0, help="processes that read images; 0: this one")
    add_machine(command)


def run(options: Namespace) -> int:
    """Label the images and say where the labels are."""
    from segadapt.adaptation.apply_model import at_size_of, pseudo_label

    out = Path(options.out)
    with machine_of(options) as machine:
        model, labelling = Path(options.model), options.pseudo_labels
        data = at_size_of(model, options.data)
        report = pseudo_label(model, data, labelling, options.workers, out, machine, options.on_bad_image)
        if machine.processes.is_first:
            print(json.dumps(asdict(report), indent=1) if options.json else f"{out}: label maps and thresholds.json")
    return 0
