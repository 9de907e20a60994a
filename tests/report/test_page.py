"""The page: complete in itself, deterministic, escaped, true to its numbers."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tests.report.example import LAYERS, SEEDS, TASKS, WINDOW, diagnosis, story

from supple.diagnose.types import DiagnosisReport
from supple.report import Arm, Spread, verdict, write_diagnosis, write_story
from supple.report.curves import accuracy, dead, running_mean, stability_map
from supple.report.data import tail_mean
from supple.report.mechanisms import kernel, spectra, units

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Balance(html.parser.HTMLParser):
    """Every tag closed, every id unique; collects what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "xlink:href", "data", "action") and not (value or "").startswith("#"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "story": write_story(story(), folder / "story.html").read_text(encoding="utf-8"),
        "diagnosis": write_diagnosis(diagnosis(True), folder / "diagnosis.html").read_text(encoding="utf-8"),
    }


@pytest.mark.parametrize("name", ["story", "diagnosis"])
def test_page_is_well_formed_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    check = Balance()
    check.feed(text)
    assert check.open == []
    assert check.loads == []
    assert len(check.ids) == len(set(check.ids))
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_same_numbers_give_the_same_bytes(tmp_path: Path, pages: dict[str, str]) -> None:
    again = write_story(story(), tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == pages["story"]
    assert list(tmp_path.iterdir()) == [again]  # no temporary file stays behind


def test_user_text_is_escaped(pages: dict[str, str], tmp_path: Path) -> None:
    assert "not called on the probe &lt;b&gt;" in pages["story"]
    hostile = dataclasses.replace(story(), command="<script>alert(1)</script>", stream="<i>")
    text = write_story(hostile, tmp_path / "hostile.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<i>" not in text


def test_every_part_of_the_story_is_there(pages: dict[str, str]) -> None:
    text = pages["story"]
    for words in (
        "A network that lost its ability to learn", "of the units without gradient", "ReGraMa",
        "Warning: C-CHAIN does not revive units.", "supple demo --seeds 3", "healthy twin",
        "What was looked at",
        "The control: a fresh network", "straddles the threshold", "fewer samples than units",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("<svg") == 6
    assert text.count('role="img"') == 6


def test_figures_are_xml_in_page_colours() -> None:
    drawings = [accuracy(story()), dead(story()), stability_map(story()), spectra(story().spectra)]
    drawings += [d for d in (units(story().worn, story().fresh), kernel(story().worn)) if d is not None]
    assert len(drawings) == 6
    for drawing in drawings:
        root = ET.fromstring(drawing.markup)
        assert root.tag.endswith("svg")
        assert "currentColor" in drawing.markup
        assert "#0102" not in drawing.markup
        assert "width" not in root.attrib
        assert drawing.heading
        assert all(len(row) == len(drawing.columns) for row in drawing.rows)


def test_numbers_beside_a_figure_are_those_of_the_story() -> None:
    drawing = accuracy(story())
    for arm, row in zip(story().ordered, drawing.rows, strict=True):
        means = [math.fsum(seed[-WINDOW:]) / WINDOW for seed in arm.online]
        assert row[0] == arm.title
        assert row[2] == f"{sum(means) / 3:.3f} [{min(means):.3f}, {max(means):.3f}]"
    table = units(story().worn, story().fresh)
    assert table is not None
    assert [row[0] for row in table.rows] == [name for name in LAYERS for _ in range(2)]


def test_what_was_not_measured_is_not_drawn() -> None:
    bare = diagnosis(True)
    bare = dataclasses.replace(bare, records=type(bare.records)(), arrays={})
    assert units([bare]) is None
    assert kernel([bare]) is None
    linear = next(a for a in story().arms if a.role == "linear")
    assert linear.title not in [row[0] for row in dead(story()).rows]
    assert str(Spread.of([math.nan])) == "not measured"


def test_verdict_tells_what_happened_whatever_it_was() -> None:
    text = " ".join(verdict(story()))
    assert "on every seed it learns worse than a fresh network, by 0.28" in text
    assert "93% of the loss won back" in text
    assert "beats the mismatched fix by 0.18, on every seed" in text
    assert "dead units PRESENT (fc2, fc3)" in text


def swapped(**titles: str) -> list[str]:
    """The verdict when arms trade their curves: what it says must follow the numbers, not the roles."""
    by_role = {a.role: a for a in story().arms}
    arms = tuple(
        dataclasses.replace(a, online=by_role[titles.get(a.role, a.role)].online) for a in story().arms
    )
    return verdict(dataclasses.replace(story(), arms=arms))


def test_an_unfavourable_verdict_is_told_too() -> None:
    reversed_ = " ".join(swapped(prescribed="mismatched", mismatched="prescribed"))
    assert "The mismatched fix beats the prescription by 0.18, on every seed." in reversed_
    assert "no clear difference from the plain network" in " ".join(swapped(prescribed="worn"))
    assert "worse than the plain network" in " ".join(swapped(prescribed="linear"))
    assert "cannot be told apart" in " ".join(swapped(famous="prescribed"))
    kept = " ".join(swapped(worn="reference"))
    assert "no loss beyond the spread" in kept
    assert "learns worse" not in kept
    alarm = dataclasses.replace(story(), fresh=(diagnosis(True),))
    assert "a false alarm" in " ".join(verdict(alarm))


def test_story_dict_is_strict_json() -> None:
    back = json.loads(json.dumps(story().to_dict(), allow_nan=False))
    assert [a["role"] for a in back["arms"]][:2] == ["worn", "reference"]
    assert back["arms"][0]["late"]["count"] == len(SEEDS)
    assert back["arms"][-1]["dead"][0][0] is None
    assert back["tasks"] == TASKS


def test_report_method_writes_the_page(tmp_path: Path) -> None:
    path = diagnosis(False).to_html(tmp_path / "deep" / "d.html")
    assert "no mechanism present" in path.read_text(encoding="utf-8")
    again = DiagnosisReport.from_dict(json.loads(json.dumps(diagnosis(True).to_dict())))
    assert write_diagnosis(again, tmp_path / "again.html").exists()


def test_small_helpers() -> None:
    assert running_mean([1.0, math.nan, 3.0], 2) == [1.0, 1.0, 3.0]
    assert math.isnan(tail_mean([], 3))
    empty = Arm("x", "x", "worn")
    assert empty.late(3).count == 0


def test_many_layers_still_fit() -> None:
    many = {f"block{i}.fc": ([3.0, 2.0, 1.0], [3.0 + i, 1.0, 0.5]) for i in range(12)}
    drawing = spectra(many)
    assert "4 most concentrated of 12" in drawing.caption
    assert len(drawing.rows) == 24
    assert all(f"block{i}.fc" in drawing.markup for i in (8, 9, 10, 11))
    one_sided = spectra({"fc": ([], [2.0, 1.0, 1.0])}, ("fresh network", "this network"))
    assert "fresh network" not in one_sided.markup
    assert "σ1/Σσ = 0.500" in one_sided.heading


def test_an_unmeasured_layer_does_not_look_healthy() -> None:
    report = diagnosis(True)
    rows = [
        dataclasses.replace(r, status="not_measured", value=math.nan)
        if (r.layer, r.instrument) in {("fc2", "grama"), ("fc3", "grama"), ("fc3", "dormant")}
        else r
        for r in report.records
    ]
    drawing = units([dataclasses.replace(report, records=type(report.records)(rows))])
    assert drawing is not None
    assert drawing.markup.count("not measured") == 1
    assert [row[2] for row in drawing.rows if row[0] == "fc2"][1] == "not measured"
    assert "Without hidden units to score: fc3." in drawing.caption
