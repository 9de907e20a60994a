"""Target networks that follow the resets of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.interventions import nets
from torch import Tensor, nn

from supple.errors import InputError
from supple.interventions import CCBP, Combination, ContinualBackprop, L2Init, LayerReset, ReDo, ResetEvent
from supple.interventions.engine import ResetEngine
from supple.interventions.followers import mirror_

METHODS = {
    "cbp": ContinualBackprop(replacement_rate=0.2, maturity=2),
    "redo": ReDo(tau=0.5, every=3),
    "combination": Combination((L2Init(coef=0.01), ReDo(tau=0.5, every=3))),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for i in range(first, first + count):
        g = torch.Generator().manual_seed(i)
        optimizer.zero_grad()
        model(torch.randn(12, 6, generator=g)).square().mean().backward()
        optimizer.step()


def patient(norm: str | None = None) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A model with three dead units, a target network of other weights, an optimizer of the model."""
    torch.manual_seed(0)
    model = nets.MLP(6, 10, 8, 2, norm=norm)
    with torch.no_grad():
        model.fc1.bias[:3] = -30.0
    target = copy.deepcopy(model).requires_grad_(False)
    for p in target.parameters():
        p.add_(1.0)
    return model, target, torch.optim.Adam(model.parameters(), lr=1e-2)


def events(handle: object) -> list[ResetEvent]:
    parts = getattr(handle, "handles", [handle])
    return [e for h in parts for e in getattr(h, "log", []) if isinstance(e, ResetEvent)]


@pytest.mark.parametrize("name", METHODS)
def test_the_target_gets_the_same_units_and_keeps_all_else(name: str) -> None:
    model, target, optimizer = patient()
    old = copy.deepcopy(target)
    handle = METHODS[name].attach(model, optimizer, inputs=torch.randn(4, 6))
    handle.follow(target)
    step = 0
    while not events(handle):
        train(model, optimizer, 1, step)
        step += 1
    touched = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in target.named_parameters()}
    for event in events(handle):
        units = list(event.units)
        touched[f"{event.layer}.weight"][units] = True
        touched[f"{event.layer}.bias"][units] = True
        following = {"fc1": "fc2", "fc2": "fc3"}[event.layer]
        touched[f"{following}.weight"][:, units] = True
    assert sum(int(t.sum()) for t in touched.values()) > 0
    own = dict(model.named_parameters())
    for (n, after), before in zip(target.named_parameters(), old.parameters(), strict=True):
        assert torch.equal(after[touched[n]], own[n][touched[n]]), (
            n
        )  # the units that were just born in the model
        assert torch.equal(after[~touched[n]], before[~touched[n]]), n


def test_following_changes_nothing_in_the_model() -> None:
    ends: list[Tensor] = []
    for follows in (False, True):
        model, target, optimizer = patient()
        handle = ReDo(tau=0.5, every=3).attach(model, optimizer, inputs=torch.randn(4, 6))
        if follows:
            handle.follow(target)
        train(model, optimizer, 12)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_norms_and_running_statistics_follow() -> None:
    model, target, optimizer = patient(norm="batch")
    with torch.no_grad():
        model.norm1.bias[:3] = -30.0
        target.norm1.running_mean.fill_(7.0)
    handle = ReDo(tau=0.1, every=2).attach(model, optimizer, inputs=torch.randn(4, 6))
    handle.follow(target)
    train(model, optimizer, 2)
    born = list(events(handle)[0].units)
    assert events(handle)[0].layer == "fc1"
    assert target.norm1.weight[born].tolist() == [1.0] * len(born)
    assert target.norm1.running_mean[born].tolist() == [0.0] * len(born)
    others = [i for i in range(10) if i not in born]
    assert target.norm1.running_mean[others].tolist() == [7.0] * len(others)


def test_whole_layers_follow_too() -> None:
    model, target, optimizer = patient()
    handle = LayerReset(every=1).attach(model, optimizer, inputs=torch.randn(4, 6))
    handle.follow(target)
    train(model, optimizer, 1)
    for event in events(handle):
        assert torch.equal(target.get_submodule(event.layer).weight, model.get_submodule(event.layer).weight)


def test_what_is_no_copy_is_refused_and_nothing_is_followed() -> None:
    model, target, optimizer = patient()
    handle = ReDo(every=1).attach(model, optimizer, inputs=torch.randn(4, 6))
    for wrong, match in ((nets.MLP(6, 10, 7, 2), "fc2.weight"), (model, "own tensors")):
        with pytest.raises(InputError, match=match):
            handle.follow(target, wrong)
    before = copy.deepcopy(target.state_dict())
    train(model, optimizer, 4)
    assert events(handle)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    penalties = Combination((L2Init(),)).attach(model, optimizer)
    with pytest.raises(InputError, match="no part of this combination"):
        penalties.follow(target)


def test_what_a_write_keeps_is_the_followers_own() -> None:
    model, topology = nets.mlp(6, 10, 8, 2)
    target = copy.deepcopy(model)
    with torch.no_grad():
        for p in target.parameters():
            p.add_(1.0)
    before = copy.deepcopy(model)
    engine = ResetEngine(model, torch.optim.SGD(model.parameters(), lr=0.1), topology)
    rates = torch.zeros(10)
    rates[2] = 0.25
    plan = engine.plan_blend({"fc1": rates}, seed=0, step=1)
    plan.apply_()
    mirror_(plan, target)
    one, two = model.fc1.weight - before.fc1.weight, target.fc1.weight - model.fc1.weight
    assert (one[2] != 0).all()
    torch.testing.assert_close(
        two[2], torch.full((6,), 0.75)
    )  # (1 - r)(w + 1) + r fresh, against (1 - r) w + r fresh
    torch.testing.assert_close(two[3], torch.ones(6))
    torch.testing.assert_close((target.fc2.weight - model.fc2.weight)[:, 2], torch.full((8,), 0.75))

    means = {"fc2": torch.linspace(1, 2, 10)}
    plan = engine.plan({"fc1": torch.tensor([4])}, seed=0, step=2, means=means)
    gained = before.fc2.weight[:, 4] * means["fc2"][4]
    kept, own = target.fc2.bias.clone(), model.fc2.bias.clone()
    plan.apply_()
    mirror_(plan, target)
    torch.testing.assert_close(model.fc2.bias, own + gained)
    torch.testing.assert_close(target.fc2.bias, kept + gained)


def test_following_twice_is_following_once() -> None:
    ends: list[Tensor] = []
    for times in (1, 3):
        model, target, optimizer = patient()
        handle = CCBP(rate=0.5, every=2).attach(model, optimizer, inputs=torch.randn(4, 6))
        handle.follow(*[target] * (times // 2 + 1))
        for _ in range(times - 1):
            handle.follow(target)
        train(model, optimizer, 4)
        ends.append(torch.cat([p.detach().flatten() for p in target.parameters()]))
    assert torch.equal(*ends)


def test_wrappers_shared_storage_and_other_things_are_refused_by_name() -> None:
    model, target, optimizer = patient()
    handle = ReDo(every=1).attach(model, optimizer, inputs=torch.randn(4, 6))
    target.fc2.weight.data = model.fc2.weight.data
    wrapped = torch.optim.swa_utils.AveragedModel(model)
    for wrong, match in ((target, "fc2.weight"), (wrapped, "without a wrapper"), ("target", "found: str")):
        with pytest.raises(InputError, match=match):
            handle.follow(wrong)
