"""Sudden, gradual or none: found where it was put, against a brute-force reference, and quiet on noise."""

from __future__ import annotations

import numpy as np
import pytest

from supple.diagnose.change_point import GRADUAL, NONE, SUDDEN, change_point


def _noise(n: int, seed: int, size: float = 0.1) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("at", [2, 7, 15, 18])
def test_a_step_is_found_at_its_place(at: int) -> None:
    found = change_point(np.where(np.arange(20) < at, 1.0, 2.0) + _noise(20, at))
    assert (found.kind, found.at) == (SUDDEN, at)
    assert found.before == pytest.approx(1.0, abs=0.15)
    assert found.after == pytest.approx(2.0, abs=0.15)


def test_a_ramp_is_gradual_and_its_ends_are_told() -> None:
    found = change_point(np.linspace(0.8, 0.2, 24) + _noise(24, 0, 0.03))
    assert found.kind == GRADUAL
    assert found.before == pytest.approx(0.8, abs=0.05)
    assert found.after == pytest.approx(0.2, abs=0.05)


def test_noise_alone_is_a_change_as_often_as_the_level_says() -> None:
    kinds = [change_point(_noise(20, seed)).kind for seed in range(120)]
    assert kinds.count(NONE) >= 105  # 114 expected at 5 %; under 105 with a chance below one in a thousand
    assert change_point([0.5] * 12).kind == NONE


def test_the_step_is_the_best_of_all_splits() -> None:
    """Against the definition: least squares over every split with two points on each side."""
    v = np.where(np.arange(17) < 9, 0.0, 1.0) + _noise(17, 3, 0.4)
    residual = [
        ((v[:k] - v[:k].mean()) ** 2).sum() + ((v[k:] - v[k:].mean()) ** 2).sum() for k in range(2, 16)
    ]
    assert change_point(v).at == 2 + int(np.argmin(residual))


def test_scale_and_shift_do_not_matter_and_few_or_bad_values_are_refused() -> None:
    v = np.where(np.arange(12) < 5, 1.0, 2.0) + _noise(12, 1)
    a, b = change_point(v), change_point(1e6 * v - 3e5)
    assert (a.kind, a.at, a.p) == (b.kind, b.at, b.p)
    for bad in ([1.0] * 7, [1.0, 2.0, float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="finite values"):
            change_point(bad)
