"""Ranks against their twins, the chain of inequalities, and the published baselines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import spectra as twin
from torch import Tensor
from torch.testing import assert_close

from supple import functional as F
from supple.errors import InputError

FEW = settings(max_examples=100, deadline=None)
RANKS = {
    "effective_rank": F.effective_rank,
    "energy_effective_rank": F.energy_effective_rank,
    "stable_rank": F.stable_rank,
    "srank": F.srank,
    "pca_rank": F.pca_rank,
    "participation_ratio": F.participation_ratio,
    "nuclear_rank": F.nuclear_rank,
    "numerical_rank": F.numerical_rank,
}
ALL = {**RANKS, "spectral_concentration": F.spectral_concentration}
spectra = hnp.arrays(
    np.float64, st.integers(1, 12), elements=st.floats(0, 1e6).map(lambda x: 0.0 if x < 1e-6 else x)
).filter(lambda s: s.max() > 0)


@FEW
@given(spectra, st.floats(0, 0.9))
def test_equal_their_twins(s: np.ndarray, delta: float) -> None:
    x = torch.from_numpy(s)
    expected = {
        F.effective_rank: twin.effective_rank(s),
        F.energy_effective_rank: twin.effective_rank(s, 2),
        F.stable_rank: (s**2).sum() / s.max() ** 2,
        F.participation_ratio: (s**2).sum() ** 2 / (s**4).sum(),
        F.nuclear_rank: s.sum() / s.max(),
        F.spectral_concentration: s.max() / s.sum(),
        F.numerical_rank: (s > len(s) * np.finfo(np.float32).eps * s.max()).sum(),
    }
    for rank, value in expected.items():
        assert rank(x).item() == pytest.approx(value, rel=1e-9)
    assert F.srank(x, delta).item() == twin.srank(s, delta)
    assert F.pca_rank(x, delta).item() == twin.srank(s, delta, 2)


@FEW
@given(spectra)
def test_the_chain_of_inequalities(s: np.ndarray) -> None:
    x = torch.from_numpy(s)
    chain = [
        F.stable_rank(x),
        F.participation_ratio(x),
        F.energy_effective_rank(x),
        F.effective_rank(x),
        len(s),
    ]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(chain))
    assert F.stable_rank(x) <= F.nuclear_rank(x) + 1e-9
    assert F.nuclear_rank(x) <= F.effective_rank(x) + 1e-9
    assert F.nuclear_rank(x).item() * F.spectral_concentration(x).item() == pytest.approx(1)


@FEW
@given(spectra, st.floats(-150, 150), st.randoms(use_true_random=False))
def test_scale_order_and_padding_with_zeros_do_not_matter(s: np.ndarray, exponent: float, random) -> None:
    x = torch.from_numpy(s)
    order = list(range(len(s)))
    random.shuffle(order)
    for name, rank in ALL.items():
        base = rank(x)
        assert_close(rank(x * 10**exponent), base, rtol=1e-9, atol=0)
        assert_close(rank(x[order]), base, rtol=1e-9, atol=0)
        if name != "numerical_rank":  # its tolerance grows with the length
            assert_close(rank(torch.cat([x, torch.zeros(3)])), base, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_zero_empty_and_not_finite(name: str) -> None:
    rank = ALL[name]
    zero = rank(torch.zeros(4))
    assert zero == 0 if name in RANKS else zero.isnan()  # no largest share of nothing
    assert rank(torch.zeros(0)).isnan()
    for bad in (math.nan, math.inf):
        assert rank(torch.tensor([1.0, bad, 0.5])).isnan()
    with pytest.raises(ValueError, match="cannot be negative"):
        rank(torch.tensor([1.0, -0.1]))
    with pytest.raises(InputError):
        rank(torch.tensor(1.0))
    batch = rank(torch.tensor([[1.0, 0.5], [math.nan, 1.0], [0.0, 0.0]]))
    assert batch.shape == (3,)
    assert batch[0].isfinite()
    assert batch[1].isnan()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_widened_first(name: str, dtype: torch.dtype) -> None:
    s = torch.linspace(0.1, 300, 50).to(dtype)
    found = ALL[name](s)
    assert found.dtype == torch.float64
    assert_close(found, ALL[name](s.double()))


@pytest.mark.parametrize("name", ALL)
def test_vmap_equals_the_batch(name: str) -> None:
    s = torch.rand(5, 8)
    assert_close(torch.func.vmap(ALL[name])(s), ALL[name](s))
    negative = torch.func.vmap(ALL[name])(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert negative[0].isnan()
    assert negative[1].isfinite()


@pytest.mark.parametrize(("n", "wanted"), [(100, 99), (10, 10), (1, 1), (200, 198), (1000, 990)])
@pytest.mark.parametrize("value", [1.0, 1 / 3, 0.1, 7e-9])
def test_ties(n: int, wanted: int, value: float) -> None:
    assert F.srank(torch.full((n,), value)) == wanted


def test_the_ratio_cannot_tell_what_the_ranks_can() -> None:
    ten = torch.cat([torch.ones(10), torch.zeros(90)])
    spike = torch.cat([torch.tensor([10.0]), torch.ones(99)])
    table = {
        "ten": (ten, 0.100, 10.0, 10, 10.0, 10.0),
        "geometric": (0.9 ** torch.arange(100.0), 0.100, 25.8, 44, 5.3, 9.5),
        "spike": (spike, 0.092, 88.2, 99, 2.0, 3.9),
        "root": (torch.arange(1, 101.0) ** -0.5, 0.054, 84.4, 99, 5.2, 16.5),
    }
    for s, ratio, effective, count, stable, participation in table.values():
        assert F.spectral_concentration(s).item() == pytest.approx(ratio, abs=6e-4)
        assert F.effective_rank(s).item() == pytest.approx(effective, abs=0.06)
        assert F.srank(s).item() == count
        assert F.stable_rank(s).item() == pytest.approx(stable, abs=0.06)
        assert F.participation_ratio(s).item() == pytest.approx(participation, abs=0.06)


def test_baselines_of_a_square_gaussian_matrix() -> None:
    n = 400
    s = F.singular_values(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))
    assert F.effective_rank(s).item() / n == pytest.approx(0.805, abs=0.01)
    assert F.srank(s).item() / n == pytest.approx(0.896, abs=0.01)
    assert F.stable_rank(s).item() / n == pytest.approx(0.25, abs=0.01)
    assert F.spectral_concentration(s).item() * n == pytest.approx(2.356, abs=0.05)


def test_gradient_of_the_effective_rank_is_finite_at_equal_values() -> None:
    s: Tensor = torch.ones(4, requires_grad=True)
    F.effective_rank(s).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_delta_out_of_range() -> None:
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="delta"):
            F.srank(torch.ones(3), delta)


@pytest.mark.parametrize(
    "values", [[3.0, 2.0, 0.5], [0.0, 0.0], [1.0, float("nan")], [[1.0, 2.0], [4.0, 4.0]]]
)
def test_statistics_at_once_are_those_one_by_one(values) -> None:
    s = torch.tensor(values)
    for name, found in F.spectrum_statistics(s)._asdict().items():
        assert torch.equal(found.nan_to_num(-1), getattr(F, name)(s).nan_to_num(-1)), name
