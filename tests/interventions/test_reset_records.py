"""What a reset leaves behind: which units, what it did to the function, whether they last; and small parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interventions import nets
from torch import Tensor, nn

from supple.errors import AttachError, InputError
from supple.interventions import (
    CCBP,
    ContinualBackprop,
    LayerReset,
    ReDo,
    ReGraMa,
    ResetEvent,
    SelfNormalizedReset,
)
from supple.interventions.engine import ResetEngine
from supple.interventions.gap_sketch import GapSketch
from supple.topology.graph import Edge

SGD = torch.optim.SGD


def _data(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def _step(model: nn.Module, opt: torch.optim.Optimizer, x: Tensor) -> None:
    opt.zero_grad()
    model(x).square().mean().backward()
    opt.step()


METHODS = [
    ContinualBackprop(replacement_rate=0.2, maturity=1),
    ReDo(tau=0.9, every=3),
    ReGraMa(tau=0.9, every=3),
    CCBP(rate=0.5, every=3),
    LayerReset(every=3),
    SelfNormalizedReset(threshold=8),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_reset_records_units_change_and_survival(method: object) -> None:
    torch.manual_seed(0)
    model, topo = nets.mlp(4, 10, 8, 2)
    if isinstance(method, SelfNormalizedReset):
        with torch.no_grad():
            model.fc1.bias[:3] = -30.0
    opt = SGD(model.parameters(), lr=0.0)
    handle = method.attach(model, opt, topology=topo)
    handle.probe(_data(20, 4, seed=9))
    expected: dict[int, float] = {}
    for i in range(9):
        random, before, count = torch.get_rng_state(), model(_data(20, 4, seed=9)), len(handle.log)
        _step(model, opt, _data(8, 4, seed=i))
        assert torch.equal(random, torch.get_rng_state())
        assert model.training
        if len(handle.log) > count:
            after = model(_data(20, 4, seed=9))
            expected[i + 1] = ((after - before).norm() / before.norm()).item()
    events = [e for e in handle.log if isinstance(e, ResetEvent)]
    assert events
    for event in events:
        assert event.units
        assert event.change == pytest.approx(expected[event.step], rel=1e-4, abs=1e-6)
        assert (event.removed is None) == (event.outgoing != "zero")
        assert event.removed is None or 0 <= event.removed <= 1
    survival = handle.survival()
    assert [e for e, _ in survival] == events
    for k, (event, share) in enumerate(survival):
        again = {u for e in events[k + 1 :] if e.layer == event.layer for u in e.units}
        assert share == pytest.approx(1 - len(again & set(event.units)) / len(event.units))


def test_removed_is_the_share_of_the_columns_in_their_consumer() -> None:
    torch.manual_seed(0)
    model, topo = nets.convnet()
    opt = SGD(model.parameters(), lr=0.1)
    want = (model.fc1.weight[:, 16:20].norm() / model.fc1.weight.norm()).item()
    plan = ResetEngine(model, opt, topo).plan({"conv2": torch.tensor([4])}, seed=0, step=1)
    assert plan.events[0].removed == pytest.approx(want, rel=1e-5)


# -- continual backprop ----------------------------------------------------------------------------


def test_the_listing_has_no_other_settings() -> None:
    for extra in ({"correct_age": True}, {"bias_transfer": True}, {"cap": 2}, {"accumulate": False}):
        with pytest.raises(InputError, match="published listing"):
            ContinualBackprop(utility="nature", **extra)
    assert not ContinualBackprop(utility="nature").corrects
    assert ContinualBackprop().corrects


def test_lazy_reads_outgoing_weights_only_when_a_replacement_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    model, topo = nets.mlp(4, 20, 2)
    opt = SGD(model.parameters(), lr=0.1)
    method = ContinualBackprop(replacement_rate=0.01, maturity=0, utility="lazy")
    handle = method.attach(model, opt, topology=topo)
    reads = []
    real = type(handle)._outgoing_sum
    monkeypatch.setattr(type(handle), "_outgoing_sum", lambda *a: reads.append(handle.step) or real(*a))
    for i in range(30):
        _step(model, opt, _data(8, 4, seed=i))
    assert len(handle.log) == 5
    assert [s + 1 for s in reads] == [e.step for e in handle.log]


# -- self-normalized resets ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_sketch_is_at_most_two_percent_below_the_exact_quantile(gaps: list[int], share: float) -> None:
    sketch = GapSketch(2, 4000)
    for gap in gaps:
        sketch.record(np.array([True, False]), np.array([gap, gap]))
    kept = sorted(g for g in gaps if 1 <= g <= 4000)
    got = sketch.quantile(share)
    assert got[1] == 1.0
    if not kept:
        assert got[0] == 1.0
        return
    exact = next(g for k, g in enumerate(kept, 1) if k >= share * len(kept))
    assert exact / 1.021 <= got[0] <= exact
    assert got[0] == exact or exact > 50


def test_thresholds_are_renewed_at_every_nth_boundary() -> None:
    model, topo = nets.mlp(4, 6, 2)
    opt = SGD(model.parameters(), lr=0.0)
    handle = SelfNormalizedReset(threshold=100, tasks=2).attach(model, opt, topology=topo)
    seen = []
    for i in range(8):
        if i in (2, 4, 6):
            handle.task()
        _step(model, opt, _data(32, 4, seed=i))
        seen.append(handle.thresholds["fc1"].max().item())
    assert seen[:4] == [100.0] * 4
    assert all(s != 100.0 for s in seen[4:])
    assert seen[4] == seen[7]


@pytest.mark.parametrize(("longest", "want"), [(100, 60), (50, 50)])
def test_a_threshold_grows_where_its_quantile_is_not_below_it(longest: int, want: int) -> None:
    model, topo = nets.mlp(4, 6, 2)
    with torch.no_grad():
        model.fc1.bias[2] = -50.0  # never fires: its gaps are its thresholds
    opt = SGD(model.parameters(), lr=0.0)
    method = SelfNormalizedReset(threshold=20, update=6, expansion=3.0, longest=longest)
    handle = method.attach(model, opt, topology=topo)
    seen = []
    for i in range(6):
        with torch.no_grad():
            model.fc1.bias[2] = -50.0
        _step(model, opt, _data(10, 4, seed=i))
        seen.append(handle.thresholds["fc1"][2].item())
    assert seen[0] == 20
    assert seen[5] == want  # its quantile is 20


def test_layers_without_relu_are_left_out_with_the_reason() -> None:
    model, _ = nets.mlp(4, 6, 2)
    layers = [nets.layer(model, "fc1", activation="tanh"), nets.layer(model, "fc2", output=True)]
    topo = nets.topology(layers, [nets.edge(model, "fc1", "fc2")])
    with pytest.raises(AttachError, match="firing is defined for ReLU, not for tanh"):
        SelfNormalizedReset().attach(model, SGD(model.parameters()), topology=topo)


def test_a_channel_fires_if_it_is_positive_anywhere() -> None:
    torch.manual_seed(0)
    model, topo = nets.convnet()
    with torch.no_grad():
        model.conv1.bias[2] = -50.0
    opt = SGD(model.parameters(), lr=0.0)
    handle = SelfNormalizedReset().attach(model, opt, topology=topo)
    for part in (_data(3, 3, 8, 8), _data(2, 3, 8, 8, seed=1)):
        model(part).square().mean().backward()
    opt.step()
    assert handle.gaps["conv1"].tolist() == [0, 0, 5, 0]


# -- layers and pulls ------------------------------------------------------------------------------


def test_a_zero_head_at_each_boundary_with_fresh_state() -> None:
    model, topo = nets.mlp(4, 6, 2)
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    handle = LayerReset(initial="zeros", bias="zero").attach(model, opt, topology=topo)
    for i in range(4):
        if i == 3:
            handle.task()
        _step(model, opt, _data(8, 4, seed=i))
    assert not model.fc2.weight.any()
    assert not model.fc2.bias.any()
    assert not opt.state[model.fc2.weight]["exp_avg"].any()
    assert opt.state[model.fc1.weight]["exp_avg"].any()
    with pytest.raises(AttachError, match="no layer 'fc9'"):
        LayerReset(layers=("fc9",)).attach(model, opt, topology=topo)


def test_a_pull_reaches_the_columns_of_channels_and_the_cells_of_groups() -> None:
    torch.manual_seed(0)
    model, topo = nets.convnet()
    opt = SGD(model.parameters(), lr=0.1)
    rate = torch.tensor([0.0, 0.5, 0.0, 1.0, 0.0, 0.25])
    old = model.fc1.weight.detach().clone()
    ResetEngine(model, opt, topo).plan_blend({"conv2": rate}, seed=0, step=1).apply_()
    assert torch.allclose(model.fc1.weight, old * (1 - rate).repeat_interleave(4))

    model = nn.Module()
    model.a, model.b, model.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 1, 1)
    layers = [nets.layer(model, n, output=n == "c") for n in "abc"]
    rows = np.array([[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])
    edges = [
        Edge("a", "b", "b.weight", np.arange(4), np.array([[0], [1], [0], [1]]), rows=rows),
        nets.edge(model, "b", "c"),
    ]
    old = model.b.weight.detach().clone()
    engine = ResetEngine(model, SGD(model.parameters(), lr=0.1), nets.topology(layers, edges))
    engine.plan_blend({"a": torch.tensor([0.0, 0.0, 0.0, 0.5])}, seed=0, step=1).apply_()
    old[3:, 1] *= 0.5
    assert torch.allclose(model.b.weight, old)
