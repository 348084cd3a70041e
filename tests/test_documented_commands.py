"""Every command in README and docs runs: as it stands there, but on a few stamps of images and for one step."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from segadapt.cli import main
from segadapt.commands import COMMANDS
from segadapt.commands.options import command_parser
from streets import ROOT
from test_configs import make_formats

# in the order in which a reader would run them: some take what another one has made
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in (
    "own_data", "translation", "prediction", "report", "method", "scaling", "studies", "weights", "formats", "results",
    "speed", "faq",
))]  # fmt: skip
DOMAINS = ("source", "target", "test")
EXPERIMENT = {"train", "adapt", "ablate", "demo", "sweep", "check-data"}
# setting up, and several processes, which tests/adaptation/test_processes.py starts in this way
NOT_HERE = ("make ", "torchrun ")
# named and not ours to ship: the command must say that the file is missing
NOT_OURS = re.compile(r"\S+-\w{8}\.pth")


def commands_of(document: Path) -> Iterator[str]:
    """The lines of its shell blocks, continuations joined, comments gone; of a console, what was typed."""
    blocks = re.findall(r"^ *```(sh|console)\n(.*?)^ *```", document.read_text(), re.DOTALL | re.MULTILINE)
    for kind, block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if kind == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield " ".join(word if "*" in word or word == "&&" else shlex.quote(word) for word in words)


def test_the_commands_are_found() -> None:
    assert sorted(DOCUMENTS[1:]) == sorted((ROOT / "docs").glob("*.md"))
    found = [command for document in DOCUMENTS for command in commands_of(document)]
    names = {name for name in COMMANDS if any(f"{command} ".startswith(f"segadapt {name} ") for command in found)}
    assert names == set(COMMANDS), "each command is shown somewhere"
    assert len(found) > 50


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with few images, and made-up images in the place of each data set that is not shipped."""
    root = make_formats(tmp_path_factory.mktemp("documented"))
    for name in ("configs", "examples", "tests"):
        (root / name).symlink_to(ROOT / name)
    return root


def shortened(name: str, words: list[str]) -> list[str]:
    """The words of a command with what makes it short."""
    if name in EXPERIMENT and "--resume" not in words:
        words = [*words, *(f"--{domain}.size=[48,64]" for domain in DOMAINS), "--augmentation.crop=null"]
        words += ["--schedule.workers=0", "--schedule.batch_size=1", "--schedule.steps=1", "--warm_up.steps=0"]
        words += ["--schedule.decay_steps=null", "--schedule.evaluate_every=0"]
        if any("resnet101" in word or "vgg16" in word for word in words) and not NOT_OURS.search(" ".join(words)):
            words += ["--network.weights=random"]
    if name in ("ablate", "demo", "sweep"):
        words = [*words, "--seeds", "0", "--jobs", "1"]
    if name == "translate fit":
        words = [*words, "--size=[48,64]", "--crop=null", "--filters=4", "--blocks=1", "--steps=1", "--workers=0"]
    return words


@pytest.fixture(scope="module")
def exported() -> dict[str, Path]:
    """What has been exported to each form: one of each is enough, ONNX takes its time."""
    return {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_of(
    document: Path,
    workspace: Path,
    exported: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workspace)
    if document.stem == "own_data":
        write_own_configuration(document)
    for command in commands_of(document):
        if command.startswith(NOT_HERE):
            continue
        program, *words = shlex.split(command)
        if program in ("mkdir", "cp"):
            copy = command.replace("0000*", "*").replace("5000*", "*").replace("5012*", "*")
            subprocess.run(copy, shell=True, check=True)
        elif program == "python":
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
        else:
            assert program == "segadapt", f"{document.name}: {command}"
            run(words, command, exported, capsys)
    for checkpoint in workspace.glob("runs/**/checkpoints/*.pt"):
        checkpoint.unlink()  # gigabytes in all; no document goes on where another has stopped


def run(words: list[str], command: str, exported: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """One command of ours, in this process."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    rest = words[len(name.split()) :]
    if name == "export":
        form = rest[rest.index("--to") + 1]
        out = Path(command_parser(name)[1].parse_args(rest).out)
        if form in exported:
            shutil.copy(exported[form], out)
            return
        exported[form] = out
    try:
        code = main([*name.split(), *shortened(name, rest)])
    except SystemExit as end:  # --print_config
        code = end.code
    said = capsys.readouterr().err
    missing = NOT_OURS.search(command)
    if missing:
        assert code == 2, command
        assert missing[0] in said
    else:
        assert code == 0, f"{command}: {said}"


def write_own_configuration(document: Path) -> None:
    """mysite/mysite.yaml as the document has it; all else its commands make."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    (configuration,) = (block for block in blocks if "mysite/source" in block)
    assert yaml.safe_load(configuration)["target"]["root"] == "mysite/target"
    Path("mysite").mkdir()
    Path("mysite/mysite.yaml").write_text(configuration)
