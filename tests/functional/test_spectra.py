"""Singular values: exact, the largest, warm-started, and estimated with an error that holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from supple import functional as F
from supple.errors import InputError

FEW = settings(max_examples=40, deadline=None)


def spectrum_of(w: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(w.double().numpy(), compute_uv=False))


def with_spectrum(s: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, len(s), dtype=torch.float64, generator=g))[0]
    right = torch.linalg.qr(torch.randn(n, len(s), dtype=torch.float64, generator=g))[0]
    return (left * s.double()) @ right.mT


@FEW
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_all_values_equal_numpy(m: int, n: int, dtype: torch.dtype, seed: int) -> None:
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    s = F.singular_values(w)
    wanted = spectrum_of(w)
    assert s.dtype == torch.float64
    assert bool((s[:-1] >= s[1:]).all())
    assert_close(s, wanted, rtol=1e-7, atol=3e-8 * float(wanted[0]))
    assert_close(F.singular_values(w.mT), s, rtol=1e-7, atol=3e-8 * float(wanted[0]))


@pytest.mark.parametrize("shape", [(600, 700), (1100, 530), (513, 5000)])
def test_blocks_and_chunks_of_large_matrices(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_close(F.singular_values(w), torch.linalg.svdvals(w.double()), rtol=1e-9, atol=1e-9)


def test_no_float64_copy_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    from supple.functional import spectra

    largest = []
    widen = spectra.double
    monkeypatch.setattr(spectra, "double", lambda x: largest.append(x.numel()) or widen(x))
    w = torch.randn(64, 20_000)
    assert_close(F.singular_values(w), torch.linalg.svdvals(w.double()))
    assert max(largest) <= 64 * 2048


def test_rank_deficient_weights_are_resolved() -> None:
    s = torch.cat([torch.ones(5), torch.zeros(123)])
    found = F.singular_values(with_spectrum(s, 128, 128).float())
    assert F.effective_rank(found).item() == pytest.approx(5, abs=0.01)
    assert F.srank(found) == 5
    assert F.numerical_rank(found) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_close(F.singular_values(w), spectrum_of(w), rtol=1e-7, atol=1e-7)
    assert F.largest_singular_value(w).sigma.item() == pytest.approx(spectrum_of(w)[0].item(), rel=1e-5)
    step = F.power_step(w, F.largest_singular_value(w).v)
    assert step.sigma.dtype == torch.float32
    assert step.sigma.item() == pytest.approx(spectrum_of(w)[0].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_nan_for_that_matrix_alone(bad: float, dtype: torch.dtype) -> None:
    w = torch.randn(3, 4, 6, dtype=dtype)
    w[1, 2, 3] = bad
    s = F.singular_values(w)
    assert s[1].isnan().all()
    assert_close(s[[0, 2]], F.singular_values(w[[0, 2]]))
    assert F.largest_singular_value(w[1]).sigma.isnan()
    assert all(x.isnan() for x in F.estimated_spectrum_statistics(w[1]))
    assert F.power_step(w[1], torch.ones(6)).sigma.isnan()


def test_extreme_scales() -> None:
    w = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    base = F.singular_values(w)
    for scale in (1e-30, 1e30):
        e = F.estimated_spectrum_statistics(w * scale)
        assert e.effective_rank.item() == pytest.approx(F.effective_rank(base).item(), rel=1e-4)
        assert e.frobenius_norm.item() == pytest.approx(float(w.norm()) * scale, rel=1e-5)
        assert_close(F.singular_values(w * scale) / scale, base, rtol=1e-6, atol=0)
        assert F.largest_singular_value(w * scale).sigma.item() == pytest.approx(
            float(base[0]) * scale, rel=1e-5
        )


def test_zero_and_empty() -> None:
    assert F.singular_values(torch.zeros(3, 4)).tolist() == [0, 0, 0]
    for shape in ((0, 4), (4, 0)):
        assert F.singular_values(torch.zeros(shape)).shape == (0,)
        assert F.largest_singular_value(torch.zeros(shape)).sigma.isnan()
        assert all(x.isnan() for x in F.estimated_spectrum_statistics(torch.zeros(shape)))
    assert F.singular_values(torch.zeros(2, 0, 4)).shape == (2, 0)
    assert F.largest_singular_value(torch.zeros(3, 4)).sigma == 0
    assert all(x == 0 for x in F.estimated_spectrum_statistics(torch.zeros(3, 4)))


def test_vmap_over_a_cohort() -> None:
    w = torch.randn(4, 6, 9)
    assert_close(torch.func.vmap(F.singular_values)(w), F.singular_values(w))
    assert_close(torch.func.vmap(F.singular_values)(w), torch.stack([F.singular_values(x) for x in w]))
    v = torch.randn(4, 9)
    found = torch.func.vmap(F.power_step)(w, v)
    loop = [F.power_step(x, y) for x, y in zip(w, v, strict=True)]
    for part, values in zip(found, zip(*loop, strict=True), strict=True):
        assert_close(part, torch.stack(values))


# -- the largest ----------------------------------------------------------------------------------
def test_lanczos_on_the_hardest_case() -> None:
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    truth = float(torch.linalg.svdvals(w.double())[0])
    errors = [abs(F.largest_singular_value(w, steps=k).sigma.item() / truth - 1) for k in (10, 20, 40)]
    assert errors[0] < 3e-2
    assert errors[1] < 3e-3
    assert errors[2] < 1e-5
    sigma, u, v = F.largest_singular_value(w, steps=60)
    assert_close(w @ v, sigma.float() * u, rtol=0, atol=1e-4 * truth)
    assert u.norm().item() == pytest.approx(1, rel=1e-5)


def test_lanczos_is_exact_on_small_matrices_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    for m, n in ((1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (6, 6), (2, 2)):
        for w in (
            torch.ones(m, n) + torch.eye(m, n),
            torch.ones(m, n),
            torch.randn(m, n, generator=torch.Generator().manual_seed(1)),
        ):
            for seed in range(3):
                sigma, u, v = F.largest_singular_value(w, seed=seed)
                assert sigma.item() == pytest.approx(spectrum_of(w)[0].item(), rel=1e-5)
                assert_close(u @ w @ v, sigma.float(), rtol=1e-5, atol=0)
    assert F.largest_singular_value(torch.eye(50)).sigma.item() == pytest.approx(1, rel=1e-6)
    F.estimated_spectrum_statistics(torch.eye(50))
    assert torch.equal(state, torch.get_rng_state())


def test_power_step_gradient_is_u_v_transposed() -> None:
    w = nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    step = F.power_step(w, torch.ones(7), steps=50)
    step.sigma.backward()
    assert w.grad is not None
    assert_close(w.grad, torch.outer(step.u, step.v))
    left, s, _ = torch.linalg.svd(w.detach())
    assert step.sigma.item() == pytest.approx(s[0].item(), rel=1e-5)
    assert abs(step.u @ left[:, 0]).item() == pytest.approx(1, rel=1e-5)
    assert not step.v.requires_grad


@pytest.mark.parametrize("block", [1, 4])
def test_warm_steps_follow_a_moving_matrix(block: int) -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(64, 48, generator=g)
    v = F.largest_singular_value(w).v
    if block > 1:
        v = torch.linalg.qr(torch.cat([v[None], torch.randn(block - 1, 48, generator=g)]).mT)[0].mT
    worst = 0.0
    for _ in range(100):
        w = w + 1e-3 * torch.randn(64, 48, generator=g)
        step = F.power_step(w, v)
        v = step.v
        error = 1 - step.sigma.item() / float(torch.linalg.svdvals(w)[0])
        assert error > -1e-5
        worst = max(worst, error)
    assert worst < 1e-2
    assert v.shape == ((48,) if block == 1 else (block, 48))


def test_a_zero_matrix_keeps_the_vector() -> None:
    for v in (torch.ones(3), torch.eye(2, 3)):
        step = F.power_step(torch.zeros(4, 3), v)
        assert step.sigma == 0
        assert torch.equal(step.v, v)
    first = F.power_step(torch.eye(4, 3), F.power_step(torch.zeros(4, 3), torch.ones(3)).v)
    assert first.sigma.item() == pytest.approx(1)


# -- estimated ------------------------------------------------------------------------------------
def cases() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    i = torch.arange(1, 401, dtype=torch.float64)
    gauss = torch.randn(400, 400, generator=g)
    spikes = with_spectrum(torch.cat([10 / torch.arange(1, 21.0), torch.zeros(380)]), 400, 400)
    return {
        "gaussian": gauss,
        "wide": torch.randn(300, 900, generator=g),
        "tall": torch.randn(900, 300, generator=g),
        "spiked": (gauss / 20 + spikes).float(),
        "root": with_spectrum(i**-0.5, 400, 400).float(),
        "orthogonal": with_spectrum(torch.ones(400), 400, 400).float(),
        "inverse": with_spectrum(1 / i, 400, 400).float(),
        "fast": with_spectrum(i**-2, 400, 400).float(),
        "geometric": with_spectrum(10 ** (-8 * (i - 1) / 400), 400, 400).float(),
        "half dead": torch.cat([gauss[:200], torch.zeros(200, 400)]),
    }


@pytest.mark.parametrize("name", cases())
def test_the_stated_error_holds(name: str) -> None:
    w = cases()[name]
    s = torch.linalg.svdvals(w.double())
    wanted = F.effective_rank(s)
    for seed in range(6):
        e = F.estimated_spectrum_statistics(w, seed=seed)
        assert abs(e.effective_rank - wanted) <= e.effective_rank_error + 1e-5 * wanted
        participation = F.participation_ratio(s)
        assert (
            abs(e.participation_ratio - participation) <= e.participation_ratio_error + 1e-5 * participation
        )
        assert abs(e.nuclear_norm - s.sum()) <= e.nuclear_norm_error + 1e-5 * s.sum()
        assert e.sigma_max.item() == pytest.approx(float(s[0]), rel=1e-3)
        assert e.frobenius_norm.item() == pytest.approx(float(s.square().sum().sqrt()), rel=1e-6)
        assert e.stable_rank.item() == pytest.approx(float(F.stable_rank(s)), rel=2e-3)
        if name in ("gaussian", "wide", "tall", "spiked", "root", "orthogonal"):
            assert e.effective_rank.item() == pytest.approx(float(wanted), rel=0.02)
            assert e.effective_rank_error < 0.06 * e.effective_rank
            assert e.participation_ratio.item() == pytest.approx(float(participation), rel=0.1)


def test_low_rank_is_found_exactly() -> None:
    for rank in (1, 5, 12):
        w = with_spectrum(torch.arange(1.0, rank + 1), 200, 300).float()
        e = F.estimated_spectrum_statistics(w)
        wanted = F.effective_rank(torch.arange(1.0, rank + 1)).item()
        assert e.effective_rank.item() == pytest.approx(wanted, rel=1e-4)
        assert e.effective_rank_error == 0
    equal = F.estimated_spectrum_statistics(with_spectrum(torch.ones(5), 200, 300).float())
    assert equal.effective_rank.item() == pytest.approx(
        5, rel=1e-4
    )  # one Ritz value per probe, five directions


def test_more_probes_shrink_the_error() -> None:
    w = cases()["gaussian"]
    few, many = (F.estimated_spectrum_statistics(w, steps=30, probes=p).effective_rank_error for p in (4, 64))
    assert many < few


# -- matrices of kernels --------------------------------------------------------------------------
def test_weight_matrix_is_what_the_layer_does_at_one_position() -> None:
    torch.manual_seed(0)
    for conv in (
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv1d(4, 4, 2, groups=4, bias=False),
    ):
        patch = torch.randn(1, 4, *conv.kernel_size)
        m = F.weight_matrix(conv.weight, conv.groups)
        wanted = conv(patch).flatten()
        blocks = patch.reshape(conv.groups, -1)
        found = m @ blocks[0] if conv.groups == 1 else torch.einsum("goi,gi->go", m, blocks).flatten()
        assert_close(found, wanted)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_matrix_of_a_transposed_convolution(groups: int) -> None:
    torch.manual_seed(0)
    deconv = nn.ConvTranspose2d(4, 6, 2, groups=groups, bias=False)
    m = F.weight_matrix(deconv.weight, groups, transposed=True)
    pixel = torch.randn(4)
    out = deconv(pixel.reshape(1, 4, 1, 1))[0]  # (6, 2, 2): every tap once
    per = m.reshape(groups, 6 // groups, 4 // groups, 2, 2)
    found = torch.einsum("goikl,gi->gokl", per, pixel.reshape(groups, -1)).reshape(6, 2, 2)
    assert_close(found, out)


def test_bounds_of_a_convolution() -> None:
    torch.manual_seed(0)
    kernel, size = torch.randn(3, 2, 3, 3), 8
    basis = torch.eye(2 * size * size).reshape(-1, 2, size, size)
    matrix = nn.functional.conv2d(nn.functional.pad(basis, (1, 1, 1, 1), mode="circular"), kernel).flatten(1)
    norm = torch.linalg.svdvals(matrix)[0]
    low, high = F.spectral_norm_bounds(kernel, positions=9)
    assert low <= norm <= high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.singular_values(torch.zeros(3)), "weight_matrix"),
        (lambda: F.weight_matrix(torch.zeros(3)), "two axes"),
        (lambda: F.weight_matrix(torch.zeros(3, 2), groups=2), "groups"),
        (lambda: F.power_step(torch.zeros(3, 2), torch.zeros(3)), r"\(m, n\)"),
        (lambda: F.power_step(torch.zeros(3, 2), torch.zeros(2), steps=0), "one step"),
        (lambda: F.largest_singular_value(torch.zeros(2, 3, 2)), "one matrix"),
        (lambda: F.largest_singular_value(torch.zeros(3, 2), steps=0), "step"),
        (lambda: F.estimated_spectrum_statistics(torch.zeros(3, 2), probes=1), "two probes"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
