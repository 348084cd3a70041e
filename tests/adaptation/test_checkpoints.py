"""A training state is on disk whole or not at all, and one that was damaged later is passed over."""

from pathlib import Path

import pytest
import torch

from segadapt.adaptation.checkpoints import load_state, newest_whole, save_state, saved_states
from segadapt.errors import InputError
from segadapt.whole_file import whole_file

CPU = torch.device("cpu")
STATE = {"step": 3, "weights": {"a": torch.arange(4.0)}, "rates": [0.1, 0.2]}


def steps(run_dir: Path) -> list[int]:
    return [int(path.name.split("-")[0]) for path in saved_states(run_dir)]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, [])
    save_state(tmp_path, 3, STATE)
    path, damaged = newest_whole(tmp_path)
    assert path is not None
    loaded = load_state(path, CPU)
    assert damaged == []
    assert (loaded["step"], loaded["rates"]) == (3, [0.1, 0.2])
    assert torch.equal(loaded["weights"]["a"], torch.arange(4.0))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (998, 999, 1000, 10_000):
        save_state(tmp_path, step, {"step": step})
    assert steps(tmp_path) == [10_000, 1000]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    save_state(tmp_path, 10_000, {"step": 10_000, "written": "again"})
    path, _ = newest_whole(tmp_path)
    assert path is not None
    assert load_state(path, CPU)["written"] == "again"
    assert steps(tmp_path) == [10_000, 1000], "two of one step are no more than one"


def test_a_failed_save_leaves_the_old_states(tmp_path: Path) -> None:
    save_state(tmp_path, 3, STATE)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    with pytest.raises(AttributeError):  # functions of functions cannot be pickled: torch.save stops half-way
        save_state(tmp_path, 4, {"weights": torch.zeros(1000), "fault": lambda: None})
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit"])
def test_a_damaged_state_is_passed_over(damage: str, tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"step": 1})
    save_state(tmp_path, 2, STATE)
    newest = saved_states(tmp_path)[0]
    content = bytearray(newest.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}.get(damage, bytes(content)))
    path, damaged = newest_whole(tmp_path)
    assert path is not None
    assert load_state(path, CPU) == {"step": 1}
    assert damaged == [newest]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new, but only ")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"half of it so far")
    assert path.read_text() == "new, but only half of it so far"


class Stranger:
    """What weights_only refuses to build."""


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"step": Stranger()})
    with pytest.raises(InputError, match="not a readable training state"):
        load_state(saved_states(tmp_path)[0], CPU)
