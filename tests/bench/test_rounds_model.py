"""Rounds that begin with a transformers folder: tokens, arms, figures, and refusal of what is none."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from supple.bench.rounds import RECORDS, run_rounds
from supple.bench.rounds.arms import ARMS, Arm, Length
from supple.bench.rounds.bases import Sizes
from supple.bench.rounds.course import Course
from supple.bench.rounds.learner import Learner
from supple.bench.rounds.measure import ranks
from supple.bench.rounds.run import run_arm
from supple.bench.rounds.words import render
from supple.cli.main import main
from supple.errors import InputError
from supple.observe.guard import rng_guard

transformers = pytest.importorskip("transformers")
pretrained = pytest.importorskip("supple.bench.rounds.pretrained")


def tokenizer() -> Any:
    """Bytes, and one pair of letters as a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ab"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def save(folder: Path, kind: str, **changes: Any) -> Path:
    """A tiny random model of a kind, as a folder."""
    t = transformers
    settings = {
        "gpt2": (t.GPT2Config, t.GPT2LMHeadModel, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        "llama": (
            t.LlamaConfig, t.LlamaForCausalLM,
            {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "tie_word_embeddings": True},
        ),
        "bert": (
            t.BertConfig, t.BertForMaskedLM,
            {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        ),
    }  # fmt: skip
    config, model, given = settings[kind]
    with rng_guard():
        torch.manual_seed(0)
        made = model(config(**{"vocab_size": 257, **given, **changes}))
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = Sizes(batch=2, context=16, held=4, probe=32, probe_context=8, kernel=8, kernel_context=4)
    monkeypatch.setattr(pretrained.Pretrained, "sizes", sizes)
    return save(tmp_path / request.param, request.param)


def test_tokens_are_the_models_own_and_the_model_is_the_folders(language_data: Path, model: Path) -> None:
    base = pretrained.Pretrained(model)
    text = torch.tensor(list(b"abcab"))
    ids = base.tokens(text)
    assert len(ids) == 3
    assert ids[0] == ids[2] == 256
    net = base.make(0, 0, "softmax")
    assert net.training
    tokens = torch.randint(257, (2, 9))
    want = transformers.AutoModelForCausalLM.from_pretrained(model).eval()(tokens).logits
    torch.testing.assert_close(net(tokens), want, rtol=1e-5, atol=1e-6)  # in training: no dropout is left
    parts = {"q", "k", "v", "o", "up", "down"} | ({"gate"} if model.name == "llama" else set())
    assert set(ranks(net)) == parts
    assert base.fingerprint == pretrained.Pretrained(model).fingerprint


def test_arms_begin_with_the_folder_and_adapters_in_round_0(language_data: Path, model: Path) -> None:
    base = pretrained.Pretrained(model)
    course = Course(0, Length(1, 2, 10), base)
    rows = {a.name: run_arm(a, course)["rounds"] for a in ARMS if a.name in ("full", "fresh", "svf", "lora")}
    assert {name: r[0]["language"] for name, r in rows.items()} == dict.fromkeys(rows, course.names[0])
    assert rows["fresh"][0] == rows["full"][0]
    assert rows["fresh"][1]["blocks"] != rows["full"][1]["blocks"]
    for name in ("svf", "lora"):
        assert rows[name][0]["blocks"][0] == pytest.approx(rows["full"][0]["blocks"][0], rel=0.1)
        assert rows[name][0]["blocks"] != rows["full"][0]["blocks"]
    start = ranks(base.make(0, 0, "softmax"))
    assert rows["svf"][1]["ranks"] == start != rows["svf"][1]["ranks_adapted"]
    assert rows["lora"][0]["ranks"] != start
    for row in (r for rounds in rows.values() for r in rounds):
        assert all(math.isfinite(row["probe"][k]) for k in ("cloned", "churn", "ntk_rank99", "loss"))


def test_forgetting_attention_begins_with_the_folder_or_is_refused_by_name(
    language_data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import supple.bench.rounds.run as room

    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 3, 10)})
    arms = ["full", "fresh", "forgetting", "forgetting_fresh"]
    rows = {r["arm"]: r for r in run_rounds(tmp_path / "out", "tiny", arms=arms, model=model)}
    if model.name == "gpt2":
        assert "GPT2Attention: no q_proj" in rows["forgetting"]["refused"]
        assert rows["full"]["rounds"]
        assert "forgetting was not run: forget gates go into Llama-style attention" in render(
            list(rows.values())
        )
        return
    first = [rows[a]["rounds"][0]["blocks"][0] for a in ("full", "forgetting")]
    assert first[0] == pytest.approx(first[1], rel=1e-3)
    assert rows["forgetting"]["rounds"][0] == rows["forgetting_fresh"]["rounds"][0]
    assert rows["forgetting"]["rounds"][2]["blocks"] != rows["forgetting_fresh"]["rounds"][2]["blocks"]
    for row in rows["forgetting"]["rounds"]:
        assert all(math.isfinite(row["probe"][k]) for k in ("dead", "cloned", "churn", "ntk_rank99", "loss"))
    net = pretrained.Pretrained(model).make(0, 0, "forgetting")
    course = Course(0, Length(1, 2, 10), pretrained.Pretrained(model))
    learner = Learner(Arm("forgetting"), net, course, 0)
    before = net.net.model.layers[0].self_attn.f_proj.bias.detach().clone()
    learner.learn(0)
    assert not torch.equal(before, net.net.model.layers[0].self_attn.f_proj.bias)  # the gates are trained


