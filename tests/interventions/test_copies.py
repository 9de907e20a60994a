"""Copies of a model that a reset method is attached to: targets, averages, pickles. They are not the model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.interventions import nets
from torch import Tensor, nn

from supple.interventions import (
    CCBP,
    ContinualBackprop,
    Intervention,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
)

METHODS = {
    "cbp": ContinualBackprop(replacement_rate=0.2, maturity=2),
    "redo": ReDo(tau=0.5, every=3),
    "regrama": ReGraMa(tau=0.5, every=3),
    "regrama, pre-activations": ReGraMa(tau=0.5, every=3, score="preactivation"),
    "snr": SelfNormalizedReset(threshold=2),
    "ccbp": CCBP(every=3),
}


def data(seed: int) -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))


def run(method: Intervention, at_once: bool, copies: bool) -> Tensor:
    """The weights at the end; with ``copies`` other networks made from the model learn in between."""
    torch.manual_seed(0)
    model = nets.MLP(6, 10, 8, 2)
    with torch.no_grad():
        model.fc1.bias[:3] = -30.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    handle = method.attach(model, optimizer, inputs=data(0) if at_once else None)
    others: list[nn.Module] = []
    for step in range(8):
        if copies and step in (0, 4):
            others += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            others += [torch.optim.swa_utils.AveragedModel(model)]
        for other in others:
            (100 * other(data(50 + step))).square().mean().backward()
        optimizer.zero_grad()
        model(data(step)).square().mean().backward()
        optimizer.step()
    assert handle.log or isinstance(method, SelfNormalizedReset)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_passes_of_a_copy_do_not_count(name: str, at_once: bool) -> None:
    assert torch.equal(run(METHODS[name], at_once, False), run(METHODS[name], at_once, True))


def test_a_copy_has_nothing_of_the_handle() -> None:
    model = nets.MLP(6, 10, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ReDo(every=1).attach(model, optimizer)  # waits for the first pass
    twin = copy.deepcopy(model)
    hooks = [h for m in twin.modules() for h in m._forward_pre_hooks.values()]
    assert hooks
    assert all(h.act is None for h in hooks)
