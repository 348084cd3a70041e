"""The benchmarks run, find ours and the peer equal, and leave what `make bench` promises; how fast is not asked."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from streets import ROOT

BENCHMARKS = ROOT / "benchmarks"
COSTLY = ("start_up", "scaling")  # they start many processes; `make bench ARGS=--quick` runs them too
CHEAP = (
    "matching_step",
    "matching_share",
    "regions",
    "bank_lookup",
    "pseudo_labels",
    "evaluation",
    "reading",
    "end_to_end",
)


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timing", BENCHMARKS / "timing.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CHEAP)
def test_a_benchmark_runs_and_leaves_whole_entries(name: str, tmp_path: Path, timing: ModuleType) -> None:
    result = tmp_path / "deeper" / "bench.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", f"--result={result}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entries = json.loads(result.read_text())
    assert entries
    for entry in entries:
        assert set(timing.KEYS) <= entry.keys()
        assert re.match(name, entry["name"]) or name == "regions"
        numbers = [value for value in entry.values() if isinstance(value, int | float)]
        assert all(math.isfinite(number) for number in numbers)
        assert min(entry["ours_s"], entry["peer_s"]) > 0
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"], rel=2e-3)
        assert entry["peer"]
        assert re.search(rf"{re.escape(entry['name'])} +{re.escape(entry['case'])} ", done.stdout)


def test_what_make_bench_runs_is_what_leaves_entries() -> None:
    (listed,) = re.findall(r"^BENCHMARKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    imports_record = re.compile(r"^from timing import .*\brecord\b", re.MULTILINE)
    recording = {path.stem for path in BENCHMARKS.glob("*.py") if imports_record.search(path.read_text())}
    assert set(listed.split()) == recording
    assert listed.split()[0] == "matching_step"
    assert {*CHEAP, *COSTLY} == recording


def test_every_script_is_described() -> None:
    readme = (BENCHMARKS / "README.md").read_text()
    assert [path.name for path in BENCHMARKS.glob("*.py") if f"`{path.name}`" not in readme] == []


def test_entries_replace_those_of_their_name_and_matching_step_comes_first(
    tmp_path: Path, timing: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "bench.json"
    one = timing.compared("reading", "PNG", (0.25, 0.5), "decoding")
    assert one["ratio"] == 2
    assert tuple(one) == timing.KEYS
    timing.record([one], result)
    timing.record([timing.compared("matching_step", threads, (1.0, 50.0), "a loop") for threads in "12"], result)
    timing.record([timing.compared("reading", "JPEG", (0.0004, 0.0001), "decoding")], result)
    assert [(entry["name"], entry["case"]) for entry in json.loads(result.read_text())] == [
        ("matching_step", "1"),
        ("matching_step", "2"),
        ("reading", "JPEG"),
    ]
    assert list(tmp_path.iterdir()) == [result]
    assert re.search(r"reading +JPEG +400 us +100 us +0\.25 +decoding", capsys.readouterr().out)


def test_ours_and_the_peer_take_turns_and_the_first_call_is_not_counted(timing: ModuleType) -> None:
    calls: list[str] = []
    ours_s, peer_s = timing.paired_seconds(lambda: calls.append("o"), lambda: calls.append("p"), 2, ours_per_round=2)
    assert "".join(calls) == "op" + "oop" * 2
    assert ours_s > 0
    assert peer_s > 0
