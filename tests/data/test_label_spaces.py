"""Label spaces: the published id maps, YAML there and back, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segadapt.data.label_spaces import (
    CAMVID11,
    CITYSCAPES,
    STREETS11,
    SYNTHIA13,
    SYNTHIA16,
    LabelSpace,
    common,
    remap,
    shipped,
)
from segadapt.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maps_and_schedule.json").read_text())
SHIPPED = (CITYSCAPES, SYNTHIA16, SYNTHIA13, STREETS11, CAMVID11)


def small_space(names: tuple[str, ...] = ("road", "car", "sky")) -> LabelSpace:
    return LabelSpace(
        name="small",
        names=names,
        colours=tuple((position, 0, 0) for position in range(len(names))),
        ids=tuple((10 + position,) for position in range(len(names))),
        stuff=(0,),
        things=tuple(range(1, len(names))),
    )


@pytest.mark.parametrize("key", ["gta5_id_to_trainid", "cityscapes_id_to_trainid"])
def test_cityscapes_ids_are_the_published_ones(key):
    expected = np.full(65536, 255)
    for raw, train_id in GOLDEN[key].items():
        expected[int(raw)] = train_id
    np.testing.assert_array_equal(CITYSCAPES.lookup(), expected)


def test_train_ids_are_the_classes_of_cityscapes_numbered_by_position():
    label_ids, train_ids = CITYSCAPES, shipped("cityscapes19_train_ids")
    for field in ("names", "colours", "stuff", "things", "subsets"):
        assert getattr(train_ids, field) == getattr(label_ids, field)
    for raw, train_id in GOLDEN["cityscapes_id_to_trainid"].items():
        assert train_ids.lookup()[train_id] == label_ids.lookup()[int(raw)] == train_id
    assert np.count_nonzero(train_ids.lookup() != 255) == 19
    assert remap(train_ids, label_ids)[:19].tolist() == list(range(19))


@pytest.mark.parametrize("space", [SYNTHIA16, SYNTHIA13])
def test_synthia_ids_lead_to_the_published_cityscapes_train_ids(space):
    through = remap(space, CITYSCAPES)[space.lookup()]
    for raw, train_id in GOLDEN["synthia_id_to_trainid"].items():
        trained = CITYSCAPES.names[train_id] in space.names
        assert through[int(raw)] == (train_id if trained else 255)
    assert np.count_nonzero(through != 255) == space.num_classes


def test_cityscapes_colours_kinds_and_subsets_are_the_published_ones():
    assert [list(colour) for colour in CITYSCAPES.colours] == GOLDEN["palette"][:19]
    assert (list(CITYSCAPES.stuff), list(CITYSCAPES.things)) == (GOLDEN["bg"], GOLDEN["fg"])
    assert list(CITYSCAPES.subset_ids("synthia13")) == GOLDEN["synthia13"]
    assert len(CITYSCAPES.subset_ids("synthia16")) == 16


@pytest.mark.parametrize(
    ("space", "stuff", "things"),
    [(CITYSCAPES, 8, 11), (SYNTHIA16, 7, 9), (SYNTHIA13, 5, 8), (STREETS11, 6, 5), (CAMVID11, 6, 5)],
)
def test_number_of_stuff_and_things(space, stuff, things):
    assert (len(space.stuff), len(space.things)) == (stuff, things)


def test_streets_and_camvid_speak_the_same_classes():
    for field in ("names", "colours", "ids", "stuff", "things"):
        assert getattr(STREETS11, field) == getattr(CAMVID11, field)
    assert list(CAMVID11.ids) == [(raw,) for raw in range(11)]
    assert CAMVID11.lookup()[11] == 255


def test_the_bundled_pair_has_the_label_space_it_is_read_with():
    bundled = LabelSpace.from_yaml(Path(__file__).parents[2] / "data" / "streets" / "label_space.yaml")
    assert bundled == STREETS11


@pytest.mark.parametrize("space", SHIPPED, ids=lambda space: space.name)
def test_yaml_there_and_back(space, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(space.to_yaml(), encoding="utf-8")
    assert LabelSpace.from_yaml(path) == space == shipped(str(path)) == shipped(space.name)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12).filter(str.strip))
def test_any_name_survives_yaml(name):
    space = small_space((name, "other one"))
    assert LabelSpace.from_yaml_text(space.to_yaml(), "text").names == space.names


@pytest.mark.parametrize("name", ["no", "12", "1e3", "null", "a: b", "a, b", "- a", "#x", "~", "[a]", "y"])
def test_names_that_yaml_reads_otherwise_survive(name):
    assert LabelSpace.from_yaml_text(small_space((name, "b1")).to_yaml(), "text").names == (name, "b1")


def test_restrict_keeps_its_own_order_and_what_is_left_of_kinds_and_subsets():
    space = CITYSCAPES.restrict(["car", "sky", "road"])
    assert space.names == ("road", "sky", "car")
    assert (space.stuff, space.things) == ((0, 1), (2,))
    assert space.subsets == {}
    assert space.lookup()[[7, 23, 26, 8]].tolist() == [0, 1, 2, 255]
    sixteen = CITYSCAPES.restrict(SYNTHIA16.names)
    assert set(sixteen.subsets) == {"synthia16", "synthia13"}
    assert sixteen.names == SYNTHIA16.names
    assert sixteen.restrict(SYNTHIA13.names).subsets.keys() == {"synthia13"}


def test_common_takes_order_and_ids_of_the_target():
    space = common(SYNTHIA13, CITYSCAPES)
    assert space.names == SYNTHIA13.names
    assert space.ids[0] == (7,)
    assert common(CITYSCAPES, CITYSCAPES) == CITYSCAPES


def test_common_refuses_spaces_without_a_common_name():
    with pytest.raises(InputError, match=r"small \(road, car, sky\) and small \(a, b\) have no class name in"):
        common(small_space(), small_space(("a", "b")))


def test_remap_goes_by_name():
    table = remap(small_space(), small_space(("sky", "road", "tram")))
    assert table[:4].tolist() == [1, 255, 0, 255]
    assert (table[4:] == 255).all()


def test_several_raw_ids_make_one_class():
    text = "name: s\nclasses:\n- {name: car, kind: thing, colour: [1, 2, 3], ids: [26, 27, 40000]}\n"
    table = LabelSpace.from_yaml_text(text, "text").lookup()
    assert table[[26, 27, 40000, 28]].tolist() == [0, 0, 0, 255]


ROAD = "{name: road, kind: stuff, colour: [1, 2, 3], ids: [1]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "the file: not a mapping"),
        ("name: [", "not valid YAML"),
        (f"name: s\nclass: [{ROAD}]", "unknown key 'class'; use name, classes"),
        ("name: s", "key 'classes' is missing"),
        ("name: s\nclasses: road", "classes: not a list"),
        ("name: s\nclasses: []", "classes: 0 given"),
        (f"name: s\nclasses: [{ROAD}, {ROAD}]", "name 'road' stands twice"),
        (
            f"name: s\nclasses: [{ROAD}, {{name: car, kind: thing, colour: [1, 2, 3], ids: [2]}}]",
            r"colour \[1, 2, 3\] stands twice \(classes 'road' and 'car'\)",
        ),
        (
            f"name: s\nclasses: [{ROAD}, {{name: car, kind: thing, colour: [1, 2, 4], ids: [2, 1]}}]",
            r"id 1 stands twice \(classes 'road' and 'car'\)",
        ),
        (f"name: s\nclasses: [{ROAD.replace('stuff', 'things')}]", r"classes\[0\].kind: 'things' is neither"),
        (f"name: s\nclasses: [{ROAD.replace('[1]', '[70000]')}]", "class 'road': id 70000 is out of range"),
        (f"name: s\nclasses: [{ROAD.replace('[1]', '[-1]')}]", "class 'road': id -1 is out of range"),
        (f"name: s\nclasses: [{ROAD.replace('[1]', '[]')}]", "class 'road': ids is empty"),
        (f"name: s\nclasses: [{ROAD.replace('[1]', '1')}]", r"classes\[0\].ids: 1 is not a list"),
        (f"name: s\nclasses: [{ROAD.replace('[1, 2, 3]', '[1, 2]')}]", "has 2 values"),
        (f"name: s\nclasses: [{ROAD.replace('[1, 2, 3]', '[1, 2, 256]')}]", "colour .* is out of range"),
        (
            f"name: s\nclasses: [{ROAD.replace('name: road', 'name: no')}]",
            "False is not a name; write text, in",
        ),
        (f"name: s\nclasses: [{ROAD.replace(', ids: [1]', '')}]", r"classes\[0\]: key 'ids' is missing"),
        (f"name: s\nignore: 0\nclasses: [{ROAD}]", "ignore: 0 is not possible"),
        (
            f"name: s\nclasses: [{ROAD}]\nsubsets: {{few: [car]}}",
            "subset 'few': 'car' is no class here; use road",
        ),
        (f"name: s\nclasses: [{ROAD}]\nsubsets: {{few: []}}", "subset 'few' is empty"),
        (f"name: s\nclasses: [{ROAD}]\nsubsets: {{few: car}}", "subsets.few: not a list"),
    ],
)
def test_wrong_yaml_is_refused_in_one_line_that_names_the_file(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        LabelSpace.from_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_other_refusals_say_what_there_is():
    with pytest.raises(InputError, match=r"absent\.yaml: cannot be read"):
        LabelSpace.from_yaml("absent.yaml")
    with pytest.raises(InputError, match=r"'city' is neither .*; use camvid11, cityscapes19, cityscapes19_train_ids, "):
        shipped("city")
    with pytest.raises(InputError, match="class 'cat' is not in label space small; use road, car, sky"):
        small_space().restrict(["cat"])
    with pytest.raises(InputError, match="no subset 'few'; use none"):
        small_space().subset_ids("few")
    with pytest.raises(InputError, match="every class exactly once"):
        LabelSpace("s", ("a", "b"), ((0, 0, 0), (1, 1, 1)), ((0,), (1,)), stuff=(0,), things=(0,))


def test_label_spaces_do_not_import_torch():
    check = "import sys, segadapt.data.label_spaces; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
