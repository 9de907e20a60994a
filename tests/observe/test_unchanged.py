"""Observing never changes training: bitwise, over the zoo."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.observe.cases import CASES, MODELS, build, mlp
from tests.observe.watched import same, train
from torch import nn

from supple.observe import Monitor, guard, observe


@pytest.mark.parametrize("name", [n for n in CASES if n not in MODELS])
def test_training_is_bitwise_the_same(name):
    assert same(train(name, watch=False), train(name, watch=True))


@pytest.mark.parametrize("name", ["mlp", "residual", "tokens"])
def test_training_is_bitwise_the_same_in_bf16(name):
    assert same(train(name, watch=False, autocast=True), train(name, watch=True, autocast=True))


def test_the_guard_puts_everything_back_after_an_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    model(torch.randn(5, 3)).sum().backward()
    model[3].bias.grad = None
    grads = {n: p.grad for n, p in model.named_parameters()}
    values = {n: None if g is None else g.clone() for n, g in grads.items()}
    buffers = {n: (b, b.clone()) for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), guard(model):  # noqa: PT012
        assert all(p.grad is None for p in model.parameters())
        model.train()
        model(torch.randn(5, 3)).sum().backward()
        model[0].weight.requires_grad_(False)
        model.register_buffer("extra", torch.ones(1))
        model[1].running_mean = torch.full((4,), 9.0)
        np.random.rand()
        raise ZeroDivisionError
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name]
        assert values[name] is None or torch.equal(parameter.grad, values[name])
        assert parameter.requires_grad
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert [m.training for m in model] == [True, False, True, True]


def test_under_no_grad_and_inference_mode():
    model, batch, loss_fn = build("mlp")
    with torch.no_grad():
        assert (
            observe(model, batch, loss_fn, instruments="grama").value(
                "grama", variant="preactivation,tau=0.1"
            )
            >= 0
        )
    with torch.inference_mode():
        inputs = batch[0] * 1.0
        seen = observe(model, (inputs, batch[1]), loss_fn, instruments="grama")
    assert seen.value("grama", variant="preactivation,tau=0.1") >= 0


def test_hooks_that_wait_for_gradients_never_fire():
    """Optimizers that step inside backward would train on the probe."""
    model, batch, loss_fn = build("mlp")
    fired = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    observe(model, batch, loss_fn)
    assert not fired


def test_copies_of_the_model_do_not_write_into_the_monitor():
    model, batch, loss_fn = build("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, optimizer, probe=batch, loss_fn=loss_fn, every=1)
    keys = set(model.state_dict())
    twin, twin_optimizer = copy.deepcopy(model), copy.deepcopy(optimizer)
    torch.save(model, io.BytesIO())
    pickle.loads(pickle.dumps(model))
    rows = len(monitor.records)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    loss_fn(twin(batch[0]), batch[1]).backward()
    other.step()
    twin_optimizer.step()
    torch.optim.swa_utils.AveragedModel(model)(batch[0])
    assert len(monitor.records) == rows
    assert set(model.state_dict()) == keys


def test_foreign_hooks_of_the_model_do_not_run_on_copies():
    torch.manual_seed(0)
    model, seen = mlp(), []
    model[0].register_forward_hook(lambda m, a, o: seen.append(id(m)))
    observe(
        model, (torch.randn(16, 5), torch.zeros(16, dtype=torch.long)), F.cross_entropy, instruments="churn"
    )
    assert set(seen) <= {id(model[0])}
