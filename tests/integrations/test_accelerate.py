"""A plain `accelerate` loop: its shell around the optimizer changes nothing of what Supple sees and does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

import supple
from supple.interventions import Combination, L2Init, ReGraMa
from supple.stepping import bare

accelerate = pytest.importorskip("accelerate")

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 8, generator=DRAW), torch.randint(3, (64,), generator=DRAW)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def parts(shell: bool) -> tuple[Any, Any, Any, Any]:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    if not shell:
        return None, net, optimizer, loader
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    return (accelerator, *accelerator.prepare(net, optimizer, loader))


def train(shell: bool) -> tuple[torch.Tensor, Any, Any]:
    accelerator, net, optimizer, loader = parts(shell)
    monitor = supple.Monitor(net, optimizer, probe=(X, Y), loss_fn=nnf.cross_entropy, every=2)
    rule = Combination([L2Init(coef=0.05), ReGraMa(tau=0.5, every=3)])
    handle = rule.attach(net, optimizer, inputs=X[:2])
    for number, (x, y) in enumerate(loader):
        if accelerator is None:
            (nnf.cross_entropy(net(x), y) / 2).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        else:
            with accelerator.accumulate(net):
                accelerator.backward(nnf.cross_entropy(net(x), y))
                optimizer.step()
                optimizer.zero_grad()
    return nn.utils.parameters_to_vector(net.parameters()).detach(), monitor, handle


def test_monitor_and_interventions_see_what_a_plain_loop_shows() -> None:
    inside, watch, handle = train(shell=True)
    plain, other, same = train(shell=False)
    assert torch.equal(inside, plain)
    assert handle.step == same.step == 4
    rows = [[(r.instrument, r.layer, r.step, repr(r.value)) for r in m.records] for m in (watch, other)]
    assert rows[0] == rows[1]


def test_diagnosis_and_plan_take_the_shell() -> None:
    _, net, optimizer, _ = parts(shell=True)
    assert bare(optimizer) is optimizer.optimizer
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    report = supple.diagnose(
        net, (X, Y), nnf.cross_entropy, optimizer=optimizer, reference=network, budget=0.5
    )
    made = supple.plan(net, optimizer, report)
    handles = made.apply_()
    assert any(h.attached for h in handles)
    nnf.cross_entropy(net(X), Y).backward()
    optimizer.step()
    for handle in handles:
        handle.detach()
