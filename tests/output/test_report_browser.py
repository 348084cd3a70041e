"""The report in a real browser: no errors, nothing loaded, dividers that move, and what axe-core says of it.

Needs Chromium; the rules of axe-core come from npm into a temporary folder. Where one is missing these tests are
skipped; the page's content is tested without either in test_report.py.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from report_runs import CLASSES, run_folder
from segadapt.data.label_spaces import LabelSpace
from segadapt.output.report import sections
from segadapt.output.report.measure import Measured, Reliability
from segadapt.output.report.page import page
from segadapt.output.report.pictures import class_legend, figure
from segadapt.output.report.sections import Section
from segadapt.studies.runs import read_rows

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")

COLOURS = ((128, 64, 128), (70, 70, 70), (0, 0, 142))
SPACE = LabelSpace(name="toy", names=CLASSES, colours=COLOURS, ids=((0,), (1,), (2,)), stuff=(0, 1), things=(2,))
FIRST = "document.querySelector('.compare')"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, of runs and measurements made by hand."""
    folder = tmp_path_factory.mktemp("page")
    for seed in (0, 1):
        run_folder(folder / f"run/source_only/seed{seed}", "source_only", (60.0, 30.0, None), seed, 40.0 + seed)
        run_folder(
            folder / f"run/sim/seed{seed}", "sim", (70.0, 20.0, 10.0), seed, 44.0, "segadapt x", {20: 30.0, 40: 44.0}
        )
    rows = read_rows([folder / "run"])
    reliability = Reliability()
    reliability.pixels += 10
    reliability.right += 7
    reliability.confidence += 8.0
    counts = np.array([[90, 10, 0], [45, 55, 0], [30, 5, 65]])
    measured = {row.title: Measured(SPACE, counts, reliability, {}) for row in rows}
    labels = np.repeat(np.arange(3, dtype=np.uint8), 20)[None].repeat(40, 0)
    photograph = np.full((40, 60, 3), 120, np.uint8)
    maps = {"source only": labels, "+ SIM": labels[:, ::-1], "labels": labels}
    pictures = "".join(figure(name, photograph, maps, SPACE) for name in ("a.png", "b.png"))
    matching = sections.matching(rows, dict.fromkeys([row.title for row in rows], SPACE))
    assert matching
    thresholds = {"thresholds": dict.fromkeys(CLASSES, 0.5), "coverage": dict.fromkeys(CLASSES, 0.4), "images": 3}
    parts = [
        sections.class_table(rows),
        Section("pictures", "Pictures", "", f'{class_legend(SPACE)}<div class="pictures">{pictures}</div>'),
        sections.curves(rows),
        sections.confusion(measured),
        sections.reliability(measured),
        matching,
        sections.pseudo_labels(thresholds, dict.fromkeys(CLASSES, (10, 9)), ""),
        sections.provenance(rows, "segadapt report run"),
    ]
    path = folder / "report.html"
    path.write_text(page("Adaptation report: run", sections.summary(rows), parts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [400, 1400])
def test_opens_without_a_complaint_and_loads_nothing(browser: Browser, report: Path, width: int) -> None:
    browser.resize(width, 900)
    browser.open(report)
    assert browser.complaints() == []
    assert browser.loaded() == [report.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width, "only tables scroll sideways, in their boxes"
    assert browser.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.run("document.querySelectorAll('.compare').length") == 2


def test_complaints_are_heard(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>x</title><img src='none.png'><script>console.error('a'); throw 1</script>")
    browser.open(page)
    assert len(browser.complaints()) >= 2
    assert any("none.png" in address for address in browser.loaded())


def test_the_divider_moves_by_keys(browser: Browser, report: Path) -> None:
    browser.resize(1400, 900)
    browser.open(report)
    browser.run(f"{FIRST}.querySelector('input').focus()")
    cut = f"{FIRST}.querySelector('.stage').style.getPropertyValue('--cut')"
    assert browser.run(cut) == "50%"
    for key, expected in (
        ("ArrowRight", "51%"),
        ("ArrowLeft", "50%"),
        ("ArrowLeft", "49%"),
        ("Home", "0%"),
        ("End", "100%"),
    ):
        browser.press(key)
        assert browser.run(cut) == expected
    said = f"{FIRST}.querySelector('input').getAttribute('aria-valuetext')"
    assert browser.run(said) == "100 percent source only, the rest + SIM"


def test_the_divider_moves_by_pointer(browser: Browser, report: Path) -> None:
    browser.resize(1400, 900)
    browser.open(report)
    browser.run(f"{FIRST}.scrollIntoView({{block: 'center'}})")
    box = browser.run(f"{FIRST}.querySelector('.stage').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2
    browser.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)
    assert browser.run(f"{FIRST}.querySelector('input').value") == "25"


def test_the_lists_choose_what_is_compared(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = f"[...{FIRST}.querySelectorAll('.stage img')].map((image) => image.alt)"
    assert browser.run(shown) == [
        "a.png, source only: road 33 %, wall 33 %, car 33 %", "a.png, + SIM: road 33 %, wall 33 %, car 33 %",
    ]  # fmt: skip
    assert browser.run(f"[...{FIRST}.querySelectorAll('option')].length") == 8
    browser.run(f"{FIRST}.querySelector('select').focus()")
    browser.press("Home")
    assert browser.run(shown)[0] == "Photograph a.png"


def test_tables_are_copied(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.run("void (navigator.clipboard.writeText = async (text) => { window.copied = text; })")
    browser.run("document.querySelector('#classes ~ .box button[data-copy=CSV]').click()")
    assert browser.run("window.copied").splitlines()[:2] == [
        "method,road,wall,car,mIoU",
        "source only,60.0,30.0,–,40.5",
    ]
    assert browser.run("document.querySelector('[role=status]').textContent") == "copied as CSV"
    buttons = browser.run("document.querySelectorAll('table').length * 2")
    assert browser.run("document.querySelectorAll('.box button').length") == buttons, "every table has both"


def test_on_paper_there_are_pictures_instead_of_controls(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        displays = "[...document.querySelectorAll('nav, .compare, .copy')].map((e) => getComputedStyle(e).display)"
        assert set(browser.run(displays)) == {"none"}
        assert browser.run("getComputedStyle(document.querySelector('.panels')).display") == "grid"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, which axe-core comes from")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--no-save", "axe-core@4"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode:
        pytest.skip(f"axe-core cannot be had from npm: {installed.stderr.strip().splitlines()[-1:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def violations(browser: Browser, axe: str) -> list[str]:
    browser.run(f"{axe};void 0")
    found = browser.run("axe.run(document).then((result) => JSON.stringify(result.violations))")
    return [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:120]}" for rule in json.loads(found)]


@pytest.mark.parametrize("width", [400, 1400])
def test_axe_finds_nothing(browser: Browser, report: Path, axe: str, width: int) -> None:
    browser.resize(width, 15_000)  # all of it in the window: axe-core says nothing of text that it cannot see
    browser.open(report)
    assert violations(browser, axe) == []


def test_axe_would_find_something(browser: Browser, tmp_path: Path, axe: str) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>x</title><img src='data:,'><p style='color:#ccc'>pale</p>")
    browser.open(page)
    found = {line.split(":")[0] for line in violations(browser, axe)}
    assert {"image-alt", "color-contrast", "html-has-lang"} <= found
