"""Reports of experiments: one set of tables as text, CSV, LaTeX, page and figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.bench.test_rounds import _record

from supple.bench import lab
from supple.bench.experiments import EXPERIMENTS
from supple.bench.lab import matrix
from supple.bench.rounds import RECORDS
from supple.bench.statistics import Estimate
from supple.bench.tables import Cell, Table, markdown, to_csv
from supple.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_a_cell_is_its_text_with_the_figures_behind_it() -> None:
    alone = Cell.of(Estimate(0.5, float("nan"), float("nan"), 1), "+.1f")
    assert (alone, alone.figures) == ("+0.5", {"value": 0.5})
    more = Cell.of(Estimate(0.5, 0.25, 0.75, 3), ".2f").extended(" (2)", count=2)
    assert more == "0.50 [0.25, 0.75] (2)"
    assert more.figures == {"value": 0.5, "lo": 0.25, "hi": 0.75, "count": 2}
    shown = Table("t", ("arm", "a, b"), [["x", more], ["y", Cell("broke")]], lead="Of these:")
    assert markdown(["Said.", shown]).splitlines() == [
        "Said.", "", "Of these:", "", "| arm | a, b |", "|---|---|", "| x | 0.50 [0.25, 0.75] (2) |", "| y | broke |",
    ]  # fmt: skip
    rows = list(csv.reader(to_csv([shown]).splitlines()))
    assert rows[1] == ["t", "x", "a, b", "value", "0.5"]
    assert rows[-1] == ["t", "y", "a, b", "text", "broke"]


@pytest.fixture
def rounds_folder(tmp_path: Path) -> Path:
    rows = []
    for seed in (0, 1):
        for arm, ends in (("fresh", [2.0] * 7), ("full", [2.0, 1.8, 1.8, 1.9, 2.0, 2.2, 2.2 + 0.01 * seed])):
            rows.append(_record(arm, seed, ends))
    for record in rows:
        record["steps"] = 40
        for i, row in enumerate(record["rounds"]):
            row |= {
                "steps_to": {"0.8": 10 + i, "0.65": None},
                "probe": {"dead": 0.1 * i, "churn_relative": None},
            }
    (tmp_path / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_rounds_are_reported_in_every_form(rounds_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = rounds_folder / "out"
    out.mkdir()
    command = [
        "bench",
        "report",
        str(rounds_folder),
        "--html",
        str(out / "p.html"),
        "--latex",
        str(out / "t.tex"),
    ]
    assert main([*command, "--csv", str(out / "t.csv"), "--figures", str(out / "f")]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader((out / "t.csv").open()))
    late = [
        r
        for r in rows
        if (r["table"], r["row"], r["column"]) == ("losses", "full", "minus fresh, last third")
    ]
    assert {r["figure"]: round(float(r["value"]), 4) for r in late}["value"] == 0.2025
    assert {r["table"] for r in rows} == {"losses", "steps", "effective ranks", "probe"}
    page = (out / "p.html").read_text()
    assert "There is a loss of plasticity at this scale" in page
    assert "online loss over 7 tasks" in page
    assert "fingerprints of the mechanisms" in page
    assert page.count("<table") >= 4
    assert r"12 $\to$ 16" in (out / "t.tex").read_text()
    for cell in ("0.000 → 0.600", "100% reach it"):
        assert cell in text
        assert cell in page
    names = {f.name for f in (out / "f").iterdir()}
    assert names == {
        f"lm-rounds-losses-{n}.{s}" for n in ("courses", "levels", "instruments") for s in ("svg", "png")
    }
    assert main(["bench", "report", str(rounds_folder), "--csv", "-"]) == 0
    assert capsys.readouterr().out.startswith("table,row,column,figure,value\n")
    assert main(["bench", "report", str(rounds_folder), "--csv", "-", "--json", "-"]) == 2
    assert "cannot both go to stdout" in capsys.readouterr().err


def test_the_course_of_an_arm_is_the_loss_of_its_rounds_as_it_learns(rounds_folder: Path) -> None:
    found = EXPERIMENTS["lm-rounds"].answer(rounds_folder).courses["full"]
    assert found.online[0][0] == pytest.approx(2.375)  # of 3, 2.5, 2, 2
    tasks, dead = found.instruments["dead"]
    assert list(tasks) == [1, 2, 3, 4, 5, 6, 7]
    assert dead[1] == pytest.approx([0.1 * i for i in range(7)])
    assert "churn (relative)" not in found.instruments  # never measured


def test_lab_and_matrix_have_the_same_forms(tmp_path: Path) -> None:
    data = json.loads((ROOT / "results/matrix/records.json").read_text())
    (tmp_path / matrix.RECORDS).write_text("".join(json.dumps(r) + "\n" for r in data["records"]))
    target = tmp_path / "out.html"
    command = ["bench", "report", str(tmp_path), "--html", str(target), "--csv", str(tmp_path / "out.csv")]
    assert main([*command, "--latex", str(tmp_path / "out.tex")]) == 0
    assert "dead units, worn" in target.read_text()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {r["figure"] for r in rows} >= {"value", "lo", "hi", "recovered"}
    found = lab.summary(json.loads((ROOT / "results/lab/evaluation.json").read_text())["records"])
    tables = [p for p in lab.parts(found) if isinstance(p, Table)]
    assert [t.title for t in tables][:1] == ["verdicts against truth"]
    assert lab.render(found) == markdown(lab.parts(found))
    assert "sensitivity" in to_csv(tables)
