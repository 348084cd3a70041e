"""The command line: one function a command. torch is imported only after the arguments were found right.

Exit codes: 0 done; 2 wrong input, said in one line; 130 interrupted.
"""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from segadapt.config import DataConfig, Experiment, PseudoLabelConfig
from segadapt.errors import InputError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
ROWS = ("source_only", "adabn", "adversarial", "sim", "sim_ssl", "target_only")
TRAIN_ROWS = tuple(row for row in ROWS if row != "sim_ssl")  # that one takes the whole procedure: adapt
SETTINGS = ("lambda_ci", "w")
DEMO_ROWS = ("source_only", "adversarial", "sim", "sim_ssl", "target_only")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        parser, commands = build_parser()
        refuse_wrong_config_files(arguments, commands)
        options = parser.instantiate(parser.parse_args(arguments))
        code = COMMANDS[options.subcommand](options[options.subcommand])
        sys.stdout.flush()  # here, where a closed pipe is still an exception
        return code
    except BrokenPipeError:  # who read our output has gone, as `| head` does; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ArgumentError, InputError, OSError) as error:
        line = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
        print(f"segadapt: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "segadapt: interrupted; the same command continues from the last checkpoint (schedule.save_every), "
            "or starts this training again if there is none",
            file=sys.stderr,
        )
        return 130


def build_parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The whole command line, and each command's own options."""
    parser = ArgumentParser(
        prog="segadapt", description=__doc__, exit_on_error=False, allow_abbrev=False, version=version()
    )
    commands: dict[str, ArgumentParser] = {}
    for name, text in (
        ("train", "Train one row of the method: source only, AdaBN, adversarial, SIM or target only."),
        ("adapt", "The whole procedure: step 1, pseudo-labels, step 2, evaluation."),
        ("ablate", "The rows of the paper's Table 2 over seeds: a table and pictures."),
        ("demo", "'ablate' on the bundled pair of street scenes."),
        ("sweep", "Tables 3 and 4 of the paper: step 1 with other values of lambda_ci or w, over seeds."),
    ):
        command = commands[name] = ArgumentParser(description=text, exit_on_error=False, allow_abbrev=False)
        command.add_argument("--config", action="config", help="YAML file of the experiment")
        command.add_class_arguments(Experiment, None)
        add_machine_options(command)
        if name == "train":
            command.add_argument("--row", type=Literal[TRAIN_ROWS], default="sim", help="row to train")
        if name in ("ablate", "demo", "sweep"):
            command.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
        if name in ("ablate", "demo"):
            command.add_argument(
                "--rows", type=Literal[ROWS], nargs="+", default=list(DEMO_ROWS), help="rows of the table"
            )
        if name == "sweep":
            command.add_argument("--setting", type=Literal[SETTINGS], required=True, help="what is varied")
            command.add_argument("--values", type=float, nargs="+", default=[], help="default: those of the paper")
        default = "runs/demo" if name == "demo" else None
        command.add_argument("--run_dir", type=str, default=default, required=default is None, help="run folder")

    for name, text in (
        ("pseudo-label", "Label images with a model's confident predictions, Eq. (9)."),
        ("evaluate", "Score a model on labelled images."),
    ):
        command = commands[name] = ArgumentParser(description=text, exit_on_error=False, allow_abbrev=False)
        command.add_argument("--config", action="config", help="YAML file with these options")
        command.add_argument("--model", type=str, required=True, help="model.safetensors of a run")
        command.add_class_arguments(DataConfig, "data")
        if name == "pseudo-label":
            command.add_class_arguments(PseudoLabelConfig, "pseudo_labels", skip={"override", "model"})
            command.add_argument("--out", type=str, required=True, help="folder for the label maps")
        else:
            command.add_argument("--json", type=bool, default=False, help="print JSON instead of a table")
            command.add_argument(
                "--restricted_argmax", type=bool, default=False, help="score subsets by the best of their own classes"
            )
        add_machine_options(command)

    text = "List the public files of weights, or say what given files are. Nothing is downloaded."
    command = commands["weights"] = ArgumentParser(description=text, exit_on_error=False, allow_abbrev=False)
    command.add_argument("files", type=str, nargs="*", help="files to identify")

    subcommands = parser.add_subcommands(required=True)
    for name, command in commands.items():
        subcommands.add_subcommand(name, command, help=command.description)
    return parser, commands


def refuse_wrong_config_files(arguments: list[str], commands: dict[str, ArgumentParser]) -> None:
    """Check every `--config FILE` on its own: once mixed with the other options, nothing says where one came from.

    Raises:
        InputError: names the file and the key.
    """
    command = commands.get(arguments[0]) if arguments else None
    if command is None:
        return  # the parser says so
    config_option = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config_option.add_argument("--config", action="append", default=[])
    for path in config_option.parse_known_args(arguments)[0].config:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: no YAML that can be read ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds no options; write 'name: value' lines, as the files in configs/")
        options = Namespace()
        for name, value in dotted(content):
            if name in (command.groups or ()):
                raise InputError(f"{path}: {name}: no options; write '{name}: {{name: value}}'")
            options[name] = value
        try:
            command.validate(options, skip_required=True)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: {error}") from None


