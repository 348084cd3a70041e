"""`segadapt predict`: label maps of images and videos."""

import json
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, add_switch, device_of, terminal_of
from segadapt.prediction import View

EXAMPLE = "segadapt predict runs/smoke/model.safetensors my_photos --out predicted --overlay"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("model", type=str, help="model.safetensors of a run")
    command.add_argument("inputs", type=str, nargs="+", help="images, folders, patterns in quotes, videos")
    command.add_argument("--out", type=str, required=True, help="folder for the results; what is there is kept")
    add_switch(command, "--overlay", "the photographs under the colours of their classes as well")
    add_switch(command, "--confidence", "the probability of the predicted class as well, as 16-bit PNG")
    add_switch(command, "--probabilities", "the probability of every class as well, a 16-bit PNG each")
    command.add_argument(
        "--view",
        type=View,
        default="auto",
        help="whole: images resized to the size the model was tested at, as evaluate does; windows: windows of that "
        "size over each image at its own; auto: whole, but windows where resizing would change the shape by a quarter",
    )
    command.add_argument("--batch_size", type=int, default=4, help="images, or windows, the network sees at a time")
    add_machine(command)


def run(options: Namespace) -> int:
    """Label the images and say where the labels are."""
    from segadapt.prediction.folder import Wanted, predict_folder
    from segadapt.prediction.segmenter import Segmenter

    model, out = Path(options.model), Path(options.out)
    wanted = Wanted(options.overlay, options.confidence, options.probabilities)
    segmenter = Segmenter.load(model, device_of(options), options.view, options.batch_size)
    with terminal_of(options) as terminal:
        summary = predict_folder(
            model, segmenter, options.inputs, out, wanted, terminal.start_progress, terminal.advance, terminal.say
        )
    if options.json:
        print(json.dumps({"out": str(out), **asdict(summary)}, indent=1))
    else:
        there = summary.images - summary.predicted
        print(f"{out / 'labels'}: {summary.images} label maps, {summary.predicted} of them new, {there} were there")
    return 0
