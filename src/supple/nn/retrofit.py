"""Forget gates for a pretrained model: Llama-style attention of `transformers`, unchanged at the start.

Shape letters: B batch, H query heads, T queries, S keys, D model width, d head size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.errors import AttachError, InputError
from supple.nn.forgetting import forgetting_attention

NAME = "supple_forgetting"  # in the attention registry of transformers
GATE = "f_proj"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
LEAST_BIAS = 8.0  # below it the gates forget enough to change what the model was trained to do


class ForgetGates:
    """The gates in a model: their layers by the name of the attention, and the way back."""

    def __init__(self, model: Any, names: list[str], before: tuple[str, Any, Any], hooks: list[Any]) -> None:
        self.model, self.names = model, names
        self._before, self._hooks = before, hooks

    @property
    def gates(self) -> dict[str, nn.Linear]:
        """Name of the attention -> its gate projection."""
        return {n: self.model.get_submodule(f"{n}.{GATE}") for n in self.names}  # type: ignore[misc]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights and biases of all gates."""
        for gate in self.gates.values():
            yield from gate.parameters()

    def detach(self) -> None:
        """Take the gates out; the model attends as it did before, its other weights stay as they are."""
        if not self._hooks:
            raise AttachError("the gates are out already")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name in self.names:
            delattr(self.model.get_submodule(name), GATE)
        implementation, cache, generation = self._before
        self.model.set_attn_implementation(implementation)
        _set_cache(self.model, cache, generation)


def insert_forget_gates_(model: Any, gate_bias: float = LEAST_BIAS) -> ForgetGates:
    """Turn the softmax attention of a Llama-style model into forgetting attention that starts as it was.

    Each attention gets ``f_proj``, a linear layer from the hidden state to one gate logit per query head, with
    weights 0 and the given bias, in float32; f = σ(f_proj(x)) and the logits of
    `supple.nn.forgetting.forgetting_attention`. At bias 8 a key of 1,000 tokens ago loses 0.34 of its logit, and a
    loss moves in the fourth digit (measured on a model of 135 M parameters: 3.8044 against 3.8048). Positions stay
    as they are. The gates are part of the model: its parameters, its state dict, what an optimizer trains (their
    gradient is small where f is near 1: with plain SGD give them a rate of their own). `from_pretrained` does not
    know them: insert them into the loaded model, then load the state dict.

    Args:
        model: of `transformers`, with attention modules that have q_proj, k_proj, v_proj and o_proj and go
            through its attention registry (Llama, Mistral without a window, Qwen, SmolLM, …).
        gate_bias: at least 8.

    Returns:
        `ForgetGates`. Decoding runs without a cache (``use_cache`` is switched off until `ForgetGates.detach`).

    Raises:
        InputError: another kind of attention (GPT-2 packs its projections), gates that are there already, attention
            dropout, or a bias under 8; nothing has been changed then. During a forward pass: a cache that holds
            keys, a sliding window shorter than the sequence, or a mask that is neither causal nor padding.
    """
    if not gate_bias >= LEAST_BIAS:
        raise InputError(
            "a gate bias under 8 changes the pretrained model", found=gate_bias, do="give 8 or more"
        )
    found = _attentions(model)
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = (model.config._attn_implementation, *_set_cache(model, False, False))
    model.set_attn_implementation(NAME)
    hooks = []
    for module in found.values():
        weight = module.q_proj.weight
        gate = nn.Linear(module.q_proj.in_features, module.q_proj.out_features // module.head_dim,
                         device=weight.device)  # fmt: skip
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, gate_bias)
        module.add_module(GATE, gate.train(module.training))
        hooks.append(module.register_forward_pre_hook(_sum_gates, with_kwargs=True))
    return ForgetGates(model, list(found), before, hooks)


