"""Hare & Tortoise, FIRE and UPGD, each against a plain float64 loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supple.errors import InputError, OptimizerRuleError
from supple.fresh import generator
from supple.interventions.fire import FIRE, polar_factor
from supple.interventions.hare_tortoise import HareTortoise
from supple.interventions.upgd import UPGD


def problem(lr: float = 0.05) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        return grads

    return model, optimizer, step


def test_hare_and_tortoise_equal_the_loop_over_300_steps() -> None:
    model, optimizer, step = problem()
    handle = HareTortoise(every=50, momentum=0.9).attach(model, optimizer)
    hare = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    slow = {n: v.copy() for n, v in hare.items()}
    for t in range(1, 301):
        grads = step()
        for n in hare:
            hare[n] = hare[n] - 0.05 * grads[n].numpy()
            slow[n] = 0.9 * slow[n] + 0.1 * hare[n]
            if t % 50 == 0:
                hare[n] = slow[n].copy()
    for n, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), hare[n], atol=1e-10)
        np.testing.assert_allclose(handle.tortoise[n].numpy(), slow[n], atol=1e-10)


def test_upgd_equals_the_loop_over_300_steps() -> None:
    model, optimizer, step = problem()
    UPGD(decay=0.9, noise=0.1, seed=4).attach(model, optimizer)
    theta = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    utility = {n: np.zeros_like(v) for n, v in theta.items()}
    for t in range(1, 301):
        grads = step()
        for n in theta:
            utility[n] = 0.9 * utility[n] + 0.1 * (-grads[n].numpy() * theta[n])
        hat = {n: u / (1 - 0.9**t) for n, u in utility.items()}
        top = abs(max(u.max() for u in hat.values()))
        for n in theta:
            g = generator(4, t - 1, n, torch.device("cpu"))
            noise = torch.randn(theta[n].shape, generator=g, dtype=torch.float64).numpy()
            gate = 1 - 1 / (1 + np.exp(-hat[n] / top))
            theta[n] = theta[n] - 0.05 * (grads[n].numpy() + 0.1 * noise) * gate
    for n, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), theta[n], atol=1e-9)


def test_upgd_refuses_an_optimizer_with_its_own_update() -> None:
    model, _, _ = problem()
    for optimizer in (
        torch.optim.Adam(model.parameters()),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    ):
        with pytest.raises(OptimizerRuleError, match="needs plain SGD"):
            UPGD().attach(model, optimizer)
        assert not optimizer._optimizer_step_pre_hooks


def test_fire_is_the_nearest_isometry_and_acts_only_at_a_boundary() -> None:
    torch.manual_seed(1)
    w = torch.randn(5, 9, dtype=torch.float64)
    p = polar_factor(w)
    torch.testing.assert_close(p @ p.T, torch.eye(5, dtype=torch.float64))
    for _ in range(50):  # no other isometry is nearer
        q = torch.linalg.qr(torch.randn(9, 5, dtype=torch.float64))[0].T
        assert (w - p).norm() <= (w - q).norm() + 1e-12
    model, optimizer, step = problem()
    handle = FIRE().attach(model, optimizer)
    step()
    singular = torch.linalg.svdvals(model[0].weight)
    assert singular.max() - singular.min() > 1e-3
    handle.task("next")
    step()
    torch.testing.assert_close(torch.linalg.svdvals(model[0].weight), torch.ones(6, dtype=torch.float64))
    last = torch.linalg.svdvals(model[2].weight)
    assert last.max() - last.min() > 1e-3  # the output layer is left alone


def test_fire_changes_nothing_when_one_weight_is_not_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    handle = FIRE().attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="not finite"):
        handle.orthogonalise_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda: HareTortoise(every=7, momentum=0.9), lambda: UPGD(noise=0.05)])
def test_state_resumes_bit_for_bit(make: Any) -> None:
    model, optimizer, step = problem()
    handle = make().attach(model, optimizer)
    for _ in range(10):
        step()
    saved = {k: v.clone() for k, v in model.state_dict().items()}, handle.state_dict()
    for _ in range(10):
        step()
    want = [p.clone() for p in model.parameters()]
    other, optimizer, step = problem()
    other.load_state_dict(saved[0])
    again = make().attach(other, optimizer)
    again.load_state_dict(saved[1])
    for _ in range(10):
        step()
    assert all(torch.equal(a, b) for a, b in zip(want, other.parameters(), strict=True))
