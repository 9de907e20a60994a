"""Every reset method under gradient accumulation, a gradient scaler and torch.compile."""

from __future__ import annotations

import pytest
import torch
from tests.interventions import nets
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from supple.interventions import (
    CCBP,
    ContinualBackprop,
    LayerReset,
    ReDo,
    ReGraMa,
    ResetEvent,
    SelfNormalizedReset,
)

METHODS = {
    "cbp": ContinualBackprop(replacement_rate=0.1, maturity=2),
    "cbp-lazy": ContinualBackprop(replacement_rate=0.1, maturity=2, utility="lazy"),
    "redo": ReDo(tau=0.5, every=3),
    "regrama": ReGraMa(tau=0.5, every=3),
    "regrama-preactivation": ReGraMa(tau=0.5, every=3, score="preactivation"),
    "snr": SelfNormalizedReset(threshold=36, update=10),
    "ccbp": CCBP(rate=0.5, every=3),
    "layer": LayerReset(every=5),
}
every_method = pytest.mark.parametrize("name", METHODS)


def _data(i: int) -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def _attached(name: str, kind: type = torch.optim.Adam, **settings: object):
    torch.manual_seed(0)
    model, topo = nets.mlp(6, 10, 8, 2)
    model.double()
    with torch.no_grad():
        model.fc1.bias[:3] = -30.0
    opt = kind(model.parameters(), lr=1e-2, **settings)
    return model, opt, METHODS[name].attach(model, opt, topology=topo)


def _end(model: torch.nn.Module, handle: object) -> tuple[Tensor, list[ResetEvent]]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]), handle.log


@every_method
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop])
def test_a_batch_in_parts_is_one_step(name: str, kind: type) -> None:
    ends = []
    for parts in (1, 3):
        model, opt, handle = _attached(name, kind)
        for i in range(20):
            opt.zero_grad()
            for part in _data(i).chunk(parts):
                (model(part).square().sum() / 24).backward()
            opt.step()
        assert handle.step == 20
        ends.append(_end(model, handle))
    assert (ends[0][0] - ends[1][0]).abs().max() < 1e-9
    assert ends[0][1] == ends[1][1]
    assert ends[0][1]


@every_method
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(name: str, fused: bool) -> None:
    ends = []
    for skip in (False, True):
        model, opt, handle = _attached(name, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
        for i in range(14):
            # the skipped batch is that of the next step, so that what is measured stays the same on average
            for lost in [True, False] if skip and i in (4, 5, 9) else [False]:
                opt.zero_grad()
                loss = model(_data(i)).square().mean() * (float("inf") if lost else 1.0)
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
        assert handle.step == 14
        ends.append(_end(model, handle))
    if name != "snr":  # its gaps count the samples that were seen, those of lost steps too
        assert (ends[0][0] - ends[1][0]).abs().max() < 1e-9
        assert ends[0][1] == ends[1][1]


@every_method
def test_no_recompilation_by_measuring_or_resetting(name: str) -> None:
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        model, opt, handle = _attached(name)
        counter = CompileCounter()
        run = torch.compile(model, backend=counter) if compiled else model
        for i in range(20):
            opt.zero_grad()
            run(_data(i)).square().mean().backward()
            opt.step()
            if i == 11:
                frames = counter.frame_count
        assert not compiled or (frames > 0 and counter.frame_count == frames)
        ends.append(_end(model, handle))
    assert (ends[0][0] - ends[1][0]).abs().max() < 1e-9
    assert ends[0][1] == ends[1][1]
    assert ends[0][1]
