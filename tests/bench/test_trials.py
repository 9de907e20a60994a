"""Trials against full runs: who chooses well."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from supple.bench.lab import trials
from supple.cli.main import main
from supple.errors import InputError

FAMOUS = "ContinualBackprop"


def row(order: list[str], table: str, levels: dict[str, float], *, clear: bool = True) -> dict[str, Any]:
    return {"case": "c", "order": order, "table": table, "levels": levels, "clear": clear}


ROWS = [
    row(["restart", "ReGraMa", FAMOUS, "nothing"], "ReGraMa",
        {"restart": 0.60, "ReGraMa": 0.50, FAMOUS: 0.49, "nothing": 0.30}),
    row([FAMOUS, "nothing", "restart", "CChain"], "CChain",
        {"restart": 0.40, "CChain": 0.55, FAMOUS: 0.50, "nothing": 0.54}, clear=False),
]  # fmt: skip


def test_a_choice_is_right_within_two_points() -> None:
    found = trials.summary(ROWS, restart=False)
    assert (found["trial"]["right"], found["trial"]["n"]) == (1, 2)  # 0.50 against 0.55 is too far
    assert found["table"]["right"] == 2
    assert found["nothing"]["right"] == 1
    assert found[FAMOUS]["right"] == 1
    assert found["trial"]["regret"] == pytest.approx((0.0 + 0.05) / 2)
    assert "restart" not in found


def test_a_restart_may_be_the_best() -> None:
    found = trials.summary(ROWS, restart=True)
    assert found["trial"]["right"] == 1
    assert found["table"]["right"] == 1  # ReGraMa stays 0.10 behind the restart
    assert found["restart"]["regret"] == pytest.approx(0.15 / 2)


def test_a_line_of_the_table_that_could_not_be_applied_is_nothing() -> None:
    one = row(["nothing", FAMOUS], "SVF", {"nothing": 0.5, FAMOUS: 0.2})
    assert trials.choices(one, restart=False)["table"] == "nothing"


def test_the_page_names_the_cases_that_were_wrong() -> None:
    text = trials.render(ROWS)
    assert "| c | ContinualBackprop | CChain | 0.050 |" in text
    assert "in 1 of 2 cases" in text


def test_two_cases_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = importlib.import_module("supple.diagnose.trial")  # the package has the function by this name
    monkeypatch.setattr(trial, "STEPS", 40)
    monkeypatch.setattr(trial, "PAIRS", 3)
    monkeypatch.setattr(trials, "PRESETS", {"tiny": trials.Size(2, 600.0, 1, 2, 40)})
    assert main(["bench", "run", "trials", "--preset", "tiny", "--out", str(tmp_path)]) == 0
    assert "| trial |" in capsys.readouterr().out
    folder = tmp_path / "trials" / "tiny"
    rows = trials.read(folder)
    assert len(rows) == 2
    for found in rows:
        assert set(found["order"]) == set(found["levels"]) == set(found["scores"])
        assert {"nothing", "restart", FAMOUS} <= set(found["order"])
        assert all(-0.5 < v <= 1 for v in found["levels"].values())
    before = (folder / trials.RECORDS).read_text()
    (folder / trials.RECORDS).write_text(before + '{"case": "cut')
    assert trials.run_trials(folder, "tiny") == rows  # nothing is run again, the cut line is dropped
    assert (folder / trials.RECORDS).read_text() == before
    assert all(json.loads(line) for line in before.splitlines())


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown preset"):
        trials.run_trials(tmp_path, "huge")
