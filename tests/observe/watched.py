"""A training run with and without watching, and everything of it that watching could have touched."""

import random

import numpy as np
import torch
from tests.observe.cases import build

from supple.observe import Monitor, observe
from supple.topology.inputs import call


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )


def train(name, watch, steps=50, autocast=False):
    """A run of some steps; everything that could have been touched."""
    model, (inputs, targets), loss_fn = build(name)
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    flags = {n: m.training for n, m in model.named_modules()}
    losses = []
    monitor = None
    before = hooks(model)
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_fn(call(model, inputs), targets)
        if watch and step == 20:
            # between forward and backward: the graph that waits must survive
            observe(model, (inputs, targets), loss_fn, optimizer=optimizer, instruments="full")
        loss.backward()
        if watch and step == 5:
            monitor = Monitor(
                model, optimizer, probe=(inputs, targets), loss_fn=loss_fn, every=15, instruments="standard"
            )
        optimizer.step()
        losses.append(loss.item())
        losses.append(torch.rand(()).item() + random.random() + np.random.rand())
    if monitor is not None:
        assert len(monitor.records.select(instrument="loss")) >= 4
        monitor.detach()
    assert hooks(model) == before
    assert {n: m.training for n, m in model.named_modules()} == flags
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return losses, model.state_dict(), optimizer.state_dict()["state"], grads, torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
