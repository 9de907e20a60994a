"""Each penalty against its float64 numpy twin over 120 Adam steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as nnf

from supple.interventions import L2, L2Init
from tests.reference import penalties as twin

LR = 1e-2


def start(model):
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


def check(problem, penalty, make, tolerance=1e-10):
    model = problem.model()
    expected = twin.train(start(model), problem.numpy(), LR, make(start(model)))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    penalty.attach(model, optimizer)
    for (x, y), wanted in zip(problem.batches, expected, strict=True):
        optimizer.zero_grad()
        nnf.cross_entropy(model(x), y).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            error = abs(parameter.detach().numpy() - wanted[name]).max()
            assert error < tolerance, (name, error)


def test_l2(problem):
    check(problem, L2(coef=0.03), lambda p0: lambda t, p: {n: 0.06 * w for n, w in p.items()})


def test_l2_init(problem):
    check(problem, L2Init(coef=0.03), lambda p0: lambda t, p: {n: 0.06 * (w - p0[n]) for n, w in p.items()})


def test_l2_equals_weight_decay_of_twice_the_coefficient(problem):
    """The docstring's statement about ``weight_decay``."""
    ends = []
    for decay, coef in ((0.06, 0.0), (0.0, 0.03)):
        model = problem.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=decay)
        L2(coef=coef).attach(model, optimizer)
        for x, y in problem.batches[:30]:
            optimizer.zero_grad()
            nnf.cross_entropy(model(x), y).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, atol=1e-12)
    with pytest.raises(AssertionError):
        assert torch.allclose(ends[0], ends[1] + 1e-6, atol=1e-12)
