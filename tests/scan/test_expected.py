"""The first round against its expected spectrum at initialisation: simulated matrices, real models, unknown starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from supple.scan import scan
from supple.scan.expected import PLAIN_TYPES, start_of


def folder(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any] | None) -> Path:
    path.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("shape", [(96, 96), (64, 160), (200, 48)])
def test_expectations_equal_the_mean_of_simulated_matrices(shape: tuple[int, int], tmp_path: Path) -> None:
    rng, std, found = np.random.default_rng(0), 0.02, []
    for _ in range(30):
        s = np.linalg.svd(rng.normal(0, std, shape), compute_uv=False)
        p = s / s.sum()
        found.append((s[0], s.sum(), math.exp(-(p * np.log(p)).sum())))
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 * std  # three times its start
    path = folder(
        tmp_path / "m", {"a.weight": w}, {"model_type": "llama", "initializer_range": std, "vocab_size": 7}
    )
    report = scan([path, path])
    expected = {e.instrument: e for e in report.expected}
    means = dict(zip(("sigma_max", "nuclear_norm", "effective_rank"), np.mean(found, 0), strict=True))
    assert expected.keys() == means.keys()
    for name, mean in means.items():
        assert expected[name].expected == pytest.approx(mean, rel=0.01), name
    own = np.linalg.svd(w.double().numpy(), compute_uv=False)
    assert expected["nuclear_norm"].value == pytest.approx(own.sum(), rel=1e-6)
    assert expected["sigma_max"].ratio == pytest.approx(3, rel=0.06)
    assert expected["effective_rank"].ratio == pytest.approx(1, rel=0.02)
    text = str(report)
    assert "against its expected spectrum at initialisation" in text
    assert json.loads(report.to_json())["expected_at_initialisation"][0]["std"] == std


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "no config.json"),
        ({"model_type": "clip", "initializer_range": 0.02}, "'clip'"),
        ({"model_type": "llama"}, "no initializer_range"),
        ({"model_type": "llama", "initializer_range": True}, "no initializer_range"),
        ({"model_type": "gpt2", "initializer_range": 0.02}, "'gpt2'"),  # without its number of layers
    ],
)
def test_an_unknown_start_is_said_and_never_made_up(
    config: dict[str, Any] | None, reason: str, tmp_path: Path
) -> None:
    report = scan(folder(tmp_path / "m", {"a.weight": torch.randn(8, 8)}, config))
    assert not report.expected
    assert reason in report.not_expected
    assert reason in str(report)


def test_the_first_round_that_was_read_is_the_one_compared(tmp_path: Path) -> None:
    config = {"model_type": "llama", "initializer_range": 0.02}
    paths = [folder(tmp_path / f"r{i}", {"a.weight": torch.randn(8, 8) * 10.0**i}, config) for i in range(3)]
    (paths[0] / "model.safetensors").write_bytes(b"broken")
    report = scan(paths)
    own = float(torch.linalg.svdvals(_weight(paths[1]))[0])
    assert next(e for e in report.expected if e.instrument == "sigma_max").value == pytest.approx(
        own, rel=1e-5
    )


def _weight(path: Path) -> torch.Tensor:
    from supple.scan import read_state

    return read_state(path)["a.weight"]


SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 40, "max_position_embeddings": 32,
    "initializer_range": 0.05, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4,  # distilbert
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32,  # gpt2
}  # fmt: skip


@pytest.mark.parametrize("kind", [*sorted(PLAIN_TYPES), "gpt2"])
def test_models_begin_as_their_configuration_is_read(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    allowed = (
        SMALL
        if kind in ("gpt2", "distilbert")
        else {k: v for k, v in SMALL.items() if not k.startswith("n_")}
    )
    if kind != "distilbert":
        allowed = {k: v for k, v in allowed.items() if k not in ("dim", "hidden_dim")}
    if kind == "gpt2":
        allowed = {
            k: v for k, v in allowed.items() if k.startswith("n_") or k in ("vocab_size", "initializer_range")
        }
    config = transformers.AutoConfig.for_model(kind, **allowed)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    start = start_of(config.to_dict())
    assert start.known
    for name, weight in model.state_dict().items():
        if (
            weight.dim() == 2
            and min(weight.shape) > 8
            and "embed" not in name
            and "wte" not in name
            and "wpe" not in name
        ):
            assert float(weight.std()) == pytest.approx(start.of(name.removesuffix(".weight")), rel=0.05), (
                name
            )
