"""Attention heads and units on a residual stream as units: what belongs to one, what its reset does and leaves."""

from __future__ import annotations

import pytest
import torch
from tests import zoo_models as m
from torch import Tensor, nn
from torch.nn import functional as F

from supple.errors import AttachError, InputError, TopologyError
from supple.interventions import CCBP, ContinualBackprop, ReDo, ReGraMa, ResetEvent, plan_reset
from supple.models import GPT, resnet8
from supple.topology import trace, with_heads

TOKENS = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FIRST = "blocks.0.attention.qkv"


def gpt(**settings: object) -> GPT:
    torch.manual_seed(0)
    return GPT(11, context=8, dim=12, heads=3, depth=2, **settings).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# -- what is a head ---------------------------------------------------------------------------------
CASES = {
    "gpt": (m.TinyGPT, torch.zeros(2, 5, dtype=torch.long), [[0, 1], [2, 3]], [[0, 1], [2, 3]]),
    "llama": (m.Llama, torch.zeros(2, 5, dtype=torch.long), [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3]]),
    "fused": (lambda: m.Attention(False), torch.randn(2, 5, 3), [[0, 1], [2, 3]], [[0, 1], [2, 3]]),
    "unfused": (lambda: m.Attention(True), torch.randn(2, 5, 3), [[0, 1], [2, 3]], [[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("name", CASES)
def test_heads_are_the_rows_that_meet_in_one_score(name: str) -> None:
    build, inputs, query, value = CASES[name]
    (heads,) = trace(build().eval(), inputs).heads
    assert heads.reason == ""
    assert [u.tolist() for u in heads.units] == [query, value, value]


def test_the_columns_of_a_head_are_those_that_read_its_values() -> None:
    topology = with_heads(trace(m.Llama().eval(), torch.zeros(2, 5, dtype=torch.long)))
    (layer,) = [x for x in topology.layers.values() if x.kind == "heads"]
    (edge,) = topology.consumers(layer.name)
    assert edge.consumer == "o"
    assert edge.exclusive
    assert [sorted(row) for row in edge.columns.tolist()] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_mixed_values_have_no_heads_and_say_why() -> None:
    (heads, *_) = trace(gpt(attention="forgetting"), TOKENS).heads
    assert len(heads) == 0
    assert "not one layer each" in heads.reason


# -- resetting a head -------------------------------------------------------------------------------
def test_the_reset_of_a_silent_head_keeps_the_function_and_every_other_head() -> None:
    model = gpt()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 3)
    with torch.no_grad():  # head 1 of the first block says nothing
        model.blocks[0].attention.qkv.weight[24 + 4 : 24 + 8] = 0
        model.blocks[0].attention.qkv.bias[24 + 4 : 24 + 8] = 0
    before, weights = model(TOKENS), copies(model)
    topology = with_heads(trace(model, TOKENS))
    plan = plan_reset(model, optimizer, topology, {f"{FIRST}#heads": torch.tensor([1])}, seed=0, step=3)
    plan.apply_()
    assert (model(TOKENS) - before).abs().max() <= 1e-12
    now = copies(model)
    mine = torch.cat([torch.arange(4, 8) + shift for shift in (0, 12, 24)])
    others = [r for r in range(36) if r not in mine.tolist()]
    qkv = f"{FIRST}.weight"
    assert torch.equal(now[qkv][others], weights[qkv][others])
    assert not torch.isclose(now[qkv][mine], weights[qkv][mine]).any()
    out = "blocks.0.attention.out.weight"
    assert not now[out][:, 4:8].any()
    assert torch.equal(now[out][:, [0, 1, 2, 3, 8, 9, 10, 11]], weights[out][:, [0, 1, 2, 3, 8, 9, 10, 11]])
    untouched = set(weights) - {qkv, f"{FIRST}.bias", out}
    assert all(torch.equal(now[n], weights[n]) for n in untouched)
    moment = optimizer.state[model.blocks[0].attention.qkv.weight]["exp_avg"]
    assert not moment[mine].any()
    assert moment[others].any(1).all()


def test_a_scale_that_all_heads_share_survives_the_reset_of_one() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.norm = nn.Linear(3, 12), nn.RMSNorm(4)
            self.out, self.head = nn.Linear(12, 5), nn.Linear(5, 2)
            self.k, self.v = nn.Linear(3, 12), nn.Linear(3, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.inp, self.k, self.v))
            y = F.scaled_dot_product_attention(self.norm(q), k, v)
            return self.head(self.out(y.transpose(1, 2).flatten(2)).relu())

    model, x = Normed(), torch.randn(2, 5, 3)
    nn.init.constant_(model.norm.weight, 1.5)
    topology = with_heads(trace(model, x))
    (name,) = [n for n, layer in topology.layers.items() if layer.kind == "heads"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan_reset(model, optimizer, topology, {name: torch.tensor([0])}, seed=0, step=0).apply_()
    assert (model.norm.weight == 1.5).all()
    plan_reset(model, optimizer, topology, {name: torch.arange(3)}, seed=0, step=0).apply_()
    assert (model.norm.weight == 1.0).all()  # no head is left that needs the old one


@pytest.mark.parametrize("method", [ReDo(every=4, units=("heads",)), ReGraMa(every=4, units=("heads",))])
def test_a_silent_head_is_found(method: ReDo | ReGraMa) -> None:
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[32:] = 0  # values of head 2
        model.blocks[0].attention.qkv.bias[32:] = 0
        model.blocks[0].attention.out.weight[:, 8:] = 0
    handle = method.attach(model, optimizer, inputs=TOKENS)
    train(model, optimizer, 4)
    assert [(e.layer, e.units) for e in handle.log if isinstance(e, ResetEvent)] == [(f"{FIRST}#heads", (2,))]
    assert handle.skipped[f"{FIRST}#v"] == f"its units are re-born with their heads, as {FIRST}#heads"


def test_continual_backprop_ranks_heads_as_its_formula_says() -> None:
    """u <- .9 u + .1 sum over the head's channels of E|y_c| sum|W_out[:, c]|, the youngest spared."""
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = ContinualBackprop(
        replacement_rate=0.1, maturity=5, decay=0.9, correct_age=False, units=("heads",)
    )
    handle = method.attach(model, optimizer, inputs=TOKENS)
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(model.blocks):
        block.attention.out.register_forward_pre_hook(
            lambda _, args, i=i: seen.update({i: args[0].detach().abs().mean((0, 1))})
        )
    utility, born, carry = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3), [0.0, 0.0]
    expected = []
    for step in range(1, 101):
        train(model, optimizer, 0)
        optimizer.zero_grad()
        F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        count = len(handle.log)
        outs = [block.attention.out.weight.detach() for block in model.blocks]
        grads = [w.grad.clone() for w in (b.attention.out.weight for b in model.blocks)]
        after = [(w - 0.05 * g).abs().sum(0) for w, g in zip(outs, grads, strict=True)]
        optimizer.step()
        for i in range(2):
            utility[i] = 0.9 * utility[i] + 0.1 * (seen[i] * after[i]).view(3, 4).sum(1)
            old = step - born[i] > 5
            carry[i] += 0.1 * int(old.sum())
            if carry[i] > 1 and old.any():
                carry[i] -= 1
                unit = int(utility[i].masked_fill(~old, torch.inf).argmin())
                utility[i, unit], born[i, unit] = 0.0, step
                expected.append((step, f"blocks.{i}.attention.qkv#heads", (unit,)))
        assert [(e.step, e.layer, e.units) for e in handle.log[count:]] == expected[count:]
    assert len(expected) >= 20
    for i in range(2):
        found = handle.utilities[f"blocks.{i}.attention.qkv#heads"]
        torch.testing.assert_close(found, utility[i], rtol=1e-10, atol=1e-12)


def test_ccbp_pulls_rows_and_columns_of_each_head_by_its_rate() -> None:
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    handle = CCBP(rate=0.5, every=2, steepness=0.0, units=("heads",)).attach(model, optimizer, inputs=TOKENS)
    before = copies(model)
    train(model, optimizer, 2)
    out = "blocks.1.attention.out.weight"
    torch.testing.assert_close(copies(model)[out], 0.5 * before[out])
    assert {e.units for e in handle.log} == {(0, 1, 2)}


# -- units of a residual stream ---------------------------------------------------------------------
def test_the_reset_of_a_silent_channel_of_the_stream_keeps_the_function() -> None:
    torch.manual_seed(0)
    model = resnet8(10, channels=3).double()
    with torch.no_grad():  # channel 5 of the first stage: nothing writes to it
        for norm in (
            model.stem_norm if hasattr(model, "stem_norm") else model.norm,
            model.stages[0][0].norm2,
        ):
            norm.weight[5] = 0
            norm.bias[5] = 0
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before, topology = model(IMAGES), trace(model, IMAGES)
    name = "stages.0.0.conv2"
    chosen = {name: torch.tensor([5]), "stem": torch.tensor([5])}
    with pytest.raises(TopologyError, match="residual stream"):
        plan_reset(model, optimizer, topology, chosen, seed=0, step=0)
    plan_reset(model, optimizer, topology, chosen, seed=0, step=0, streams=True).apply_()
    assert (model(IMAGES) - before).abs().max() <= 1e-6
    readers = {e.consumer for e in topology.consumers(name)}
    assert readers == {"stages.1.0.conv1", "stages.1.0.shortcut.0"}
    for reader in readers:
        assert not model.get_submodule(reader).weight[:, 5].any()


def test_units_of_the_stream_are_reset_only_when_they_are_asked_for() -> None:
    torch.manual_seed(0)
    logs = {}
    for units in (("inner",), ("stream",), ("inner", "stream")):
        model = resnet8(10, channels=3).double()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        handle = ReDo(every=1, tau=1.0, units=units).attach(model, optimizer, inputs=IMAGES)
        model(IMAGES).square().mean().backward()
        optimizer.step()
        logs[units] = {e.layer for e in handle.log if isinstance(e, ResetEvent)}
    streams = {"stem", "stages.0.0.conv2", "stages.1.0.conv2", "stages.1.0.shortcut.0"}
    assert logs["inner",]
    assert not logs["inner",] & streams
    assert logs["stream",]
    assert logs["stream",] <= {*streams, "stages.2.0.conv2", "stages.2.0.shortcut.0"}
    assert logs["inner", "stream"] == logs["inner",] | logs["stream",]


# -- bad input --------------------------------------------------------------------------------------
@pytest.mark.parametrize("units", [(), ("head",), "heads", ("inner", "outer")])
def test_unknown_kinds_of_units_are_refused(units: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"units of ReDo|choose from inner, stream, heads"):
        ReDo(units=units)


def test_heads_of_a_network_without_attention_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(AttachError, match="not asked for"):
        ReDo(units=("heads",)).attach(
            model, torch.optim.SGD(model.parameters(), 0.1), inputs=torch.randn(2, 3)
        )


class Odd(nn.Module):
    """Attention with a learned factor for each head, whose keys another layer reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.extra = (nn.Linear(12, 12) for _ in range(5))
        self.factor = nn.Parameter(torch.full((1, 3, 1, 1), 2.0))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.k(x)
        q, k, v = (y.unflatten(-1, (3, 4)).transpose(1, 2) for y in (self.q(x), keys, self.v(x)))
        y = (self.factor * F.scaled_dot_product_attention(q, k, v)).transpose(1, 2).flatten(2)
        return self.head((self.o(y) + self.extra(keys)).relu())


def test_all_that_reads_the_channels_of_a_head_is_its_consumer() -> None:
    torch.manual_seed(0)
    model, x = Odd().double(), torch.randn(2, 5, 12, dtype=torch.float64)
    topology = with_heads(trace(model, x))
    (name,) = [n for n, layer in topology.layers.items() if layer.kind == "heads"]
    with torch.no_grad():  # head 1 says nothing to anybody
        model.o.weight[:, 4:8] = 0
        model.extra.weight[:, 4:8] = 0
    before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = plan_reset(model, optimizer, topology, {name: torch.tensor([1])}, seed=0, step=1)
    plan.apply_()
    assert torch.equal(model(x), before)
    assert model.factor.flatten().tolist() == [2.0, 1.0, 2.0]
    plan_reset(model, optimizer, topology, {name: torch.tensor([2])}, seed=0, step=1).apply_()
    assert not model.extra.weight[:, 8:].any()
    assert not model.o.weight[:, 8:].any()
