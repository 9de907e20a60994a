"""The reset engine: what is written, what is refused, and that it is all or nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interventions import nets
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import prune

from supple import fresh
from supple.errors import InputError, OptimizerRuleError, TopologyError
from supple.interventions import reset_plan
from supple.interventions.engine import plan_reset
from supple.topology.graph import Edge, Layer, Refusal, Topology

L = torch.tensor


def _train(model: nn.Module, opt: torch.optim.Optimizer, shape: tuple[int, ...], steps: int = 5) -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        opt.zero_grad()
        model(torch.randn(16, *shape, generator=g)).square().mean().backward()
        opt.step()


def _everything(model: nn.Module, opt: torch.optim.Optimizer) -> list[Tensor]:
    state = [v for p in opt.state.values() for v in p.values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in [*model.parameters(), *model.buffers(), *state]]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_reset_writes_rows_bias_columns_and_optimizer_state_and_nothing_else() -> None:
    torch.manual_seed(0)
    model, topo = nets.mlp(6, 5, 4, 3)
    opt = torch.optim.Adam(model.parameters())
    _train(model, opt, (6,))
    before = copy.deepcopy(model.state_dict())
    events = plan_reset(model, opt, topo, {"fc1": L([3, 1])}, seed=0, step=7).apply_()
    assert [(e.step, e.layer, e.units, e.outgoing) for e in events] == [(7, "fc1", (1, 3), "zero")]
    rows, rest = [1, 3], [0, 2, 4]
    after = model.state_dict()
    drawn = fresh.draw(model.fc1, "weight", fresh.generator(0, 7, "fc1/weight"))
    assert torch.equal(after["fc1.weight"][rows], drawn[rows])
    assert torch.equal(after["fc1.weight"][rest], before["fc1.weight"][rest])
    assert torch.equal(after["fc1.bias"][rest], before["fc1.bias"][rest])
    assert not torch.equal(after["fc1.bias"][rows], before["fc1.bias"][rows])
    assert not after["fc2.weight"][:, rows].any()
    assert torch.equal(after["fc2.weight"][:, rest], before["fc2.weight"][:, rest])
    for name in ("fc2.bias", "fc3.weight", "fc3.bias"):
        assert torch.equal(after[name], before[name])
    for slot in ("exp_avg", "exp_avg_sq"):
        assert not opt.state[model.fc1.weight][slot][rows].any()
        assert not opt.state[model.fc1.bias][slot][rows].any()
        assert not opt.state[model.fc2.weight][slot][:, rows].any()
        assert opt.state[model.fc1.bias][slot][rest].all()
        assert opt.state[model.fc3.bias][slot].all()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_norm_entries_of_the_unit_return_to_fresh(norm: str) -> None:
    model, topo = nets.mlp(6, 5, 3, norm=norm)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    _train(model, opt, (6,))
    old = {k: v.clone() for k, v in model.norm1.state_dict().items()}
    plan_reset(model, opt, topo, {"fc1": L([2])}, seed=0, step=1).apply_()
    new, rest = model.norm1.state_dict(), [0, 1, 3, 4]
    assert new["weight"][2] == 1
    assert new["bias"][2] == 0
    assert not opt.state[model.norm1.weight]["momentum_buffer"][2]
    if norm == "batch":
        assert new["running_mean"][2] == 0
        assert new["running_var"][2] == 1
    for name, value in old.items():
        if value.dim():
            assert torch.equal(new[name][rest], value[rest])


def test_flatten_block_of_a_channel_is_zeroed() -> None:
    model, topo = nets.convnet()
    opt = torch.optim.Adam(model.parameters())
    _train(model, opt, (3, 8, 8))
    plan_reset(model, opt, topo, {"conv2": L([4]), "conv1": L([0])}, seed=0, step=1).apply_()
    assert not model.fc1.weight[:, 16:20].any()
    assert model.fc1.weight[:, [15, 20]].any()
    assert not model.conv2.weight[[0, 1, 2, 3, 5], 0].any()
    # unit 4 of conv2 is reset after unit 0 of conv1: its own fresh row stands
    drawn = fresh.draw(model.conv2, "weight", fresh.generator(0, 1, "conv2/weight"))
    assert torch.equal(model.conv2.weight[4], drawn[4])


def test_gate_partner_is_reborn_with_its_unit() -> None:
    model, topo = nets.glu()
    opt = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model.state_dict())
    events = plan_reset(model, opt, topo, {"up": L([1])}, seed=0, step=1).apply_()
    assert sorted(e.layer for e in events) == ["gate", "up"]
    for name in ("gate.weight", "up.weight"):
        changed = (model.state_dict()[name] != before[name]).any(1)
        assert changed.tolist() == [False, True, False, False, False]
    assert not model.down.weight[:, 1].any()


@given(st.sets(st.integers(0, 6), min_size=1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_silent_units_reset_without_a_change_of_the_function(units: set[int], conv: bool) -> None:
    torch.manual_seed(1)
    model, topo = nets.mlp(6, 7, 7, 3)
    opt = torch.optim.Adam(model.parameters())
    chosen = sorted(units)
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight[chosen] = 0.0
            layer.bias[chosen] = -1.0
    x = torch.randn(20, 6)
    before = model(x)
    plan_reset(model, opt, topo, {"fc1": L(chosen), "fc2": L(chosen)}, seed=3, step=1).apply_()
    assert (model(x) - before).abs().max() <= 1e-6


def test_permuting_units_commutes_with_reset() -> None:
    torch.manual_seed(2)
    model, topo = nets.mlp(5, 6, 3)
    perm = torch.randperm(6)

    def permuted(m: nn.Module) -> nn.Module:
        twin = copy.deepcopy(m)
        with torch.no_grad():
            twin.fc1.weight.copy_(m.fc1.weight[perm])
            twin.fc1.bias.copy_(m.fc1.bias[perm])
            twin.fc2.weight.copy_(m.fc2.weight[:, perm])
        return twin

    def constant(t: Tensor, generator: torch.Generator) -> None:
        t.fill_(0.5)

    def reset(m: nn.Module, units: Tensor) -> nn.Module:
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        plan_reset(m, opt, topo, {"fc1": units}, seed=0, step=0, initial=constant, bias="zero").apply_()
        return m

    there = perm.argsort()[L([1, 4])]
    a = permuted(reset(copy.deepcopy(model), L([1, 4])))
    b = reset(permuted(model), there)
    assert _same(list(a.parameters()), list(b.parameters()))


def test_bias_transfer_is_exact_for_constant_units() -> None:
    torch.manual_seed(0)
    for model, topo, layer, shape in (
        (*nets.mlp(6, 5, 3), "fc1", (6,)),
        (*nets.convnet(), "conv2", (3, 8, 8)),
    ):
        module = model.get_submodule(layer)
        with torch.no_grad():  # units 1 and 3 always give 0.7
            module.weight[[1, 3]] = 0.0
            module.bias[[1, 3]] = 0.7
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(9, *shape)
        before = model(x)
        consumer = topo.consumers(layer)[0].consumer
        width = model.get_submodule(consumer).in_features
        means = {consumer: torch.full((width,), 0.7)}
        plan = plan_reset(model, opt, topo, {layer: L([1, 3])}, seed=0, step=0, means=means)
        plan.apply_()
        assert (model(x) - before).abs().max() < 1e-5


def test_two_producers_of_one_bias_both_transfer() -> None:
    model = nn.Module()
    model.a, model.b, model.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(4, 1)
    layers = [nets.layer(model, n, output=n == "c") for n in "abc"]
    edges = [
        Edge("a", "c", "c.weight", np.arange(2), np.array([[0], [1]])),
        Edge("b", "c", "c.weight", np.arange(2), np.array([[2], [3]])),
    ]
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    want = model.c.bias + model.c.weight[:, 0] + model.c.weight[:, 3]
    chosen = {"a": L([0]), "b": L([1])}
    topo = nets.topology(layers, edges)
    plan_reset(model, opt, topo, chosen, seed=0, step=0, means={"c": torch.ones(4)}).apply_()
    assert torch.allclose(model.c.bias, want)


def test_grouped_convolution_zeroes_the_cells_of_its_group_only() -> None:
    model = nn.Module()
    model.a, model.b, model.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 1, 1)
    layers = [nets.layer(model, n, output=n == "c") for n in "abc"]
    rows = np.array([[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])
    edges = [
        Edge("a", "b", "b.weight", np.arange(4), np.array([[0], [1], [0], [1]]), rows=rows),
        nets.edge(model, "b", "c"),
    ]
    opt = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    plan_reset(model, opt, nets.topology(layers, edges), {"a": L([3])}, seed=0, step=0).apply_()
    zero = (model.b.weight == 0).flatten(1)
    assert zero.nonzero().tolist() == [[3, 1], [4, 1], [5, 1]]
    assert (opt.state[model.b.weight]["exp_avg"] == 0).flatten(1).equal(zero)


def test_keep_leaves_outgoing_weights_and_their_state() -> None:
    model, topo = nets.mlp(6, 5, 3)
    opt = torch.optim.Adam(model.parameters())
    _train(model, opt, (6,))
    before = [t.clone() for t in (model.fc2.weight, opt.state[model.fc2.weight]["exp_avg"])]
    plan_reset(model, opt, topo, {"fc1": L([0])}, seed=0, step=1, outgoing="keep").apply_()
    assert torch.equal(before[0], model.fc2.weight)
    assert torch.equal(before[1], opt.state[model.fc2.weight]["exp_avg"])


def test_initial_state_dict_gives_the_law() -> None:
    model, topo = nets.mlp(60, 50, 3)
    initial = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    initial["fc1.weight"] = torch.randn(50, 60, generator=torch.Generator().manual_seed(0)) * 3
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    plan_reset(model, opt, topo, {"fc1": torch.arange(50)}, seed=0, step=0, initial=initial).apply_()
    assert model.fc1.weight.std().item() == pytest.approx(3, rel=0.05)
    assert not model.fc1.bias.any()


def test_several_optimizers_each_lose_their_own_slices() -> None:
    model, topo = nets.mlp(6, 5, 3)
    a = torch.optim.Adam(model.fc1.parameters())
    b = torch.optim.SGD(model.fc2.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    a.step()
    b.step()
    plan_reset(model, [a, b], topo, {"fc1": L([2])}, seed=0, step=0).apply_()
    assert not a.state[model.fc1.weight]["exp_avg"][2].any()
    assert not b.state[model.fc2.weight]["momentum_buffer"][:, 2].any()
    with pytest.raises(TopologyError, match="none of the optimizers"):
        plan_reset(model, a, topo, {"fc1": L([2])}, seed=0, step=0)


# -- all or nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.SGD])
def test_a_fault_at_any_write_restores_everything(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    model, topo = nets.mlp(6, 5, 4, 3, norm="batch")
    opt = cls(model.parameters(), lr=0.01)
    _train(model, opt, (6,))
    before = _everything(model, opt)
    real_write, real_clear = reset_plan.write_, fresh.OptimizerRule.clear_
    calls = {"n": 0, "limit": 0}

    def count_then(real):
        def wrapped(*args: object) -> None:
            calls["n"] += 1
            real(*args)
            if calls["n"] == calls["limit"]:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(reset_plan, "write_", count_then(real_write))
    monkeypatch.setattr(fresh.OptimizerRule, "clear_", count_then(real_clear))
    chosen = {"fc1": L([0, 2]), "fc2": L([3])}
    means = {"fc2": torch.ones(5), "fc3": torch.ones(4)}
    plan_reset(model, opt, topo, chosen, seed=0, step=0, means=means).apply_()
    total = calls["n"]
    assert total > 20
    model2, _ = nets.mlp(6, 5, 4, 3, norm="batch")
    for limit in range(1, total + 1):
        opt = cls(model2.parameters(), lr=0.01)
        _train(model2, opt, (6,))
        before = _everything(model2, opt)
        calls.update(n=0, limit=limit)
        plan = plan_reset(model2, opt, topo, chosen, seed=0, step=0, means=means)
        assert _same(before, _everything(model2, opt)), "a plan must not write"
        with pytest.raises(KeyboardInterrupt):
            plan.apply_()
        assert _same(before, _everything(model2, opt)), limit


def test_a_plan_is_applied_once() -> None:
    model, topo = nets.mlp(6, 5, 3)
    plan = plan_reset(model, torch.optim.SGD(model.parameters()), topo, {"fc1": L([0])}, seed=0, step=0)
    assert "fc1: 1 unit(s) [0]" in str(plan)
    plan.apply_()
    with pytest.raises(InputError, match="already"):
        plan.apply_()


@pytest.mark.parametrize(
    "units", [L([5]), L([-1]), L([0.0]), L([[0]]), L([True, False, False, False, False])]
)
def test_bad_units_are_refused(units: Tensor) -> None:
    model, topo = nets.mlp(6, 5, 3)
    with pytest.raises(InputError, match="integer positions"):
        plan_reset(model, torch.optim.SGD(model.parameters()), topo, {"fc1": units}, seed=0, step=0)


def test_no_units_is_an_empty_plan() -> None:
    model, topo = nets.mlp(6, 5, 3)
    none = {"fc1": torch.zeros(0, dtype=torch.int64)}
    plan = plan_reset(model, torch.optim.SGD(model.parameters()), topo, none, seed=0, step=0)
    assert plan.apply_() == []
    assert str(plan) == "no unit is reset"


def _plan(model: nn.Module, topo: Topology, layer: str = "fc1", **kw: object) -> None:
    opt = kw.pop("opt", None) or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plan_reset(model, opt, topo, {layer: L([0])}, seed=0, step=0, **kw)


def test_refusals_name_layer_and_reason() -> None:
    model, topo = nets.mlp(6, 5, 4, 3)
    for layer, reason in (("nope", "no such layer"), ("fc3", "outputs of the network")):
        with pytest.raises(TopologyError, match=reason):
            _plan(model, topo, layer)
    with pytest.raises(InputError, match="outgoing"):
        _plan(model, topo, outgoing="half")
    with pytest.raises(TopologyError, match="unknown initialiser"):
        _plan(model, topo, initial="glorot!")
    with pytest.raises(TopologyError, match=r"initial state has no 'fc1.weight'"):
        _plan(model, topo, initial={})
    with pytest.raises(OptimizerRuleError, match=r"LBFGS: it keeps one history"):
        _plan(model, topo, opt=torch.optim.LBFGS(model.parameters()))
    unresolved = Topology(topo.layers, topo.edges, (Refusal("fc2", "opaque", "topk", "fc1"),), topo.coverage)
    with pytest.raises(TopologyError, match="opaque at fc2"):
        _plan(model, unresolved)


def _tie(layer: Layer) -> Layer:
    return Layer(**{**{f: getattr(layer, f) for f in layer.__dataclass_fields__}, "aliases": ("emb",)})


def test_tied_frozen_and_recomputed_weights_are_refused() -> None:
    model, topo = nets.mlp(6, 5, 4, 3)
    tied = Topology({**topo.layers, "fc2": _tie(topo.layers["fc2"])}, topo.edges, (), topo.coverage)
    with pytest.raises(TopologyError, match="tied"):
        _plan(model, tied, "fc2")
    with pytest.raises(TopologyError, match="tied"):
        _plan(model, tied, "fc1")
    model.fc2.weight.requires_grad_(False)
    with pytest.raises(TopologyError, match="frozen"):
        _plan(model, topo, "fc1")
    model, topo = nets.mlp(6, 5, 4, 3)
    nn.utils.parametrizations.weight_norm(model.fc1)
    with pytest.raises(TopologyError, match="recomputed"):
        _plan(model, topo, "fc1")
    model, topo = nets.mlp(6, 5, 4, 3)
    prune.random_unstructured(model.fc2, "weight", 0.5)
    with pytest.raises(TopologyError, match="recomputed"):
        _plan(model, topo, "fc1")


def test_resets_cause_no_recompilation() -> None:
    torch._dynamo.reset()
    model, topo = nets.mlp(6, 5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for step in range(5):
        compiled(torch.randn(4, 6)).sum().backward()
        opt.step()
        plan_reset(model, opt, topo, {"fc1": L([step])}, seed=0, step=step).apply_()
    assert counter.frame_count == 1
