"""CReLU and Fourier features: identities, and the initialisation on which they live or die."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supple.errors import InputError
from supple.nn import CReLU, DeepFourier, init_pairs_


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20))
def test_energy_identities(values):
    z = torch.tensor([values], dtype=torch.float64)
    assert torch.allclose(CReLU()(z).square().sum(), z.square().sum())
    assert torch.allclose(
        DeepFourier()(z).square().sum(), torch.tensor(float(len(values)), dtype=torch.float64)
    )


@pytest.mark.parametrize("cls", [CReLU, DeepFourier])
@pytest.mark.parametrize(("shape", "dim"), [((4, 5), 1), ((4, 5, 3, 2), 1), ((2, 7, 5), -1), ((5,), 0)])
def test_shapes_and_order(cls, shape, dim):
    z = torch.randn(shape)
    out = cls(dim=dim)(z)
    first, second = out.chunk(2, dim)
    wanted = (z.relu(), (-z).relu()) if cls is CReLU else (z.sin(), z.cos())
    assert torch.equal(first, wanted[0])
    assert torch.equal(second, wanted[1])
    assert f"dim={dim}" in repr(cls(dim=dim))


def test_gradient_of_a_fourier_pair_has_norm_one_and_each_half_has_zeros():
    z = torch.linspace(-7, 7, 201, dtype=torch.float64, requires_grad=True)
    halves = [torch.autograd.grad(f(z).sum(), z)[0] for f in (torch.sin, torch.cos)]
    assert torch.allclose(halves[0] ** 2 + halves[1] ** 2, torch.ones_like(z))
    at = torch.tensor([math.pi / 2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(at.sin().sum(), at)[0].abs() < 1e-12


def chain(activation, gain, width=512, depth=10):
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        layer = nn.Linear(128 if index == 0 else 2 * width // 2, width // 2)
        if gain is not None:
            init_pairs_(layer, 1.0 if index == 0 else gain)
        layers += [layer, activation()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", [DeepFourier, CReLU])
def test_root_two_keeps_forward_and_backward_variance_and_others_do_not(activation):
    """Specification, 4.2: ten layers, width 512."""
    energies = {}
    for gain in (math.sqrt(2), 1.0, None):
        net = chain(activation, gain)
        x = torch.randn(64, 128, requires_grad=True)
        z, gradient = net[:-1](x), torch.randn(64, 512)
        first = net[0](x)
        back = torch.autograd.grad(net(x), x, gradient)[0]
        energies[gain] = (z.var().item(), back.square().mean().item() / gradient.square().mean().item())
        assert 0.8 < first.var().item() < 1.25 or gain is None
    good, low, default = energies[math.sqrt(2)], energies[1.0], energies[None]
    assert 0.8 < good[0] < 1.25
    assert good[1] > 30 * low[1] > 1000 * default[1]


def test_init_wants_a_weight_matrix_and_counts_kernel_taps():
    conv = init_pairs_(nn.Conv2d(64, 200, 3), generator=torch.Generator().manual_seed(0))
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert conv.bias.abs().max() == 0
    with pytest.raises(InputError, match="weight matrix"):
        init_pairs_(nn.ReLU())
