"""Curvature spectra from the kernel, the Lanczos top eigenvalue, and the two nulls, against float64 twins."""

import numpy as np
import pytest
import torch
from torch import nn

import supple
from supple import functional as F


def setting(classes=3, samples=7):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    x, y = torch.randn(samples, 4, dtype=torch.float64), torch.arange(samples) % classes
    out = net(x)
    jacobian = np.stack(
        [
            [
                np.concatenate(
                    [
                        g.numpy().ravel()
                        for g in torch.autograd.grad(o, list(net.parameters()), retain_graph=True)
                    ]
                )
                for o in row
            ]
            for row in out
        ]
    )
    p = out.detach().softmax(-1)
    return net, x, y, jacobian, p


def test_gauss_newton_spectrum_equals_that_of_the_matrix_itself():
    net, x, _, j, p = setting()
    n = len(p)
    h = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / n
    ggn = np.einsum("ncp,ncd,ndq->pq", j, h.numpy(), j)
    expected = np.linalg.eigvalsh(ggn)[::-1][: n * 3]
    found = F.ggn_spectrum(supple.ntk(net, x, kind="full"), h).numpy()
    np.testing.assert_allclose(found, expected.clip(0), atol=1e-9 * expected[0])


def test_empirical_fisher_and_gradient_products_equal_those_of_the_gradients():
    net, x, y, j, p = setting()
    r = p.clone()
    r[torch.arange(len(y)), y] -= 1
    g = np.einsum("nc,ncp->np", r.numpy(), j)
    kernel = supple.ntk(net, x, kind="full")
    np.testing.assert_allclose(F.gradient_gram(kernel, r).numpy(), g @ g.T, atol=1e-10)
    expected = np.linalg.eigvalsh(g.T @ g / len(g))[::-1][: len(g)]
    np.testing.assert_allclose(F.fisher_spectrum(kernel, r).numpy(), expected, atol=1e-10)


def test_curvature_is_never_healthy_by_accident():
    kernel = torch.eye(4).double()
    kernel[0, 0] = torch.nan
    assert F.ggn_spectrum(kernel, torch.eye(2).repeat(2, 1, 1)).isnan().all()
    assert F.fisher_spectrum(kernel, torch.ones(2, 2)).isnan().all()
    with pytest.raises(ValueError, match="row for every output"):
        F.ggn_spectrum(torch.eye(4), torch.eye(2).repeat(3, 1, 1))


@pytest.mark.parametrize("size", [1, 5, 60])
def test_the_top_eigenvalue_is_the_signed_one_and_its_error_holds(size):
    torch.manual_seed(size)
    a = torch.randn(size, size, dtype=torch.float64)
    a = a + a.mT - 3 * torch.eye(size)  # the most negative eigenvalue is the largest in size
    start = torch.randn(size, dtype=torch.float64)
    truth = float(np.linalg.eigvalsh(a.numpy())[-1])
    full = F.largest_eigenvalue(lambda v: a @ v, start, steps=size, tolerance=0)
    assert float(full.value) == pytest.approx(truth, rel=1e-9)
    short = F.largest_eigenvalue(lambda v: a @ v, start, steps=max(1, size // 4))
    assert float(short.value) <= truth + 1e-9
    gap = np.abs(np.linalg.eigvalsh(a.numpy()) - float(short.value)).min()
    assert gap <= float(short.error) + 1e-9
    assert F.largest_eigenvalue(lambda v: v * torch.nan, start).value.isnan()


@pytest.mark.parametrize(("samples", "units"), [(32, 32), (128, 64), (40, 100)])
def test_the_null_spectrum_is_that_of_random_matrices(samples, units):
    draw = np.random.default_rng(0)
    drawn = [np.linalg.svd(draw.standard_normal((samples, units)), compute_uv=False) for _ in range(30)]
    for rank, tolerance in ((F.effective_rank, 0.02), (F.participation_ratio, 0.03), (F.stable_rank, 0.04)):
        expected = np.mean([float(rank(torch.from_numpy(s))) for s in drawn])
        found = float(rank(F.null_singular_values(samples, units)))
        assert found == pytest.approx(expected, rel=tolerance)
    top = np.mean([s[0] for s in drawn])
    assert F.null_largest_singular_value(samples, units) == pytest.approx(top, rel=0.01)
    assert top < 0.99 * (samples**0.5 + units**0.5)  # the edge alone would be off
    with pytest.raises(ValueError, match="at least one"):
        F.null_singular_values(0, 3)
    with pytest.raises(ValueError, match="two samples"):
        F.null_largest_singular_value(1, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_floor_is_the_size_of_the_rounding_noise(dtype):
    torch.manual_seed(0)
    w = torch.randn(96, 200)
    noise = (w.to(dtype).float() - w).double()
    top = float(F.singular_values(noise)[0])
    floor = F.rounding_floor(96, 200, float(w.square().mean().sqrt()), dtype)
    assert top == pytest.approx(floor, rel=0.1)
    assert F.rounding_floor(96, 200, 1.0, torch.float32) == 0.0


def test_readiness_relative_to_the_loss_divides_the_strength():
    g = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    plain, relative = F.optimization_readiness(g, 4), F.optimization_readiness(g, 4, loss=0.5)
    assert float(relative.strength) == pytest.approx(2 * float(plain.strength))
    assert float(relative.readiness) == pytest.approx(2 * float(plain.readiness))
    assert float(relative.reliability) == float(plain.reliability)
    assert F.optimization_readiness(g, loss=0.0).strength.isnan()
