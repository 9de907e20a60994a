"""Rounds of fine-tuning: languages from an archive, arms that start as they say, figures of hand-made records."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from supple.bench.rounds import RECORDS, answer, run_rounds
from supple.bench.rounds.read import end_losses, steps_to, table, verdict
from supple.bench.rounds.run import ARMS, Arm, Course, Length, run_arm
from supple.cli.main import main
from supple.errors import InputError
from supple.streams.data.languages import languages

SHORT = Length(1, 3, 20)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four languages, each with letters of its own, and a file that is too short."""
    folder = tmp_path / "data"
    (folder / "text" / "udhr2").mkdir(parents=True)
    with zipfile.ZipFile(folder / "text" / "udhr2" / "udhr2.zip", "w") as archive:
        for i in range(4):
            letters = bytes(range(97 + 5 * i, 102 + 5 * i))
            archive.writestr(f"udhr2/00{i}.txt", letters * 2000)
        archive.writestr("udhr2/009.txt", b"short")
    languages.cache_clear()
    monkeypatch.setenv("SUPPLE_DATA", str(folder))
    yield folder
    languages.cache_clear()


def test_languages_are_those_with_enough_text(data: Path) -> None:
    found = languages()
    assert sorted(found) == ["000", "001", "002", "003"]
    assert found["001"][:6].tolist() == [102, 103, 104, 105, 106, 102]
    assert found["001"].dtype == torch.int64


def test_every_arm_sees_the_same_batches_and_targets_follow_inputs(data: Path) -> None:
    a, b = Course(0, SHORT), Course(0, SHORT)
    assert a.names == b.names
    x, y = a.batch(1, "step-3")
    assert torch.equal(x, b.batch(1, "step-3")[0])
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x, a.batch(1, "step-4")[0])
    assert Course(1, SHORT).names != a.names or Course(2, SHORT).names != a.names
    with pytest.raises(InputError, match="more rounds than languages"):
        Course(0, Length(1, 9, 1))


def test_arms_start_where_they_say(data: Path) -> None:
    course = Course(0, SHORT)
    rows = {
        a.name: run_arm(a, course)["rounds"] for a in ARMS if a.name in ("full", "fresh", "restart", "svf")
    }
    assert len({r[0]["blocks"][0] for r in rows.values()}) == 1  # one first model
    # both go on from round 0, the restarted one with a new optimizer
    assert rows["full"][1]["blocks"][0] == pytest.approx(rows["restart"][1]["blocks"][0], rel=0.2)
    assert rows["full"][2]["blocks"] != rows["restart"][2]["blocks"]
    assert rows["fresh"][1]["blocks"] != rows["full"][1]["blocks"]
    assert rows["svf"][1]["blocks"][0] == pytest.approx(rows["full"][1]["blocks"][0], rel=0.2)
    assert rows["svf"][0]["blocks"] == rows["full"][0]["blocks"]
    assert set(rows["full"][0]["ranks"]) == {"q", "k", "v", "o", "up", "down"}
    assert 0 <= rows["full"][2]["dead"] <= 1


def test_an_arm_runs_with_its_intervention(data: Path) -> None:
    course = Course(0, Length(1, 2, 20))
    plain = run_arm(Arm("full"), course)["rounds"]
    pulled = run_arm(Arm("l2init", intervention="L2Init", settings={"coef": 1.0}), course)["rounds"]
    assert plain[0]["blocks"][0] == pytest.approx(pulled[0]["blocks"][0], rel=0.2)
    assert plain[1]["blocks"] != pulled[1]["blocks"]


def _record(arm: str, seed: int, ends: list[float]) -> dict[str, Any]:
    rounds = [
        {"language": str(i), "blocks": [e + 1, e + 0.5, e, e], "first_language": e, "ranks": {"q": 0.5}}
        for i, e in enumerate(ends)
    ]
    return {"arm": arm, "seed": seed, "rounds": rounds}


def test_figures_of_hand_made_records() -> None:
    rows = []
    for seed in (0, 1):
        shift = 0.01 * seed
        rows.append(_record("fresh", seed, [2.0 + shift] * 7))
        rows.append(_record("full", seed, [2.0, 1.8, 1.8, 1.9, 2.0, 2.2, 2.2 + shift]))
    found = table(rows)["full"]
    assert found["minus fresh, first third"].value == pytest.approx(-0.205)
    assert found["minus fresh, last third"].value == pytest.approx(0.1975)
    assert found["change"].difference.value == pytest.approx(0.4025)
    assert "worse than fresh models, and its head start shrinks" in verdict(table(rows))
    assert end_losses(rows[0]) == [2.0] * 7
    assert steps_to(rows[1], [2.0] * 7)[:2] == [30.0, 30.0]
    assert math.isnan(steps_to(rows[1], [2.0] * 7)[5])
    assert found["rounds at fresh's loss"] == pytest.approx((4 / 6 + 4 / 6) / 2)


def test_it_resumes_and_reports_from_the_command_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import supple.bench.rounds.run as room

    monkeypatch.setattr(room, "ARMS", ARMS[:2])
    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 2, 10)})
    folder = tmp_path / "lm-rounds" / "tiny"
    first = run_rounds(folder, "tiny")
    assert run_rounds(folder, "tiny") == json.loads(json.dumps(first))
    assert len((folder / RECORDS).read_text().splitlines()) == 2
    assert main(["bench", "report", str(folder)]) == 0
    assert "full fine-tuning ends" in capsys.readouterr().out
    assert len(answer(folder)[1]["records"]) == 2
    with pytest.raises(InputError, match="unknown preset"):
        run_rounds(folder, "huge")


def test_no_data_is_told_with_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    languages.cache_clear()
    monkeypatch.delenv("SUPPLE_DATA", raising=False)
    with pytest.raises(InputError, match="SUPPLE_DATA"):
        languages()
    with pytest.raises(InputError, match="no archive"):
        languages(str(tmp_path))
    (tmp_path / "udhr2.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="damaged"):
        languages(str(tmp_path))
