"""What a user meets at the command line: one clear line and exit code 2 for each mistake, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segadapt.cli import main

DATA = Path(__file__).parent.parent / "data" / "streets"
SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
CLEAR = [f"--source.root={DATA}/clear", "--source.split=train"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a refused command."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("segadapt: error: ")
    assert line.count("\n") == 1
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optimiser.learning_rat", "1"], "optimiser.learning_rat"),
        (["--optimiser.learning_rate", "fast"], "optimiser.learning_rate"),
        (["--schedule.steps", "1.5"], "schedule.steps"),
        (["--source.reader", "coco"], "source.reader"),
        (["--network.backbone", "resnet18"], "network.backbone"),
        (["--matching.distance", "l3"], "matching.distance"),
        (["--source.size", "[1, 2, 3]"], "source.size"),
        (["--device", "tpu"], "device"),
        (["--config", "no_such.yaml"], "no_such.yaml"),
        ([], "root"),
        (["--source.root", "/no/such/folder"], "/no/such/folder"),
        ([*CLEAR, "--target.root", "/no/such/target"], "/no/such/target"),
        ([*CLEAR, f"--target.root={DATA}/adverse", "--target.split=trane"], "trane"),
    ],
)
@pytest.mark.parametrize("command", ["train", "adapt", "ablate"])
def test_a_wrong_option_is_named(
    command: str, arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in said([command, "--run_dir", str(tmp_path / "run"), *arguments], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("schedule.log_every=0", "schedule.log_every: 0"),
        ("schedule.steps=-1", "schedule.steps: -1"),
        ("schedule.batch_size=0", "batch_size: 0"),
        ("optimiser.learning_rate=-0.1", "optimiser.learning_rate: -0.1"),
        ("optimiser.momentum=1.0", "optimiser.momentum: 1.0"),
        ("warm_up.steps=-1", "warm_up.steps: -1"),
        ("loss.adversarial=-1", "loss.adversarial: -1"),
        ("matching.min_fill=0", "matching.min_fill: 0"),
        ("matching.stuff_size=0", "matching.stuff_size: 0"),
        ("pseudo_labels.quantile=1.5", "pseudo_labels.quantile: 1.5"),
        ("augmentation.flip=2", "augmentation.flip: 2"),
        ("seed=-1", "seed: -1"),
        ("seed=99999999999999999999", "seed: 99999999999999999999 is out of range"),
        ("matching.stuff_size=1000001", "matching.stuff_size: 1000001 is out of range; use 1 to 1000000"),
        ("network.weights=no_such_file.pth", "no_such_file.pth"),
        ("classes=[road, roda]", "'roda'"),
    ],
)
def test_a_value_out_of_range_is_named(
    option: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in said(["adapt", f"--config={SMOKE}", f"--run_dir={tmp_path}/run", f"--{option}"], capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    options = ["--network.weights=random", "--schedule.steps=0"]
    assert "file" in said(["train", f"--config={SMOKE}", f"--run_dir={tmp_path}/file", *options], capsys)


def test_rows_and_seeds_that_stand_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", f"--config={SMOKE}", f"--run_dir={tmp_path}/run"]
    assert "seeds: [1, 1]" in said([*command, "--seeds", "1", "1"], capsys)
    assert "rows" in said([*command, "--rows", "sim", "sim"], capsys)
    assert "seed: 99999999999999999999" in said([*command, "--seeds", "99999999999999999999"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optimizer: {learning_rate: 1}", "optimizer"),
        ("optimiser: {lr: 1}", "lr"),
        ("schedule: {steps: many}", "steps"),
        ("source: [1, 2]", "source"),
        ("loss: {gan: wgan}", "gan"),
        ("a: b: c", "x.yaml"),
        ("just text", "x.yaml"),
        ("", "x.yaml"),
        ("matching: {classifier_agreement: [1]}", "matching.classifier_agreement"),
        ("source:", "source"),
        ("1: 2", "'1'"),
        ("rows: [sim]", "rows"),
        ("source: {size: [48, a]}", "source.size"),
    ],
)
def test_a_wrong_key_in_yaml_is_named(
    text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    line = said(["adapt", "--config", str(tmp_path / "x.yaml"), "--run_dir", str(tmp_path / "run")], capsys)
    assert named in line
    assert "x.yaml" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "x.yaml"]


def test_missing_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "model" in said(["evaluate", "--data.root", str(DATA)], capsys)
    assert "run_dir" in said(["adapt"], capsys)
    said(["adopt"], capsys)
    said([], capsys)


def test_a_model_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--data.root={DATA}/adverse", "--data.split=val"]
    assert "nothing.safetensors" in said(
        ["evaluate", "--model", str(tmp_path / "nothing.safetensors"), *options], capsys
    )
    (tmp_path / "text.safetensors").write_text("this is no model")
    assert "text.safetensors" in said(["evaluate", "--model", str(tmp_path / "text.safetensors"), *options], capsys)


def test_cuda_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda" in said(["train", *CLEAR, "--run_dir", str(tmp_path), "--device", "cuda"], capsys)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from segadapt.cli import main\n"
        "try: main(['adapt', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "--optimiser.learning_rate" in shown.stdout


def test_every_shipped_configuration_is_accepted() -> None:
    from segadapt.commands.options import command_parser

    configs = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert {"demo.yaml", "smoke.yaml", "synstreet_to_camvid.yaml"} <= {path.name for path in configs}
    for path in configs:
        assert path.read_text().startswith("#"), f"{path}: says in a comment what it is"
        parsed = command_parser("adapt")[1].parse_args(["--config", str(path), "--run_dir", "runs/x"])
        written = yaml.safe_load(path.read_text())
        assert parsed.schedule.steps == written["schedule"]["steps"]


def test_json_of_evaluate_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from segadapt.config import NetworkConfig
    from segadapt.data.label_spaces import STREETS11
    from segadapt.networks.weights import build_network, save_network

    network = build_network(NetworkConfig("efficientnet_lite0", "random"), STREETS11, 0)
    save_network(tmp_path / "model.safetensors", network, {"provenance": '{"seed": 3}'})
    code = main(
        [
            "evaluate",
            f"--model={tmp_path}/model.safetensors",
            f"--data.root={DATA}/clear",
            "--data.split=val",
            "--data.size=[48, 64]",
            "--json=true",
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(result["iou"]) == set(STREETS11.names)
    assert result["images"] == 20
    assert result["seed"] == 3


def test_brackets_in_the_name_of_a_class_are_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    from segadapt.commands.options import print_scores

    scores = {"miou": 1.0, "iou": {"road [wet]": 1.0, "[red]car": None}, "subsets": {":car: [a]": 2.0}}
    print_scores(scores, as_json=False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("road [wet]", "[red]car", ":car: [a]"))


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m segadapt weights | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    script = subprocess.run(
        [sys.executable, "-m", "segadapt", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _segadapt; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True, cwd=tmp_path)
        return set(done.stdout.split())

    assert {"adapt", "ablate"} == completed("segadapt", "a")
    assert "--schedule.steps" in completed("segadapt", "adapt", "--schedule.")
    assert "--schedule.steps" not in completed("segadapt", "weights", "--")
    assert completed("segadapt", "translate", "") == {"fit", "apply"}
    assert completed("segadapt", "translate", "fit", "--fil") == {"--filters"}
    assert completed("segadapt", "adapt", "--config", "a.y") == set(), "files are left to bash"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert ("bashcompinit" in script) == (shell == "zsh")
    assert "schedule.steps" in script


def test_help_has_an_example_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    from segadapt.commands import COMMANDS
    from segadapt.commands.options import command_parser

    for name in COMMANDS:
        module, parser = command_parser(name)
        text = " ".join(parser.format_help().split())
        assert module.EXAMPLE.split("--")[0].strip() in text.replace("- ", "-"), name
        assert module.EXAMPLE.startswith(("segadapt ", 'eval "$(segadapt ')), name
    assert "(type: float, default: 0.01)" in " ".join(command_parser("adapt")[1].format_help().split())


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_the_overview(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from segadapt.commands import COMMANDS

    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("segadapt 0" if arguments == ["--version"] else "usage: segadapt COMMAND")
    assert arguments == ["--version"] or all(f"  {name}" in shown for name in COMMANDS)
