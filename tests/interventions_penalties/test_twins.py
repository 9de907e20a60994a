"""Each penalty against its float64 numpy twin over 300 Adam steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.reference import penalties as twin
from torch import nn
from torch.nn import functional as nnf

from supple import fresh
from supple.interventions import L2, CChain, L2Init, ShrinkAndPerturb, SpectralRegularization
from supple.interventions.past_batches import PastBatches

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


@pytest.mark.parametrize("k", [1, 2, 3])
def test_spectral(problem, k):
    rule = SpectralRegularization(coef=0.01, k=k)
    model = problem.model()
    vectors = rule.attach(model, torch.optim.SGD(model.parameters(), lr=0.1)).vectors

    def make(p0):
        made = twin.Spectral(p0, 0.01, k)
        for name, exact in made.v.items():  # the start is the leading vector; from then on bit by bit
            assert abs(vectors[name].numpy() @ exact) > 1 - 1e-3
            made.v[name] = vectors[name].numpy()
        return made

    check(problem, rule, make, 1e-9)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_spectral_closed_form_is_the_gradient_of_the_term(k, norm):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), norm(9), nn.Linear(9, 4)).double()
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias.normal_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = SpectralRegularization(coef=0.3, k=k).attach(model, optimizer)
    optimizer.step()
    by_hand = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    handle.detach()
    other = SpectralRegularization(coef=0.3, k=k, hook=False).attach(model, optimizer)
    other.penalty().backward()
    for closed, parameter in zip(by_hand, model.parameters(), strict=True):
        assert torch.allclose(closed, parameter.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["kl", "ce", "mse"])
@pytest.mark.parametrize(("refresh", "fraction"), [(1, 1.0), (1, 0.3), (3, 1.0)])
def test_cchain(problem, kind, refresh, fraction):
    """The twin keeps deep copies of the parameters; here only outputs are kept."""
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    handle = CChain(coef=3.0, kind=kind, refresh=refresh, fraction=fraction).attach(model, optimizer)
    used: list[np.ndarray | None] = []
    path = []
    for x, y in problem.batches:
        optimizer.zero_grad()
        nnf.cross_entropy(model(x), y).backward()
        reference = handle.reference
        used.append(None if reference is None else reference.batch.tensors[0].numpy().copy())
        if reference is not None:  # never the current batch, nor the one of the update that is damped
            assert not any(torch.equal(reference.batch.tensors[0][:1], row[None]) for row in x)
            assert reference.batch.step < handle.step - 1
        optimizer.step()
        path.append({n: p.detach().numpy().copy() for n, p in model.named_parameters()})
    assert [u is None for u in used[:3]] == [True, True, False]
    expected = twin.train(
        start(problem.model()), problem.numpy(), LR, twin.Churn(3.0, kind, lambda t: used[t])
    )
    for got, wanted in zip(path, expected, strict=True):
        for name in got:
            assert abs(got[name] - wanted[name]).max() < 1e-9
    if refresh == 3:
        same = [np.array_equal(a, b) for a, b in pairwise(used[2:])]
        assert same[:6] == [True, True, False, True, True, False]


@pytest.mark.parametrize("source", ["reservoir", "inputs"])
def test_cchain_with_other_references(problem, source):
    """An even sample of the whole run, and a fixed probe, against the same twin."""
    model = problem.model()
    probe = torch.randn(5, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    rule = CChain(coef=3.0, batch_from=source, memory=4)
    handle = rule.attach(model, optimizer, inputs=probe)
    used: list[np.ndarray | None] = []
    steps, path = [], []
    for x, y in problem.batches:
        optimizer.zero_grad()
        nnf.cross_entropy(model(x), y).backward()
        reference = handle.reference
        used.append(None if reference is None else reference.batch.tensors[0].numpy().copy())
        steps.append(-1 if reference is None else reference.batch.step)
        optimizer.step()
        path.append({n: p.detach().numpy().copy() for n, p in model.named_parameters()})
    twin_churn = twin.Churn(3.0, "kl", lambda t: used[t])
    expected = twin.train(start(problem.model()), problem.numpy(), LR, twin_churn)
    for got, wanted in zip(path, expected, strict=True):
        assert all(abs(got[name] - wanted[name]).max() < 1e-9 for name in got)
    if source == "inputs":
        assert all(np.array_equal(u, probe.numpy()) for u in used[1:])
    else:  # old batches stay in: the mean age grows with the run
        assert sum(t - s for t, s in enumerate(steps) if t > 200) / 99 > 60
        assert len(set(steps)) > 10


def test_a_reservoir_is_an_even_sample_of_all_batches():
    counts = np.zeros(50)
    for seed in range(300):
        past = PastBatches(5, reservoir=True, seed=seed)
        for step in range(50):
            past.add((torch.full((1, 1), float(step)),), {}, step)
        assert len(past.batches) == 5
        for batch in past.batches:
            counts[batch.step] += 1
    assert counts.sum() == 1500
    assert (abs(counts - 30) < 5 * 30**0.5).all()


@pytest.mark.parametrize("scaling", ["ash_adams", "nature", "upgd"])
def test_shrink_and_perturb(problem, scaling):
    """θ ← p θ + s ε after every fifth step, ε by the key (seed, step, name)."""
    model, plain = problem.model(), problem.model()
    rule = ShrinkAndPerturb(shrink=0.9, perturb=0.2, every=5, scaling=scaling, seed=3)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=LR) for m in (model, plain))
    rule.attach(model, optimizer)
    for step, (x, y) in enumerate(problem.batches[:100]):
        for m, o in ((model, optimizer), (plain, other)):
            o.zero_grad()
            nnf.cross_entropy(m(x), y).backward()
            o.step()
        if (step + 1) % 5 == 0:
            with torch.no_grad():
                for path, layer in (("0", plain[0]), ("2", plain[2])):
                    for name, p in layer.named_parameters():
                        g = fresh.generator(3, step, f"{path}.{name}", "cpu")
                        if scaling == "ash_adams":
                            bound = 1 / layer.in_features**0.5
                            eps = torch.empty(p.shape, dtype=torch.float64).uniform_(
                                -bound, bound, generator=g
                            )
                        else:
                            eps = torch.randn(p.shape, generator=g).double()
                        if scaling == "upgd":
                            p.copy_((1 - LR * (1 - 0.9)) * p + LR * 0.2 * eps)
                        else:
                            p.copy_(0.9 * p + 0.2 * eps)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
