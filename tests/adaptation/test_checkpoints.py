"""A training state is on disk whole or not at all."""

from pathlib import Path

import pytest
import torch

from segadapt.adaptation.checkpoints import STATE_FILE, load_state, save_state, whole_file
from segadapt.errors import InputError

CPU = torch.device("cpu")
STATE = {"step": 3, "weights": {"a": torch.arange(4.0)}, "rates": [0.1, 0.2]}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert load_state(tmp_path, CPU) is None
    save_state(tmp_path, {"step": 2})
    save_state(tmp_path, STATE)
    loaded = load_state(tmp_path, CPU)
    assert loaded is not None
    assert (loaded["step"], loaded["rates"]) == (3, [0.1, 0.2])
    assert torch.equal(loaded["weights"]["a"], torch.arange(4.0))
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_failed_save_leaves_the_old_state(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    before = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(AttributeError):  # functions of functions cannot be pickled: torch.save stops half-way
        save_state(tmp_path, {"weights": torch.zeros(1000), "fault": lambda: None})
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new, but only ")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"half of it so far")
    assert path.read_text() == "new, but only half of it so far"


@pytest.mark.parametrize("content", [b"", b"not a state", b"cut"])
def test_an_unreadable_state_is_named(tmp_path: Path, content: bytes) -> None:
    save_state(tmp_path, STATE)
    whole = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(whole[: len(whole) // 2] if content == b"cut" else content)
    with pytest.raises(InputError, match=r"train_state\.pt: not a readable training state; delete it"):
        load_state(tmp_path, CPU)


class Stranger:
    """What weights_only refuses to build."""


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"step": Stranger()}, tmp_path / STATE_FILE)
    with pytest.raises(InputError, match="not a readable training state"):
        load_state(tmp_path, CPU)
