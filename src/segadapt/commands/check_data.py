"""`segadapt check-data`: what training will meet in the data."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from segadapt.commands.options import add_experiment, add_switch, experiment_of, terminal_of

if TYPE_CHECKING:
    from rich.table import Table

    from segadapt.output.data_check import BankForecast, DataCheck, DomainCheck

EXAMPLE = "segadapt check-data --config configs/smoke.yaml --out runs/check"


def add_options(command: ArgumentParser) -> None:
    """Options of the command."""
    add_experiment(command)
    command.add_argument("--out", type=str, default="", help="folder for check.json and contact_<domain>.png")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read; 0: this one")
    add_switch(command, "--quiet", "no progress, only results and errors")
    add_switch(command, "--json", "print the result as JSON")


def run(options: Namespace) -> int:
    """Count, print, and write the contact sheets; 2 where a training would stop."""
    from segadapt.errors import InputError
    from segadapt.output.contact_sheet import contact_sheet
    from segadapt.output.data_check import DOMAINS, check_data

    experiment = experiment_of(options)
    if options.workers < 0:
        raise InputError(f"workers: {options.workers} is negative; use 0 or more")
    out = Path(options.out)
    if options.out:
        out.mkdir(parents=True, exist_ok=True)  # where that is not possible, it is said before hours of reading
    with terminal_of(options) as terminal:
        check, sets = check_data(experiment, options.workers, terminal.start_progress, terminal.advance)
    if options.out:
        (out / "check.json").write_text(json.dumps(check.as_json(), indent=1))
        for name in DOMAINS:
            sheet = out / f"contact_{name}.png"
            sheet.unlink(missing_ok=True)  # that of an earlier check must not pass for this one's
            if images := sets.get(name):
                contact_sheet(images, images.space).save(sheet)
    if options.json:
        print(json.dumps(check.as_json(), indent=1))
    else:
        print_check(check)
        if options.out:
            print(f"{options.out}: check.json and the contact sheets")
    return 2 if check.stops else 0


def print_check(check: "DataCheck") -> None:
    """The tables for the terminal, and what was found at the end, where it is read first."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for name, domain in check.domains.items():
        console.print(f"[bold]{name}[/]: {escape(domain.name)}", soft_wrap=True)
        bad = len(domain.bad_files)
        console.print(
            f"  {domain.images} images, {domain.pairs} with a good label, {len(domain.missing_labels)} without a label"
            f"{f', {bad} bad files' if bad else ''}"
        )
        console.print(f"  sizes {_listed(domain.image_sizes)}; of the features {_listed(domain.feature_sizes)}")
        if domain.pairs:
            console.print(_class_table(domain, check.banks if name == "source" else ()))
    console.print(
        "images: with a pixel of the class; left: of these, images that keep one at feature size; regions: an image's, "
        "at that size, on average (a thing's are its instances)."
    )
    if check.banks:
        console.print(
            f"bank: entries of its ring; full at: steps until it is full; end: filled after all {check.steps} steps. "
            "This takes every source region as classified right: a training takes longer, of rare classes most."
        )
    stopping = [finding for finding in check.findings if finding.stops]
    for heading, findings in (
        ("Would stop a training:", stopping),
        ("Worth knowing:", [finding for finding in check.findings if not finding.stops]),
    ):
        if findings:
            console.print(f"\n[bold]{heading}[/]")
        for finding in findings:
            where = f"{finding.domain}: " if finding.domain else ""
            console.print(f"  - {where}{finding.text}", markup=False, soft_wrap=True)
    if not stopping:
        console.print("\nNothing here would stop a training.")


def _class_table(domain: "DomainCheck", banks: "tuple[BankForecast, ...]") -> "Table":
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("class", no_wrap=True), "kind")
    for heading in ("pixels %", "images", "left", "regions"):
        table.add_column(heading, justify="right")
    if banks:
        for heading in ("bank", "full at", "end %"):
            table.add_column(heading, justify="right")
    for number, entry in enumerate(domain.classes):
        cells = [
            escape(entry.name),
            entry.kind,
            f"{100 * entry.share:.2f}",
            str(entry.images),
            str(entry.images_at_feature_size),
            f"{entry.regions / max(domain.pairs, 1):.2f}",
        ]
        if banks:
            bank = banks[number]
            steps = "never" if bank.steps_until_full is None else str(bank.steps_until_full)
            cells += [str(bank.entries), steps, f"{100 * bank.filled_at_end:.0f}"]
        table.add_row(*cells)
    return table


def _listed(sizes: dict[str, int], most: int = 4) -> str:
    shown = ", ".join(f"{size} ({count})" for size, count in list(sizes.items())[:most])
    return f"{shown} and {len(sizes) - most} more" if len(sizes) > most else shown or "unknown"
