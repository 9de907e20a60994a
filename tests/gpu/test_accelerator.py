"""On an accelerator the same numbers come out as on the CPU, and nothing of the training state changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import supple
from supple.fresh import rule_for
from supple.interventions import available, create
from supple.interventions.compensation import compensation_of
from supple.interventions.slices import Slice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
#: settings under which a method acts within a few steps
SETTINGS: dict[str, dict[str, Any]] = {
    "ContinualBackprop": {"replacement_rate": 0.05, "maturity": 3},
    "ReDo": {"tau": 0.7, "every": 4},
    "ReGraMa": {"tau": 0.7, "every": 4},
    "HareTortoise": {"every": 4},
    "SelfNormalizedReset": {"threshold": 64, "update": 5},
    "CCBP": {"rate": 0.5, "every": 4},
    "LayerReset": {"every": 4},
    "PlasticityInjection": {"every": 4},
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )


def batch(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, *shape, generator=rng)
    return inputs.to(device), torch.randint(4, (64,), generator=rng).to(device)


NETS = {"mlp": (mlp, (8,)), "conv": (conv, (1, 8, 8))}
every_net = pytest.mark.parametrize("net", NETS)


@pytest.fixture(autouse=True)
def _exact_products() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measured(net: str, device: str) -> dict[tuple[str, str, str, str], float]:
    """One look at the network on this device, by instrument, variant, layer and part."""
    build, shape = NETS[net]
    model = build().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs, targets = batch(shape, device)
    loss = nn.CrossEntropyLoss()
    with supple.Monitor(model, optimizer, probe=(inputs, targets), loss_fn=loss, every=1) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
        return {
            (r.instrument, r.variant, r.layer, r.part): r.value
            for r in monitor.records
            if r.step == 1 and r.status == "measured"
        }


@every_net
def test_records_equal_those_of_the_cpu(net: str) -> None:
    here, there = measured(net, "cpu"), measured(net, "cuda")
    assert here.keys() == there.keys()
    assert len(here) > 20
    different = {
        key: (value, there[key])
        for key, value in here.items()
        if not math.isclose(value, there[key], rel_tol=1e-3, abs_tol=1e-5)
    }
    assert not different


@every_net
def test_kernel_equals_that_of_the_cpu(net: str) -> None:
    build, shape = NETS[net]
    inputs, _ = batch(shape, "cpu")
    model = build().eval()
    here = supple.ntk(model, inputs[:12], kind="full")
    there = supple.ntk(model.to("cuda"), inputs[:12].to("cuda"), kind="full").cpu()
    assert (here - there).abs().max() <= 1e-4 * here.abs().max()


@every_net
def test_a_diagnosis_changes_nothing(net: str) -> None:
    build, shape = NETS[net]
    model = build().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs, targets = batch(shape, "cuda")
    loss = nn.CrossEntropyLoss()
    loss(model(inputs), targets).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.cuda.get_rng_state()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    report = supple.diagnose(
        model, (inputs, targets), loss, optimizer=optimizer, reference=lambda: build().to("cuda"), budget=4.0
    )
    assert all(f.status != "present" for f in report.findings)
    after = (model.state_dict(), optimizer.state_dict()), torch.cuda.get_rng_state()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in model.parameters()], grads, rtol=0, atol=0)


@pytest.mark.parametrize("name", available())
def test_every_intervention_acts_and_continues_from_its_state(name: str) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = mlp().to("cuda")
        # UPGD defines the whole update itself and takes a plain optimizer
        plain = name == "UPGD"
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(model.parameters(), lr=0.01)
            if plain
            else torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        )
        inputs, _ = batch((8,), "cuda")
        return (
            model,
            optimizer,
            create(name, **SETTINGS.get(name, {})).attach(model, optimizer, inputs=inputs),
        )

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, handle: Any, steps: range) -> None:
        inputs, targets = batch((8,), "cuda")
        for i in steps:
            if i % 5 == 4:
                handle.task(f"task-{i}")
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs.roll(i, 0)), targets).backward()
            optimizer.step()

    model, optimizer, handle = start()
    train(model, optimizer, handle, range(8))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    train(model, optimizer, handle, range(8, 16))
    handle.detach()
    again, other, second = start()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(again, other, second, range(8, 16))
    second.detach()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


CAPTURABLE: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {"capturable": True, "eps": 1e-30}),
    (torch.optim.Adam, {"capturable": True, "amsgrad": True, "foreach": True, "eps": 1e-30}),
    (torch.optim.AdamW, {"fused": True, "capturable": True, "eps": 1e-30}),
    (torch.optim.NAdam, {"capturable": True}),
    (torch.optim.RAdam, {"capturable": True}),
    (torch.optim.Adamax, {"capturable": True}),
    (torch.optim.Adadelta, {"capturable": True}),
    (torch.optim.RMSprop, {"capturable": True}),
    (torch.optim.Rprop, {"capturable": True}),
    (torch.optim.ASGD, {"capturable": True, "lambd": 0.0}),
]


@pytest.mark.parametrize(("cls", "settings"), CAPTURABLE)
def test_a_reset_slice_is_fresh_and_others_do_not_notice_in_capturable_form(
    cls: type, settings: dict[str, Any]
) -> None:
    rows = torch.tensor([1, 4], device="cuda")

    def gradient(step: int) -> Tensor:
        return torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).cuda()

    def run(reset: bool) -> Tensor:
        weight = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(8, 5).cuda().requires_grad_()
        optimizer = cls([weight], lr=0.01, **settings)
        for step in range(120):
            if reset and step == 60:
                rule = rule_for(optimizer)
                assert rule.refusal(optimizer, weight) is None
                with torch.no_grad():
                    weight[rows] = 0.25
                rule.clear_(optimizer, weight, (rows,))
                if rule.ageing is not None:
                    compensation_of(optimizer).mark(optimizer, weight, Slice(0, rows))
            weight.grad = gradient(step)
            optimizer.step()
        return weight.detach()

    fresh = torch.full((2, 5), 0.25, dtype=torch.float64, device="cuda", requires_grad=True)
    optimizer = cls([fresh], lr=0.01, **settings)
    for step in range(60, 120):
        fresh.grad = gradient(step)[rows]
        optimizer.step()
    others = [0, 2, 3, 5, 6, 7]
    got = run(True)
    assert torch.equal(got[others], run(False)[others])
    assert (got[rows] - fresh.detach()).abs().max() < 1e-6
