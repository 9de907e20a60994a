"""Singular-value adapters: identity at z = 1, the formula, merging, training, disk, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from supple.errors import AttachError, InputError, StoreError
from supple.nn import lora_, svf_


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 5))


def test_ones_are_the_base_model_and_the_count_is_the_sum_of_short_sides() -> None:
    model, x = net(), torch.randn(7, 12)
    want, keys = model(x), list(model.state_dict())
    adapter = svf_(model)
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    assert sum(p.numel() for p in adapter.parameters()) == 12 + 5
    assert list(model.state_dict()) == keys
    assert not any(p.requires_grad for p in model.parameters())
    adapter.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_output_and_merge_equal_the_scaled_factorisation() -> None:
    model, x = net().double(), torch.randn(7, 12, dtype=torch.float64)
    adapter = svf_(model)
    with torch.no_grad():
        for z in adapter.z:
            z.uniform_(0.5, 1.5)
    weights = {}
    for name, z in zip(adapter.names, adapter.z, strict=True):
        u, s, vt = torch.linalg.svd(model.get_submodule(name).weight, full_matrices=False)
        weights[name] = u @ torch.diag(s * z.double()) @ vt
    hidden = nn.functional.gelu(x @ weights["0"].T + model[0].bias)
    want = hidden @ weights["2"].T + model[2].bias
    got = model(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapter.merge()
    torch.testing.assert_close(model(x), got, rtol=1e-5, atol=1e-6)
    adapter.unmerge()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_it_trains_only_z_and_finds_a_planted_scaling() -> None:
    model, x = net(), torch.randn(64, 12)
    teacher = svf_(model)
    with torch.no_grad():
        for z in teacher.z:
            z.uniform_(0.5, 1.5)
        target = model(x)
    teacher.detach()
    for form, lr, bound in (("plain", 2e-2, 0.02), ("published", 5e-2, 0.5)):  # one form cannot gain norm
        adapter = svf_(model, form=form)
        before = [p.clone() for p in model.parameters()]
        optimizer = torch.optim.Adam(adapter.parameters(), lr=lr)
        losses = []
        for _ in range(200):
            loss = nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < bound * losses[0]
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        adapter.detach()


def test_published_form_keeps_the_nuclear_norm() -> None:
    model = net()
    adapter = svf_(model, form="published")
    for i, (_, s, _) in enumerate(adapter._factors):
        torch.testing.assert_close((s * adapter.scale(i)).sum(), s.sum())
    with torch.no_grad():
        adapter.z[0].fill_(3.0)
    torch.testing.assert_close(adapter.scale(0), torch.ones(12))


def test_save_load_and_refuse_another_base(tmp_path: Path) -> None:
    model = net()
    adapter = svf_(model)
    with torch.no_grad():
        adapter.z[0].uniform_(0.5, 1.5)
    adapter.save(tmp_path / "a.safetensors")
    saved = adapter.z[0].clone()
    with torch.no_grad():
        adapter.z[0].fill_(1.0)
    adapter.load(tmp_path / "a.safetensors")
    assert torch.equal(adapter.z[0], saved)
    other = svf_(net(seed=1))
    with pytest.raises(StoreError, match="another base weight"):
        other.load(tmp_path / "a.safetensors")
    assert torch.equal(other.z[0], torch.ones(12))
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="cannot read the adapter"):
        adapter.load(tmp_path / "broken.safetensors")


def test_what_cannot_be_adapted_is_refused_before_any_change() -> None:
    model = net()
    with pytest.raises(InputError, match="no layer matches"):
        svf_(model, targets=["nonsense"])
    with pytest.raises(InputError, match=r"only a plain nn\.Linear"):
        svf_(model, targets=lambda module, name: name == "1")
    tied = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="shared with another layer"):
        svf_(tied, targets=["1"])
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        svf_(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="no values"):
        svf_(nn.Linear(3, 3, device="meta"))


def test_one_name_is_one_target() -> None:
    assert svf_(net(), "0").names == ["0"]


@pytest.mark.parametrize("second", [svf_, lora_], ids=["svf", "lora"])
def test_a_layer_has_one_adapter_at_a_time(second: Any) -> None:
    model = net()
    adapter = svf_(model, ["0"])
    more = {} if second is svf_ else {"rank": 1}
    with pytest.raises(InputError, match="has an adapter already"):
        second(model, **more)
    second(model, ["2"], **more)
    adapter.detach()
    second(model, ["0"], **more)


@pytest.mark.parametrize("adapt", [svf_, lora_], ids=["svf", "lora"])
def test_a_merged_adapter_loads_no_other(adapt: Any, tmp_path: Path) -> None:
    adapter = adapt(net(), **({} if adapt is svf_ else {"rank": 1}))
    adapter.save(tmp_path / "a")
    adapter.merge()
    with pytest.raises(AttachError, match="merged"):
        adapter.load(tmp_path / "a")
    adapter.unmerge()
    adapter.load(tmp_path / "a")


def test_the_factors_of_peft_are_no_targets() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(net(), peft.LoraConfig(r=1, target_modules=["0"], init_lora_weights=False))
    x = torch.randn(5, 12)
    base = model(x)
    with pytest.raises(InputError, match=r"found: peft.*do: name 0\.base_layer"):
        svf_(model, ["0"])
    adapter = svf_(model)
    assert adapter.names == ["base_model.model.0.base_layer", "base_model.model.2"]
    assert torch.equal(model(x), base)
    with torch.no_grad():
        adapter.z[0].fill_(1.5)
    out = model(x)
    assert not torch.allclose(out, base)
    adapter.merge()
    torch.testing.assert_close(model(x), out)
