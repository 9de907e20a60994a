"""Each reset method against a plain loop of its paper: same units at the same steps, weights to 1e-6."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.interventions import nets
from tests.reference.adam_per_element import ElementAdam
from tests.reference.resets import (
    ElementSGD,
    TwinCCBP,
    TwinContinualBackprop,
    TwinLazy,
    TwinMLP,
    TwinNature,
    TwinSNR,
    layer_reset,
    redo,
    regrama,
)

from supple import fresh
from supple.interventions import (
    CCBP,
    ContinualBackprop,
    Handle,
    LayerReset,
    ReDo,
    ReGraMa,
    ResetEvent,
    SelfNormalizedReset,
)

STEPS = 300
SIZES = (6, 16, 12, 3)
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), lambda w: ElementSGD(w, 0.05, 0.9)),
    "adam": (
        lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30),
        lambda w: ElementAdam(w, lr=0.01, eps=1e-30),
    ),
}


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(32, SIZES[0], generator=g, dtype=torch.float64)
    drift = np.sin(step / 40)
    return x, torch.stack([x[:, 0] * drift, x[:, 1].abs() - 1, x[:, 2:].prod(1)], 1)


def _compare(
    method: object, twin_act: Callable[[TwinMLP, Callable], Callable], kind: str, quiet: bool = False
) -> list[ResetEvent]:
    torch.manual_seed(3)
    model, topo = nets.mlp(*SIZES)
    model.double()
    with torch.no_grad():  # some units are dead from the start, so that every method has work
        model.fc1.bias[[2, 5, 11]] = -30.0
        model.fc2.bias[[1, 7]] = -30.0
        if quiet:  # others that fire now and then
            model.fc1.bias -= 2.0 * model.fc1.weight.norm(dim=1)
    make, make_twin = OPTIMIZERS[kind]
    layers = [model.fc1, model.fc2, model.fc3]
    twin = TwinMLP(
        [x.weight.detach().numpy() for x in layers], [x.bias.detach().numpy() for x in layers], make_twin
    )

    def drawn(layer: int, step: int) -> np.ndarray:
        keyed = fresh.generator(0, step, f"fc{layer + 1}/weight")
        return fresh.draw(layers[layer], "weight", keyed).detach().numpy()

    act = twin_act(twin, drawn)
    opt = make(model.parameters())
    handle: Handle = method.attach(model, opt, topology=topo)
    for step in range(1, STEPS + 1):
        x, y = _batch(step)
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        opt.step()
        twin.train(x.numpy(), y.numpy())
        act(step)
        for i, layer in enumerate(layers):
            assert np.abs(layer.weight.detach().numpy() - twin.w[i].value).max() < 1e-6, (step, i)
            assert np.abs(layer.bias.detach().numpy() - twin.b[i].value).max() < 1e-6, (step, i)
    events = [e for e in handle.log if isinstance(e, ResetEvent)]
    assert [(e.step, int(e.layer[2]) - 1, e.units) for e in events] == twin.log
    return events


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("utility", ["contribution", "zero_contribution", "adaptable"])
@pytest.mark.parametrize("correct", [True, False])
def test_continual_backprop(kind: str, utility: str, correct: bool) -> None:
    method = ContinualBackprop(
        replacement_rate=0.005, decay=0.97, maturity=20, utility=utility, correct_age=correct
    )

    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        cbp = TwinContinualBackprop(net, drawn, 0.005, 0.97, 20, utility, correct)
        return lambda step: cbp.act()

    events = _compare(method, twin, kind)
    assert len(events) > 30


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("utility", "plain"), [("nature", TwinNature), ("lazy", TwinLazy)])
def test_continual_backprop_as_listed_and_lazy(kind: str, utility: str, plain: type) -> None:
    method = ContinualBackprop(replacement_rate=0.005, decay=0.97, maturity=20, utility=utility)

    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        act = plain(net, drawn, 0.005, 0.97, 20).act
        return lambda step: act()

    assert len(_compare(method, twin, kind)) > 30


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("threshold", [64, 640])
def test_self_normalized_reset(kind: str, threshold: int) -> None:
    method = SelfNormalizedReset(rejection=0.3, threshold=threshold, update=40, longest=2000)

    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        return TwinSNR(net, drawn, 0.3, threshold, 40, 2000).act

    assert len(_compare(method, twin, kind, quiet=True)) > 5


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("curve", ["capped", "sigmoid"])
def test_ccbp(kind: str, curve: str) -> None:
    method = CCBP(rate=0.3, every=25, decay=0.9, steepness=4.0, curve=curve)

    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        return TwinCCBP(net, drawn, 0.3, 25, 0.9, 4.0, curve == "capped").act

    assert len(_compare(method, twin, kind)) == 2 * STEPS // 25


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layers", [None, ("fc1",)])
def test_layer_and_head_reset(kind: str, layers: tuple[str, ...] | None) -> None:
    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        return lambda step: layer_reset(net, 2 if layers is None else 0, drawn) if step % 60 == 0 else None

    assert len(_compare(LayerReset(layers=layers, every=60, bias="zero"), twin, kind)) == STEPS // 60


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_redo(kind: str, tau: float) -> None:
    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        return lambda step: redo(net, tau, drawn) if step % 25 == 0 else None

    assert _compare(ReDo(tau=tau, every=25), twin, kind)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("score", ["weight", "preactivation"])
@pytest.mark.parametrize(
    ("mode", "outgoing"), [("threshold", "zero"), ("percentage", "keep"), ("hybrid", "zero")]
)
def test_regrama(kind: str, score: str, mode: str, outgoing: str) -> None:
    fraction = None if mode == "threshold" else 0.1
    method = ReGraMa(tau=0.4, every=30, score=score, mode=mode, outgoing=outgoing, max_fraction=fraction)

    def twin(net: TwinMLP, drawn: Callable) -> Callable:
        zero = outgoing == "zero"
        return lambda step: (
            regrama(net, 0.4, drawn, score, mode, fraction or 1.0, zero) if step % 30 == 0 else None
        )

    assert _compare(method, twin, kind)
