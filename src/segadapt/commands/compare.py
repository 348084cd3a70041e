"""`segadapt compare`: rows of any run folders in one table, with paired differences."""

from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_switch
from segadapt.config import ScoreName, SelectionConfig

EXAMPLE = "segadapt compare runs/ablation runs/lambda_ci"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    command.add_argument("run_dirs", type=str, nargs="+", help="run folders of train, adapt, ablate or sweep")
    command.add_argument("--baseline", type=str, default="", help="title of the row that gains are counted from")
    scores = ", ".join(get_args(ScoreName))
    command.add_argument(
        "--selection", type=ScoreName, default=SelectionConfig().score, help=f"chooses checkpoints: {scores}"
    )
    command.add_argument("--out", type=str, default="", help="folder for table.json, label_free.json and table.md")
    add_switch(command, "--json", "print the table as JSON")


def run(options: Namespace) -> int:
    """Print the table, and write it where asked to."""
    from segadapt.studies.runs import rows_to_compare
    from segadapt.studies.table import print_study, row_titled, write_tables

    rows = rows_to_compare([Path(folder) for folder in options.run_dirs])
    baseline = row_titled(rows, options.baseline) if options.baseline else next(row for row in rows if row.finished)
    if options.out:
        write_tables(rows, Path(options.out), options.selection, baseline)
    print_study(rows, options.selection, options.json, baseline)
    return 0
