"""Experiments and label spaces in YAML: a wrong type for every key, values out of range, and YAML that is none."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from mistakes import evaluate, refused, train

from segadapt.config import Experiment, LossConfig

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke.yaml"


def keys_of(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration with its type; of the three domains, which are alike, the source alone."""
    hints = get_type_hints(section)
    for field in fields(section):
        if is_dataclass(hints[field.name]):
            if field.name not in ("target", "test"):
                yield from keys_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def of_another_type(kind: Any) -> Any:
    """A value, as YAML has it, that a key of this type must not take."""
    if get_origin(kind) is UnionType or NoneType in get_args(kind):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if kind is str:
        return [1, 2]
    if kind is bool:
        return "perhaps"
    if get_origin(kind) is tuple:
        return {"wide": True} if get_args(kind)[0] is str else "wide"
    return "nonsense"  # for numbers and for Literal


KEYS = dict(keys_of(Experiment))


def test_the_table_has_every_section() -> None:
    assert {key.partition(".")[0] for key in KEYS} == {field.name for field in fields(Experiment)} - {"target", "test"}
    assert len(KEYS) > 50


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_type_in_yaml(key, tmp_path, capsys):
    content = of_another_type(KEYS[key])
    for part in reversed(key.split(".")):
        content = {part: content}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    arguments = ["adapt", f"--config={tmp_path}/x.yaml", f"--run_dir={tmp_path}/run"]
    refused(arguments, tmp_path, f"x.yaml|{key}", capsys)


WEIGHTS = [field.name for field in fields(LossConfig) if field.name != "gan"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        *((f"loss.{weight}=-0.5", f"loss.{weight}: -0.5") for weight in WEIGHTS),
        ("loss.matching=.nan", "loss.matching: nan"),
        ("loss.matching=.inf", "loss.matching: inf"),
        ("optimiser.learning_rate=.inf", "optimiser.learning_rate: inf"),
        ("optimiser.weight_decay=-1", "optimiser.weight_decay: -1"),
        ("optimiser.warmup_steps=-1", "optimiser.warmup_steps: -1"),
        ("optimiser.momentum=-0.1", "optimiser.momentum: -0.1"),
        ("warm_up.learning_rate=-1", "warm_up.learning_rate: -1"),
        ("matching.max_instances=0", "matching.max_instances: 0"),
        ("matching.thing_size=-5", "matching.thing_size: -5"),
        ("matching.min_area=0", "matching.min_area: 0"),
        ("matching.connectivity=6", "matching.connectivity"),
        ("network.aspp_branches=3", "network.aspp_branches"),
        ("translation.share=2", "translation.share: 2"),
        ("translation.beta=-1", "translation.beta: -1"),
        ("pseudo_labels.cap=1.5", "pseudo_labels.cap: 1.5"),
        ("schedule.decay_steps=0", "schedule.decay_steps: 0"),
        ("schedule.save_every=-1", "schedule.save_every: -1"),
        ("schedule.last_k=0", "schedule.last_k: 0"),
        ("schedule.workers=-1", "workers: -1"),
        ("schedule.batch_size=-2", "batch_size: -2"),
        ("augmentation.scale=[2, 1]", "augmentation.scale"),
        ("augmentation.scale=[0.5, 1]", "augmentation.scale: [0.5, 1.0] gives each image of a batch another size"),
        ("augmentation.crop=[0, 5]", "augmentation.crop"),
        ("augmentation.colour_jitter=-1", "augmentation.colour_jitter"),
        ("target.size=[0, 5]", "size: [0, 5]"),
        ("schedule.on_bad_image=ignore", "schedule.on_bad_image"),
        ("seed=-7", "seed: -7"),
        ("classes=[raod]", "class 'raod'"),
        ("classes=[]x", "classes"),
        ("schedule.batch_size=null", "schedule.batch_size"),
    ],
)  # fmt: skip
def test_a_value_out_of_range(option, words, tmp_path, capsys):
    arguments = ["adapt", f"--config={SMOKE}", "--network.weights=random", f"--run_dir={tmp_path}/run", f"--{option}"]
    refused(arguments, tmp_path, words, capsys)


