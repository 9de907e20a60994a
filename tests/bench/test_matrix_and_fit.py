"""The matrix of remedies, the fit on the training half, and what instruments foretell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supple.bench.lab import matrix
from supple.bench.lab.fit import RIDGE, fit, logistic, of_folder, separating
from supple.bench.lab.score import brier, calibration
from supple.bench.studies.predicts import Predicts, all_series, spearman
from supple.cli.main import main
from supple.diagnose.fitted import load, probability, threshold
from supple.errors import InputError
from supple.records import Record, Records
from supple.status import Mechanism, Status

THREE = ("dead_units", "rank_collapse", "ntk_degeneration")
NAMES = {"dead_units": "dead", "rank_collapse": "rank", "ntk_degeneration": "common"}


# -- matrix -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "matrix" / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        wanted = {k: matrix.ORIGINS[k] for k in ("healthy", "dead units, built")}
        patch.setattr(matrix, "ORIGINS", wanted)
        matrix.run_matrix(folder, "tiny")
        before = (folder / matrix.RECORDS).read_text()
        (folder / matrix.RECORDS).write_text(before + '{"origin": "cut')
        matrix.run_matrix(folder, "tiny")
        assert (folder / matrix.RECORDS).read_text() == before
    return folder


def test_every_arm_is_measured_on_every_network(tiny: Path) -> None:
    rows = matrix.read(tiny)
    assert [r["origin"] for r in rows] == ["healthy", "dead units, built"]
    for row in rows:
        assert set(row["levels"]) == {"nothing", "fresh", *matrix.ARMS, "fire"}
        assert all(math.isfinite(v) and -0.5 < v <= 1 for v in row["levels"].values())
        assert all(c > 0 for c in row["costs"].values())
    ill = rows[1]["levels"]
    assert ill["fresh"] > ill["nothing"] + 0.05  # 70 % of the units are dead


def test_what_is_recovered_is_a_share_of_the_gap() -> None:
    row = {"levels": {"nothing": 0.2, "fresh": 0.6, "a": 0.5, "b": 0.1}}
    assert matrix.recovered(row, "a") == pytest.approx(0.75)
    assert matrix.recovered(row, "b") == pytest.approx(-0.25)
    assert math.isnan(matrix.recovered({"levels": {"nothing": 0.59, "fresh": 0.6, "a": 0.6}}, "a"))


def test_the_matrix_from_the_command_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "report", str(tiny), "--json", str(tmp_path / "m.json")]) == 0
    assert "| dead units, built |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "m.json").read_text())["records"]) == 2
    assert main(["bench", "run", "matrix", "--iid", "--out", str(tmp_path)]) == 2
    assert "takes no --iid" in capsys.readouterr().err
    assert main(["bench", "run", "predicts", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "takes no --data" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown preset"):
        matrix.run_matrix(tmp_path, "huge")


# -- fit --------------------------------------------------------------------------------------------
def _row(present: list[str], loss: float = 0.5, **severity: float) -> dict[str, Any]:
    verdicts = {
        m: {
            "status": "present" if severity.get(m, 0) > 0.5 else "absent",
            "severity": severity.get(m, 0.0),
            "probability": severity.get(m, 0.0),
        }
        for m in THREE
    }
    return {
        "own": 1 - loss,
        "healthy": 1.0,
        "repairs": {NAMES[m]: 1.0 for m in present},
        "case": "c",
        "built": [],
        "worn": "",
        "half": "train",
        "family": "a",
        "present": present,
        "loss": loss,
        "verdicts": verdicts,
    }


def test_a_threshold_lies_between_the_groups_or_where_fewest_are_wrong() -> None:
    assert separating([0.8, 0.9], [0.0, 0.2], True)["value"] == pytest.approx(0.5)
    below = separating([0.1, 0.2, 0.7], [0.6, 0.8, 0.9], False)
    assert 0.2 < below["value"] < 0.8
    assert below["sensitivity"] + below["specificity"] == pytest.approx(1 + 2 / 3)
    rows = [_row(["dead_units"], dead_units=0.7), _row(["dead_units"], dead_units=0.6)]
    rows += [_row([], 0.0, dead_units=v) for v in (0.0, 0.1)]
    rows.append(_row(["dead_units", "rank_collapse"], dead_units=0.05))  # two at once fit no threshold
    found = fit(rows)["thresholds"]["grama"]
    assert found["value"] == pytest.approx(0.35)
    assert (found["ill"], found["well"]) == (2, 2)


def test_the_logistic_curve_solves_the_score_equations() -> None:
    draw = np.random.default_rng(0)
    x = draw.random(400)
    y = (draw.random(400) < 1 / (1 + np.exp(-(-2 + 5 * x)))).astype(float)
    a, b = logistic(x, y)
    rest = y - 1 / (1 + np.exp(-(a + b * x)))
    assert abs(rest.sum()) < 1e-6
    assert (rest @ x) == pytest.approx(RIDGE * b, abs=1e-6)
    assert -3 < a < -1
    assert 3 < b < 6.5


def test_calibration_and_brier_of_hand_made_rows() -> None:
    rows = [_row(["dead_units"], dead_units=0.9), _row([], 0.0, dead_units=0.9)]
    table = calibration(rows)
    assert table[-1] == {"lo": 0.8, "hi": 1.0, "n": 2, "claimed": 0.9, "true": 0.5}
    assert table[0]["n"] == 4
    assert brier(rows) == pytest.approx((0.01 + 0.81) / 6)


def test_a_fit_needs_the_training_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="training half"):
        of_folder(tmp_path)
    rows = [{**_row(["dead_units"], dead_units=0.7), "case": "a"}, {**_row([], 0.0), "case": "b"}]
    for name in ("lab.jsonl", "truth.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["bench", "fit", str(tmp_path), "--json", str(tmp_path / "fit.json")]) == 0
    assert "grama: 0.350" in capsys.readouterr().out
    assert json.loads((tmp_path / "fit.json").read_text())["cases"] == 2


def test_the_stored_fit_is_whole_and_gives_chances() -> None:
    assert set(load()["probability"]) == set(THREE)
    assert 0.05 < threshold("grama") < 0.6
    low, high = (probability(Mechanism.DEAD_UNITS, Status.PRESENT, s) for s in (0.2, 0.9))
    assert low is not None
    assert high is not None
    assert 0 < low <= high < 1
    assert probability(Mechanism.SATURATION, Status.PRESENT, 0.5) is None


# -- predicts ---------------------------------------------------------------------------------------
class _Run:
    def __init__(self, records: Records) -> None:
        self.records = records


def test_an_instrument_meets_the_level_of_the_next_task() -> None:
    rows = [Record("online_accuracy", 1 - 0.05 * t, task=f"task-{t}") for t in range(12)]
    rows += [Record("dead", 0.1 * t, layer="*", task=f"task-{t}") for t in range(0, 12, 2)]
    rows += [
        Record("dead", 9.0, layer="fc1", task="task-3"),
        Record("rank", math.nan, layer="*", task="task-3"),
    ]
    found = all_series(_Run(Records(rows)))  # type: ignore[arg-type]
    assert set(found) == {"dead"}
    assert found["dead"][4] == (pytest.approx(0.4), pytest.approx(0.75))
    assert 11 not in found["dead"]


def test_rank_correlation_against_ties_and_too_few() -> None:
    from scipy.stats import spearmanr

    draw = np.random.default_rng(1)
    pairs = [(float(a), float(b)) for a, b in draw.integers(0, 6, (40, 2))]
    assert spearman(pairs) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic, abs=1e-9)
    assert math.isnan(spearman(pairs[:5]))
    assert math.isnan(spearman([(1.0, b) for _, b in pairs]))


def test_the_study_measures_both_sides_of_every_pair() -> None:
    specs = Predicts.specs("demo", [0, 1])
    assert len(specs) == 2 * 2 * 5
    assert all(s.instruments == "standard" and s.measure_every >= 1 for s in specs)
