"""The page of a comparison: every protocol, course, instrument and table of a folder, and its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.bench.tiny import tiny
from tests.report.test_page import Balance

from supple.bench import run_list
from supple.bench.courses import comparison_page
from supple.cli.main import main
from supple.report import Comparison, ComparisonPage, Course, drawings, latex, write_comparison
from supple.report.comparison import tradeoff


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    specs = [tiny(4, m, s, measure_every=2) for m in ("plain", "fresh") for s in (0, 1)]
    assert run_list([*specs, tiny(4, "cchain")], root, workers=0).ok
    return root


def test_the_page_shows_what_was_run(folder: Path, tmp_path: Path) -> None:
    page = comparison_page(folder, "supple bench report runs")
    (part,) = page.protocols
    assert set(part.courses) == {"plain", "fresh", "cchain"}
    assert part.tasks == 4
    dead = part.courses["plain"].instruments["dead"]
    assert dead[0] == [1, 2, 4]
    assert len(dead[1]) == 2
    assert "dead" not in part.courses["cchain"].instruments  # it was not measured
    text = write_comparison(page, tmp_path / "page.html").read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert balance.loads == []
    assert len(set(balance.ids)) == len(balance.ids)
    for words in ("Plain ReLU network", "C-CHAIN", "fingerprints", "supple bench report runs"):
        assert words in text
    assert text == write_comparison(page, tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_figures_are_files_and_no_two_lines_look_alike(folder: Path, tmp_path: Path) -> None:
    (part,) = comparison_page(folder).protocols
    made = drawings(part, tmp_path)
    assert all(made)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{d.name}.{k}" for d in made if d for k in ("svg", "png")
    }
    assert made[0] is not None
    assert "mean of 1 to 2 seeds" in made[0].caption  # C-CHAIN has one
    many = Comparison(
        "many", "accuracy", {f"m{i}": Course(f"m{i}", [[0.1, 0.2]]) for i in range(14)}, ["method"], []
    )
    first, *_ = drawings(many)
    assert first is not None
    styles = re.findall(r'style="(fill: none; stroke(?:-dasharray: [^;]*; stroke)?[^"]*)"', first.markup)
    lines = [s for s in styles if "stroke-width: 2" in s]
    assert len(lines) >= 28  # each in the drawing and in the legend
    assert len(set(lines)) == 14


def test_a_protocol_without_measurements_has_no_instrument_figure() -> None:
    part = Comparison("bare", "accuracy", {"plain": Course("Plain", [[0.5, 0.6]])}, ["method"], [["Plain"]])
    assert [d is None for d in drawings(part)] == [False, False, True, True]


def test_the_map_places_each_method_by_what_it_learns_and_keeps(folder: Path) -> None:
    courses = {
        "a": Course("A", [[0.1, 0.9], [0.1, 0.7]], kept=[0.2, 0.4]),
        "b": Course("B", [[0.5, 0.5]], kept=[0.6]),
        "c": Course("C", [[0.9, 0.95]]),
    }
    drawn = tradeoff(Comparison("p", "accuracy", courses, ["method"], []))
    assert drawn is not None
    assert drawn.heading == "p: A learns best (0.80), B keeps most (0.60)"
    assert drawn.rows[0] == ("A", "0.800 [0.700, 0.900]", "0.300 [0.200, 0.400]")
    assert "1 method(s) without a look back are left out" in drawn.caption
    (part,) = comparison_page(folder).protocols
    assert len(part.courses["plain"].kept) == 2
    assert "–" not in part.rows[0][-2:]


def test_latex_is_escaped() -> None:
    part = Comparison("a_b", "accuracy", {}, ["method", "share"], [["l2_init", "5 % – 6 %"]])
    text = latex(ComparisonPage([part]))
    assert r"l2\_init & 5 \% -- 6 \% \\" in text
    assert text.count(r"\toprule") == 1


def test_all_files_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {k: tmp_path / f"t.{k}" for k in ("html", "latex", "csv")}
    options = [x for k, p in files.items() for x in (f"--{k}", str(p))]
    assert main(["bench", "report", str(folder), *options, "--figures", str(tmp_path / "figures")]) == 0
    assert all(p.stat().st_size > 100 for p in files.values())
    assert len(list((tmp_path / "figures").iterdir())) == 8
    assert "figure(s)" in capsys.readouterr().err
    assert main(["bench", "report", str(tmp_path / "nowhere"), "--html", str(tmp_path / "x.html")]) == 2
    assert not (tmp_path / "x.html").exists()
