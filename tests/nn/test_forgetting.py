"""Forgetting attention against a float64 loop written from the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from supple.errors import InputError
from supple.nn import ForgettingAttention
from supple.nn.forgetting import forgetting_attention


def twin(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    """logit_ij = q_i·k_j/√d + Σ_{l=j+1..i} log f_l, j <= i, softmax over j; float64, one row at a time."""
    q, k, v, log_f = (t.double() for t in (q, k, v, log_f))
    b, h, t, d = q.shape
    rows = []
    for n in range(b):
        for m in range(h):
            kv = m // (h // k.shape[1])
            for i in range(t):
                logits = torch.stack(
                    [
                        q[n, m, i] @ k[n, kv, j] / math.sqrt(d) + log_f[n, m, j + 1 : i + 1].sum()
                        for j in range(i + 1)
                    ]
                )
                rows.append(logits.softmax(0) @ v[n, kv, : i + 1])
    return torch.stack(rows).view(b, h, t, d)


def case(dtype: torch.dtype, kv: int = 2, t: int = 12) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
    log_f = torch.nn.functional.logsigmoid(torch.randn(2, 4, t, generator=g, dtype=torch.float64) + 1)
    return make(2, 4, t, 8), make(2, kv, t, 8), make(2, kv, t, 8), log_f


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_equals_the_definition_forward_and_gradients(kv: int) -> None:
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        leaves = [t.clone().requires_grad_() for t in case(dtype, kv)[:3]]
        log_f = case(dtype, kv)[3].to(dtype).requires_grad_()
        out = forgetting_attention(*leaves, log_f.cumsum(-1))
        exact = [t.detach().double().requires_grad_() for t in (*leaves, log_f)]
        want = twin(*exact)
        torch.testing.assert_close(out.double(), want, rtol=tol, atol=tol)
        weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        got = torch.autograd.grad((out.double() * weight).sum(), [*leaves, log_f])
        ref = torch.autograd.grad((want * weight).sum(), exact)
        for a, b in zip(got, ref, strict=True):
            scale = float(b.abs().max())
            torch.testing.assert_close(a.double(), b, rtol=tol, atol=tol * max(1.0, scale))


def test_bfloat16_within_the_stated_bounds() -> None:
    q, k, v, log_f = case(torch.bfloat16, 4, t=64)
    log_f = log_f.float().requires_grad_()
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    out = forgetting_attention(*leaves, log_f.cumsum(-1))
    exact = [t.detach().double().requires_grad_() for t in (*leaves, log_f)]
    want = twin(*exact)
    relative = lambda a, b: float((a.double() - b).detach().norm() / b.detach().norm())
    assert relative(out, want) < 2e-2
    (got,) = torch.autograd.grad(out.float().sum(dim=(0, 1)).sin().sum(), [log_f])
    (ref,) = torch.autograd.grad(want.sum(dim=(0, 1)).sin().sum(), [exact[3]])
    assert relative(got, ref) < 5e-2


def test_open_gates_are_softmax_attention() -> None:
    q, k, v, _ = case(torch.float32, 4)
    out = forgetting_attention(q, k, v, torch.zeros(2, 4, 12))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pro", [False, True])
@pytest.mark.parametrize("kv", [4, 2])
def test_decoding_with_cache_equals_the_full_pass(pro: bool, kv: int) -> None:
    torch.manual_seed(0)
    layer = ForgettingAttention(32, 4, kv, pro=pro).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    full = layer(x)
    cache, pieces = None, []
    for chunk in x.split([4, 1, 1, 3], dim=1):
        out, cache = layer.decode(chunk, cache)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-10, atol=1e-12)


def test_left_and_right_padding_do_not_change_real_tokens() -> None:
    torch.manual_seed(0)
    layer = ForgettingAttention(32, 4).double()
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    want = layer(x)
    noise = torch.randn(1, 3, 32, dtype=torch.float64)
    for joined, padded, real in (
        (torch.cat([noise, x], 1), [True] * 3 + [False] * 6, slice(3, None)),
        (torch.cat([x, noise], 1), [False] * 6 + [True] * 3, slice(0, 6)),
    ):
        got = layer(joined, torch.tensor([padded]))
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got[:, real], want, rtol=1e-8, atol=1e-10)


def test_no_token_sees_the_future() -> None:
    torch.manual_seed(0)
    for pro in (False, True):
        layer = ForgettingAttention(32, 4, pro=pro)
        x = torch.randn(1, 8, 32)
        y = x.clone()
        y[:, 5:] += 1.0
        torch.testing.assert_close(layer(x)[:, :5], layer(y)[:, :5])


def test_shapes_that_do_not_fit_are_refused() -> None:
    for heads, kv_heads in ((0, None), (4, 0), (-4, None)):
        with pytest.raises(InputError, match="heads must divide dim"):
            ForgettingAttention(16, heads, kv_heads)
    for shape in ((5, 16), (1, 5, 15)):
        with pytest.raises(InputError, match="batch, tokens, dim"):
            ForgettingAttention(16, 4)(torch.randn(shape))
    with pytest.raises(InputError, match="heads must divide dim"):
        ForgettingAttention(30, 4)
    q, k, v, c = case(torch.float32, 4)
    with pytest.raises(InputError, match="do not fit"):
        forgetting_attention(q, k[:, :3], v[:, :3], c)
