"""What a table says of trainings: its numbers on results made by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from segadapt.errors import InputError
from segadapt.studies.runs import Row, Run
from segadapt.studies.table import (
    confidence_interval,
    gap_closed,
    header_and_lines,
    markdown,
    print_study,
    rank_correlations,
    row_titled,
    spearman,
    table_of,
    write_tables,
)

SCORES = ("entropy", "soft_neighbourhood_density", "information_maximisation", "source_validation")


def run(
    seed: int, *course: float, label_free: dict[str, list[float]] | None = None, test: str = "adverse", **result: Any
) -> Run:
    """A training with the mIoU of each of its evaluations on the images `test`, and the label-free scores beside."""
    scores = [{name: values[i] for name, values in (label_free or {}).items()} for i in range(len(course))]
    lines = [
        {
            "step": 10 * (number + 1),
            "evaluation": {"miou": miou, "iou": {}, "subsets": {}, "images": 1},
            **({"label_free": found} if found else {}),
        }
        for number, (miou, found) in enumerate(zip(course, scores, strict=True))
    ]
    content = {
        "miou": course[-1],
        "iou": {"road": course[-1]},
        "seconds": 10.0,
        "best": {"miou": max(course)},
        "label_free": scores[-1],
        "data": {"test": {"name": f"folder {test}", "images": 7, "fingerprint": f"{test}0123456789"}},
        **result,
    }
    return Run(Path(f"seed{seed}"), {"seed": seed}, tuple(lines), content)


def row(name: str, *scores: float, title: str = "", test: str = "adverse") -> Row:
    return Row(name, title or name, tuple(run(seed, score, test=test) for seed, score in enumerate(scores)))


def waiting(seed: int) -> Run:
    """A training that is not finished."""
    return Run(Path(f"seed{seed}"), {"seed": seed}, (), None)


def test_a_row_is_mean_and_sample_deviation_over_seeds() -> None:
    runs = (run(0, 40.0, seconds=10.0), run(7, 43.0, seconds=20.0))
    (line,) = table_of([Row("sim", "+ SIM", runs)])
    assert (line["name"], line["title"], line["seeds"], line["seconds"]) == ("sim", "+ SIM", [0, 7], 15)
    assert (line["miou"], line["miou_each"], line["gain"]) == (41.5, [40.0, 43.0], None)
    assert line["miou_std"] == pytest.approx(math.sqrt(4.5))


def test_the_seconds_of_the_procedure_are_those_of_both_steps() -> None:
    (line,) = table_of([Row("sim_ssl", "+ SSL", (run(0, 40.0, seconds=10.0, step1={"seconds": 7.0}),))])
    assert line["seconds"] == 17


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    first, second = table_of([row("adversarial", 40.0), row("sim", 42.0)])
    assert first["miou_std"] is None
    assert second["gain"] == {
        "over": "adversarial",
        "seeds": [0],
        "mean": 2.0,
        "low": None,
        "high": None,
        "each": [2.0],
    }


def test_a_gain_is_paired_by_seed() -> None:
    ours = Row("sim", "+ SIM", (run(2, 37.9), run(0, 35.7), run(1, 37.8), run(5, 90.0)))
    theirs = Row("adversarial", "+ AA", (run(0, 33.9), run(1, 36.6), run(2, 36.7), run(4, 1.0)))
    gain = table_of([theirs, ours])[1]["gain"]
    assert (gain["over"], gain["seeds"]) == ("+ AA", [2, 0, 1]), "only seeds that both have"
    assert gain["each"] == pytest.approx([1.2, 1.8, 1.2])
    # mean 1.4, deviation 0.3464; the 97.5 % point of t with 2 degrees of freedom is 4.3027
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((1.4, 0.5395, 2.2605), abs=1e-4)


def test_rows_without_a_common_seed_have_no_gain() -> None:
    alone = Row("sim", "+ SIM", (run(9, 40.0),))
    assert table_of([row("adversarial", 39.0), alone])[1]["gain"] is None


def test_gains_over_a_named_row() -> None:
    rows = [row("a", 1.0), row("b", 5.0), row("c", 4.0)]
    gains = [line["gain"] for line in table_of(rows, rows[1])]
    assert gains[1] is None
    assert [gain["mean"] for gain in (gains[0], gains[2])] == [-4.0, -1.0]
    assert row_titled(rows, "b") is rows[1]
    with pytest.raises(InputError, match=r"--baseline: 'd' is not one of the rows; use one of \['a', 'b', 'c'\]"):
        row_titled(rows, "d")
    twice = [row("sim", 1.0, title="x: + SIM"), row("sim", 5.0, title="y: + SIM")]
    with pytest.raises(InputError, match=r"'sim' is several of the rows; use one of \['x: \+ SIM', 'y: \+ SIM'\]"):
        row_titled(twice, "sim")
    with pytest.raises(
        InputError, match=r"no training of '\+ AA' is finished and scored; use one of \['a', 'b', 'c'\]"
    ):
        row_titled([*rows, Row("adversarial", "+ AA", (waiting(0),))], "+ AA")


def test_rows_on_different_test_images_have_no_gain_and_no_common_order() -> None:
    found = {"entropy": [0.3]}
    streets = Row("a", "a", tuple(run(seed, 10.0 + seed, label_free=found) for seed in range(2)))
    other = Row(
        "b", "b", tuple(run(seed, 50.0 + seed, label_free={"entropy": [0.1]}, test="camvid") for seed in (0, 1))
    )
    third = Row("c", "c", tuple(run(seed, 12.0 + seed, label_free={"entropy": [0.2]}) for seed in range(2)))
    rows = [streets, other, third]
    table = table_of(rows, streets)
    assert [line["test"]["name"] for line in table] == ["folder adverse", "folder camvid", "folder adverse"]
    assert (table[1]["gain"], table[2]["gain"]["each"]) == (None, [2.0, 2.0])
    assert rank_correlations([streets, third])["entropy"]["between_trainings"] is not None
    assert rank_correlations(rows)["entropy"]["between_trainings"] is None
    assert (
        "\nScored on different test images or classes, so that between them there is neither a gain nor a rank "
        "correlation: 7 images of folder adverse (fingerprint adverse0, 1 classes): a, c; "
        "7 images of folder camvid (fingerprint camvid01, 1 classes): b.\n"
    ) in markdown(rows, "entropy", streets)


def test_rows_of_different_classes_have_no_gain() -> None:
    """The mean over two classes is higher than that over all by nothing but the choice."""
    all_classes = Row("a", "a", (run(0, 40.0, iou={"road": 70.0, "car": 50.0, "rider": 0.0}),))
    two = Row("b", "b", (run(0, 60.0, iou={"road": 70.0, "car": 50.0}),))
    same = Row("c", "c", (run(0, 41.0, iou={"rider": 3.0, "road": 70.0, "car": 50.0}),))
    table = table_of([all_classes, two, same], all_classes)
    assert (table[1]["gain"], table[2]["gain"]["each"]) == (None, [1.0])
    assert "(fingerprint adverse0, 2 classes): b" in markdown([all_classes, two, same], "entropy", all_classes)


def test_a_row_is_of_one_test_set_and_one_training_a_seed() -> None:
    with pytest.raises(InputError, match="seed0 and seed1: were scored on different test images"):
        Row("sim", "+ SIM", (run(0, 40.0), run(1, 50.0, test="camvid")))
    assert Row("sim", "+ SIM", (waiting(0), run(1, 50.0, test="camvid"))).miou() == 50
    with pytest.raises(InputError, match="seed0 and seed0: both are of seed 0; take one of them away"):
        Row("sim", "+ SIM", (run(0, 40.0), waiting(0)))


def test_what_is_not_finished_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row("source_only", "source only", (waiting(0),)),
        Row("adversarial", "+ AA", (run(0, 40.0), waiting(1))),
        row("sim", 43.0, title="+ SIM"),
    ]
    assert [(line["title"], line["seeds"]) for line in table_of(rows)] == [("+ AA", [0]), ("+ SIM", [0])]
    assert table_of(rows)[1]["gain"]["over"] == "+ AA"
    said = "Not finished, or without a score, and so left out: source only (seed 0), + AA (seed 1)."
    assert f"\n{said}\n" in markdown(rows, "entropy")
    print_study(rows, "entropy", as_json=True)
    assert capsys.readouterr().err == f"{said}\n"


def test_an_interval_is_as_wide_as_the_t_distribution_says() -> None:
    # 12.706 and 2.262: the published 97.5 % points for 1 and 9 degrees of freedom
    low, high = confidence_interval([0.0, 2.0])
    assert (low, high) == pytest.approx((1 - 12.706, 1 + 12.706), abs=1e-3)
    values = [1.0, -1.0] * 5
    deviation = math.sqrt(10 / 9)
    reach = 2.262 * deviation / math.sqrt(10)
    assert confidence_interval(values) == pytest.approx((-reach, reach), abs=1e-3)
    assert confidence_interval([3.0]) == (None, None)


def test_the_gap_closed() -> None:
    rows = [row("source_only", 36.6), row("sim_ssl", 49.2), row("target_only", 65.1)]
    assert gap_closed(rows) == pytest.approx(44.2, abs=0.05), "the paper's 44 %"
    assert "\nGap between source only and target only closed: 44 %.\n" in markdown(rows, "entropy")
    assert gap_closed(rows[:2]) is None
    worse = [row("source_only", 50.0), row("sim_ssl", 40.0), row("target_only", 60.0)]
    assert gap_closed(worse) == -100


def test_the_gap_is_that_of_the_seeds_of_all_three_rows() -> None:
    # all three have seed 1 alone, where half of the gap is closed
    rows = [
        Row("source_only", "source only", (run(0, 1.0), run(1, 30.0))),
        Row("sim_ssl", "+ SSL", (run(1, 40.0), run(2, 99.0))),
        Row("target_only", "target only", (run(0, 2.0), run(1, 50.0), run(2, 60.0))),
    ]
    assert gap_closed(rows) == 50
    assert gap_closed([*rows[:2], row("target_only", 40.0)]) is None, "no seed of all three"
    assert gap_closed([*rows[:2], row("target_only", 40.0, 50.0, test="camvid")]) is None


def test_of_two_tables_no_gap_is_counted() -> None:
    first = [row("source_only", 30.0), row("sim_ssl", 40.0), row("target_only", 50.0)]
    assert gap_closed([*first, row("source_only", 20.0, title="other: source only")]) is None
    assert gap_closed([*first, *first]) is None


@pytest.mark.parametrize("target_only", [36.6, 30.0])
def test_without_a_gap_there_is_none_to_close(target_only: float) -> None:
    rows = [row("source_only", 36.6), row("sim_ssl", 49.2), row("target_only", target_only)]
    assert gap_closed(rows) is None
    assert "Gap" not in markdown(rows, "entropy")


def test_checkpoints_are_chosen_side_by_side() -> None:
    chosen = {"entropy": {"miou": 41.0, "step": 10}}
    (line,) = table_of([Row("sim", "+ SIM", (run(0, 41.0, 43.0, 40.0, selected=chosen),))])
    assert line["selected"]["entropy"] == {"miou": 41.0, "miou_std": None, "miou_each": [41.0]}
    assert line["best"] == {"miou": 43.0, "miou_std": None, "miou_each": [43.0], "chosen_on": "test labels"}
    header, lines = header_and_lines([line], "entropy")
    assert header == ["method", "seeds", "mIoU %", "gain", "selected", "best on labels", "seconds"]
    assert lines == [["+ SIM", "0", "40.0", "", "41.0", "43.0", "10"]]


def test_a_choice_that_is_worse_than_the_last_model_is_shown() -> None:
    runs = (
        run(0, 20.0, 40.0, selected={"entropy": {"miou": 20.0, "step": 10}}),
        run(3, 24.0, 42.0, selected={"entropy": {"miou": 24.0, "step": 10}}),
    )
    table = table_of([Row("sim", "+ SIM", runs)])
    assert table[0]["best"]["miou_each"] == table[0]["miou_each"], "the last models are the best"
    header, lines = header_and_lines(table, "entropy")
    assert header[4:6] == ["selected", "best on labels"]
    # deviations of two values: their distance over the square root of 2
    assert lines == [["+ SIM", "0 3", "41.0 ± 1.4", "", "22.0 ± 2.8", "41.0 ± 1.4", "10"]]


def test_a_gain_on_fewer_seeds_than_the_row_has_names_them() -> None:
    table = table_of([row("adversarial", 40.0), row("sim", 41.0, 99.0)])
    assert header_and_lines(table, "entropy")[1][1] == ["sim", "0 1", "70.0 ± 41.0", "+1.0, seeds 0", "10"]


def test_a_score_that_orders_as_the_labels_do_has_correlation_1() -> None:
    found = {
        "entropy": [3.0, 2.0, 1.0],  # less is better
        "soft_neighbourhood_density": [3.0, 2.0, 1.0],
        "information_maximisation": [1.0, 3.0, 2.0],
        "source_validation": [5.0, 5.0, 5.0],
    }
    rows = [
        Row("sim", "+ SIM", (run(0, 10.0, 20.0, 30.0, label_free=found),)),
        Row("target_only", "target only", (run(0, 99.0, 98.0, 97.0, label_free=found),)),
    ]
    within = {score: value["within_trainings"] for score, value in rank_correlations(rows).items()}
    assert within == {
        "entropy": pytest.approx(1.0),
        "soft_neighbourhood_density": pytest.approx(-1.0),
        "information_maximisation": pytest.approx(0.5),
        "source_validation": None,
    }
    assert rank_correlations(rows)["entropy"] == {
        "between_trainings": None,
        "trainings": 1,
        "within_trainings": pytest.approx(1.0),
        "checkpoints": 3,
    }


def test_between_trainings_the_last_models_are_ordered() -> None:
    mious, entropies = (30.0, 20.0, 40.0, 10.0), (0.3, 0.2, 0.1, 0.4)
    runs = tuple(
        run(seed, miou, label_free={"entropy": [entropy]})
        for seed, (miou, entropy) in enumerate(zip(mious, entropies, strict=True))
    )
    (found,) = rank_correlations([Row("sim", "+ SIM", runs)]).values()
    # ranks 3 2 4 1 and, of the negative entropies, 2 3 4 1: 1 - 6 * 2 / (4 * 15)
    assert found["between_trainings"] == pytest.approx(0.8)
    assert (found["trainings"], found["within_trainings"]) == (4, None)


def test_spearman_shares_ranks_between_equal_values() -> None:
    # ranks 1.5 1.5 3 and 1 2 3: covariance 1.5 / 2, deviations sqrt(0.75) and 1
    assert spearman([(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]) == pytest.approx(0.75 / math.sqrt(0.75))
    assert spearman([(1.0, 2.0), (2.0, 3.0)]) is None


def test_the_table_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("source_only", 36.0, 37.0, title="source only"), row("sim", 46.0, 48.0, title="+ SIM")]
    write_tables(rows, tmp_path / "new", "entropy")
    text = (tmp_path / "new" / "table.md").read_text()
    assert text == (
        "| method | seeds | mIoU % | gain | seconds |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| source only | 0 1 | 36.5 ± 0.7 |  | 10 |\n"
        "| + SIM | 0 1 | 47.0 ± 1.4 | +10.5 (+4.1 to +16.9) | 10 |\n"
        "\nGain: mean of the differences seed by seed, with its 95 % confidence interval (t distribution).\n"
    )
    assert json.loads((tmp_path / "new" / "table.json").read_text()) == table_of(rows)
    assert json.loads((tmp_path / "new" / "label_free.json").read_text()) == {}
    print_study(rows, "entropy", as_json=False)
    assert "36.5 ± 0.7" in capsys.readouterr().out
    print_study(rows, "entropy", as_json=True)
    assert json.loads(capsys.readouterr().out) == table_of(rows)


def test_the_label_free_scores_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = {score: [0.125] for score in SCORES}
    runs = tuple(run(seed, 10.0 + seed, label_free={**found, "entropy": [0.5 - seed / 10]}) for seed in range(3))
    rows = [Row("sim", "+ SIM", runs)]
    text = markdown(rows, "entropy")
    assert "| method | mIoU % | entropy | SND | IM | source |\n" in text
    assert "| + SIM | 11.0 | 0.400 | 0.125 | 0.125 | 0.125 |\n" in text
    assert "| rank correlation between trainings |  | +1.00 |  |  |  |\n" in text
    print_study(rows, "entropy", as_json=False)
    assert "+1.00" in capsys.readouterr().out


def test_titles_are_text_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("", 40.0, title="a|b [red]c[/]"), Row("", "[bold]waits", (waiting(0),))]
    assert "| a\\|b [red]c[/] | 0 | 40.0 |" in markdown(rows, "entropy")
    print_study(rows, "entropy", as_json=False)
    shown = capsys.readouterr().out
    assert "a|b [red]c[/]" in shown
    assert "[bold]waits" in shown
