"""The files of a run folder, apart from weights and checkpoints: what was asked for, what came of it.

In: an experiment, what its evaluations found. Out: `config.yaml`, which says whose folder it is, and the content of
`result.json`.
"""

import json
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import yaml

import segadapt
from segadapt.config import Experiment
from segadapt.data.label_spaces import LabelSpace
from segadapt.data.loading import fingerprint
from segadapt.data.readers import ImageSet
from segadapt.errors import InputError
from segadapt.evaluation.evaluate import Evaluation
from segadapt.evaluation.label_free import selected_steps
from segadapt.processes import Processes
from segadapt.yaml_text import read_yaml

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

CONFIG_FILE, RESULT_FILE, EXPERIMENT_FILE = "config.yaml", "result.json", "experiment.yaml"
MODEL_FILE, SELECTED_FILE, BEST_FILE = "model.safetensors", "selected.safetensors", "best.safetensors"
LOCK_FILE = ".lock"  # there while a training runs

Kinds = tuple[type, ...]
NUMBER: Kinds = (int, float)
# what a line of metrics.jsonl with an evaluation holds; the keys are as `refuse_damaged` reads them
LABEL_FREE_KEYS: dict[str, Kinds] = {"label_free.*": NUMBER}
EVALUATION_KEYS: dict[str, Kinds] = {
    "evaluation.miou": NUMBER,
    "evaluation.iou": (dict,),
    "evaluation.iou.*": (*NUMBER, NoneType),
    "evaluation.subsets": (dict,),
    "evaluation.subsets.*": NUMBER,
    "evaluation.images": (int,),
}


@dataclass(frozen=True)
class Check:
    """What was found at one evaluation of a training.

    Args:
        step: Of the training.
        evaluation: On the test images; None where there are none.
        label_free: The scores that need no target label (`label_free_scores`); none where they are off.
    """

    step: int
    evaluation: Evaluation | None
    label_free: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """A line of metrics.jsonl, without the step."""
        scored = {"evaluation": self.evaluation.as_json()} if self.evaluation else {}
        return {**scored, **({"label_free": self.label_free} if self.label_free else {})}


def checks_of(lines: Iterable[dict[str, Any]], path: Path) -> list[Check]:
    """The evaluations in the lines of a metrics.jsonl.

    Raises:
        InputError: one of them is not whole; the message names `path`, where the lines are from.
    """
    checks = []
    for line in lines:
        scored = "evaluation" in line
        if not (scored or "label_free" in line):
            continue
        refuse_damaged(line, (EVALUATION_KEYS if scored else {}) | LABEL_FREE_KEYS, path)
        found = line.get("evaluation", {})
        evaluation = Evaluation(found["miou"], found["iou"], found["subsets"], found["images"]) if scored else None
        checks.append(Check(line["step"], evaluation, line.get("label_free", {})))
    return checks


def best_step(checks: list[Check]) -> int | None:
    """The first step with the highest mIoU, which is chosen on labels; None without test images."""
    scores = {check.step: check.evaluation.miou for check in checks if check.evaluation}
    return max(scores, key=lambda step: scores[step]) if scores else None


def result_of(checks: list[Check], last_k: int) -> dict[str, Any]:
    """Scores of the last model, beside the mean of the last k, the models chosen without labels, and the best.

    Without test images "miou" is null.
    """
    label_free = {"label_free": checks[-1].label_free if checks else {}}
    scores = {check.step: check.evaluation for check in checks if check.evaluation}
    if not scores:
        return {"miou": None, "iou": {}, "subsets": {}, "images": 0, **label_free}
    last_step, last = list(scores.items())[-1]
    best = max(scores, key=lambda step: scores[step].miou)
    last_k_scores = [each.miou for each in list(scores.values())[-last_k:]]
    chosen = selected_steps((check.step, check.label_free) for check in checks)
    return {
        **last.as_json(),
        "step": last_step,
        "mean_last_k": {"k": len(last_k_scores), "miou": statistics.fmean(last_k_scores)},
        **label_free,
        "selected": {score: {"miou": scores[step].miou, "step": step} for score, step in chosen.items()},
        "best": {"miou": scores[best].miou, "step": best, "chosen_on": "test labels"},
    }


