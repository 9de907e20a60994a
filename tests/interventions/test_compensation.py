"""The Adam step of fresh rows: exact for them, invisible to all others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference.adam_per_element import ElementAdam
from torch import Tensor

from supple.interventions import young
from supple.interventions.compensation import compensation_of, hold, load_state, release, state_of
from supple.interventions.slices import Slice, along


@pytest.fixture(params=["whole", "slices"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parameters are moved as a whole, large ones slice by slice."""
    if request.param == "slices":
        monkeypatch.setattr(young, "_WHOLE", {"cpu": 0})


VARIANTS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.Adam, {"foreach": True}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.Adam, {"maximize": True}),
    (torch.optim.Adam, {"betas": (0.8, 0.9)}),
    (torch.optim.Adam, {"betas": (0.0, 0.99)}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
]


def _gradient(step: int, shape: tuple[int, ...]) -> Tensor:
    g = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=g, dtype=torch.float64) + 0.3


def _reset(opt: torch.optim.Optimizer, p: Tensor, where: Slice, value: float) -> None:
    with torch.no_grad():
        p[where.at] = value
    for slot in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        if slot in opt.state[p]:
            opt.state[p][slot][where.at] = 0.0
    compensation_of(opt).mark(opt, p, where)


RESETS = {
    40: Slice(0, torch.tensor([1])),
    43: along(1, [0, 2]),
    60: Slice(0, torch.tensor([1, 4])),
    300: Slice(0, torch.tensor([5]), torch.tensor([3])),
}


@pytest.mark.parametrize(("cls", "kw"), VARIANTS)
@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 2)])
@pytest.mark.usefixtures("path")
def test_equals_adam_with_a_step_count_per_element(cls: type, kw: dict, shape: tuple[int, ...]) -> None:
    p = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    kw = {"lr": 1e-2, "eps": 0.0, **kw}
    opt = cls([p], **kw)
    own = {k: v for k, v in kw.items() if k not in ("foreach", "fused", "maximize")}
    # a slice is dropped when its factor is within 1e-3 of 1; what is then still missing sums up to this
    beta2 = kw.get("betas", (0.9, 0.999))[1]
    rest, span = 1e-3 * kw["lr"] / (1 - beta2), math.log(2e-3) / math.log(beta2)
    twin = ElementAdam(p.detach().numpy(), decoupled=cls is torch.optim.AdamW, **own)
    for step in range(1000):
        g = _gradient(step, shape)
        p.grad = g.clone()
        opt.step()
        twin.step((-g if kw.get("maximize") else g).numpy())
        bound = 1e-9 if step <= 40 + span else rest
        assert np.abs(p.detach().numpy() - twin.value).max() < bound, step
        if step in RESETS:
            where = RESETS[step]
            mask = np.zeros(shape, dtype=bool)
            mask[tuple(w.numpy() if isinstance(w, Tensor) else w for w in where.at)] = True
            twin.reset(mask, np.full(shape, 0.25))
            _reset(opt, p, where, 0.25)


@pytest.mark.parametrize(("cls", "kw"), VARIANTS)
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.usefixtures("path")
def test_other_rows_move_bit_for_bit_as_without_the_reset(cls: type, kw: dict, many: bool) -> None:
    pair = []
    for resets in (False, True):
        p = torch.linspace(-1, 1, 60).reshape(10, 6).requires_grad_()
        opt = cls([p], lr=1e-3, **kw)
        for step in range(200):
            p.grad = _gradient(step, (10, 6)).float()
            opt.step()
            if resets and step in (50, 70):
                rows = range(7) if many else [2, 3]
                _reset(opt, p, along(0, list(rows)), 0.1)
            if resets and step == 70 and many:
                _reset(opt, p, along(1, [5]), 0.0)
        pair.append(p.detach().clone())
    rows, columns = (slice(7, None), slice(0, 5)) if many else ([0, 1, 4, 5, 6, 7, 8, 9], slice(None))
    assert torch.equal(pair[0][rows, columns], pair[1][rows, columns])
    assert not torch.equal(pair[0], pair[1])


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_first_update_is_at_most_the_learning_rate(cls: type) -> None:
    for age in (1, 10, 100, 3000):
        p = torch.zeros(6, 4, requires_grad=True)
        opt = cls([p], lr=1e-3, weight_decay=0.0)
        for step in range(age):
            p.grad = _gradient(step, (6, 4)).float()
            opt.step()
        _reset(opt, p, along(0, [2]), 0.0)
        p.grad = _gradient(age, (6, 4)).float()
        opt.step()
        first = p.detach()[2].abs()
        assert first.max() <= 1e-3 * (1 + 1e-5)
        assert first.min() > 0.99e-3


