"""Plasticity injection: no jump, only the new head learns, and nothing is lost at the end."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from supple.errors import AttachError, InputError
from supple.interventions import InjectedHead, PlasticityInjection

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 12), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _net(cls: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return cls().double()


def _data(i: int) -> Tensor:
    return torch.randn(16, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def _step(model: nn.Module, opt: torch.optim.Optimizer, i: int, clear: str = "optimizer") -> None:
    if clear == "optimizer":
        opt.zero_grad()
    else:
        model.zero_grad(set_to_none=clear == "model")
    (model(_data(i)) - _data(i)[:, :3].abs()).square().mean().backward()
    opt.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clear", ["optimizer", "model", "zeros"])
def test_equals_an_explicit_sum_of_three_heads_for_300_steps(kind: str, clear: str) -> None:
    model = _net()
    opt = OPTIMIZERS[kind](model.parameters())
    handle = PlasticityInjection(head="head", every=100).attach(model, opt)
    for i in range(100):
        _step(model, opt, i, clear)
    assert handle.injected
    plain = copy.deepcopy(_net())
    other = OPTIMIZERS[kind](plain.parameters())
    for i in range(100):
        _step(plain, other, i, clear)
    plain.head = InjectedHead(plain.head, copy.deepcopy(handle.new), copy.deepcopy(handle.start))
    for p in (*plain.head.old.parameters(), *plain.head.start.parameters()):
        p.requires_grad_(False)
    state, body = other.state, list(plain.body.parameters())
    fresh = OPTIMIZERS[kind]([{"params": body}, {"params": list(plain.head.new.parameters())}])
    fresh.state.update({p: state[p] for p in body})
    frozen = copy.deepcopy(model.head.state_dict())
    for i in range(100, 300):
        _step(model, opt, i, clear)
        _step(plain, fresh, i)
        assert (model(_data(-1)) - plain(_data(-1))).abs().max() < 1e-6, i
    assert all(torch.equal(v, model.head.state_dict()[k]) for k, v in frozen.items())


def test_the_output_does_not_jump_and_gradients_reach_the_body_through_all_three() -> None:
    model = _net()
    opt = OPTIMIZERS["adam"](model.parameters())
    handle = PlasticityInjection(head="head").attach(model, opt)
    assert all(a is not b for a in model.parameters() for b in handle.parameters())
    x = _data(0)
    before = model(x)
    handle.inject_()
    assert torch.equal(model(x), before)
    model(x).square().mean().backward()
    assert all(p.grad is None for p in model.head.parameters())
    assert all(p.grad is not None for p in (*handle.parameters(), *model.body.parameters()))
    # at this moment the two fresh heads cancel, in the value and in the gradient of the body
    twin = _net()
    twin(x).square().mean().backward()
    pairs = zip(model.body.parameters(), twin.body.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad) for a, b in pairs)


def test_a_linear_head_is_folded_at_the_end_and_others_become_a_module() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    opt = OPTIMIZERS["adam"](model.parameters())
    handle = PlasticityInjection(every=3).attach(model, opt, inputs=_data(0))
    assert handle.path == "2"
    for i in range(9):
        _step(model, opt, i)
    before = model(_data(50))
    handle.detach()
    assert (model(_data(50)) - before).abs().max() < 1e-12
    assert all(p.requires_grad for p in model.parameters())
    assert sum(len(g["params"]) for g in opt.param_groups) == 4

    model = _net()
    opt = OPTIMIZERS["adam"](model.parameters())
    handle = PlasticityInjection(head="head", every=3).attach(model, opt)
    with pytest.raises(InputError, match="nothing was injected"):
        handle.freeze_in()
    for i in range(9):
        _step(model, opt, i)
    before = model(_data(50))
    with pytest.raises(AttachError, match="freeze_in"):
        handle.detach()
    handle.freeze_in()
    assert isinstance(model.head, InjectedHead)
    assert torch.equal(model(_data(50)), before)
    weight = model.head.new[0].weight.detach().clone()
    _step(model, opt, 10)
    assert not torch.equal(weight, model.head.new[0].weight)


def test_heads_that_cannot_be_copied_are_refused_with_the_path() -> None:
    model = _net()
    opt = OPTIMIZERS["adam"](model.parameters())
    with pytest.raises(AttachError, match="no such module"):
        PlasticityInjection(head="tail").attach(model, opt)
    with pytest.raises(AttachError, match="which module is the head"):
        PlasticityInjection().attach(model, opt)
    with pytest.raises(AttachError, match="no optimizer holds the head"):
        PlasticityInjection(head="head").attach(model, OPTIMIZERS["adam"](model.body.parameters()))
    for layer, words in (
        (nn.BatchNorm1d(12), "buffers"),
        (nn.Dropout(0.1), "drop other"),
        (nn.GRU(12, 4), "GRU"),
    ):
        model.head[1] = layer
        with pytest.raises(AttachError, match=words):
            PlasticityInjection(head="head").attach(model, OPTIMIZERS["adam"](model.parameters()))
    assert not model.head._forward_hooks
