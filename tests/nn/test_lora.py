"""Low-rank adapters: the base model at first, the product, merging over rounds, disk, peft, refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import supple
from supple.errors import AttachError, InputError, StoreError
from supple.nn import LoRAAdapter, lora_


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 5))


def fill(adapter: LoRAAdapter) -> None:
    with torch.no_grad():
        for b in adapter.b:
            b.normal_()


def test_it_starts_as_the_base_model_and_only_the_factors_train() -> None:
    model, x = net(), torch.randn(7, 12)
    want, keys, state = model(x), list(model.state_dict()), torch.get_rng_state()
    adapter = lora_(model, rank=3)
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(p.numel() for p in adapter.parameters()) == 3 * (12 + 20) + 3 * (20 + 5)
    assert all(a.abs().max() <= n**-0.5 for a, n in zip(adapter.a, (12, 20), strict=True))
    assert list(model.state_dict()) == keys
    model(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(b.grad is not None and b.grad.abs().sum() > 0 for b in adapter.b)
    adapter.detach()
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(lora_(net(), rank=3, seed=4).a[0], lora_(net(), rank=3, seed=4).a[0])
    assert not torch.equal(lora_(net(), rank=3, seed=4).a[0], adapter.a[0])


def test_output_and_merge_equal_the_sum_in_float64() -> None:
    model, x = net().double(), torch.randn(7, 12, dtype=torch.float64)
    adapter = lora_(model, rank=2, alpha=6.0)
    fill(adapter)
    weights = [
        model[i].weight + 6.0 / 2 * adapter.b[j].double() @ adapter.a[j].double()
        for j, i in enumerate((0, 2))
    ]
    hidden = nn.functional.gelu(x @ weights[0].T + model[0].bias)
    want = hidden @ weights[1].T + model[2].bias
    torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapter.merge()
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(AttachError, match="merged already"):
        adapter.merge()
    adapter.unmerge()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    with pytest.raises(AttachError, match="not merged"):
        adapter.unmerge()


def test_products_of_rounds_add_up() -> None:
    model = net()
    base, total = model[0].weight.detach().clone(), torch.zeros(20, 12)
    for turn in range(3):
        adapter = lora_(model, targets=["0"], rank=2, seed=turn)
        fill(adapter)
        total += adapter.delta("0").detach()
        adapter.merge()
        adapter.detach()
    torch.testing.assert_close(model[0].weight - base, total, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(model[0].weight.detach() - base, rtol=1e-4) == 6
    assert not model[0]._forward_hooks


def test_it_finds_a_planted_low_rank_change() -> None:
    model, x = net(), torch.randn(64, 12)
    with torch.no_grad():
        target = x @ (torch.randn(20, 2) @ torch.randn(2, 12)).T * 0.3 + model[0](x)
    adapter = lora_(model[0], targets=lambda module, name: True, rank=2)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-2)
    losses = []
    for _ in range(200):
        loss = nn.functional.mse_loss(model[0](x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]


def test_save_load_and_refusals(tmp_path: Path) -> None:
    adapter = lora_(net(), rank=2)
    fill(adapter)
    adapter.save(tmp_path / "a")
    again = lora_(net(), rank=2, seed=9)
    again.load(tmp_path / "a")
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), adapter.parameters(), strict=True))
    for other, said in (
        (lora_(net(seed=1), rank=2), "another base weight"),
        (lora_(net(), rank=3), "another rank"),
        (lora_(net(), rank=2, alpha=1.0), "another alpha"),
        (lora_(net(), rank=2, targets=["0"]), "other matrices"),
    ):
        start = [p.clone() for p in other.parameters()]
        with pytest.raises(StoreError, match=said):
            other.load(tmp_path / "a")
        assert all(torch.equal(p, q) for p, q in zip(start, other.parameters(), strict=True))
    with pytest.raises(StoreError, match="cannot read"):
        adapter.load(tmp_path / "nowhere")


def test_peft_and_scan_read_what_is_saved(tmp_path: Path) -> None:
    model, x = net(), torch.randn(7, 12)
    bare = copy.deepcopy(model)
    adapter = lora_(model, rank=2)
    fill(adapter)
    adapter.save(tmp_path / "a")
    rows = supple.scan(tmp_path / "a").records
    seen = {r.layer: r for r in rows if r.instrument == "effective_rank" and not r.variant}
    assert len(seen) == 2
    values = torch.linalg.svdvals(adapter.delta("0").detach().double())[:2]
    p = values / values.sum()
    got = next(r.value for name, r in seen.items() if name.endswith(".0"))
    assert got == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)
    peft = pytest.importorskip("peft")
    wrapped = peft.PeftModel.from_pretrained(bare, str(tmp_path / "a"))
    torch.testing.assert_close(wrapped(x), model(x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_adapted_is_refused_before_any_change() -> None:
    model = net()
    for kwargs, said in (
        ({"rank": 6}, "short side"),
        ({"rank": 0}, "short side"),
        ({"targets": ["nonsense"]}, "no layer matches"),
        ({"targets": ["1"]}, r"only a plain nn\.Linear"),
    ):
        with pytest.raises(InputError, match=said):
            lora_(model, **kwargs)
        assert all(p.requires_grad for p in model.parameters())
        assert not any(m._forward_hooks for m in model.modules())
