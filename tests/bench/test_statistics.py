"""Statistics against scipy, against counts by hand, and under hostile input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.bench import statistics as s
from supple.errors import InputError

stats = pytest.importorskip("scipy.stats")
values = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.6, 0.9, 0.975, 0.9995])
def test_t_quantile_equals_scipys(df: int, p: float) -> None:
    assert s.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(x=values)
def test_mean_interval_equals_scipys(x: list[float]) -> None:
    e = s.mean(x)
    sem = stats.sem(x)
    assert e.value == pytest.approx(np.mean(x), abs=1e-12)
    assert e.hi - e.value == pytest.approx(stats.t.ppf(0.975, len(x) - 1) * sem, rel=1e-8, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(x=values)
def test_interquartile_mean_equals_scipys_trimmed_mean(x: list[float]) -> None:
    assert s.interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25), abs=1e-12)


def test_one_run_has_no_interval_and_proves_nothing() -> None:
    e = s.mean([0.7])
    assert math.isnan(e.lo)
    assert "no interval" in str(e)
    assert math.isnan(s.bootstrap([0.7]).hi)
    assert not s.paired([0.9], [0.1]).clear
    assert s.paired([0.9], [0.1]).p_value == 1.0


def test_sign_flip_equals_the_count_over_all_patterns() -> None:
    d = np.array([0.3, -0.1, 0.2, 0.4])
    count = sum(
        abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12 for signs in itertools.product([1, -1], repeat=4)
    )
    assert s.paired(d, np.zeros(4)).p_value == count / 16


def test_sign_flip_with_many_pairs_is_close_to_scipys_permutation_test() -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, size=25)
    theirs = stats.permutation_test(
        (d, np.zeros(25)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=10_000, rng=np.random.default_rng(1),
    )  # fmt: skip
    assert s.paired(d, np.zeros(25)).p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_pairing_sees_what_means_do_not() -> None:
    base = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    gain = s.paired(base + np.array([0.05, 0.06, 0.05, 0.04, 0.05]), base)
    assert gain.clear
    assert gain.above == 5
    assert gain.difference.value == pytest.approx(0.05)
    assert s.mean(base).lo < s.mean(base + 0.05).value < s.mean(base).hi


def test_bootstrap_covers_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for trial in range(120):
        e = s.bootstrap(draw.normal(0.5, 0.1, size=20), lambda a: float(a.mean()), resamples=300, seed=trial)
        hits += e.lo <= 0.5 <= e.hi
    assert 0.86 <= hits / 120 <= 1.0


def test_bootstrap_resamples_within_each_protocol() -> None:
    table = np.array([[0.0, 100.0]] * 6)  # no spread within a column
    e = s.bootstrap(table, lambda a: float(a.mean()))
    assert (e.lo, e.value, e.hi) == (50.0, 50.0, 50.0)


@settings(max_examples=20, deadline=None)
@given(x=values, y=values)
def test_probability_of_improvement_is_mann_whitneys_u(x: list[float], y: list[float]) -> None:
    u = stats.mannwhitneyu(x, y).statistic
    e = s.probability_of_improvement(x, y)
    assert e.value == pytest.approx(u / (len(x) * len(y)), abs=1e-12)
    assert 0 <= e.lo <= e.hi <= 1


#: from rliable 1.2.0 (arch 7.2.0, NumPy seed 20260 as in `scores`): the reference code of Agarwal et al. 2021
RLIABLE = {
    "iqm": (0.5870528817729521, 0.5352339020748926),
    "iqm_interval": (0.53207, 0.64253),  # 20,000 resamples
    "improvement": 0.5836734693877551,
    "improvement_interval": (0.44490, 0.71837),  # 4,000 resamples
    "profile": (1.0, 34 / 35, 30 / 35, 15 / 35, 3 / 35, 1 / 35),
    "profile_lo": (1.0, 0.91428571, 0.74285714, 0.28571429, 0.0, 0.0),
    "profile_hi": (1.0, 1.0, 0.94285714, 0.6, 0.17142857, 0.08571429),
}


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    """Seven runs of two methods on five protocols."""
    draw = np.random.default_rng(20260)
    return draw.normal(0.6, 0.2, (7, 5)), draw.normal(0.5, 0.25, (7, 5))


def test_the_reference_code_gives_the_same(scores: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = scores
    assert (s.interquartile_mean(x), s.interquartile_mean(y)) == pytest.approx(RLIABLE["iqm"], abs=1e-12)
    e = s.bootstrap(x, resamples=5000)
    assert (e.lo, e.hi) == pytest.approx(RLIABLE["iqm_interval"], abs=0.004)
    e = s.probability_of_improvement(x, y)
    assert e.value == pytest.approx(RLIABLE["improvement"], abs=1e-12)
    assert (e.lo, e.hi) == pytest.approx(RLIABLE["improvement_interval"], abs=0.02)
    profile = s.performance_profile(x, np.linspace(0, 1, 6))
    assert [e.value for e in profile] == pytest.approx(RLIABLE["profile"], abs=1e-12)
    assert [e.lo for e in profile] == pytest.approx(RLIABLE["profile_lo"], abs=0.03)
    assert [e.hi for e in profile] == pytest.approx(RLIABLE["profile_hi"], abs=0.03)


def test_the_reference_code_gives_the_same_with_ties_and_unequal_runs() -> None:
    """rliable 1.2.0 on the same numbers; a tie counts half, a score at the threshold does not lie above it."""
    x = np.array([[1, 2, 2], [2, 3, 3], [3, 1, 3], [1, 0, 0], [1, 3, 1], [2, 0, 1]]) / 4
    y = np.array([[3, 3, 3], [1, 0, 1], [3, 1, 0], [2, 2, 1], [3, 3, 3]]) / 4
    assert s.probability_of_improvement(x, y).value == pytest.approx(0.4055555555555556, abs=1e-12)
    assert s.interquartile_mean(x) == pytest.approx(0.4, abs=1e-12)
    assert [e.value for e in s.performance_profile(x, [0.25, 0.5])] == pytest.approx([0.5, 5 / 18])


def test_area_of_forgetting_is_the_mean_of_all_falls() -> None:
    ends, later = np.array([0.9, 0.8, 0.7]), np.array([[0.9, 0.7, 0.7], [0.4, 0.5, 0.8]])
    assert s.area_of_forgetting(ends, later) == pytest.approx((0 + 0.1 + 0 + 0.5 + 0.3 - 0.1) / 6)
    assert s.area_of_forgetting(ends, later[1]) == pytest.approx((0.5 + 0.3 - 0.1) / 3)
    with pytest.raises(InputError, match="same tasks"):
        s.area_of_forgetting(ends, later[:, :2])


def test_curves() -> None:
    fall = np.concatenate([np.linspace(0.5, 0.8, 30), np.full(70, 0.6)])
    assert s.final_tenth(fall) == pytest.approx(0.6)
    assert s.loss_from_peak(fall) == pytest.approx(fall[20:30].mean() - 0.6)
    assert s.loss_from_peak(np.linspace(0, 1, 50)) == pytest.approx(0.0)
    assert s.loss_from_reference(fall, np.full(100, 0.8)) == pytest.approx(0.2)
    assert s.area([0.0, 1.0]) == 0.5
    assert s.final_tenth([0.25]) == 0.25


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: s.mean(bad),
        lambda bad: s.interquartile_mean(bad),
        lambda bad: s.bootstrap(bad),
        lambda bad: s.paired(bad, bad),
        lambda bad: s.probability_of_improvement(bad, [0.1]),
        lambda bad: s.final_tenth(bad),
        lambda bad: s.loss_from_peak(bad),
        lambda bad: s.loss_from_reference(bad, bad),
        lambda bad: s.area(bad),
        lambda bad: s.performance_profile(bad, [0.5]),
        lambda bad: s.performance_profile([0.5], bad),
        lambda bad: s.area_of_forgetting(bad, [0.1, 0.2]),
    ],
)
@pytest.mark.parametrize("bad", [[], [0.5, math.nan], [math.inf, 0.5]])
def test_nothing_and_nan_are_refused(call, bad: list[float]) -> None:
    with pytest.raises(InputError):
        call(bad)


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="2 and 3"):
        s.paired([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="same tasks"):
        s.loss_from_reference([1, 2], [1])
    with pytest.raises(InputError, match="columns"):
        s.probability_of_improvement(np.ones((2, 2)), np.ones(2))
    with pytest.raises(InputError, match="df"):
        s.t_quantile(0.9, 0)