def test_the_command_line_runs_it_resumes_and_refuses_another_model(
    language_data: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import supple.bench.rounds.run as room

    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 2, 10)})
    command = ["bench", "run", "lm-rounds", "--preset", "tiny", "--out", str(tmp_path / "out")]
    command += ["--model", str(model), "--methods", "full,fresh"]
    assert main(command) == 0
    assert "the folder's model tuned anew" in capsys.readouterr().out
    folder = tmp_path / "out" / "lm-rounds" / f"tiny-{model.name}"
    lines = (folder / RECORDS).read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["model"]["name"] == model.name
    assert main(command) == 0
    assert (folder / RECORDS).read_text().splitlines() == lines
    shutil.rmtree(model)
    save(model, model.name, vocab_size=300)
    assert main(command) == 2
    assert "records of another model" in capsys.readouterr().err
    assert (folder / RECORDS).read_text().splitlines() == lines


def test_a_remedy_that_does_not_fit_is_told_and_the_others_run(
    language_data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import supple.bench.rounds.run as room

    def run(arm: Any, course: Course) -> dict[str, Any]:
        if arm.name == "spectral":
            raise InputError("it has no form here")
        return run_arm(arm, course)

    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 2, 2)})
    monkeypatch.setattr(room, "run_arm", run)
    records = run_rounds(tmp_path / "out", "tiny", arms=["fresh", "spectral"], model=model)
    assert [(r["arm"], r.get("refused", "")) for r in records] == [
        ("fresh", ""),
        ("spectral", "it has no form here"),
    ]


def test_a_folder_that_is_no_causal_language_model_is_refused(language_data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    bare = save(tmp_path / "bare", "gpt2")
    (bare / "model.safetensors").unlink()
    cut = save(tmp_path / "cut", "gpt2")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    mute = save(tmp_path / "mute", "gpt2")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    for folder, said in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", r"no config\.json"),
        (tmp_path / "broken", "has no (tokenizer|configuration)"),
        (bare, "has no causal language model"),
        (cut, "has no causal language model"),
        (mute, "has no tokenizer"),
        (save(tmp_path / "bert", "bert"), "not causal"),
        (save(tmp_path / "short", "gpt2", n_positions=32), "cannot read a window of 64 tokens"),
    ):
        with pytest.raises(InputError, match=said):
            run_rounds(tmp_path / "out", "tiny", model=folder)
    small = pretrained.Pretrained(save(tmp_path / "small", "gpt2", vocab_size=200))
    with pytest.raises(InputError, match="no row for"):
        small.tokens(torch.tensor(list(b"abc")))
    assert not (tmp_path / "out").exists()
