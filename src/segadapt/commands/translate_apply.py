"""`segadapt translate apply`: a folder of images in the style of another."""

import json
import re
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, machine_of
from segadapt.config import FolderTranslation
from segadapt.errors import InputError

EXAMPLE = (
    "segadapt translate apply --method fourier --source data/streets/clear/train "
    "--target data/streets/adverse/train --out runs/clear_as_adverse"
)


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("--config", action="config", help="YAML file with these options")
    command.add_argument("--source", type=str, required=True, help="folder of images, or one with images/ in it")
    command.add_argument("--target", type=str, default="", help="the same of the target; not for cyclegan")
    command.add_argument("--out", type=str, required=True, help="folder for the translated images")
    command.add_class_arguments(FolderTranslation, None)
    command.add_argument("--segmenter", type=str, default="", help="model.safetensors that measures the label drift")
    command.add_argument("--shard", type=str, default="1/1", help="2/4: the second of four parts of the images")
    add_machine(command)


def run(options: Namespace) -> int:
    """Translate, and say how many images there are."""
    from segadapt.adaptation.apply_translation import Shard, apply_translation
    from segadapt.adaptation.fit_translation import images_in
    from segadapt.networks.weights import load_network

    translation = FolderTranslation(**{name: options[name] for name in FolderTranslation.__dataclass_fields__})
    shard = Shard(*shard_of(options.shard))
    source = images_in("source", options.source)
    target = images_in("target", options.target) if options.target else None
    with machine_of(options) as machine:
        segmenter = load_network(options.segmenter).to(machine.device) if options.segmenter else None
        result = apply_translation(translation, source, target, Path(options.out), machine, shard, segmenter)
        if not machine.processes.is_first:
            return 0
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    drift = f"; label drift of those now {100 * result['label_drift']:.1f} %" if "label_drift" in result else ""
    print(f"{result['out']}: {result['translated']} images translated, {result['skipped']} were there{drift}")
    return 0


def shard_of(text: str) -> tuple[int, int]:
    """Number, from 0, and count of '2/4'.

    Raises:
        InputError: it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard: '{text}' is no part; use 1/4, 2/4, 3/4 and 4/4 for four of them")
    return int(match[1]) - 1, int(match[2])
