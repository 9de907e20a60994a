"""Scanning: spectra against numpy, packed layouts, noise floor, trends over rounds, what is left out."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import supple
from supple.errors import InputError
from supple.scan import scan
from supple.scan.matrices import Matrix, Skipped
from supple.scan.measure import INSTRUMENTS, measure
from supple.scan.sources import open_checkpoint
from supple.scan.trend import judge, kendall_p
from supple.scan.walk import matrices
from supple.status import Status


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_measurements_equal_a_numpy_twin(shape: tuple[int, int]) -> None:
    w = gaussian(*shape)
    rows = {(r.instrument, r.variant): r.value for r in measure(Matrix("w", "", w, "F32"), "run", 0)}
    s = np.linalg.svd(w.double().numpy(), compute_uv=False)
    p = s / s.sum()
    erank = math.exp(-(p * np.log(p)).sum())
    stable = (s**2).sum() / s[0] ** 2
    expected = {
        ("sigma_ratio", ""): s[0] / s.sum(),
        ("sigma_max", ""): s[0],
        ("effective_rank", ""): erank,
        ("effective_rank", "relative"): erank / min(shape),
        ("stable_rank", ""): stable,
        ("stable_rank", "relative"): stable / min(shape),
        ("srank", "delta=0.01"): int((np.cumsum(s) < 0.99 * s.sum()).sum()) + 1,
        ("weight_norm", ""): np.linalg.norm(w.double().numpy()),
        ("weight_rms", ""): math.sqrt((w.double().numpy() ** 2).mean()),
        ("below_noise_floor", "fraction"): 0.0,
    }
    assert rows.keys() == expected.keys()
    for key, value in expected.items():
        assert rows[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("tables", [False, True])
def test_a_head_tied_to_its_table_is_one_matrix_in_every_kind_of_file(tables: bool, tmp_path: Path) -> None:
    """Rounds that keep the head as the same tensor, and one that leaves it out as transformers does."""
    names = [f"layers.{i}.weight" for i in range(3)]
    for r in range(3):
        state = {n: gaussian(16, 16, seed=i) for i, n in enumerate(names)}
        state["embed_tokens.weight"] = gaussian(32, 16, seed=9) * (1 + r)
        if r != 1:
            state = {"lm_head.weight": state["embed_tokens.weight"], **state}
        torch.save(state, tmp_path / f"r{r}.pt")
    report = scan([tmp_path / f"r{r}.pt" for r in range(3)], embeddings=tables)
    layers = {n.removesuffix(".weight") for n in names} | ({"embed_tokens"} if tables else set())
    for run in report.runs:
        assert {r.layer for r in report.records.select(run=run)} == layers
    reasons = {s.layer: s.reason for s in report.skipped}
    assert reasons["lm_head.weight"].startswith("tied to embed_tokens.weight: ")
    assert ("measured once" in reasons["lm_head.weight"]) is tables
    assert not report.not_compared
    growth = next(f for f in report.findings if f.mechanism == "weight_growth")
    assert (f"of {len(layers)} matrices" in growth.reason) is tables


def test_tensors_with_equal_values_or_one_storage_are_tied_only_if_they_are_the_same(tmp_path: Path) -> None:
    both = gaussian(16, 16)
    state = {
        "a.weight": both,
        "b.weight": both,
        "t.weight": both.T,
        "half.weight": both[:8],
        "copy.weight": both.clone(),
    }
    torch.save(state, tmp_path / "r.pt")
    report = scan(tmp_path / "r.pt")
    assert {r.layer for r in report.records} == {"a", "t", "half", "copy"}
    assert [(s.layer, s.reason) for s in report.skipped] == [("b.weight", "tied to a.weight: measured once")]


def test_matrices_that_a_round_lacks_are_named_and_not_counted(tmp_path: Path) -> None:
    """Counted, the four strays would make seven matrices of three and their correction too hard."""
    base, paths = gaussian(16, 16), []
    u, s, v = torch.linalg.svd(base)
    for r in range(5):
        fallen = u @ torch.diag(s * torch.exp(-0.4 * r * torch.arange(16.0) / 16)) @ v
        state = {"a.weight": fallen, "b.weight": base, "c.weight": base + 1}
        state |= {"lm_head.weight": base + 2, "in_proj_weight": gaussian(48, 16)} if r in (0, 4) else {}
        paths.append(save(tmp_path / f"r{r}.safetensors", state))
    report = scan(paths)
    left = {s.layer: s.reason for s in report.not_compared}
    missing = "not measured in r1.safetensors, r2.safetensors, r3.safetensors"
    assert left == dict.fromkeys(["lm_head", *(f"in_proj_weight [{p}]" for p in "qkv")], missing)
    (fall,) = [t for t in report.trends if t.name == "a" and t.instrument == "effective_rank"]
    assert fall.p == pytest.approx(3 / math.factorial(5))
    assert "1 of 3 matrices" in report.findings[0].reason
    assert "not compared over the rounds: 4 matrices\n  in_proj_weight [q]: " + missing in str(report)
    assert report.to_dict()["not_compared"][-1] == {"layer": "lm_head", "reason": missing}
    assert "lm_head" in report.to_html(tmp_path / "x.html").read_text().split("Not compared")[1]
    assert not scan(paths[1:4]).not_compared


def test_non_finite_and_zero_matrices_are_never_healthy(tmp_path: Path) -> None:
    bad = gaussian(4, 4)
    bad[1, 2] = math.nan
    path = save(tmp_path / "m.safetensors", {"bad.weight": bad, "zero.weight": torch.zeros(4, 4)})
    report = scan([path, path])
    rows = report.records.select(layer="bad")
    assert {r.status for r in rows} == {"invalid"}
    assert all(math.isnan(r.value) for r in rows)
    assert "NaN" in rows[0].note
    assert {f.status for f in report.findings} == {Status.INVALID}
    zero = report.records.last(layer="zero", instrument="effective_rank", variant="")
    assert zero is not None
    assert zero.value == 0
    assert "all values are zero" in zero.note


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rank_below_the_storage_noise_is_flagged(dtype: torch.dtype) -> None:
    low = gaussian(96, 5) @ gaussian(5, 96, seed=1)
    for stored in (low.to(dtype), low.to(dtype).float()):  # widened later: still 16-bit values
        rows = measure(Matrix("w", "", stored, str(stored.dtype).removeprefix("torch.")), "run", 0)
        share = next(r for r in rows if r.instrument == "below_noise_floor")
        assert share.value > 0.8
        assert "rounding noise" in share.note
    full = measure(Matrix("w", "", gaussian(96, 96).to(dtype), str(dtype).removeprefix("torch.")), "run", 0)
    assert "rounding noise" not in full[0].note


def parts(
    tmp_path: Path, state: dict[str, torch.Tensor], config: dict[str, int] | None = None
) -> dict[str, object]:
    save(tmp_path / "m.safetensors", state)
    (tmp_path / "config.json").write_text(json.dumps(config or {}))
    found = {}
    for item in matrices(open_checkpoint(tmp_path)):
        if isinstance(item, Skipped):
            found[item.layer] = item.reason
        else:
            found[f"{item.layer}/{item.part}"] = item.values
    return found


def test_packed_projections_are_split(tmp_path: Path) -> None:
    packed = gaussian(24, 8)
    found = parts(tmp_path, {"attn.in_proj_weight": packed, "h.attn.c_attn.weight": packed.T.contiguous()})
    for name in ("attn.in_proj_weight", "h.attn.c_attn"):
        for i, part in enumerate("qkv"):
            assert torch.equal(found[f"{name}/{part}"], packed[8 * i : 8 * i + 8])


def test_grouped_queries_and_gates_follow_the_config(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    state = {"l.qkv_proj.weight": gaussian(16, 8), "l.gate_up_proj.weight": gaussian(10, 8)}
    found = parts(tmp_path, state, config)
    sizes = {k: v.shape[0] for k, v in found.items() if isinstance(v, torch.Tensor)}
    assert sizes == {
        "l.qkv_proj/q": 8, "l.qkv_proj/k": 4, "l.qkv_proj/v": 4, "l.gate_up_proj/gate": 5,
        "l.gate_up_proj/up": 5,
    }  # fmt: skip


def test_convolutions_experts_and_what_is_left_out(tmp_path: Path) -> None:
    found = parts(
        tmp_path,
        {
            "conv.weight": gaussian(6, 3, 3, 3),
            "mlp.experts.down": gaussian(2, 5, 4),
            "bias": gaussian(6),
            "codes": torch.zeros(4, 4, dtype=torch.int8),
            "wte.weight": gaussian(20, 4),
            "row.weight": gaussian(1, 9),
        },
    )
    assert found["conv/"].shape == (6, 27)
    assert found["mlp.experts.down/expert 1"].shape == (5, 4)
    assert "quantised" in found["codes"]
    assert "embedding" in found["wte.weight"]
    assert "single row" in found["row.weight"]
    assert "bias" not in found


def test_lora_product_without_forming_it(tmp_path: Path) -> None:
    a, b = gaussian(3, 20), gaussian(16, 3, seed=1)
    found = parts(tmp_path, {"q.lora_A.weight": a, "q.lora_B.weight": b, "k.lora_A.weight": a.clone()})
    got = torch.linalg.svdvals(found["q/B·A"])
    exact = torch.linalg.svdvals(b.double() @ a.double())[:3]
    assert torch.allclose(got, exact, rtol=1e-10)
    assert "alone" in found["k.weight"]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_kendall_p_equals_enumeration(n: int) -> None:
    for values in itertools.permutations(range(n)):
        wrong = sum(values[i] < values[j] for i in range(n) for j in range(i + 1, n))
        as_good = sum(
            sum(q[i] < q[j] for i in range(n) for j in range(i + 1, n)) <= wrong
            for q in itertools.permutations(range(n))
        )
        assert kendall_p(values, -1) == pytest.approx(as_good / math.factorial(n))


def rounds(tmp_path: Path, count: int, shrink: float, jitter: float = 0.002) -> list[Path]:
    """24 matrices; in two of them the tail of the spectrum falls, and the effective rank with it."""
    paths, base = [], [gaussian(24, 24, seed=i) for i in range(24)]
    for r in range(count):
        state = {}
        for i, w in enumerate(base):
            w = w + jitter * gaussian(24, 24, seed=1000 * r + i)
            if i in (3, 17):
                u, s, v = torch.linalg.svd(w)
                index = torch.arange(24.0)
                w = u @ torch.diag(s * torch.exp(-shrink * r * index / 24)) @ v
            state[f"layer{i}.weight"] = w
        paths.append(save(tmp_path / f"round{r}.safetensors", state))
    return paths


def test_planted_slow_collapse_is_found_in_the_right_matrices(tmp_path: Path) -> None:
    report = scan(rounds(tmp_path, 6, shrink=0.10))
    found = next(f for f in report.findings if f.mechanism == "rank_collapse")
    assert found.status is Status.PRESENT
    assert set(found.layers) == {"layer3", "layer17"}
    assert report.trends[0].status is Status.PRESENT
    ranks = [t for t in report.trends if t.instrument == "effective_rank" and t.status is Status.PRESENT]
    assert all(-0.25 < t.change < -0.03 for t in ranks)


def test_rounds_without_collapse_raise_no_alarm(tmp_path: Path) -> None:
    report = scan(rounds(tmp_path, 6, shrink=0.0, jitter=0.1))
    assert {f.status for f in report.findings} == {Status.ABSENT}


def test_too_few_rounds_are_inconclusive_and_one_is_not_measured(tmp_path: Path) -> None:
    paths = rounds(tmp_path, 3, shrink=0.6)
    finding = scan(paths).findings[0]
    assert finding.status is Status.INCONCLUSIVE
    assert "3 rounds" in finding.reason
    single = scan(paths[0]).findings[0]
    assert single.status is Status.NOT_MEASURED
    assert "earlier round" in single.reason


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors", {"a.weight": gaussian(4, 4)})
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.read_bytes()[:-3])
    report = scan([broken, good, tmp_path / "none.pt"])
    assert report.runs == ("good.safetensors",)
    assert [f.path for f in report.failures] == [str(broken), str(tmp_path / "none.pt")]
    assert "cut short" in report.failures[0].message
    assert "NOT READ" in str(report)


def test_text_fits_80_columns_and_json_is_strict(tmp_path: Path) -> None:
    long = "model.layers.0.self_attention.output_projection.weight"
    path = save(tmp_path / "m.safetensors", {long: gaussian(8, 8), "z.weight": torch.zeros(4, 4)})
    report = scan([path, path])
    table = [line for line in str(report).splitlines() if "…" in line or line.startswith("matrix")]
    assert table
    assert max(map(len, table)) <= 80
    back = json.loads(report.to_json(tmp_path / "out.json"))
    assert back == json.loads((tmp_path / "out.json").read_text())
    assert {r["instrument"] for r in back["records"]} == set(INSTRUMENTS)


def test_budget_labels_and_bad_arguments(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "m.safetensors", {"w.weight": gaussian(4, 4)})
    report = scan([tmp_path / "a", tmp_path / "b"])
    assert report.runs == ("a", "b")
    files = scan([tmp_path / "a" / "m.safetensors", tmp_path / "b" / "m.safetensors"])
    assert files.runs == ("a/m.safetensors", "b/m.safetensors")
    spent = scan(tmp_path / "a", budget=1e-9)
    assert len(spent.records) == 0
    assert "budget" in spent.skipped[0].reason
    for options, message in (
        ({"instruments": ("nonsense",)}, "unknown instrument"),
        ({"instruments": ()}, "no instrument"),
        ({"budget": -1}, "positive"),
    ):
        with pytest.raises(InputError, match=message):
            scan(tmp_path / "a", **options)
    with pytest.raises(InputError, match="no checkpoint"):
        scan([])


@pytest.mark.parametrize("kind", ["gaussian", "spiked", "decaying", "low rank"])
@pytest.mark.parametrize("shape", [(400, 300), (280, 500)])
def test_estimates_lie_within_the_error_that_they_state(kind: str, shape: tuple[int, int]) -> None:
    w = gaussian(*shape)
    if kind == "spiked":
        w += 5 * gaussian(shape[0], 8, seed=1) @ gaussian(8, shape[1], seed=2) / 8
    elif kind != "gaussian":
        u, _, v = torch.linalg.svd(w, full_matrices=False)
        index = torch.arange(1, min(shape) + 1.0)
        w = u @ torch.diag(index**-0.5 if kind == "decaying" else (index <= 6).float()) @ v
    matrix = Matrix("w", "", w, "F32")
    exact = {(r.instrument, r.variant): r for r in measure(matrix, "run", 0)}
    for row in measure(matrix, "run", 0, estimate=True):
        if row.instrument in ("srank", "below_noise_floor"):
            assert row.status == "not_measured"
            assert "whole spectrum" in row.note
            continue
        true = exact[row.instrument, row.variant].value
        assert abs(row.value - true) <= (row.error + 1e-5) * true, row
        assert row.error < 0.15  # a statement that says something
    small = measure(Matrix("w", "", gaussian(20, 30), "F32"), "run", 0, estimate=True)
    assert all(math.isnan(r.error) and r.status == "measured" for r in small)  # exact where that costs little


def test_a_change_within_the_errors_of_estimates_is_no_finding() -> None:
    falling = [100.0, 99, 98, 97, 96, 95]
    assert judge("w", "", "effective_rank", falling, -1, 4).status is Status.PRESENT
    estimated = judge("w", "", "effective_rank", falling, -1, 4, error=0.03)
    assert estimated.status is Status.INCONCLUSIVE
    assert "3.0%" in estimated.reason
    assert judge("w", "", "effective_rank", falling, -1, 4, error=0.01).status is Status.PRESENT


def test_estimated_scans_say_so(tmp_path: Path) -> None:
    weights = {
        "w.weight": gaussian(300, 300),
        "zero.weight": torch.zeros(300, 300),
        "small.weight": gaussian(8, 8),
    }
    path = save(tmp_path / "m.safetensors", weights)
    report = scan(path, estimate=True)
    text = str(report)
    assert text.count("by its own statement") == 2
    assert "all values are zero" in text
    assert "estimate" not in str(scan(path))
    zero = report.records.select(layer="zero", instrument="effective_rank", variant="")[0]
    assert (zero.value, zero.error) == (0.0, 0.0)
    bad = gaussian(300, 300)
    bad[0, 0] = math.inf
    broken = scan(save(tmp_path / "b.safetensors", {"w.weight": bad}), estimate=True)
    assert {r.status for r in broken.records} == {"invalid"}


def test_public_name_works(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"w.weight": gaussian(4, 4)})
    assert callable(supple.scan)  # although the room of that name is imported above
    calls: list[tuple[str, int]] = []
    report = supple.scan(
        path, instruments=("sigma_max",), progress=lambda name, done: calls.append((name, done))
    )
    assert calls == [("m.safetensors", 1)]
    assert report.records.values() == pytest.approx([float(torch.linalg.svdvals(gaussian(4, 4))[0])])