def provenance_of(
    experiment: Experiment, space: LabelSpace, sets: dict[str, ImageSet], start: Path | None
) -> dict[str, Any]:
    """What a score depends on besides the configuration."""
    initial = f"{start.parent.name}/{start.name}" if start else experiment.network.weights
    return {
        "seed": experiment.seed,
        "classes": list(space.names),
        "initial_weights": f"{experiment.network.backbone}: {initial}",
        "versions": versions(),
        "data": data_of(sets),
    }


def versions() -> dict[str, str]:
    """Of what computed a result."""
    return {
        "segadapt": segadapt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def data_of(sets: dict[str, ImageSet]) -> dict[str, dict[str, Any]]:
    """Which files each domain had."""
    return {
        name: {"name": images.name, "images": len(images), "fingerprint": fingerprint(images)}
        for name, images in sets.items()
    }


@contextmanager
def alone_in(run_dir: Path, processes: Processes) -> Iterator[None]:
    """Keeps other commands out of a run folder, which is there, until the context or the process ends.

    Raises:
        InputError: another command is in it.
    """
    path = run_dir / LOCK_FILE
    # lockf, not flock: processes that read images are forked from this one, and must not hold the lock after it
    lock = path.open("a") if processes.is_first and fcntl else None
    free = True
    try:
        if lock and fcntl:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                free = False
            except OSError:  # the file system has no locks
                pass
        if not processes.share(free):
            raise InputError(
                f"{run_dir}: another command is training there; wait for it, or stop it and give this one again, which "
                "goes on from there"
            )
        yield
    finally:
        if lock:
            if free:
                path.unlink(missing_ok=True)
            lock.close()


def finished_result(run_dir: Path, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """What the result.json of a finished run says; None where `run_dir` is new or its run is not finished.

    Raises:
        InputError: `run_dir` holds a run of another configuration, or its files are damaged.
    """
    config, result = run_dir / CONFIG_FILE, run_dir / RESULT_FILE
    if config.exists() and config.read_bytes() != config_text(configuration).encode():
        there, now = read_left(config, read_yaml), plain(configuration)
        raise InputError(
            f"{run_dir} holds a run with another configuration ({differences(there, now)}); choose another --run_dir"
        )
    return read_left(result, json.loads) if result.exists() else None


def read_left(path: Path, read: Callable[[str], Any]) -> dict[str, Any]:
    """What a run left in a file of its folder.

    Raises:
        InputError: it was changed since.
    """
    try:
        content = read(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(f"{path}: damaged ({error}); choose another folder, or delete it to begin anew") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged (it holds no names with values); choose another folder, or delete it")
    return content


def refuse_damaged(content: dict[str, Any], keys: Mapping[str, Kinds], path: Path) -> None:
    """Look whether what a run left is whole.

    Args:
        content: Of the file.
        keys: What values are, by dotted key; `*` stands for every name there, of which there may be none.
        path: Of the file.

    Raises:
        InputError: a key is missing, or its value is of another type.
    """
    for key, kinds in keys.items():
        for value in _values_at(content, key.split(".")):
            if not isinstance(value, kinds):
                said = "is missing" if value is _MISSING else f"is {str(value)[:40]!r}"
                raise InputError(f"{path}: damaged ({key} {said}); choose another folder, or delete it to begin anew")


_MISSING = object()


def _values_at(content: Any, names: list[str]) -> list[Any]:
    if not names:
        return [content]
    if not isinstance(content, dict):
        return [_MISSING]
    name, *rest = names
    if name == "*":
        return [value for each in content.values() for value in _values_at(each, rest)]
    absent = {} if rest[:1] == ["*"] else _MISSING
    return _values_at(content[name], rest) if name in content else _values_at(absent, rest)


def differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """The keys in which two configurations differ, with both values."""
    said = []
    for key in {**there, **now}:
        a, b = there.get(key, "no such key"), now.get(key, "no such key")
        if isinstance(a, dict) and isinstance(b, dict):
            said.append(differences(a, b, f"{prefix}{key}."))
        elif a != b:
            said.append(f"{prefix}{key}: {a} there, {b} now")
    return "; ".join(text for text in said if text)


def config_text(configuration: dict[str, Any]) -> str:
    """The content of config.yaml."""
    return yaml.safe_dump(plain(configuration), sort_keys=False)


def plain(value: Any) -> Any:
    """Tuples as lists, so that the configuration is ordinary YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