def dotted(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries with the names that options have on the command line."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def add_machine_options(command: ArgumentParser) -> None:
    """Options that do not belong to the experiment."""
    command.add_argument("--device", type=Device, default="auto", help="auto: the GPU if there is one")
    command.add_argument("--deterministic", type=bool, default=False, help="the same run twice, at some speed")


def train(options: Namespace) -> int:
    """`segadapt train`."""
    from segadapt.adaptation.procedure import row_of, run_training, warm_up
    from segadapt.adaptation.run_log import Terminal

    experiment, run_dir, device = experiment_of(options), Path(options.run_dir), machine(options)
    with Terminal() as terminal:
        if options.row in ("adversarial", "sim"):
            experiment = warm_up(experiment, run_dir / "warm_up", device, terminal)
        experiment = row_of(experiment, options.row)
        result = run_training(experiment, run_dir, device, terminal, options.row.replace("_", " "))
    print_scores(result)
    return 0


def adapt(options: Namespace) -> int:
    """`segadapt adapt`."""
    from segadapt.adaptation import procedure
    from segadapt.adaptation.run_log import Terminal

    with Terminal() as terminal:
        result = procedure.adapt(experiment_of(options), Path(options.run_dir), machine(options), terminal)
    print_scores(result)
    return 0


def ablate(options: Namespace) -> int:
    """`segadapt ablate` and `segadapt demo`."""
    from segadapt.output.ablation import ablate

    ablate(experiment_of(options), Path(options.run_dir), options.seeds, options.rows, machine(options))
    return 0


def sweep(options: Namespace) -> int:
    """`segadapt sweep`."""
    from segadapt.output.sweep import sweep

    values = tuple(options["values"])  # not .values: Namespace has a method of that name
    sweep(experiment_of(options), Path(options.run_dir), options.setting, values, options.seeds, machine(options))
    return 0


def pseudo_label(options: Namespace) -> int:
    """`segadapt pseudo-label`."""
    from segadapt.adaptation import procedure
    from segadapt.adaptation.run_log import Terminal

    model, out, device = Path(options.model), Path(options.out), machine(options)
    with Terminal() as terminal:
        procedure.pseudo_label(model, options.data, options.pseudo_labels, 0, out, device, terminal)
    print(f"{out}: label maps and thresholds.json")
    return 0


def evaluate(options: Namespace) -> int:
    """`segadapt evaluate`."""
    from segadapt.adaptation.procedure import evaluate_model

    result = evaluate_model(Path(options.model), options.data, machine(options), options.restricted_argmax)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print_scores(result)
    return 0


def weights(options: Namespace) -> int:
    """`segadapt weights`."""
    from segadapt.networks.known_files import KNOWN_FILES
    from segadapt.networks.weights import identify

    for path in options.files:
        print("\n".join(identify(path).lines()))
    if not options.files:
        print("\n".join(line for file in KNOWN_FILES for line in file.lines()))
    return 0


COMMANDS = {
    "train": train,
    "adapt": adapt,
    "ablate": ablate,
    "demo": ablate,
    "sweep": sweep,
    "pseudo-label": pseudo_label,
    "evaluate": evaluate,
    "weights": weights,
}


def experiment_of(options: Namespace) -> Experiment:
    """The experiment that the options describe."""
    return Experiment(**{name: options[name] for name in Experiment.__dataclass_fields__})


def machine(options: Namespace) -> "torch.device":
    """The device to use, after the settings of torch that go with it.

    Raises:
        InputError: cuda was asked for and is not there.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine, or this build of torch, has no CUDA device; use --device cpu")
    keep_freed_memory()
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    use_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next training step instead of returning them to the system.

    A step on the CPU frees and allocates the same hundreds of megabytes; fetching them from the system anew each time,
    page by page, made a step at 288x384 six times slower where page faults are dear (virtual machines).
    """
    import ctypes

    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: nothing to set
        return
    mallopt(trim_threshold, -1)  # never trim
    mallopt(mmap_max, 0)  # never map a block of its own, which would be unmapped when freed


def print_scores(result: dict[str, Any]) -> None:
    """A result as a short table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "IoU %")
    for name, value in result["iou"].items():
        table.add_row(name, "-" if value is None else f"{value:.1f}")
    table.add_row("mean", f"{result['miou']:.1f}", style="bold")
    for name, value in result["subsets"].items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)


def version() -> str:
    """The package's version."""
    import segadapt

    return segadapt.__version__


if __name__ == "__main__":
    sys.exit(main())
