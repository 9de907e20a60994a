"""Adapters on disk: the product by its thin factors, the product on its base, what is refused by name."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import supple
from supple.cli.main import main
from supple.errors import InputError
from supple.scan import ScanReport, scan
from supple.scan.pattern import first_hit

D = 24


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None) -> Path:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pair(name: str, out: int, inn: int, rank: int, seed: int) -> dict[str, torch.Tensor]:
    stem = f"base_model.model.{name}"
    a, b = draw(rank, inn, seed=seed), draw(out, rank, seed=seed + 1)
    return {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}


def value(report: ScanReport, layer: str, name: str, part: str = "", run: str | None = None) -> float:
    rows = report.records.select(
        layer=layer, instrument=name, part=part, variant="", run=run or report.runs[-1]
    )
    assert len(rows) == 1
    return rows[0].value


def exact(w: torch.Tensor) -> dict[str, float]:
    """numpy's SVD in float64."""
    s = np.linalg.svd(w.double().numpy(), compute_uv=False)
    p = s[s > 1e-12 * s[0]] / s.sum()
    return {
        "sigma_max": s[0], "effective_rank": math.exp(-(p * np.log(p)).sum()), "weight_norm": math.sqrt((s**2).sum()),
        "weight_rms": math.sqrt((w.double().numpy() ** 2).mean()), "stable_rank": (s**2).sum() / s[0] ** 2,
    }  # fmt: skip


LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 12}


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"other": 2}}, 3.0),
        ({"alpha_pattern": {"^layers.0.q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"^q_proj": 2}}, 3.0),
        ({"alpha_pattern": {r".*\.(1|0)\.(q|k)_proj": 2, "q_proj": 8}}, 0.5),
    ],
)
def test_the_product_has_the_scale_of_its_configuration(
    more: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    factors = pair("layers.0.q_proj", 30, D, 4, 5)
    report = scan(write(tmp_path / "r1", factors, {**LORA, **more}))
    layer = "base_model.model.layers.0.q_proj"
    b, a = (factors[f"{layer}.lora_{side}.weight"].double() for side in "BA")
    for name, true in exact(scale * b @ a).items():
        assert value(report, layer, name, "B·A") == pytest.approx(true, rel=1e-9), name
    assert f"scaled by {scale:g}" in report.records[0].note


def test_an_adapter_without_a_known_scale_says_so(tmp_path: Path) -> None:
    factors = pair("q", D, D, 4, 5)
    report = scan(write(tmp_path / "bare", factors, None))
    assert "scale of the product is not known" in report.records[0].note
    other = scan(write(tmp_path / "ada", factors, {"peft_type": "ADALORA", "lora_alpha": 8}))
    assert not len(other.records)
    assert "ADALORA" in other.skipped[0].reason
    odd = scan(write(tmp_path / "odd", factors, {"peft_type": "LORA", "lora_alpha": None}))
    assert "no number" in odd.skipped[0].reason


@pytest.mark.parametrize("key", ["(.*)*x", "(a|a)*" * 8 + "x", "(.*.*.*)*" * 4 + "x"])
def test_a_hostile_alpha_pattern_ends(key: str) -> None:
    """Each of these keeps Python's engine busy for longer than anyone waits; the process is ended if it does."""
    code = "from supple.scan.pattern import first_hit; import sys; print(first_hit([sys.argv[1]], 'a' * 200))"
    done = subprocess.run(
        [sys.executable, "-c", code, key], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize(
    "key", ["a{9999}", "(?=a)b", r"(a)\1", "a)|(b", "[z-a]", "(" * 30 + ")" * 30, "*" * 3000]
)
def test_a_pattern_of_another_kind_is_no_scale_and_says_so(key: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "r", pair("q", D, D, 4, 5), {**LORA, "alpha_pattern": {key: 2}})
    report = scan(folder)
    assert not len(report.records)
    (skipped,) = report.skipped
    assert re.search(r"^alpha_pattern: th(is|ese) patterns? of modules .*; do: ", skipped.reason)
    assert len(skipped.reason) < 300


def test_patterns_match_what_peft_matches() -> None:
    """Three thousand random keys against the expression of peft, each of which Python's engine compiles."""
    draw_ = random.Random(0)
    parts = [
        "a",
        "b",
        ".",
        r"\.",
        "*",
        "+",
        "?",
        "(",
        ")",
        "|",
        "^",
        "$",
        "[ab]",
        "[^a]",
        r"\w",
        ".*",
        "a.b",
        "(?:",
    ]
    tried = hits = 0
    while tried < 3000:
        key = "".join(draw_.choice(parts) for _ in range(draw_.randint(1, 7)))
        name = "".join(draw_.choice("ab.") for _ in range(draw_.randint(0, 7)))
        try:
            expected = re.match(rf"(.*\.)?({key})$", name) is not None
            got = first_hit([key], name) is not None
        except (re.error, InputError):
            continue
        assert got == expected, (key, name)
        tried, hits = tried + 1, hits + expected
    assert 300 < hits < 2700


def base_model(folder: Path, prefix: str = "model.") -> dict[str, torch.Tensor]:
    folder.mkdir()
    state = {
        f"{prefix}layers.0.q_proj.weight": draw(D, D, seed=1),
        f"{prefix}layers.0.up_proj.weight": draw(2 * D, D, seed=2),
        f"{prefix}layers.0.gate_up_proj.weight": draw(4 * D, D, seed=3),
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return state


@pytest.mark.parametrize("prefix", ["model.", "", "transformer.model."])
def test_rounds_on_one_base_are_the_sums(prefix: str, tmp_path: Path) -> None:
    state = base_model(tmp_path / "base", prefix)
    paths = []
    for turn in range(2):
        factors = pair("model.layers.0.q_proj", D, D, 4, 10 * turn + 5)
        factors |= pair("model.layers.0.gate_up_proj", 4 * D, D, 4, 10 * turn + 7)
        paths.append(write(tmp_path / f"r{turn}", factors, LORA))
    report = scan([tmp_path / "base", *paths], base=tmp_path / "base")
    assert report.runs == ("base", "r0", "r1")
    for turn in range(2):
        factors = pair("q", D, D, 4, 10 * turn + 5)
        b, a = (factors[f"base_model.model.q.lora_{side}.weight"].double() for side in "BA")
        true = exact(state[f"{prefix}layers.0.q_proj.weight"].double() + 3 * b @ a)
        for name, expected in true.items():
            got = value(report, f"{prefix}layers.0.q_proj", name, run=f"r{turn}")
            assert got == pytest.approx(expected, rel=1e-5), name
    parts = {r.part for r in report.records.select(run="r0", layer=f"{prefix}layers.0.gate_up_proj")}
    assert parts == {"gate", "up"}  # split as the base is
    assert not report.records.select(run="r0", layer=f"{prefix}layers.0.up_proj").rows
    assert {t.layer for t in report.trends} == {f"{prefix}layers.0.q_proj", f"{prefix}layers.0.gate_up_proj"}


def test_a_transposed_base_and_a_kernel_take_their_products(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    w, k = draw(D, 20, seed=1), draw(8, 6, 3, 3, seed=2)  # a Conv1D keeps (in, out)
    save_file({"h.0.mlp.c_fc.weight": w, "conv.weight": k}, tmp_path / "base" / "model.safetensors")
    factors = pair("h.0.mlp.c_fc", 20, D, 2, 3)
    ka, kb = draw(2, 6, 3, 3, seed=8), draw(8, 2, 1, 1, seed=9)
    factors |= {"base_model.model.conv.lora_A.weight": ka, "base_model.model.conv.lora_B.weight": kb}
    config = {"peft_type": "LORA", "lora_alpha": 2, "fan_in_fan_out": True}
    report = scan(write(tmp_path / "r", factors, config), base=tmp_path / "base")
    assert not report.failures
    b, a = (factors[f"base_model.model.h.0.mlp.c_fc.lora_{side}.weight"] for side in "BA")
    assert value(report, "h.0.mlp.c_fc", "sigma_max") == pytest.approx(
        exact(w + (b @ a).T)["sigma_max"], rel=1e-5
    )
    whole = k.flatten(1) + kb.flatten(1) @ ka.flatten(1)
    assert value(report, "conv", "sigma_max") == pytest.approx(exact(whole)["sigma_max"], rel=1e-5)


@pytest.mark.parametrize(
    ("factors", "config", "message"),
    [
        (pair("model.layers.0.k_proj", D, D, 4, 5), LORA, "no such matrix.*k_proj"),
        (pair("model.layers.0.q_proj", D, 2 * D, 4, 5), LORA, "another shape.*q_proj"),
        (pair("model.layers.0.up_proj", D, 2 * D, 4, 5), LORA, "another shape.*up_proj"),
        (pair("model.layers.0.q_proj", D, D, 4, 5), None, "no adapter_config.json"),
        (pair("model.layers.0.q_proj", D, D, 4, 5), {**LORA, "use_dora": True}, "DoRA"),
        (
            {"base_model.model.model.layers.0.q_proj.lora_A.weight": draw(4, D, seed=1)},
            LORA,
            "lora_A alone",
        ),
    ],
)
def test_a_wrong_base_is_refused_by_name(
    factors: dict[str, torch.Tensor], config: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    base_model(tmp_path / "base")
    report = scan(write(tmp_path / "r", factors, config), base=tmp_path / "base")
    assert not len(report.records)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(report.failures[0].message)


def test_modules_kept_whole_have_the_names_of_the_base_and_the_command_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_model(tmp_path / "base", "")
    factors = pair("model.layers.0.q_proj", D, D, 4, 5)
    factors["base_model.model.model.layers.0.up_proj.weight"] = draw(2 * D, D, seed=9)
    factors["base_model.model.score.weight"] = draw(3, D, seed=8)
    path = write(tmp_path / "r", factors, LORA)
    report = scan([tmp_path / "base", path], base=tmp_path / "base")
    layers = {r.layer for r in report.records.select(run="r")}
    assert layers == {"layers.0.q_proj", "layers.0.up_proj", "score"}
    assert main(["scan", str(path), "--base", str(tmp_path / "base")]) == 0
    assert "base + 3 B·A" in capsys.readouterr().out
    assert main(["scan", str(path)]) == 0
    assert "LoRA product of rank at most 4; scaled by 3" in capsys.readouterr().out


def test_a_base_of_the_same_shapes_is_known_by_its_checksum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))
    save_file(net.state_dict(), tmp_path / "base.safetensors")
    adapter = supple.nn.lora_(net, rank=2)
    adapter.b[0].data.normal_()
    adapter.save(tmp_path / "r1")
    report = scan(tmp_path / "r1", base=tmp_path / "base.safetensors")
    merged = net[0].weight + adapter.delta("0")
    assert value(report, "0", "sigma_max") == pytest.approx(exact(merged.detach())["sigma_max"], rel=1e-5)
    other = {k: v + 1e-3 for k, v in net.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    assert (
        "another base weight"
        in scan(tmp_path / "r1", base=tmp_path / "other.safetensors").failures[0].message
    )
    with pytest.raises(supple.errors.InputError, match="no such checkpoint"):
        scan(tmp_path / "r1", base=tmp_path / "none")


def test_peft_itself_agrees(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 10))
    save_file(net.state_dict(), tmp_path / "base.safetensors")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["0", "2"],
        rank_pattern={"2": 3},
        alpha_pattern={"^2": 5},
        use_rslora=True,
    )
    tuned = peft.get_peft_model(net, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    tuned.save_pretrained(tmp_path / "r1")
    report = scan(tmp_path / "r1", base=tmp_path / "base.safetensors")
    merged = tuned.merge_and_unload().state_dict()
    for layer in ("0", "2"):
        assert value(report, layer, "sigma_max") == pytest.approx(
            exact(merged[f"{layer}.weight"])["sigma_max"], rel=1e-5
        )
