"""`segadapt export`: a model as a program for other programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_switch, terminal_of
from segadapt.errors import InputError

EXAMPLE = "segadapt export runs/smoke/model.safetensors --to onnx --out model.onnx"
BUNDLED_IMAGES = "data/streets/adverse/val/images"
CHECKED_IMAGES = 8


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("model", type=str, help="model.safetensors of a run")
    command.add_argument("--to", type=Literal["onnx", "torch-export"], required=True, help="format of the file")
    command.add_argument("--out", type=str, required=True, help="file to write")
    command.add_argument(
        "--images",
        type=str,
        default=BUNDLED_IMAGES,
        help=f"folder of images; on {CHECKED_IMAGES} of them the file is compared with the model before it is written",
    )
    add_switch(command, "--quiet", "no progress, only results and errors")
    add_switch(command, "--json", "print the result as JSON")


def run(options: Namespace) -> int:
    """Export, compare, write, and say how well it agrees."""
    from segadapt.data.transforms import resize_image
    from segadapt.networks.weights import load_network
    from segadapt.prediction.export import agreement, describe, export, refuse_disagreement, run_of
    from segadapt.prediction.pictures import read_srgb
    from segadapt.prediction.segmenter import tested_size_of
    from segadapt.prediction.sources import find_images
    from segadapt.whole_file import whole_file

    out, folder = Path(options.out), Path(options.images)
    if out.resolve() == Path(options.model).resolve():
        raise InputError(f"--out: '{out}' is the model itself; name another file")
    if not folder.is_dir():
        raise InputError(f"--images: '{folder}' is no folder; name one with images to compare the file with the model")
    paths = find_images(options.images)
    network, size = load_network(options.model), tested_size_of(options.model)
    with terminal_of(options) as terminal:
        terminal.say(f"exporting {network.config.backbone} to {options.to}")
        content = export(network, options.to, describe(network, size))
        chosen = paths[:: max(1, len(paths) // CHECKED_IMAGES)][:CHECKED_IMAGES]
        images = [read_srgb(path) for path in chosen]
        images = [resize_image(image, size or (image.shape[0], image.shape[1])) for image in images]
        terminal.start_progress("compare", len(images))
        found = agreement(network, run_of(content, options.to), images, terminal.advance)
    refuse_disagreement(found, options.to)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        file.write(content)
    if options.json:
        print(json.dumps({"out": str(out), "bytes": len(content), "agreement": asdict(found)}, indent=1))
    else:
        print(
            f"{out}: {len(content) / 1e6:.1f} MB, agrees with the model on {100 * found.mean:.3f} % of the pixels of "
            f"{found.images} images ({100 * found.worst:.3f} % in the worst)"
        )
    return 0
