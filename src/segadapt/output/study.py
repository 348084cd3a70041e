"""What is drawn of a table's trainings: Figure 2, pictures side by side, the page.

In: the rows of a table. Out: `curves.csv` and `curves.svg`, where trainings were scored on the way; `pictures/`, where
there is a model before and after; `report.html`.
"""

from collections.abc import Sequence
from pathlib import Path

from segadapt.adaptation.machine import Machine
from segadapt.output.curves import save_curves
from segadapt.output.pictures import save_comparison
from segadapt.output.report import write_report
from segadapt.output.report.measure import data_config
from segadapt.studies.runs import Row


def draw_study(rows: Sequence[Row], run_dir: Path, machine: Machine, pictures: int = 4) -> None:
    """Draw everything.

    Args:
        rows: Finished.
        run_dir: The folder of the table.
        machine: Where models predict.
        pictures: Test images to show; 0 runs no model.
    """
    save_curves({(row.title, run.seed): run.curve("evaluation") for row in rows for run in row.runs}, run_dir)
    by_name = {row.name: row.runs[0] for row in rows}
    models = {
        caption: by_name[name].model
        for caption, name in (("source only", "source_only"), ("adapted", "sim_ssl"))
        if name in by_name
    }
    found = {caption: path for caption, path in models.items() if path}
    if pictures and len(found) == 2:
        test = data_config(rows[0].runs[0].config["test"])
        for path in save_comparison(found, test, run_dir / "pictures", machine.device, pictures):
            machine.terminal.say(f"picture: {path}")
    page = write_report([run_dir], run_dir / "report.html", machine.device, machine.terminal, pictures)
    machine.terminal.say(f"page: {page}")
