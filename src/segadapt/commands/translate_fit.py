"""`segadapt translate fit`: a generator that gives source images the target's style."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_machine, machine_of
from segadapt.config import CycleGanConfig

EXAMPLE = (
    "segadapt translate fit --source data/streets/clear/train --target data/streets/adverse/train "
    "--run_dir runs/translation"
)


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("--config", action="config", help="YAML file with these options")
    command.add_argument("--source", type=str, required=True, help="folder of images, or one with images/ in it")
    command.add_argument("--target", type=str, required=True, help="the same of the target")
    command.add_argument("--run_dir", type=str, required=True, help="run folder")
    command.add_argument("--seed", type=int, default=0, help="of every random choice")
    command.add_class_arguments(CycleGanConfig, None)
    add_machine(command)


def run(options: Namespace) -> int:
    """Train, and say where the generator is."""
    from segadapt.adaptation.fit_translation import GENERATOR_FILE, fit_translation, images_in

    config = CycleGanConfig(**{name: options[name] for name in CycleGanConfig.__dataclass_fields__})
    source, target = images_in("source", options.source), images_in("target", options.target)
    run_dir = Path(options.run_dir)
    with machine_of(options) as machine:
        result = fit_translation(config, source, target, options.seed, run_dir, machine)
        if not machine.processes.is_first:
            return 0
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    drift = f"; label drift {100 * result['label_drift']:.1f} %" if "label_drift" in result else ""
    print(f"{run_dir / GENERATOR_FILE}: cycle loss {result['loss/cycle']:.3f}{drift}")
    return 0
