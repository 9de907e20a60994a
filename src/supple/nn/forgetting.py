"""Forgetting attention: causal softmax attention whose logits decay by a learned gate per head.

Shape letters: B batch, H query heads, K key/value heads, T queries, S keys, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.errors import InputError

#: added to the logit of a padded key; finite, so that a row of padding alone stays finite
PADDED = -1e9


def forgetting_attention(
    q_BHTd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, decay_BHS: Tensor, padded_BS: Tensor | None = None
) -> Tensor:
    """Causal attention with logits q·k/√d + (c_i - c_j), where c is the running sum of log forget gates.

    Lin, Nikishin, He & Courville 2025 (arXiv 2503.02130). Softmax ignores what is constant in a row, so
    c_i drops out and -c_j rides along as one more key column: q' = [q/√d, 1], k' = [k, -c_j]. That is
    exact on every fused causal kernel, O(T) in memory, and gives the gate its gradient through k'.
    In 16-bit types -c_j is split over three columns (value, remainder, remainder of the remainder).

    Args:
        q_BHTd: queries of the last T of S positions.
        k_BKSd, v_BKSd: keys and values; K divides H.
        decay_BHS: c_j = Σ_{l≤j} log f_l per query head, float32 or float64.
        padded_BS: True where a key is padding.

    Returns:
        (B, H, T, d), the dtype of ``q_BHTd``.

    Raises:
        InputError: head counts or lengths that do not fit.

    >>> q, k, v = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), torch.eye(2, 4)[None, None]
    >>> c = torch.tensor([[[0.0, -1e4]]])  # everything before the second token is forgotten
    >>> forgetting_attention(q, k, v, c)[0, 0, 1].tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    heads, kv_heads, length, keys = q_BHTd.shape[1], k_BKSd.shape[1], q_BHTd.shape[2], k_BKSd.shape[2]
    if heads % kv_heads or length > keys or decay_BHS.shape != (q_BHTd.shape[0], heads, keys):
        raise InputError(
            "queries, keys and gates do not fit",
            found=f"q {tuple(q_BHTd.shape)}, k {tuple(k_BKSd.shape)}, decay {tuple(decay_BHS.shape)}",
            do="give H query heads, K dividing H, T <= S, one decay per query head and key",
        )
    size, dtype = q_BHTd.shape[-1], q_BHTd.dtype
    if kv_heads != heads:
        k_BKSd = k_BKSd.repeat_interleave(heads // kv_heads, dim=1)
        v_BKSd = v_BKSd.repeat_interleave(heads // kv_heads, dim=1)
    bias = -decay_BHS
    if padded_BS is not None:
        bias = bias.masked_fill(padded_BS[:, None, :], PADDED)
    columns = _columns(bias, dtype)
    extra = -(-(size + columns.shape[-1]) // 8) * 8 - size  # fused kernels want a multiple of 8
    pad = extra - columns.shape[-1]
    query = torch.cat([q_BHTd * size**-0.5, q_BHTd.new_ones(*q_BHTd.shape[:3], columns.shape[-1])], dim=-1)
    query, key = F.pad(query, (0, pad)), F.pad(torch.cat([k_BKSd, columns], dim=-1), (0, pad))
    value = F.pad(v_BKSd, (0, extra))
    if length == keys:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    else:
        allowed = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=1.0)
    return out[..., :size]


def _columns(bias_BHS: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias as key columns: one in 32 and 64 bit, three in 16 bit so that their sum is exact enough."""
    first = bias_BHS.to(dtype)
    if dtype not in (torch.bfloat16, torch.float16):
        return first.unsqueeze(-1)
    rest = (bias_BHS - first.to(bias_BHS.dtype)).detach()
    second = rest.to(dtype)
    third = (rest - second.to(rest.dtype)).to(dtype)
    return torch.stack([first, second, third], dim=-1)


@dataclass(frozen=True)
class ForgettingCache:
    """What decoding keeps: keys, values, running gate sums, padding, and the last unshifted key and value."""

    key: Tensor
    value: Tensor
    decay: Tensor
    padded: Tensor | None
    last_key: Tensor | None = None
    last_value: Tensor | None = None


class ForgettingAttention(nn.Module):
    """Multi-head causal self-attention with a forget gate f = σ(w·x + b) per head and token.

    Gate weights start at N(0, 0.02²) and its bias at ``gate_bias``: 0 as in the authors' code (half-life
    of one token), 8 or more to start as softmax attention. No position encoding is needed. ``pro`` adds
    the Pro block: RMS norm of queries and keys per head, data-dependent shift of keys and values, and a
    normalised, gated output. Gate logits and running sums are kept in float32.

    Args:
        dim: model width, divisible by ``heads``.
        heads: query heads. ``kv_heads`` (default the same) divides it.

    >>> layer = ForgettingAttention(16, heads=4)
    >>> layer(torch.randn(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        bias: bool = False,
        gate_bias: float = 0.0,
        pro: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(dim, heads, kv_heads) < 1 or dim % heads or heads % kv_heads:
            raise InputError(
                "heads must divide dim and kv_heads must divide heads",
                found=f"dim {dim}, heads {heads}, kv_heads {kv_heads}",
            )
        self.heads, self.kv_heads, self.size, self.pro = heads, kv_heads, dim // heads, pro
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, kv_heads * self.size, bias=bias)
        self.v_proj = nn.Linear(dim, kv_heads * self.size, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.f_proj = nn.Linear(dim, heads)
        nn.init.normal_(self.f_proj.weight, std=0.02)
        nn.init.constant_(self.f_proj.bias, gate_bias)
        if pro:
            self.q_scale = nn.Parameter(torch.ones(heads, 1, self.size))
            self.k_scale = nn.Parameter(torch.ones(kv_heads, 1, self.size))
            self.out_scale = nn.Parameter(torch.ones(heads, 1, self.size))
            self.shift_proj = nn.Linear(dim, 2 * kv_heads)
            self.gate_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, padded_BT: Tensor | None = None) -> Tensor:
        """Attend over the sequence; rows of padding come out as zeros of no meaning to the loss."""
        return self.decode(x_BTD, None, padded_BT)[0]

    def decode(
        self, x_BTD: Tensor, cache: ForgettingCache | None = None, padded_BT: Tensor | None = None
    ) -> tuple[Tensor, ForgettingCache]:
        """Attend to the cached positions and the new ones; the cache grows by the new ones."""
        if x_BTD.dim() != 3 or x_BTD.shape[-1] != self.q_proj.in_features:
            raise InputError(
                "the layer reads (batch, tokens, dim)",
                found=tuple(x_BTD.shape),
                do=f"give dim {self.q_proj.in_features}",
            )
        q, k, v = (self._split(p(x_BTD)) for p in (self.q_proj, self.k_proj, self.v_proj))
        last_key, last_value = k[:, :, -1:], v[:, :, -1:]
        if self.pro:
            k, v = self._shift(x_BTD, k, v, cache)
            q, k = _rms(q) * self.q_scale, _rms(k) * self.k_scale
        log_forget = F.logsigmoid(self.f_proj(x_BTD).to(_wide(x_BTD.dtype))).transpose(1, 2)
        if padded_BT is not None:
            log_forget = log_forget.masked_fill(padded_BT[:, None, :], 0.0)
        decay = log_forget.cumsum(-1)
        padded = padded_BT
        if cache is not None:
            decay = decay + cache.decay[..., -1:]
            k, v = torch.cat([cache.key, k], dim=2), torch.cat([cache.value, v], dim=2)
            decay = torch.cat([cache.decay, decay], dim=2)
            padded = _join(cache.padded, padded_BT, cache.key.shape[2], x_BTD)
        out = forgetting_attention(q, k, v, decay, padded)
        if self.pro:
            out = _rms(out) * self.out_scale
        out = out.transpose(1, 2).flatten(2)
        if self.pro:
            out = out * torch.sigmoid(self.gate_proj(x_BTD))
        return self.o_proj(out), ForgettingCache(k, v, decay, padded, last_key, last_value)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).transpose(1, 2)

    def _shift(self, x: Tensor, k: Tensor, v: Tensor, cache: ForgettingCache | None) -> tuple[Tensor, Tensor]:
        """k_t <- a k_{t-1} + (1 - a) k_t, and the same for values, with a = σ(linear x) per head."""
        mix = torch.sigmoid(self.shift_proj(x)).transpose(1, 2).unsqueeze(-1)
        result = []
        for current, a, last in zip(
            (k, v),
            mix.chunk(2, dim=1),
            (None, None) if cache is None else (cache.last_key, cache.last_value),
            strict=True,
        ):
            start = torch.zeros_like(current[:, :, :1]) if last is None else last
            before = torch.cat([start, current[:, :, :-1]], dim=2)
            result.append(a * before + (1 - a) * current)
        return result[0], result[1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _join(old: Tensor | None, new: Tensor | None, past: int, x: Tensor) -> Tensor | None:
    """Padding of the cached and the new positions together."""
    if old is None and new is None:
        return None
    blank = {"dtype": torch.bool, "device": x.device}
    old = torch.zeros(x.shape[0], past, **blank) if old is None else old  # type: ignore[arg-type]
    new = torch.zeros(x.shape[0], x.shape[1], **blank) if new is None else new  # type: ignore[arg-type]
    return torch.cat([old, new], dim=1)
