"""Fuzzing of everything that reads a file of a user: `python tests/fuzz/fuzz.py --minutes 10`, outside the test suite.

Valid files are mutated (bytes changed, dropped, inserted, spliced with those of another file) and structures of YAML
are drawn at random. Each reader may succeed or raise InputError; anything else, and any code of the file that runs, is
a finding. hypothesis shrinks it and prints the smallest case; findings are kept in `.hypothesis/` and tried first the
next time.
"""

import argparse
import io
import json
import os
import pickle
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from segadapt.adaptation.checkpoints import load_state
from segadapt.adaptation.run_log import lines_until
from segadapt.cli import command_parser, refuse_wrong_config_files
from segadapt.config import Experiment
from segadapt.data.decoding import image_size, read_image, read_raw_ids
from segadapt.data.label_spaces import STREETS11, LabelSpace
from segadapt.errors import InputError
from segadapt.networks.layouts import recognise
from segadapt.networks.state_dicts import read_state_dict
from segadapt.networks.weights import load_network, read_metadata

FOLDER = Path(tempfile.mkdtemp(prefix="segadapt-fuzz-"))
RAN = FOLDER / "ran"
Target = Callable[[Any], object]
executions: Counter[str] = Counter()
refusals: Counter[str] = Counter()


class Code:
    """Unpickled, it makes a folder, which is a finding."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(RAN),)


# ---- valid files to start from


def images() -> list[bytes]:
    """Small images of every format and mode."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    found = []
    for kind, mode, options in (
        ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "LA", {}), ("PNG", "I;16", {}), ("PNG", "1", {}),
        ("PNG", "RGB", {"save_all": True, "append_images": [colour]}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"progressive": True}), ("JPEG", "RGB", {"exif": exif()}), ("BMP", "RGB", {}), ("BMP", "P", {}),
        ("TIFF", "RGB", {}), ("TIFF", "F", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_adobe_deflate"}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture = (
            colour.convert("L").point(lambda v: v * 99, "I").convert(mode) if mode == "I;16" else colour.convert(mode)
        )
        picture.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def exif() -> bytes:
    """Metadata with an orientation."""
    content = Image.Exif()
    content[0x0112] = 6
    return content.tobytes()


def labels() -> list[bytes]:
    """Label files: grey, palette, 16 bits of one channel and of three."""
    ids = np.random.default_rng(0).integers(0, 11, (9, 13), dtype=np.uint8)
    found = []
    for picture in (Image.fromarray(ids), Image.fromarray(ids).convert("P"), Image.fromarray(ids.astype(np.uint16))):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found.append(buffer.getvalue())
    return [*found, png_of_16_bits()]


def png_of_16_bits() -> bytes:
    """Three channels of 16 bits, as SYNTHIA has them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (5).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = zlib.compress(bytes(3 * (1 + 5 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def checkpoints() -> list[bytes]:
    """Files of torch.save, old and new, plain and with code; a bare pickle."""
    state = {"step": 3, "weights": {"layer4.0.conv1.weight": torch.arange(6.0), "n": torch.tensor(2)}}
    found = [pickle.dumps({"code": Code()})]
    for content in (state, {"layer3.0.a": torch.zeros(2, 2), "layer4.b": torch.ones(1)}, {"code": Code()}):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            found.append(buffer.getvalue())
    return found


def networks() -> list[bytes]:
    """Files in the layout of `save_network`, of two tensors."""
    metadata = {
        "format_version": "1",
        "label_space": STREETS11.to_yaml(),
        "network": json.dumps({"backbone": "efficientnet_lite0", "weights": "random"}),
        "normalisation": json.dumps({"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "bgr": False}),
        "provenance": "{}",
        "input_size": "[4, 5]",
    }
    tensors = {"classifier.branches.0.weight": torch.zeros(2, 2), "backbone._conv_stem.weight": torch.ones(3)}
    return [save(tensors, metadata), save(tensors), save({})]


# ---- mutations


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the seeds after a few changes."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 12))
        match draw(st.sampled_from(("set", "set", "cut", "drop", "insert", "number", "splice"))):
            case "set":
                content[at : at + length] = draw(st.binary(max_size=length))
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(max_size=12))
            case "number":  # where lengths, sizes and offsets stand
                big = draw(st.sampled_from((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
                content[at : at + 4] = big.to_bytes(4, draw(st.sampled_from(("big", "little"))))
            case "splice":
                content[at:] = draw(st.sampled_from(seeds))[at:]
    return repaired(bytes(content)) if draw(st.booleans()) else bytes(content)


def repaired(content: bytes) -> bytes:
    """A PNG with right checksums, so that what lies behind them is reached; anything else as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    out, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out += content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return out + content[at:]


