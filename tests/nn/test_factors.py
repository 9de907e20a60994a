"""Decompositions that are kept: read when the weight is the same, computed when it is not, never believed blindly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from supple.errors import InputError, StoreError
from supple.nn import factors, svf_
from supple.nn.factors import decompose


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {n: torch.randn(*shape, generator=g).to(dtype) for n, shape in (("a", (6, 9)), ("b", (7, 4)))}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were decomposed, as they are."""
    seen: list[tuple[int, ...]] = []
    plain = torch.linalg.svd

    def watched(a: torch.Tensor, **options: bool) -> tuple[torch.Tensor, ...]:
        seen.append(tuple(a.shape))
        return plain(a, **options)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_factors_give_the_weight_and_numpys_values(dtype: torch.dtype) -> None:
    for name, w in weights(dtype).items():
        u, s, vt = decompose(weights(dtype))[name]
        assert {t.dtype for t in (u, s, vt)} == {torch.float32}
        assert torch.allclose((u * s) @ vt, w.float(), atol=1e-5)
        assert s.numpy() == pytest.approx(np.linalg.svd(w.double().numpy(), compute_uv=False), rel=1e-6)


def test_a_second_call_reads_and_a_changed_weight_does_not(
    tmp_path: Path, computed: list[tuple[int, ...]]
) -> None:
    told: list[tuple[str, int, int]] = []
    first = decompose(weights(), tmp_path / "svd")
    assert computed == [(6, 9), (7, 4)]
    second = decompose(weights(), tmp_path / "svd", progress=lambda *t: told.append(t))
    assert computed == [(6, 9), (7, 4)]
    assert told == [("a", 1, 2), ("b", 2, 2)]
    for name, kept in second.items():
        assert all(torch.equal(x, y) for x, y in zip(kept, first[name], strict=True))
    changed = weights()
    changed["b"][0, 0] += 1e-3
    again = decompose(changed, tmp_path / "svd")
    assert computed == [(6, 9), (7, 4), (7, 4)]
    u, s, vt = again["b"]
    assert torch.allclose((u * s) @ vt, changed["b"], atol=1e-5)
    decompose(weights(torch.bfloat16), tmp_path / "svd")  # another format is another base
    assert len(computed) == 5
    assert not [p for p in (tmp_path / "svd").iterdir() if p.suffix != ".safetensors"]


@pytest.mark.parametrize("damage", ["cut", "values", "shape", "format"])
def test_a_file_that_does_not_give_its_weight_is_written_again(
    damage: str, tmp_path: Path, computed: list[tuple[int, ...]]
) -> None:
    weight = {"a": weights()["a"]}
    decompose(weight, tmp_path)
    (file,) = tmp_path.iterdir()
    whole, kept = file.read_bytes(), load_file(file)
    meta = {"format": factors.FORMAT}
    if damage == "cut":
        file.write_bytes(whole[:-20])
    elif damage == "values":
        kept["s"][2] *= 1.01
        save_file(kept, file, metadata=meta)
    elif damage == "shape":
        save_file({**kept, "s": kept["s"][:3].clone()}, file, metadata=meta)
    else:
        save_file(kept, file)
    u, s, vt = decompose(weight, tmp_path)["a"]
    assert torch.allclose((u * s) @ vt, weight["a"], atol=1e-5)
    assert len(computed) == 2
    assert file.read_bytes() == whole


def test_processes_give_the_same_and_fill_the_cache(tmp_path: Path, computed: list[tuple[int, ...]]) -> None:
    told: list[tuple[str, int, int]] = []
    found = decompose(weights(), tmp_path, workers=2, progress=lambda *t: told.append(t))
    assert not computed  # not here
    assert sorted(n for n, _, _ in told) == ["a", "b"]
    assert [done for _, done, _ in told] == [1, 2]
    for name, w in weights().items():
        u, s, vt = found[name]
        assert torch.allclose((u * s) @ vt, w, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2
    decompose(weights(), tmp_path)
    assert not computed


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    net = nn.Linear(4, 3)
    with pytest.raises(InputError, match="must be a folder"):
        svf_(nn.Sequential(net), cache=tmp_path / "file")
    assert net.weight.requires_grad  # nothing was changed
    with pytest.raises(InputError, match="negative"):
        decompose(weights(), workers=-1)
    monkeypatch.setattr(factors, "spread", lambda work, jobs, *rest: [factors.Died(9)] * len(jobs))
    with pytest.raises(StoreError, match=r"died.*exit code 9.*where: a"):
        decompose(weights())


def test_an_adapter_from_the_cache_is_the_same_adapter(
    tmp_path: Path, computed: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x, outputs = torch.randn(5, 8), []
    for _ in range(2):
        adapter = svf_(net, cache=tmp_path)
        for z in adapter.z:
            z.data.mul_(1.3)
        outputs.append(net(x).detach())
        adapter.detach()
    assert len(computed) == 2
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], net(x), atol=1e-3)
