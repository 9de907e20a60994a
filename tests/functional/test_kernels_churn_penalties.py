"""Kernel statistics, churn and penalties against their twins, and on what is broken or empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import spectra as twin
from torch.testing import assert_close

from supple import functional as F
from supple.errors import InputError

FEW = settings(max_examples=40, deadline=None)


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- kernels --------------------------------------------------------------------------------------
@FEW
@given(st.integers(2, 8), st.integers(0, 99))
def test_kernel_statistics_equal_their_twin(n: int, seed: int) -> None:
    phi = features(n, 2 * n, seed)
    k = phi @ phi.mT
    found = F.kernel_statistics(k)._asdict()
    for name, value in twin.kernel_statistics(k.numpy()).items():
        assert found[name].item() == pytest.approx(value, rel=1e-8), name


@FEW
@given(st.integers(2, 8), st.floats(-100, 100))
def test_kernel_statistics_do_not_change_with_scale_or_order(n: int, exponent: float) -> None:
    phi = features(n, 2 * n)
    k = phi @ phi.mT
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    base = F.kernel_statistics(k)
    for other in (k * 10**exponent, k[order][:, order]):
        for a, b in list(zip(F.kernel_statistics(other), base, strict=True))[:4]:
            assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_kernel_of_one_direction_and_of_none() -> None:
    one = F.kernel_statistics(torch.ones(5, 5))
    assert (one.rank99, one.effective_rank.item(), one.mean_cosine.item()) == (
        1,
        pytest.approx(1),
        pytest.approx(1),
    )
    assert one.condition == math.inf
    none = F.kernel_statistics(torch.zeros(5, 5))
    assert (none.rank99, none.effective_rank, none.trace) == (0, 0, 0)
    assert none.condition.isnan()
    assert none.mean_cosine.isnan()


def test_a_sample_without_gradient_is_left_out_of_the_cosine() -> None:
    phi = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert F.mean_cosine(phi @ phi.mT).item() == pytest.approx(2**-0.5)
    assert F.mean_cosine(torch.diag(torch.tensor([1.0, 0.0]))).isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_kernel_is_nan_throughout(bad: float) -> None:
    k = torch.eye(4)
    k[1, 1] = bad
    assert all(x.isnan() for x in F.kernel_statistics(k))
    assert F.kernel_spectrum(k).isnan().all()
    assert F.mean_cosine(k).isnan()
    assert all(x.isnan() for x in F.kernel_statistics(torch.zeros(0, 0)))
    assert F.kernel_statistics(torch.eye(1)).mean_cosine.isnan()


def test_what_is_not_a_kernel_is_refused() -> None:
    for k, message in (
        (torch.zeros(2, 3), "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semi-definite"),
    ):
        with pytest.raises(InputError, match=message):
            F.kernel_statistics(k)
    with pytest.raises(InputError, match="trace"):
        F.normalise_kernel(torch.eye(2), by="max")


def test_rounding_of_float32_kernels_is_forgiven() -> None:
    phi = features(64, 8).float()
    found = F.kernel_statistics(phi @ phi.mT)
    assert found.rank99 <= 8
    assert found.condition > 1e6


def test_helpers() -> None:
    phi = features(6, 4)
    k = phi @ phi.mT
    centred = phi - phi.mean(0)
    assert_close(F.centre_kernel(k), centred @ centred.mT)
    assert F.normalise_kernel(k).trace().item() == pytest.approx(1)
    assert_close(F.normalise_kernel(k, "diagonal"), F.gradient_cosines(phi))
    assert_close(F.kernel_spectrum(k)[:4], torch.linalg.svdvals(phi).square())
    assert F.gradient_cosines(torch.tensor([[1.0, math.nan], [1.0, 0.0]])).isnan().all()


def test_vmap_over_kernels() -> None:
    k = torch.stack([features(5, 9, s) @ features(5, 9, s).mT for s in range(3)])
    found = torch.func.vmap(F.kernel_statistics)(k)
    for i in range(3):
        assert_close(torch.stack([x[i] for x in found]), torch.stack(list(F.kernel_statistics(k[i]))))


# -- churn ----------------------------------------------------------------------------------------
logits = hnp.arrays(np.float64, (4, 3), elements=st.floats(-30, 30))


@FEW
@given(logits, logits)
def test_churn_equals_its_twin(before: np.ndarray, after: np.ndarray) -> None:
    a, b = torch.from_numpy(before), torch.from_numpy(after)
    for kind in ("kl", "ce", "mse", "flip"):
        assert F.churn(a, b, kind).item() == pytest.approx(
            twin.churn(before, after, kind), rel=1e-6, abs=1e-9
        )
    assert F.churn(a, b).item() >= -1e-12
    assert F.churn(a, b + 5).item() == pytest.approx(F.churn(a, b).item(), rel=1e-6, abs=1e-9)
    assert F.churn(a, a).item() == 0
    entropy = F.churn(a, a, "ce")
    assert (F.churn(a, b, "ce") - entropy).item() == pytest.approx(F.churn(a, b).item(), rel=1e-6, abs=1e-9)


def test_small_changes_are_not_rounded_away() -> None:
    a = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    step = 1e-4 * torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    p = a.double().softmax(-1)
    d = (a + step).double() - a.double()
    fisher = 0.5 * ((p * d.square()).sum(-1) - (p * d).sum(-1).square()).mean()
    assert F.churn(a, a + step).item() == pytest.approx(fisher.item(), rel=1e-3)


def test_gradient_goes_to_both_and_kl_equals_ce_in_after() -> None:
    a, b = torch.randn(6, 4), torch.randn(6, 4, requires_grad=True)
    kl = torch.autograd.grad(F.churn(a, b, "kl"), b)[0]
    ce = torch.autograd.grad(F.churn(a, b, "ce"), b)[0]
    assert_close(kl, ce)
    assert_close(kl, (b.softmax(-1) - a.softmax(-1)).detach() / 6)


def test_positions_and_the_class_axis() -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    for kind in ("kl", "ce", "mse", "flip"):
        flat = F.churn(a.reshape(12, 5), b.reshape(12, 5), kind)
        assert_close(F.churn(a, b, kind), flat)
        assert_close(F.churn(a.movedim(-1, 1), b.movedim(-1, 1), kind, class_dim=1), flat)


@pytest.mark.parametrize("kind", ["kl", "ce", "mse", "flip"])
def test_broken_or_empty_outputs_are_not_measured(kind: str) -> None:
    a = torch.zeros(3, 2)
    for bad in (math.nan, math.inf):
        b = torch.zeros(3, 2)
        b[1, 1] = bad
        assert not F.churn(a, b, kind).isfinite()
        assert not F.churn(b, a, kind).isfinite()
    assert F.churn(torch.zeros(0, 2), torch.zeros(0, 2), kind).isnan()
    half = torch.randn(4, 3).half()
    assert F.churn(half, half.flip(0), kind).dtype == torch.float64
    stacked = torch.randn(2, 5, 4, 3)
    found = torch.func.vmap(lambda x, y: F.churn(x, y, kind))(stacked[0], stacked[1])
    assert_close(found, torch.stack([F.churn(x, y, kind) for x, y in zip(*stacked, strict=True)]))


def test_masked_classes() -> None:
    a = torch.tensor([[0.0, 1.0, -math.inf]])
    b = torch.tensor([[0.5, 1.0, -math.inf]])
    assert F.churn(a, b).item() == pytest.approx(F.churn(a[:, :2], b[:, :2]).item())
    assert F.churn(b.nan_to_num(neginf=0), a) == math.inf


def test_relative_churn_is_comparable_across_step_sizes() -> None:
    a, batch = torch.randn(8, 3), torch.randn(4, 3)
    move, inside = torch.randn(8, 3), torch.randn(4, 3)
    ratios = [F.relative_churn(a, a + eta * move, batch, batch + eta * inside) for eta in (1e-4, 1e-1)]
    assert_close(ratios[0], ratios[1], rtol=1e-3, atol=0)
    assert F.relative_churn(a, a, batch, batch).isnan()
    assert F.relative_churn(a, a + 1, batch, batch) == math.inf
    with pytest.raises(InputError, match="kl"):
        F.relative_churn(a, a, batch, batch, kind="ce")


@FEW
@given(st.integers(1, 4), st.integers(0, 99))
def test_gaussian_churn_is_the_kl_of_the_new_policy_from_the_old_one(actions: int, seed: int) -> None:
    old, new = features(5, 2 * actions, seed), features(5, 2 * actions, seed + 100)
    found = F.churn(old, new, "gaussian")
    assert found.item() == pytest.approx(twin.gaussian_kl(new.numpy(), old.numpy()), rel=1e-9)
    pairs = [(x[:, :actions], x[:, actions:].exp()) for x in (new, old)]
    normals = [torch.distributions.Normal(*pair) for pair in pairs]
    known = torch.distributions.kl_divergence(*normals).sum(1).mean()
    assert found.item() == pytest.approx(known.item(), rel=1e-9)
    assert F.churn(old, old, "gaussian").item() == 0
    assert F.churn(new, old, "gaussian").item() != pytest.approx(found.item())  # it has a direction


def test_a_tiny_gaussian_churn_is_not_rounded_away() -> None:
    old = features(6, 4).float()
    step = 1e-5 * features(6, 4, 1)
    mean, log = step.chunk(2, 1)
    second = (log.square() + 0.5 * (mean / old.double()[:, 2:].exp()).square()).sum(1).mean()
    assert F.churn(old.double(), old.double() + step, "gaussian").item() == pytest.approx(
        second.item(), rel=1e-3
    )


def test_churn_refusals() -> None:
    with pytest.raises(InputError, match="as many logarithms"):
        F.churn(torch.zeros(2, 3), torch.zeros(2, 3), "gaussian")
    with pytest.raises(InputError, match="kl, mse, ce, flip, gaussian"):
        F.churn(torch.zeros(2, 2), torch.zeros(2, 2), "js")
    with pytest.raises(InputError, match="one shape"):
        F.churn(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(InputError, match="one shape"):
        F.churn(torch.zeros(2), torch.zeros(2))


# -- penalties ------------------------------------------------------------------------------------
def test_penalties_equal_their_twins() -> None:
    w, w0 = features(5, 3), features(5, 3, 1)
    assert F.wasserstein_penalty(w, w0).item() == pytest.approx(twin.wasserstein(w.numpy(), w0.numpy()))
    assert F.parseval_penalty(w, 2.0).item() == pytest.approx(twin.parseval(w.numpy(), 2.0))
    assert F.l2_init_penalty(w, w0).item() == pytest.approx(((w - w0) ** 2).sum().item())
    s = torch.linalg.svdvals(w)
    assert F.feature_rank_penalty(w).item() == pytest.approx((s[0] ** 2 - s[-1] ** 2).item())
    assert F.spectral_penalty(s, k=4).item() == pytest.approx(((s**4 - 1) ** 2).sum().item())
    assert F.bias_penalty(w[0], k=2).item() == pytest.approx(w[0].norm().item() ** 4)


@pytest.mark.parametrize(
    "term",
    [
        lambda w: F.spectral_penalty(w.abs()), F.bias_penalty, F.l2_penalty,
        lambda w: F.l2_init_penalty(w, torch.ones_like(w)),
        lambda w: F.wasserstein_penalty(w, torch.linspace(0, 1, w.numel()).to(w.dtype).reshape(w.shape)),
        F.parseval_penalty, F.feature_rank_penalty,
    ],
)  # fmt: skip
def test_penalties_have_finite_gradients_also_at_zero_and_in_half(term) -> None:
    for start in (torch.zeros(4, 3), torch.eye(4, 3), torch.randn(4, 3)):
        w = start.clone().requires_grad_()
        term(w).backward()
        assert w.grad is not None
        assert w.grad.isfinite().all()
    assert term(torch.full((4, 3), 300.0).half()).isfinite()
    assert not term(torch.full((4, 3), math.nan)).isfinite()
    assert term(torch.zeros(0, 3)) == 0
    stacked = torch.randn(3, 4, 3)
    assert_close(torch.func.vmap(term)(stacked), torch.stack([term(x) for x in stacked]))


def test_penalty_gradients_by_finite_differences() -> None:
    w, w0 = features(4, 3), features(4, 3, 1)
    for term in (
        F.l2_penalty, F.parseval_penalty, F.feature_rank_penalty, lambda x: F.wasserstein_penalty(x, w0),
        lambda x: F.l2_init_penalty(x, w0),
        lambda x: F.spectral_penalty(F.power_step(x, torch.ones(3).double(), 200).sigma),
    ):  # fmt: skip
        assert torch.autograd.gradcheck(term, w.clone().requires_grad_(), atol=1e-5)


def test_penalty_refusals() -> None:
    for call in (
        lambda: F.l2_init_penalty(torch.zeros(2), torch.zeros(3)),
        lambda: F.wasserstein_penalty(torch.zeros(2), torch.zeros(3)),
        lambda: F.parseval_penalty(torch.zeros(2)),
        lambda: F.feature_rank_penalty(torch.zeros(2)),
    ):
        with pytest.raises(InputError):
            call()
