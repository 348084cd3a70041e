"""`segadapt recalibrate`: AdaBN on unlabelled images."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, device_of, terminal_of
from segadapt.errors import InputError

EXAMPLE = "segadapt recalibrate runs/smoke/model.safetensors my_photos --out my_model.safetensors"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("model", type=str, help="model.safetensors of a run")
    command.add_argument("folder", type=str, help="folder of images, with all its sub-folders; labels are not needed")
    command.add_argument("--out", type=str, required=True, help="the recalibrated model, a .safetensors file")
    add_machine(command)


def run(options: Namespace) -> int:
    """Recalibrate and say on what."""
    from segadapt.networks.weights import load_network
    from segadapt.prediction.recalibrate import FROZEN_WARNING, images_at, recalibrate, save_recalibrated
    from segadapt.prediction.segmenter import tested_size_of
    from segadapt.prediction.sources import find_images

    model, out = Path(options.model), Path(options.out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out: '{out}' must end in .safetensors, as files of models do")
    network = load_network(model).to(device_of(options))
    images = find_images(options.folder)
    with terminal_of(options) as terminal:
        if network.config.batch_norm == "frozen":
            terminal.say(FROZEN_WARNING)
        terminal.start_progress("recalibrate", len(images))
        count = recalibrate(network, images_at(images, tested_size_of(model), terminal.advance))
    save_recalibrated(model, network, options.folder, count, out)
    if options.json:
        print(json.dumps({"out": str(out), "images": count}))
    else:
        print(f"{out}: batch-norm statistics of {count} images")
    return 0
