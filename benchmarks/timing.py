"""What the benchmarks share: ours and a peer timed in turns, one list of results, one table.

In: two functions that do the same. Out: entries of `runs/bench/bench.json`, each with at least the keys of `KEYS`.
Knows nothing of torch, so that a benchmark of memory or of start-up can use it from a small process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segadapt.whole_file import whole_file

Entry = dict[str, Any]

KEYS = ("name", "case", "ratio", "ours_s", "peer_s", "peer")
FIRST = "matching_step"  # the entry that stands first in the file
RESULT, QUICK_RESULT = Path("runs/bench/bench.json"), Path("runs/bench/quick.json")


def options_of(description: str) -> argparse.Namespace:
    """`quick` and `result` (a path) from the command line.

    Args:
        description: The docstring of the benchmark.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, not how fast")
    parser.add_argument("--result", type=Path, help=f"file of the entries; {RESULT}, or {QUICK_RESULT} with --quick")
    options = parser.parse_args()
    options.result = options.result or (QUICK_RESULT if options.quick else RESULT)
    return options


def seconds_of(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired_seconds(
    ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, ours_per_round: int = 1
) -> tuple[float, float]:
    """Median seconds of both, called in turns, so that both meet the same machine; the first call of each is not
    counted."""
    ours(), peer()
    of_ours, of_peer = [], []
    for _ in range(rounds):
        of_ours += [seconds_of(ours) for _ in range(ours_per_round)]
        of_peer.append(seconds_of(peer))
    return statistics.median(of_ours), statistics.median(of_peer)


def compared(name: str, case: str, seconds: tuple[float, float], peer: str) -> Entry:
    """An entry; `ratio` is the peer's time divided by ours, above 1 where ours is faster.

    Args:
        name: Of what is timed.
        case: Of which size, number of threads or kind of input.
        seconds: Of ours and of the peer.
        peer: What the peer is.
    """
    ours_s, peer_s = seconds
    return {
        "name": name,
        "case": case,
        "ratio": rounded(peer_s / ours_s),
        "ours_s": rounded(ours_s),
        "peer_s": rounded(peer_s),
        "peer": peer,
    }


def rounded(value: float) -> float:
    """To four digits that count."""
    return float(f"{value:.4g}")


def read_entries(result: Path) -> list[Entry]:
    """The entries of a file, none where there is no file yet."""
    return json.loads(result.read_text()) if result.exists() else []


def record(entries: Sequence[Entry], result: Path) -> None:
    """Put entries into the file in place of those of the same names, written whole, and print them."""
    names = {entry["name"] for entry in entries}
    others = [entry for entry in read_entries(result) if entry["name"] not in names]
    in_order = sorted([*others, *entries], key=lambda entry: entry["name"] != FIRST)  # else as they came
    result.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(result) as file:
        file.write((json.dumps(in_order, indent=1) + "\n").encode())
    print_table(entries)


def print_table(entries: Sequence[Entry]) -> None:
    """One line an entry: what, ours, the peer's, how many times faster, and what the peer is."""
    rows = [("what", "case", "ours", "peer", "ratio", "the peer")]
    for entry in entries:
        ours, peer = in_words(entry["ours_s"]), in_words(entry["peer_s"])
        rows.append((entry["name"], entry["case"], ours, peer, f"{entry['ratio']:.4g}", entry["peer"]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, case, *numbers, peer in rows:
        shown = "  ".join(number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True))
        print(f"{name:{widths[0]}}  {case:{widths[1]}}  {shown}  {peer}", flush=True)


def in_words(seconds: float) -> str:
    """Seconds with the unit that fits them."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
