"""Several protocols on one scale: scores, intervals and what is left out, against numpy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from supple.bench import run_list, statistics
from supple.bench.aggregate import THRESHOLDS, Runs, overall
from supple.bench.courses import comparison_page
from supple.records import Record, Records
from supple.report import OverallPart, latex, write_comparison

from .tiny import tiny, tiny_labels, weigh


def stored(level: float, tasks: int = 20) -> Any:
    """A run whose last tenth has this level."""
    values = [*[0.5] * (tasks - 2), level - 0.1, level + 0.1]
    rows = [Record("online_accuracy", v, task=f"task-{i}", run="x") for i, v in enumerate(values)]
    return SimpleNamespace(records=Records(rows))


def runs_of(levels: dict[tuple[str, str], list[float]]) -> Runs:
    return cast("Runs", {key: {s: stored(v) for s, v in enumerate(found)} for key, found in levels.items()})


LEVELS = {
    ("a", "fresh"): [0.8, 0.9, 0.7], ("a", "plain"): [0.4, 0.5, 0.3], ("a", "l2"): [0.6, 0.7, 0.9],
    ("b", "fresh"): [0.5, 0.5, 0.5], ("b", "plain"): [0.4, 0.1, 0.2], ("b", "l2"): [0.6, 0.3, 0.4],
}  # fmt: skip


def test_scores_are_shares_of_the_fresh_level() -> None:
    found = overall(runs_of(LEVELS))
    assert found is not None
    assert found.protocols == ("a", "b")
    assert list(found.scores) == ["fresh", "l2", "plain"]  # by interquartile mean
    for method in ("fresh", "l2", "plain"):
        expected = np.array([LEVELS["a", method], LEVELS["b", method]]).T / [0.8, 0.5]
        np.testing.assert_allclose(found.scores[method], expected)
        assert found.middle(method).value == pytest.approx(np.sort(expected, axis=None)[1:5].mean())
        shares = [(expected > t).mean() for t in THRESHOLDS]
        assert [e.value for e in found.profile(method)] == pytest.approx(shares)
    pairs = [[(x > y) for x in LEVELS[p, "l2"] for y in LEVELS[p, "plain"]] for p in "ab"]
    ties = [[0.5 * (x == y) for x in LEVELS[p, "l2"] for y in LEVELS[p, "plain"]] for p in "ab"]
    better = found.better("l2")
    assert better is not None
    assert better.value == pytest.approx(np.mean(pairs) + np.mean(ties))
    assert found.better("plain") is None
    assert found.middle("plain") == statistics.bootstrap(found.scores["plain"])
    told = found.to_dict()
    assert told["methods"]["l2"]["runs"] == 6
    assert told["methods"]["plain"]["better_than_plain"] is None


def test_what_has_no_place_on_the_scale_is_named() -> None:
    more = {
        **LEVELS, ("c", "plain"): [0.5, 0.5, 0.5], ("d", "fresh"): [-200.0, -190.0], ("d", "plain"): [-300.0, 1.0],
        ("a", "cbp"): [0.7, 0.7, 0.7],
    }  # fmt: skip
    found = overall(runs_of(more))
    assert found is not None
    assert found.protocols == ("a", "b")
    assert found.left_out == {
        "c": "no fresh reference to measure against",
        "d": "levels that are not all above 0 have no share of the fresh level",
        "cbp": "not run on every protocol",
    }


def test_seeds_that_all_have_count_and_too_little_is_no_comparison() -> None:
    fewer = {**LEVELS, ("b", "l2"): [0.6, 0.3]}
    found = overall(runs_of(fewer))
    assert found is not None
    assert found.scores["fresh"].shape == (2, 2)
    np.testing.assert_allclose(found.scores["fresh"][:, 0], np.array([0.8, 0.9]) / 0.85)
    assert found.left_out == {"seed 2": "not run by every method on every protocol"}
    assert overall(runs_of({k: v for k, v in LEVELS.items() if k[0] == "a"})) is None
    assert overall(runs_of({k: v[:1] for k, v in LEVELS.items()})) is None


def test_a_control_is_no_further_protocol() -> None:
    control = "digits-permuted-iid"
    more = {**LEVELS, (control, "fresh"): [0.9] * 3, (control, "plain"): [0.9] * 3}
    found = overall(runs_of(more))
    assert found is not None
    assert found.protocols == ("a", "b")
    assert found.left_out == {
        control: "the i.i.d. control"
    }  # and l2, which the control lacks, is still compared
    assert "l2" in found.scores
    one = {k: v for k, v in more.items() if k[0] != "b"}
    assert overall(runs_of(one)) is None


def test_the_page_of_two_protocols_ends_with_both_together(tmp_path: Path) -> None:
    specs = [make(3, m, s) for make in (tiny, tiny_labels) for m in ("plain", "fresh") for s in (0, 1)]
    assert run_list(specs, tmp_path / "runs", workers=0, measure=weigh).ok
    page = comparison_page(tmp_path / "runs")
    part = page.protocols[-1]
    assert isinstance(part, OverallPart)
    assert [row[1] for row in part.rows] == ["2 × 2", "2 × 2"]
    text = write_comparison(page, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "All protocols" in text
    assert "digits-permuted, digits-random-labels" in text
    assert "% All protocols" in latex(page)
