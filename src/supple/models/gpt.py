"""A small decoder-only transformer: pre-norm blocks, fused QKV, plain or gated MLP.

Shape letters: B batch, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.errors import InputError
from supple.nn import ForgettingAttention


class SelfAttention(nn.Module):
    """Causal softmax attention with one fused projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError("heads must divide dim", found=f"dim {dim}, heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """gelu MLP, or the gated one: down(silu(gate(x)) * up(x)) (Shazeer 2020, SwiGLU)."""

    def __init__(self, dim: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.act = nn.SiLU() if gated else nn.GELU()
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int, gated: bool, attention: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention: nn.Module = (
            ForgettingAttention(dim, heads) if attention == "forgetting" else SelfAttention(dim, heads)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden, gated)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Token logits (B, T, V) from token ids (B, T).

    Args:
        vocabulary: number of tokens.
        attention: ``"softmax"`` with learned positions, or ``"forgetting"``, which needs none.
        gated: SwiGLU instead of the gelu MLP.
        tied: the head shares the embedding matrix.

    >>> GPT(256, dim=32, depth=1, heads=2, context=16)(torch.zeros(2, 16, dtype=torch.long)).shape
    torch.Size([2, 16, 256])
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        context: int = 128,
        hidden: int | None = None,
        gated: bool = False,
        tied: bool = True,
        attention: str = "softmax",
    ) -> None:
        super().__init__()
        if attention not in ("softmax", "forgetting"):
            raise InputError(f"unknown attention {attention!r}", do='choose "softmax" or "forgetting"')
        self.context = context
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(context, dim) if attention == "softmax" else None
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden or 4 * dim, gated, attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.apply(_normal)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        if length > self.context:
            raise InputError("the sequence is longer than the context", found=f"{length} > {self.context}")
        x = self.embedding(tokens_BT)
        if self.position is not None:
            x = x + self.position(torch.arange(length, device=tokens_BT.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _normal(module: nn.Module) -> None:
    """N(0, 0.02²) weights and zero biases, as in GPT-2."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
