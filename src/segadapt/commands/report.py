"""`segadapt report`: an HTML page about finished, or running, trainings."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, device_of, terminal_of

EXAMPLE = "segadapt report runs/ablation --out report.html"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("run_dirs", type=str, nargs="+", help="run folders of train, adapt, ablate or sweep")
    command.add_argument("--out", type=str, default="", help="the page; default: report.html in the first folder")
    command.add_argument("--pictures", type=int, default=4, help="test images to show; 0: do not run the models")
    add_machine(command)


def run(options: Namespace) -> int:
    """Write the page and say where it is."""
    from segadapt.errors import InputError
    from segadapt.output.report import write_report

    if options.pictures < 0:
        raise InputError(f"pictures: {options.pictures} is negative; use 0 or more")
    run_dirs = [Path(folder) for folder in options.run_dirs]
    out = Path(options.out) if options.out else run_dirs[0] / "report.html"
    device = device_of(options)
    with terminal_of(options) as terminal:
        path = write_report(run_dirs, out, device, terminal, options.pictures)
    print(json.dumps({"report": str(path), "bytes": path.stat().st_size}) if options.json else f"{path}")
    return 0