WORDS = st.sampled_from(
    ("name", "classes", "kind", "stuff", "thing", "colour", "ids", "ignore", "subsets", "road", "source", "root", "gan",
     "size", "loss", "matching", "schedule", "steps", "seed", "network", "weights", "optimiser", "min_fill", "full")
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), WORDS, st.text(max_size=6), st.dates(),
    st.binary(max_size=3),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | SCALARS, inner, max_size=4),
    max_leaves=12,
)
LABEL_SPACES = st.fixed_dictionaries(
    {"name": SCALARS, "classes": st.lists(st.dictionaries(WORDS, VALUES, max_size=5) | VALUES, max_size=4)},
    optional={"ignore": VALUES, "subsets": VALUES},
)
SECTIONS = st.sampled_from([*Experiment.__dataclass_fields__, "nothing"])
KEYS = WORDS | st.sampled_from(("batch_size", "scale", "crop", "classifier_agreement", "decay_steps"))
EXPERIMENTS = st.dictionaries(SECTIONS, st.dictionaries(KEYS, VALUES, max_size=3) | VALUES, max_size=3)


def yaml_text(values: st.SearchStrategy[Any], seeds: list[str]) -> st.SearchStrategy[bytes]:
    """Text of values, or mutated text of a valid file."""
    written = values.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))
    return written | mutated([seed.encode() for seed in seeds])


# ---- what is fuzzed


def target(name: str, reads: Target) -> Target:
    """`reads`, where InputError is a success like any other, and nothing else that is raised."""

    def run(content: Any) -> None:
        executions[name] += 1
        message = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a warning would be a second line for the user
                reads(content)
        except InputError as error:
            message = str(error)
        refusals[name] += message is not None
        ran = RAN.exists()
        if ran:
            RAN.rmdir()
        assert not ran, "code of the file was run"
        assert message != "", "a refusal that says nothing"

    return run


def written(suffix: str, content: bytes) -> Path:
    path = FOLDER / f"case{suffix}"
    path.write_bytes(content)
    return path


def read_as_image(content: bytes) -> None:
    """An image, its size and its pixels."""
    path = written(".png", content)
    image_size(path)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def read_as_labels(content: bytes) -> None:
    """A label file."""
    assert read_raw_ids(written(".png", content)).dtype in (np.uint8, np.uint16)


def read_as_label_space(content: bytes) -> None:
    """A label space, which comes back as it is."""
    space = LabelSpace.from_yaml(written(".yaml", content))
    assert LabelSpace.from_yaml_text(space.to_yaml(), "again") == space


COMMAND = command_parser("adapt")[1]


def read_as_experiment(content: bytes) -> None:
    """A configuration file."""
    refuse_wrong_config_files([f"--config={written('.yaml', content)}"], COMMAND)


def read_as_foreign_weights(content: bytes) -> None:
    """Weights of another program."""
    path = written(".pth", content)
    recognise(read_state_dict(path), path)


def read_as_model(content: bytes) -> None:
    """A network of ours."""
    path = written(".safetensors", content)
    read_metadata(path)
    load_network(path)


def read_as_state(content: bytes) -> None:
    """The state of a training, whose checksum was forged."""
    load_state(written(".pt", content), torch.device("cpu"))


def read_as_metrics(content: bytes) -> None:
    """metrics.jsonl after a crash."""
    for line in lines_until(written(".jsonl", content)):
        assert isinstance(line["step"], int)


ROOT = Path(__file__).parent.parent.parent
METRICS = [b'{"step": 1, "loss/a": 2.5}\n{"step": 2, "evaluation": {"miou": 3}}\n']
TARGETS: dict[str, tuple[Target, st.SearchStrategy[Any]]] = {
    "images": (read_as_image, mutated(images())),
    "labels": (read_as_labels, mutated(labels() + images()[:5])),
    "label spaces": (read_as_label_space, yaml_text(LABEL_SPACES, [STREETS11.to_yaml()])),
    "experiments": (read_as_experiment, yaml_text(EXPERIMENTS, [(ROOT / "configs" / "smoke.yaml").read_text()])),
    "weights of other programs": (read_as_foreign_weights, mutated(checkpoints())),
    "models": (read_as_model, mutated(networks() + checkpoints()[:2])),
    "states of trainings": (read_as_state, mutated(checkpoints())),
    "metrics": (read_as_metrics, mutated(METRICS)),
}


def fuzz(name: str, seconds: float, examples: int = 2000) -> None:
    """Run one target, in rounds of `examples`, for a time.

    Raises:
        BaseExceptionGroup or the finding itself, shrunk.
    """
    reads, strategy = TARGETS[name]
    options = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        options(given(strategy)(target(name, reads)))()


def main() -> None:
    """Every target for its share of the minutes; the figures at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", choices=TARGETS, help="one target")
    options = parser.parse_args()
    names = [options.only] if options.only else list(TARGETS)
    findings = 0
    for name in names:
        try:
            fuzz(name, 60 * options.minutes / len(names), examples=200)
        except Exception as error:  # with hypothesis's note of the smallest case
            findings += 1
            print(f"FINDING in {name}:", "".join(traceback.format_exception(error)), flush=True)
        print(f"{name}: {executions[name]} executions, {refusals[name]} refused", flush=True)
    print(f"{executions.total()} executions, {findings} findings")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
