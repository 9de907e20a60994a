"""GPT-2's Conv1D, with its weight (inputs, outputs), is the same layer as its twin of nn.Linear, for every room."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import supple
from supple import fresh
from supple.errors import StoreError
from supple.interventions.registry import available
from supple.nn import lora_, svf_
from supple.observe.probe import observe
from supple.observe.views import layers_by_type
from supple.topology import trace
from supple.topology.taps import Taps, tap

WIDTH = 8


def gpt() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


def twin(model: nn.Module) -> nn.Module:
    """The same network with nn.Linear in place of Conv1D."""
    other = copy.deepcopy(model)
    for parent in list(other.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                plain = nn.Linear(*child.weight.shape, dtype=torch.float64)
                plain.weight = nn.Parameter(child.weight.detach().T.contiguous())
                plain.bias = nn.Parameter(child.bias.detach().clone())
                setattr(parent, name, plain)
    return other


def tokens(length: int = WIDTH, seed: int = 1) -> Tensor:
    return torch.randint(20, (6, length), generator=torch.Generator().manual_seed(seed))


def loss(out: Any, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def same(a: nn.Module, b: nn.Module, only: str = "") -> None:
    """Equal parameters, after transposing; biases of keys have no gradient but rounding, and are left out."""
    others = dict(b.named_parameters())
    for name, value in a.named_parameters():
        other = others[name]
        if isinstance(a.get_submodule(name.rpartition(".")[0]), Conv1D) and value.dim() == 2:
            other = other.T
        if name.endswith(only):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [6, WIDTH], ids=["", "as long as wide"])
def test_the_records_are_those_of_the_twin(length: int) -> None:
    x, model = tokens(length), gpt()
    found, expected = (observe(m, (x, x), loss, instruments="standard").records for m in (model, twin(model)))
    rows = {(r.instrument, r.layer, r.variant, r.part): r for r in expected}
    assert len(found) == len(rows)
    for row in found:
        other = rows[row.instrument, row.layer, row.variant, row.part]
        assert (row.status, row.note) == (other.status, other.note)
        assert row.value == pytest.approx(other.value, rel=1e-6, abs=1e-9, nan_ok=True), row
    fc = {r.instrument for r in found.select(layer="transformer.h.0.mlp.c_fc", status="measured")}
    assert {"dormant", "dead", "grama", "sigma_ratio"} <= fc


def test_an_untraced_network_is_read_by_the_types_of_its_layers() -> None:
    x, model = tokens(), gpt()
    records = []
    for net in (model, twin(model)):
        topology = layers_by_type(net, Taps(), None, "said so")
        records.append(
            observe(net, (x, x), loss, instruments=["dormant", "grama"], topology=topology).records
        )
    assert topology.layers["transformer.h.0.mlp.c_fc"].units == 4 * WIDTH
    a, b = records
    assert [(r.layer, r.variant, r.note) for r in a] == [(r.layer, r.variant, r.note) for r in b]
    assert [r.value for r in a] == pytest.approx([r.value for r in b], abs=1e-9, nan_ok=True)


def test_taps_find_the_units_of_a_matrix_stored_by_inputs_in_any_class() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 7))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight)

    model = Stored()
    with tap(model) as taps:
        model(torch.randn(3, 5, 5))  # as many positions as the weight has rows
    (value,) = taps.pre[""]
    assert (value.unit_dim, taps.units[""]) == (2, 7)


SETTINGS: dict[str, dict[str, Any]] = {
    "ContinualBackprop": {"replacement_rate": 0.5, "maturity": 1, "bias_transfer": True},
    "CCBP": {"replacement_rate": 0.5, "maturity": 1},
    "LayerReset": {"layers": ("transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn#v"), "bias": "zero"},
    "ShrinkAndPerturb": {"filter_fn": lambda module, name: name.endswith("weight")},
    "SelfNormalizedReset": {"threshold": 2},
    "NormalizeAndProject": {"norms": "ignore"},
    "SpectralRegularization": {"coef": 0.1},
    "Parseval": {"coef": 0.1},
    "ReDo": {"tau": 0.9},
    "ReGraMa": {"tau": 0.9},
}
#: draws noise in the order in which a parameter is stored, so that its twin has other noise; a part of others
APART = {"UPGD", "Combination"}


def trained(model: nn.Module, name: str) -> Any:
    """Five steps under the intervention, and its handle."""
    cls = available()[name]
    known = {f.name for f in dataclasses.fields(cls)}
    wanted = {"every": 2, "initial": "kaiming_uniform", **SETTINGS.get(name, {})}
    rule = cls(**{k: v for k, v in wanted.items() if k in known})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = rule.attach(model.train(), optimizer, inputs=tokens())
    for step in range(5):
        optimizer.zero_grad()
        x = tokens(seed=step)
        loss(model(x), x).backward()
        optimizer.step()
    return handle


@pytest.mark.parametrize("name", sorted(set(available()) - APART))
def test_interventions_do_the_same_to_the_twin(name: str) -> None:
    a = gpt()
    b = twin(a)
    before = copy.deepcopy(a)
    first, second = trained(a, name), trained(b, name)
    # a reset draws a fresh bias from the law of the class, which is zero for Conv1D and uniform for Linear
    same(a, b)
    assert len(getattr(first, "log", [])) == len(getattr(second, "log", []))
    assert not torch.equal(before.transformer.h[0].mlp.c_fc.weight, a.transformer.h[0].mlp.c_fc.weight)


def test_a_unit_of_conv1d_is_reset_and_nothing_else() -> None:
    model = gpt()
    optimizer = torch.optim.Adam(model.parameters())
    x = tokens()
    before = copy.deepcopy(model)
    plan = supple.interventions.plan_reset(
        model, optimizer, trace(model, x), {"transformer.h.0.mlp.c_fc": torch.tensor([3])}, seed=0, step=0
    )
    plan.apply_()
    changed = {
        n for n, p in model.named_parameters() if not torch.equal(p, dict(before.named_parameters())[n])
    }
    assert changed == {"transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"}
    moved = (model.transformer.h[0].mlp.c_fc.weight != before.transformer.h[0].mlp.c_fc.weight).any(0)
    assert moved.nonzero().flatten().tolist() == [3]
    assert not model.transformer.h[0].mlp.c_proj.weight[3].any()
    assert model.transformer.h[0].mlp.c_proj.weight[4].any()


def test_fresh_draws_know_the_layout() -> None:
    layer, g = Conv1D(600, 6), torch.Generator()  # outputs, inputs
    w = fresh.draw(layer, "weight", g.manual_seed(0))
    assert w.shape == (6, 600)
    assert float(w.std()) == pytest.approx(0.02, rel=0.05)
    assert not fresh.draw(layer, "bias", g).any()
    he = fresh.draw(layer, "weight", g.manual_seed(0), "kaiming_uniform")
    assert 0.98 < float(he.abs().max()) <= 1.0  # sqrt(6 / fan_in), fan_in = 6


@pytest.mark.parametrize("adapt", [svf_, lora_], ids=["svf", "lora"])
def test_adapters_take_it(adapt: Any, tmp_path: Path) -> None:
    a = gpt().float()
    b = twin(a.double()).float()
    a = a.float()
    base_model = copy.deepcopy(a)
    x = tokens()
    base = a(x).logits
    more = {"rank": 2} if adapt is lora_ else {}
    first, second = adapt(a, ["c_fc", "c_attn"], **more), adapt(b, ["c_fc", "c_attn"], **more)
    assert torch.equal(a(x).logits, base)
    with torch.no_grad():
        for p, q in zip(first.parameters(), second.parameters(), strict=True):
            p.add_(torch.linspace(0, 0.5, p.numel()).view_as(p))
            q.copy_(p)
    out = a(x).logits
    torch.testing.assert_close(out, b(x).logits, rtol=1e-4, atol=1e-5)
    assert float((out - base).detach().abs().max()) > 1e-3
    first.save(tmp_path / "adapter")
    adapt(copy.deepcopy(base_model), ["c_fc", "c_attn"], **more).load(tmp_path / "adapter")
    with pytest.raises(StoreError, match="another base weight"):
        second.load(
            tmp_path / "adapter"
        )  # the checksum is that of the stored layout, as a file of the base has it
    first.merge()
    torch.testing.assert_close(a(x).logits, out, rtol=1e-4, atol=1e-5)
    first.unmerge()
    torch.testing.assert_close(a(x).logits, out, rtol=1e-4, atol=1e-5)
    if adapt is lora_:
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"]
        base_model.save_pretrained(tmp_path / "base")
        report = supple.scan(tmp_path / "adapter", base=tmp_path / "base")
        assert not report.failures
        assert {r.part for r in report.records.select(layer="transformer.h.0.attn.c_attn")} == {"q", "k", "v"}
    assert set(adapt(gpt(), **more).names) > {"transformer.h.0.mlp.c_fc"}  # by default, all of them
