"""metrics.jsonl: one line a step, none twice after a crash; and the terminal's plain lines."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from segadapt.adaptation.run_log import Metrics, Terminal, command_line, flatten, lines_until


def written(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_the_step_and_keep_their_nesting(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"loss/segmentation": 0.5, "learning_rate": {"backbone": 0.1}})
        assert len(written(tmp_path)) == 1, "there to be read while the run goes on"
        metrics.write(2, {"evaluation": {"miou": 12.25, "iou": {"road": None}}})
    assert written(tmp_path) == [
        {"step": 1, "loss/segmentation": 0.5, "learning_rate": {"backbone": 0.1}},
        {"step": 2, "evaluation": {"miou": 12.25, "iou": {"road": None}}},
    ]


@pytest.mark.parametrize("step", [0, 1, 3, 4, 9])
def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, step: int) -> None:
    with Metrics(tmp_path) as metrics:
        for number in (1, 2, 3, 3, 4):
            metrics.write(number, {"value": number / 3})
    before = written(tmp_path)
    with Metrics(tmp_path, step) as metrics:
        assert metrics.earlier == [line for line in before if line["step"] <= step]
        metrics.write(step + 1, {"value": 1.0})
    assert written(tmp_path) == [*metrics.earlier, {"step": step + 1, "value": 1.0}]


def test_the_half_line_of_a_crash_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a')
    assert [line["step"] for line in lines_until(tmp_path / "metrics.jsonl", 9)] == [1, 2]
    with Metrics(tmp_path, 9) as metrics:
        metrics.write(3, {"a": 3})
    assert [line["a"] for line in written(tmp_path)] == [1, 2, 3]


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert lines_until(tmp_path / "metrics.jsonl", 5) == []


def test_flatten_joins_names_and_leaves_out_what_is_no_number() -> None:
    assert flatten({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": None, "g": "text"}) == {"a": 1, "b/c": 2.5, "b/d/e": 3}


def test_where_output_is_no_terminal_progress_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.start_progress("step 1", 150, 20)
        terminal.advance("loss 0.5")
        terminal.say("left out: fence")
    output = capsys.readouterr()
    assert output.err == "step 1: 20/150\nleft out: fence\n"
    assert output.out == ""


def test_a_long_work_says_how_far_it_is_in_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(seconds=0.0) as terminal:
        terminal.start_progress("step 1", 150, 20)
        terminal.advance("loss 0.5")
    line = capsys.readouterr().err.splitlines()[1]
    assert re.fullmatch(r"step 1: 21/150, [\d.]+/s, [\d:]+ left loss 0\.5", line), line


def test_names_in_brackets_and_long_lines_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.say("left out: a[red]b.png " + 30 * "very long ")
    assert capsys.readouterr().err == "left out: a[red]b.png " + 30 * "very long " + "\n"


@pytest.mark.parametrize("settings", [{"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_terminal_gets_a_bar_with_rate_and_time_and_its_colours_can_be_off(settings: dict[str, str]) -> None:
    """Run behind a pseudo-terminal, which `script` makes."""
    program = (
        "import time; from segadapt.adaptation.run_log import Terminal\n"
        "with Terminal() as t:\n"
        "    t.start_progress('step 1', 4)\n"
        "    for _ in range(4): time.sleep(0.3); t.advance('loss 0.5')\n"
    )
    command = shlex.join([sys.executable, "-c", program])
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, env=os.environ | settings, check=True
    ).stdout
    assert "4/4" in shown
    assert re.search(r"[\d.]+/s", shown)
    assert re.search(r"0:00:0\d", shown)
    colours = [code for code in re.findall(r"\x1b\[([\d;]*)m", shown) if re.search(r"\b[349]\d\b|38;", code)]
    assert bool(colours) == ("NO_COLOR" not in settings)


@pytest.mark.parametrize("program", ["/venv/bin/segadapt", "/venv/lib/segadapt/__main__.py"])
def test_the_command_is_as_a_shell_takes_it(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "adapt", "--test.size", "[96, 128]"])
    assert command_line() == "segadapt adapt --test.size '[96, 128]'"