def _attentions(model: nn.Module) -> dict[str, Any]:
    """Name -> attention that can be given gates; a refusal names what was found instead."""
    if not hasattr(model, "set_attn_implementation"):
        raise InputError("forget gates go into a model of transformers", found=type(model).__name__)
    every = {
        n: m for n, m in model.named_modules() if type(m).__name__.endswith(("Attention", "SelfAttention"))
    }
    for name, module in every.items():
        lacks = [p for p in PROJECTIONS if not hasattr(module, p)]
        registry = hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")
        if (
            lacks
            or not registry
            or not getattr(module, "is_causal", False)
            or not hasattr(module, "head_dim")
        ):
            why = (
                f"no {', '.join(lacks)}"
                if lacks
                else "it is not causal attention by the registry of transformers"
            )
            raise InputError(
                "forget gates go into Llama-style attention, with q_proj, k_proj, v_proj and o_proj",
                found=f"{type(module).__name__}: {why}", where=name,
            )  # fmt: skip
        if hasattr(module, GATE):
            raise InputError("the attention has forget gates already", where=name)
        if getattr(module, "attention_dropout", 0.0):
            raise InputError("forgetting attention has no dropout", found=module.attention_dropout, where=name,
                             do="set attention_dropout of the configuration to 0")  # fmt: skip
    if not every:
        raise InputError("the model has no attention", found=type(model).__name__)
    return every


def _set_cache(model: nn.Module, config: Any, generation: Any) -> tuple[Any, Any]:
    """Set ``use_cache`` of both configurations, and say what it was."""
    found = []
    owners: list[Any] = [model.config, getattr(model, "generation_config", None)]
    for owner, value in zip(owners, (config, generation), strict=True):
        found.append(getattr(owner, "use_cache", None))
        if owner is not None:
            owner.use_cache = value
    return found[0], found[1]


def _sum_gates(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave c_t = Σ_{l≤t} log f_l where the attention function, which does not see hidden states, finds it."""
    x_BTD = args[0] if args else kwargs["hidden_states"]
    gate = getattr(module, GATE)
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    with torch.autocast(x_BTD.device.type, enabled=False):
        logits = F.linear(x_BTD.to(wide), gate.weight.to(wide), gate.bias.to(wide))
    module.supple_log_forget = F.logsigmoid(logits).transpose(1, 2)


_sum_gates.part_of_the_model = True  # type: ignore[attr-defined]  # copies of the model keep it


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What `transformers` calls in place of its softmax attention: (B, T, H, d)."""
    log_forget = module.supple_log_forget
    del module.supple_log_forget
    length, keys = query.shape[2], key.shape[2]
    if dropout:
        raise InputError("forgetting attention has no dropout", found=dropout)
    if length != keys:
        raise InputError("forget gates have no cache", found=f"{length} queries, {keys} keys",
                         do="pass use_cache=False")  # fmt: skip
    window = kwargs.get("sliding_window")
    if window and window < keys:
        raise InputError("forget gates have no sliding window", found=f"{window} of {keys} positions")
    padded = None if attention_mask is None else _padding(attention_mask)
    if padded is not None:
        log_forget = log_forget.masked_fill(padded[:, None, :], 0.0)
    if scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    out = forgetting_attention(query, key, value, log_forget.cumsum(-1), padded)
    return out.transpose(1, 2).contiguous(), None


def _padding(mask_B1TS: Tensor) -> Tensor:
    """(B, S) the padded keys of a mask that lets a token see itself and all before it that are no padding."""
    length = mask_B1TS.shape[-1]
    mask = mask_B1TS if mask_B1TS.dtype == torch.bool else mask_B1TS == 0
    square = mask.shape[-2] == length
    seen = mask[:, 0].diagonal(dim1=-2, dim2=-1)  # a token that does not see itself is padding
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    expected = causal & seen[:, None, :]
    rows = seen[:, None, :, None]  # what a padded query sees means nothing
    if not square or bool(((mask != expected[:, None]) & rows).any()):
        raise InputError(
            "forget gates know a causal mask with padding, and no other", found=tuple(mask.shape)
        )
    return ~seen
