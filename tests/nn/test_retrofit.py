"""Forget gates in a transformers model: the start, a reference by hand, padding, training, the way back, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from supple.errors import AttachError, InputError
from supple.nn import insert_forget_gates_
from supple.observe.copies import clean_copy

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **more)).eval()


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(1))


def test_it_starts_as_the_model_it_was_and_goes_back_to_it() -> None:
    net, x = llama(), tokens()
    keys, want = list(net.state_dict()), net(x).logits
    gates = insert_forget_gates_(net)
    assert set(gates.gates) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    got = net(x).logits
    assert float((got - want).detach().abs().max()) < 2e-3 * float(want.detach().abs().max())
    assert not torch.equal(got, want)
    strong = insert_forget_gates_(llama(), gate_bias=30.0)
    torch.testing.assert_close(
        strong.model(x).logits, want, rtol=1e-5, atol=1e-6
    )  # f = 1 is softmax attention
    gates.detach()
    assert list(net.state_dict()) == keys
    assert torch.equal(net(x).logits, want)
    assert net.config.use_cache
    with pytest.raises(AttachError):
        gates.detach()


def open_(net: LlamaForCausalLM) -> None:
    """Gates that forget, each head and token otherwise."""
    g = torch.Generator().manual_seed(2)
    for layer in net.model.layers:
        gate = layer.self_attn.f_proj
        gate.weight.data.normal_(std=0.5, generator=g)
        gate.bias.data.normal_(1.0, generator=g)


def test_the_attention_equals_a_float64_loop_with_grouped_heads_and_rotations() -> None:
    """From q and k as they reach the attention: a pass of the same model with the attention written out."""
    net, x = llama().double(), tokens()
    insert_forget_gates_(net)
    open_(net)
    want_gate = {}

    def by_hand(
        module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> Any:
        log_f = module.supple_log_forget
        want_gate[module.layer_idx] = log_f
        out = torch.zeros_like(q)
        for h in range(4):
            for i in range(q.shape[2]):
                logits = torch.stack([
                    (q[:, h, i] * k[:, h // 2, j]).sum(-1) * scaling + log_f[:, h, j + 1 : i + 1].sum(-1)
                    for j in range(i + 1)
                ], -1)  # fmt: skip
                out[:, h, i] = torch.einsum("bj,bjd->bd", logits.softmax(-1), v[:, h // 2, : i + 1])
        return out.transpose(1, 2), None

    from transformers import AttentionInterface

    got = net(x).logits
    AttentionInterface.register("by_hand", by_hand)
    net.set_attn_implementation("by_hand")
    torch.testing.assert_close(got, net(x).logits, rtol=1e-8, atol=1e-9)
    assert set(want_gate) == {0, 1}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_says_nothing(side: str) -> None:
    net = llama()
    insert_forget_gates_(net)
    open_(net)
    x = tokens(1, 9)
    want = net(x).logits
    pad = torch.zeros(1, 5, dtype=torch.long)
    row = torch.cat([pad, x] if side == "left" else [x, pad], 1)
    mask = torch.cat([pad, torch.ones_like(x)] if side == "left" else [torch.ones_like(x), pad], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    got = net(row, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got[:, 5:] if side == "left" else got[:, :9], want, rtol=1e-4, atol=1e-5)


def test_gates_train_with_the_model_also_under_checkpointing_and_autocast() -> None:
    net, x = llama().train(), tokens(4, 16)
    insert_forget_gates_(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    gate = net.model.layers[0].self_attn.f_proj
    before, losses = gate.weight.detach().clone(), []
    for _ in range(20):
        loss = net(x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(before, gate.weight)
    net.zero_grad()
    net(x, labels=x).loss.backward()
    want = gate.weight.grad.clone()
    net.gradient_checkpointing_enable()
    net.zero_grad()
    net(x, labels=x).loss.backward()
    torch.testing.assert_close(gate.weight.grad, want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert math.isfinite(float(net(x, labels=x).loss.detach()))
    copy = llama()
    insert_forget_gates_(copy)
    copy.load_state_dict(net.state_dict())
    torch.testing.assert_close(copy(x).logits, net.eval()(x).logits)


def test_copies_that_are_looked_at_keep_the_gates() -> None:
    net, x = llama(), tokens()
    insert_forget_gates_(net)
    open_(net)
    assert torch.equal(clean_copy(net)(x).logits, net(x).logits)


def test_it_generates_without_a_cache_and_refuses_one() -> None:
    net, x = llama(), tokens(1, 5)
    want = net.generate(x, max_new_tokens=6, do_sample=False, pad_token_id=0)
    insert_forget_gates_(net, gate_bias=30.0)
    assert torch.equal(net.generate(x, max_new_tokens=6, do_sample=False, pad_token_id=0), want)
    with pytest.raises(InputError, match="no cache"):
        net.generate(x, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=True)


def test_what_has_no_form_is_refused_by_name_before_any_change() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(InputError, match=r"GPT2Attention: no q_proj.*transformer\.h\.0\.attn"):
        insert_forget_gates_(gpt)
    bert = BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(InputError, match="Llama-style"):
        insert_forget_gates_(bert)
    with pytest.raises(InputError, match="model of transformers"):
        insert_forget_gates_(torch.nn.Linear(2, 2))
    net = llama(attention_dropout=0.1)
    with pytest.raises(InputError, match="no dropout"):
        insert_forget_gates_(net)
    keys = list(net.state_dict())
    net = llama()
    for bias in (0.0, float("nan")):
        with pytest.raises(InputError, match="under 8"):
            insert_forget_gates_(net, gate_bias=bias)
    assert list(net.state_dict()) == keys
    insert_forget_gates_(net)
    with pytest.raises(InputError, match="already"):
        insert_forget_gates_(net)
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))
    insert_forget_gates_(windowed)
    with pytest.raises(InputError, match=r"sliding window|no other"):
        windowed(tokens())
    packed = torch.arange(6).repeat(2)[None]
    with pytest.raises(InputError, match="no other"):
        net(tokens(1), position_ids=packed, attention_mask=_blocks(6))


def _blocks(size: int) -> torch.Tensor:
    """Two sequences in one row, each blind for the other."""
    block = torch.ones(size, size, dtype=torch.bool).tril()
    return torch.block_diag(block, block).bool()[None, None]
