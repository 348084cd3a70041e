"""The trainings of a table, one after another or several at once.

In: cells, each a row with its seed and its folder. Out: run folders. A cell that is finished is not trained again, so
that a table that was stopped, or grows by a row, goes on where it was. What several cells begin with, warm-up and
translated images, is made once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segadapt.adaptation.machine import Machine
from segadapt.adaptation.procedure import finished_row, train_row, translated_source, warm_up
from segadapt.adaptation.rows import ADAPTING, row_of
from segadapt.config import Experiment
from segadapt.errors import InputError
from segadapt.studies.jobs import Job, run_jobs


@dataclass(frozen=True)
class Cell:
    """One training of a table.

    Args:
        title: Of its row in the table.
        row: As `train_row` knows it.
        experiment: The whole method, with the seed.
        folder: Its run folder.
        warm_up_dir: Run folder of the warm-up, which other cells may share.
        translation_dir: Folder of a generator and its images, which other cells may share.
    """

    title: str
    row: str
    experiment: Experiment
    folder: Path
    warm_up_dir: Path
    translation_dir: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.title}, seed {self.experiment.seed}"

    def finished(self) -> bool:
        """Whether there is nothing left to do.

        Raises:
            InputError: `folder` holds another experiment.
        """
        return finished_row(self.experiment, self.row, self.folder) is not None

    @property
    def translates(self) -> bool:
        """Whether a generator is trained for it."""
        return self.row in ADAPTING and self._whole().translation.method == "cyclegan"

    def warm_up(self, machine: Machine) -> str:
        """Make the model that the training begins with, where the experiment asks for one."""
        return "nothing to do" if warm_up(self.experiment, self.warm_up_dir, machine) is None else "done"

    def translate(self, machine: Machine) -> str:
        """Make the translated images that the training reads, where the experiment asks for them."""
        return "nothing to do" if self._begin(machine)[1] is None else "done"

    def train(self, machine: Machine) -> str:
        """Train, after both."""
        start, translated = self._begin(machine)
        result = train_row(self.experiment, self.row, self.folder, machine, self.name, start, translated)
        return f"mIoU {result['miou']:.1f}"

    def _begin(self, machine: Machine) -> tuple[Path | None, Path | None]:
        if self.row not in ADAPTING:
            return None, None
        start = warm_up(self.experiment, self.warm_up_dir, machine)
        return start, translated_source(self._whole(), self.translation_dir, start, machine)

    def _whole(self) -> Experiment:
        # the row's own experiment; that of sim_ssl is two trainings, with the same translation
        return self.experiment if self.row == "sim_ssl" else row_of(self.experiment, self.row)


def train_cells(cells: Sequence[Cell], jobs: int, machine: Machine) -> None:
    """Train every cell that is not finished.

    Args:
        cells: In the order in which they are begun.
        jobs: How many are trained at once, each in a process of its own; 1: in this one.
        machine: Where to train.

    Raises:
        InputError: wrong input; what was being trained beside it is saved first.
        Stopped: a signal asked to leave; the same call continues.
    """
    if jobs > 1 and machine.processes.count > 1:
        raise InputError("--jobs: torchrun's processes train one network together; use --jobs 1, or no torchrun")
    # a row that an experiment does not have is said here, before any training
    waiting = [cell for cell in cells if not machine.processes.share(cell.finished())]
    if jobs > 1:  # two cells must not make the same thing at the same time
        adapting = [cell for cell in waiting if cell.row in ADAPTING]
        warm_ups = {cell.warm_up_dir: cell for cell in adapting if cell.experiment.warm_up.steps}
        run_jobs([Job(f"warm-up for {cell.name}", cell.warm_up) for cell in warm_ups.values()], jobs, machine)
        translated = [cell for cell in adapting if cell.translates]
        translations = {cell.translation_dir: cell for cell in translated}
        run_jobs([Job(f"translation for {cell.name}", cell.translate) for cell in translations.values()], jobs, machine)
    run_jobs([Job(cell.name, cell.train) for cell in waiting], jobs, machine)
