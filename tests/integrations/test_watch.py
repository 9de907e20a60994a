"""What the callbacks share: all or nothing is attached, and a state of other interventions is refused untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import supple
from supple.errors import InputError, SuppleError
from supple.integrations._watch import Watching, attach, state_of, take_up
from supple.interventions import L2Init, ReGraMa


def parts() -> tuple[nn.Module, torch.optim.Optimizer, supple.Monitor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters())
    probe = (torch.randn(8, 4), torch.randint(2, (8,)))
    return net, optimizer, supple.Monitor(net, optimizer, probe=probe, loss_fn=nn.functional.cross_entropy)


def hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_where_one_refuses_nothing_stays_attached() -> None:
    net, optimizer, monitor = parts()
    stranger = ReGraMa(layers=["no such layer"])
    with pytest.raises(SuppleError):
        attach(monitor, [L2Init(), stranger], net, optimizer, torch.randn(2, 4))
    assert hooks(optimizer) == 0


def test_a_state_of_other_interventions_is_refused_untouched() -> None:
    net, optimizer, monitor = parts()
    handles = attach(monitor, [L2Init()], net, optimizer, torch.randn(2, 4))
    saved = state_of(monitor, handles)
    take_up(saved, monitor, handles)
    with pytest.raises(InputError, match="belongs to other interventions"):
        take_up({**saved, "handles": []}, monitor, handles)
    other, second, watch = parts()
    with pytest.raises(InputError, match="belongs to other interventions"):
        attach(watch, [], other, second, torch.randn(2, 4), saved)
    assert hooks(second) == 0


def test_nothing_is_told_before_the_training_begins() -> None:
    class Callback(Watching):
        starts = "trainer.train()"
        monitor, handles = None, []

    for ask in (lambda: Callback().records, lambda: Callback().task("b")):
        with pytest.raises(InputError, match=r"call trainer\.train\(\) first"):
            ask()
    Callback().detach()
