"""A run folder that another command is training in."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_IT = """
import sys, time
from pathlib import Path
from segadapt.adaptation.run_folder import alone_in
from segadapt.processes import ONE_PROCESS
with alone_in(Path(sys.argv[1]), ONE_PROCESS):
    print("in it", flush=True)
    time.sleep(600)
"""


@contextmanager
def occupied(run_dir: Path) -> Iterator[None]:
    """Another process holds the folder, which is there, until the context ends."""
    with subprocess.Popen([sys.executable, "-c", IN_IT, str(run_dir)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == b"in it\n"
            yield
        finally:
            other.kill()