DEEP = "[" * 3000 + "]" * 3000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"seed: 1\nseed: 2\n", "key 'seed' stands twice (line 2)"),
        (b"loss: {matching: 1, matching: 2}", "key 'matching' stands twice"),
        (b"loss: {matching: 1", "not valid YAML"),
        (b"seed: *nowhere", "not valid YAML"),
        (b"\tseed: 1", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system ['touch ran']", "not valid YAML"),
        (b"seed: 2026-13-45", "not valid YAML|month"),
        (b"seed: 1\n---\nseed: 2", "not valid YAML"),
        (f"seed: {DEEP}".encode(), "nested"),
        (LAUGHS.encode(), "values with its aliases"),
        (b"loss: &loss {again: *loss}", "nested"),
        (b"- seed", "holds no options"),
        (b"seed: 1\xff", "cannot be read"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"", "holds no options"),
        (b"seeds: 1", "seeds"),
        (b"loss: {adversarail: 1}", "'loss' does not accept option 'adversarail'"),
        (b"source.roott: site", "roott"),
        (b"? [a, b]\n: 1", "YAML"),
        (b"seed: null", "seed: null is not possible"),
        (b"loss: {matching: ~}", "loss.matching: null is not possible"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_yaml_that_is_no_experiment(text, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_bytes(text)
    arguments = ["adapt", f"--config={tmp_path}/x.yaml", f"--run_dir={tmp_path}/run"]
    refused(arguments, tmp_path, f"x.yaml|{words}", capsys)


@pytest.mark.parametrize(
    ("path", "words"), [("nowhere.yaml", "nowhere.yaml"), (".", "segadapt: error"), ("/dev/null", "/dev/null")]
)
def test_a_configuration_that_is_no_file(path, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["adapt", f"--config={path}", f"--run_dir={tmp_path}/run"], tmp_path, words, capsys)


ROAD = "{name: road, kind: stuff, colour: [0, 0, 0], ids: [1]}"
CAR = "{name: car, kind: thing, colour: [9, 9, 9], ids: [2]}"


def space(*classes: str, more: str = "") -> str:
    return f"name: site\nclasses: [{', '.join(classes)}]\n{more}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file: not a mapping"),
        ("road", "the file: not a mapping"),
        ("name: site", "key 'classes' is missing"),
        ("classes: []", "key 'name' is missing"),
        ("name: site\nclasses: 3", "classes: not a list"),
        ("name: site\nclasses: []", "classes: 0 given"),
        ("name: [site]\nclasses: [" + ROAD + "]", "name: ['site'] is not a name"),
        ("name: no\nclasses: [" + ROAD + "]", "name: False is not a name|in quotes"),
        (space(ROAD, CAR.replace("thing", "both")), "classes[1].kind: 'both'"),
        (space(ROAD, CAR.replace("thing", "[stuff, thing]")), "classes[1].kind"),
        (space(ROAD, CAR, "{name: road, kind: thing, colour: [7, 7, 7], ids: [3]}"), "name 'road' stands twice"),
        (space(ROAD, CAR.replace("ids: [2]", "ids: [1]")), "id 1 stands twice (classes 'road' and 'car')"),
        (space(ROAD, CAR.replace("[9, 9, 9]", "[0, 0, 0]")), "colour [0, 0, 0] stands twice"),
        (space(ROAD, CAR.replace("[9, 9, 9]", "[9, 9]")), "classes[1].colour: [9, 9] has 2 values"),
        (space(ROAD, CAR.replace("[9, 9, 9]", "[9, 9, 256]")), "class 'car': colour [9, 9, 256] is out of range"),
        (space(ROAD, CAR.replace("[9, 9, 9]", "red")), "classes[1].colour: 'red' is not a list"),
        (space(ROAD, CAR.replace("[2]", "2")), "classes[1].ids: 2 is not a list"),
        (space(ROAD, CAR.replace("[2]", "[]")), "class 'car': ids is empty"),
        (space(ROAD, CAR.replace("[2]", "[-1]")), "class 'car': id -1 is out of range"),
        (space(ROAD, CAR.replace("[2]", "[70000]")), "class 'car': id 70000 is out of range"),
        (space(ROAD, CAR.replace("[2]", "[2.0]")), "classes[1].ids: [2.0] is not a list of whole numbers"),
        (space(ROAD, CAR.replace("[2]", "[true]")), "classes[1].ids: [True] is not a list of whole numbers"),
        (space(ROAD, CAR.replace("name: car, ", "")), "classes[1]: key 'name' is missing"),
        (space(ROAD, CAR.replace("name:", "label: x, name:")), "classes[1]: unknown key 'label'"),
        (space(ROAD, CAR.replace("kind:", "name: van, kind:")), "key 'name' stands twice"),
        (space(ROAD, "car"), "classes[1]: not a mapping"),
        (space(ROAD, CAR, more="ignore: 0"), "ignore: 0 is not possible"),
        (space(ROAD, CAR, more="ignore: none"), "ignore: 'none' is not a number"),
        (space(ROAD, CAR, more="stuff: [road]\nthings: [road, car]"), "unknown key 'stuff'"),
        (space(ROAD, CAR, more="subsets: [road]"), "subsets: not a mapping"),
        (space(ROAD, CAR, more="subsets: {one: road}"), "subsets.one: not a list"),
        (space(ROAD, CAR, more="subsets: {one: []}"), "subset 'one' is empty"),
        (space(ROAD, CAR, more="subsets: {one: [tree]}"), "subset 'one': 'tree' is no class"),
        (space(*(f"{{name: c{i}, kind: stuff, colour: [{i % 256}, {i // 256}, 0], ids: [{i}]}}" for i in range(256))),
         "classes: 256 given"),
        (f"name: {DEEP}", "nested"),
        (LAUGHS, "values with its aliases"),
        ("name: &n [*n]", "nested"),
        ("name: site\nname: other\nclasses: []", "key 'name' stands twice"),
        ("name: !!python/name:os.system", "not valid YAML"),
        ("name: 2026-13-45", "not valid YAML"),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_a_label_space_that_is_none(text, words, site, model, capsys):
    (site / "label_space.yaml").write_text(text)
    refused(evaluate(model, site), site, f"label_space.yaml|{words}", capsys)


@pytest.mark.parametrize(("name", "text"), [("source", "name: a\nclasses: [" + ROAD + "]"), ("target", space(CAR))])
def test_class_lists_that_do_not_intersect(name, text, site, capsys):
    other = "name: b\nclasses: [{name: tree, kind: stuff, colour: [0, 0, 0], ids: [1, 2]}]"
    (site / "one.yaml").write_text(text)
    (site / "other.yaml").write_text(other)
    domains = ("source", "target", "test")
    options = [f"--{each}.label_space={site}/{'one' if each == name else 'other'}.yaml" for each in domains]
    refused(train(site, *options), site, "tree|have no class name in common", capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command given"),
        (["adopt"], "adopt: no such command"),
        (["evaluate"], "model"),
        (["evaluate", "--model"], "model"),
        (["evaluate", "--modle=x"], "modle"),
        (["pseudo-label", "--model=x"], "out"),
        (["train", "--run_dir=run", "--row=sim_ssl"], "row"),
        (["train", "--run_dir=run", "--device=gpu"], "device"),
        (["train", "--run_dir=run", "stray"], "stray"),
        (["weights", "--all"], "all"),
        (["ablate", "--run_dir=run", "--seeds", "one"], "seeds"),
        (["sweep", "--run_dir=run", "--setting=w", "--values", "-3"], "segadapt: error"),
    ],
)
def test_a_wrong_command(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments, tmp_path, words, capsys)