def test_without_compensation_the_first_update_is_three_times_too_large() -> None:
    """The trap itself, so that the test above cannot pass by accident."""
    p = torch.zeros(2, 2, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-3)
    for _ in range(3000):
        p.grad = torch.ones(2, 2)
        opt.step()
    with torch.no_grad():
        p[0] = 0.0
    opt.state[p]["exp_avg"][0] = opt.state[p]["exp_avg_sq"][0] = 0.0
    p.grad = torch.ones(2, 2)
    opt.step()
    assert p.detach()[0].abs().max() > 3e-3


def test_eps_only_slows_a_fresh_row() -> None:
    p = torch.zeros(2, 2, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-3, eps=1e-3)
    for _ in range(500):
        p.grad = torch.full((2, 2), 1e-2)
        opt.step()
    _reset(opt, p, along(0, [0]), 0.0)
    exact = 1e-3 * 1e-2 / (1e-2 + 1e-3)
    p.grad = torch.full((2, 2), 1e-2)
    opt.step()
    assert 0 < p.detach()[0].abs().max() <= exact


def test_old_rows_are_dropped_and_steps_without_gradient_do_not_count() -> None:
    p = torch.zeros(4, 4, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-3, betas=(0.5, 0.9))
    p.grad = torch.ones(4, 4)
    opt.step()
    _reset(opt, p, along(0, [0]), 0.0)
    shared = compensation_of(opt)
    p.grad = None
    opt.step()
    assert shared.ages[p].count == 1
    for _ in range(600):
        p.grad = torch.ones(4, 4)
        opt.step()
    assert p not in shared.ages


@pytest.mark.usefixtures("path")
def test_state_round_trip_and_settling() -> None:
    def run(reload: bool) -> Tensor:
        p = torch.zeros(4, 4, requires_grad=True)
        opt = torch.optim.Adam([p], lr=1e-3)
        for step in range(60):
            p.grad = _gradient(step, (4, 4)).float()
            opt.step()
            if step == 30:
                _reset(opt, p, along(0, [1]), 0.0)
                _reset(opt, p, along(1, [2]), 0.0)
            if step == 40 and reload:
                kept = state_of(opt, {p: "w"})
                before = opt.state_dict()
                q = p.detach().clone().requires_grad_()
                opt = torch.optim.Adam([q], lr=1e-3)
                opt.load_state_dict(before)
                load_state(opt, {q: "w"}, kept)
                p = q
        return p.detach()

    assert torch.equal(run(False), run(True))


def test_settled_moments_are_free_of_bias() -> None:
    p = torch.zeros(3, 2, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-3)
    hold(opt)
    for _ in range(400):
        p.grad = torch.ones(3, 2)
        opt.step()
    _reset(opt, p, along(0, [0]), 0.0)
    for _ in range(5):
        p.grad = torch.ones(3, 2)
        opt.step()
    before = p.detach().clone()
    release(opt)
    assert len(opt._optimizer_step_pre_hooks) == len(opt._optimizer_step_post_hooks) == 0
    p.grad = torch.ones(3, 2)
    opt.step()
    assert torch.allclose((before - p.detach()), torch.full((3, 2), 1e-3), rtol=1e-4)


def test_hooks_can_be_installed_from_inside_a_post_hook_and_run_before_others() -> None:
    p = torch.zeros(3, 2, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-3)
    seen = []

    def method(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append(p.detach().clone())
        if len(seen) == 5:
            _reset(optimizer, p, along(0, [0]), 0.0)

    opt.register_step_post_hook(method)
    for _ in range(7):
        p.grad = torch.ones(3, 2)
        opt.step()
    assert seen[5][0].abs().max() <= 1e-3 * (1 + 1e-5)
    assert torch.equal(seen[6], p.detach())


def test_bfloat16_parameters_are_corrected_in_float32() -> None:
    p = torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)
    opt = torch.optim.Adam([p], lr=1e-2)
    for _ in range(50):
        p.grad = torch.ones_like(p)
        opt.step()
    _reset(opt, p, along(0, [0]), 0.0)
    p.grad = torch.ones_like(p)
    opt.step()
    assert p.detach()[0].float().abs().max() <= 1e-2 * 1.005
