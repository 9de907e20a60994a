"""Batch-gradient statistics and readiness against their twins and against the descent they bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import units as twin
from torch.testing import assert_close

from supple import functional as F
from supple.errors import InputError

FEW = settings(max_examples=40, deadline=None)
gradients = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(-10, 10, width=32),
)


@FEW
@given(gradients)
def test_statistics_equal_their_twin(g: np.ndarray) -> None:
    found = F.gradient_statistics(torch.from_numpy(g))
    assert_close(
        torch.stack(list(found)), torch.tensor(twin.statistics(g), dtype=torch.float64), rtol=1e-8, atol=1e-8
    )
    assert found.mean_square.item() == pytest.approx(
        (found.square_norm + found.variance).item(), rel=1e-9, abs=1e-12
    )


@FEW
@given(gradients, st.floats(-20, 20))
def test_ratios_do_not_change_with_the_scale_of_the_loss(g: np.ndarray, exponent: float) -> None:
    x = torch.from_numpy(g).double()
    for ratio in (F.gradient_diversity, F.signal_to_noise, lambda v: F.optimization_readiness(v).reliability):
        assert_close(ratio(x * 10**exponent), ratio(x), rtol=1e-6, atol=1e-9, equal_nan=True)


def test_diversity_and_noise_of_known_cases() -> None:
    torch.manual_seed(0)
    g = torch.randn(6, 20)
    assert F.gradient_diversity(g).item() == pytest.approx(twin.diversity(g.numpy()), rel=1e-6)
    same = g[:1].expand(6, -1)
    assert F.gradient_diversity(same).item() == pytest.approx(1 / 6)
    assert F.signal_to_noise(same).item() > 1e12
    opposed = torch.stack([g[0], -g[0]])
    assert F.gradient_diversity(opposed) == math.inf
    assert F.signal_to_noise(opposed) == 0
    for f in (F.gradient_diversity, F.signal_to_noise):
        assert f(torch.zeros(4, 3)).isnan()
        assert f(torch.zeros(0, 3)).isnan()
        assert f(torch.tensor([[1.0, math.nan], [1.0, 1.0]])).isnan()
    assert F.signal_to_noise(g[:1]).isnan()


def test_unbiased_square_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.0, -2.0, 0.5])
    draws = truth + 3 * torch.randn(4000, 5, 3, generator=generator)
    estimates = torch.stack([F.gradient_statistics(d).square_norm for d in draws])
    assert estimates.mean().item() == pytest.approx(5.25, abs=0.25)
    plug_in = draws.mean(1).square().sum(1).mean()
    assert plug_in > 9  # what the unbiased form is for


def test_readiness_bounds_the_decrease_of_a_quadratic() -> None:
    """L/2 ||w - mean of targets||^2: the best step of batch gradients does lower the loss by that much."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(4000, 4, generator=generator, dtype=torch.float64) + 2
    smoothness, w = 1.5, torch.zeros(4, dtype=torch.float64)
    g = smoothness * (w - targets)
    ready = F.optimization_readiness(g, batch_size=4, smoothness=smoothness)
    assert_close(ready.readiness, ready.strength * ready.reliability)
    eta = ready.reliability / smoothness
    loss = lambda v: smoothness / 2 * (v - targets.mean(0)).square().sum(-1)
    steps = g[torch.randint(0, 4000, (20000, 4), generator=generator)].mean(1)
    decrease = loss(w) - loss(w - eta * steps).mean()
    assert decrease.item() == pytest.approx(ready.expected_decrease.item(), rel=0.02)


def test_readiness_of_edge_cases() -> None:
    nothing = F.optimization_readiness(torch.zeros(3, 2))
    assert nothing.readiness == 0
    assert nothing.reliability.isnan()
    assert F.optimization_readiness(torch.ones(1, 2)).readiness.isnan()
    assert F.optimization_readiness(torch.tensor([[math.inf], [1.0]])).readiness.isnan()
    same = F.optimization_readiness(torch.ones(3, 2))
    assert same.reliability == 1
    stacked = torch.randn(3, 6, 5)
    found = torch.func.vmap(F.optimization_readiness)(stacked)
    assert_close(found.readiness, torch.stack([F.optimization_readiness(x).readiness for x in stacked]))
    for bad in ({"batch_size": 0}, {"smoothness": 0.0}):
        with pytest.raises(InputError):
            F.optimization_readiness(torch.ones(3, 2), **bad)
    with pytest.raises(InputError, match="flatten"):
        F.gradient_diversity(torch.ones(3, 2, 2))
