"""Golub-Kahan-Lanczos: the largest singular value of a large matrix, and the basis for quadrature.

Full reorthogonalisation, a start that depends on ``seed`` alone (the global generator is not
touched), and products in float32 (float64 for float64 input); half types are widened.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nnf

from supple.errors import InputError
from supple.functional._precision import double, single


class SingularTriplet(NamedTuple):
    """A singular value with its left and right vector."""

    sigma: Tensor
    u: Tensor
    v: Tensor


def largest_singular_value(weight: Tensor, steps: int = 40, seed: int = 0) -> SingularTriplet:
    """The largest singular value and its vectors by Golub-Kahan-Lanczos bidiagonalisation.

    Relative error on the hardest case, a square Gaussian matrix, after 20 / 40 / 60 steps: 1e-4 / 2e-8 / 2e-8
    at 1024 x 1024 and 3e-3 / 4e-5 / 1e-8 at 4096 x 4096 (power iteration at 1024, 50 steps: 7e-3).
    Never above the true value but for rounding.

    Args:
        weight: (m, n).
        steps: Krylov dimension, capped at min(m, n), at which the result is exact.
        seed: of the start vector.

    Returns:
        ``(sigma, u, v)``: scalar, (m,), (n,), sigma in float64, the vectors in the working dtype, without
        gradient; ``v`` starts `power_step`. Zero matrix: sigma 0. NaN or Inf: NaN. No entry: NaN.

    Raises:
        InputError: not a matrix, or ``steps`` < 1.

    >>> sigma, u, v = largest_singular_value(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(sigma.item(), 6)
    3.0
    """
    w = one_matrix(weight, steps)
    if w.numel() == 0:
        nan = w.new_full((1,), torch.nan)
        return SingularTriplet(double(nan[0]), nan.expand(w.shape[0]), nan.expand(w.shape[1]))
    # from the short side, so that min(m, n) steps span everything
    wide = w.shape[1] > w.shape[0]
    tall = w.mT if wide else w
    run = bidiagonalise(tall, _normal(tall.shape[1], seed, w), min(steps, *w.shape))
    finite = run.bidiagonal.isfinite().all()
    left, values, right = torch.linalg.svd(torch.where(finite, run.bidiagonal[0], 0))
    u = left[:, 0].to(w.dtype) @ run.left[0]
    v = right[0].to(w.dtype) @ run.right[0]
    if wide:
        u, v = v, u
    return SingularTriplet(*(torch.where(finite, x, torch.nan) for x in (values[0], u, v)))


class Bidiagonal(NamedTuple):
    """Krylov spaces of several starts at once: W V = U B and W^T U = V B^T + remainder."""

    bidiagonal: Tensor  # (r, k, k) upper bidiagonal, float64: W = U B V^T
    left: Tensor  # (r, k, m)
    right: Tensor  # (r, k, n)
    remainder: Tensor  # (r,) the next off-diagonal entry: how far the space is from invariant


def bidiagonalise(w: Tensor, start: Tensor, steps: int) -> Bidiagonal:
    """Golub-Kahan from each row of ``start`` (r, n).

    W v_j = a_j u_j + b_(j-1) u_(j-1) and W^T u_j = a_j v_j + b_j v_(j+1).
    """
    r = start.shape[0]
    # filled row by row: a new stack of all rows in every step would copy the whole basis each time
    right, left = start.new_empty(r, steps, w.shape[1]), start.new_empty(r, steps, w.shape[0])
    v = _unit(start)
    diagonal: list[Tensor] = []
    above: list[Tensor] = []
    # W / top is what is worked on, without a copy of W: no square leaves the range of the type
    top = largest_entry(w)
    top = torch.where(top == 0, 1, top)
    floor = 16 * torch.finfo(w.dtype).eps
    longest = top.new_zeros(r)
    for step in range(steps):
        right[:, step] = v
        u, a = _orthonormal(nnf.linear(v / top, w), left[:, :step], floor * longest)
        longest = torch.maximum(longest, a)
        left[:, step] = u
        diagonal.append(a)
        v, b = _orthonormal((u / top) @ w, right[:, : step + 1], floor * longest)
        above.append(b)
    b_matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if steps > 1:
        b_matrix = b_matrix + torch.diag_embed(torch.stack(above[:-1], -1), offset=1)
    return Bidiagonal(double(b_matrix) * double(top), left, right, double(above[-1]) * double(top))


def largest_entry(w: Tensor) -> Tensor:
    """max |w_ij| without a temporary of the size of ``w``; NaN where there is one."""
    # a transposed view would be copied first
    low, high = torch.aminmax(w.mT if w.stride(0) < w.stride(1) else w)
    return torch.maximum(low.abs(), high.abs())


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _orthonormal(x: Tensor, basis: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``x`` (r, n) made orthogonal to the basis (r, j, n), with their lengths; 0 at breakdown."""
    if basis.shape[1]:
        for _ in range(2):  # twice is enough
            # the row on the left: on CPU (PyTorch 2.13) the same product with a column takes ten times as long
            x = x - torch.bmm(torch.bmm(x[:, None], basis.mT), basis)[:, 0]
    length = torch.linalg.vector_norm(x, dim=-1)
    # NaN fails the comparison and must not turn into a clean zero
    broken = length <= floor
    x = torch.where(broken[:, None], 0, x / torch.where(broken, 1, length)[:, None])
    return x, torch.where(broken, 0, length)


def one_matrix(weight: Tensor, steps: int) -> Tensor:
    if weight.dim() != 2:
        raise InputError("this estimate needs one matrix", found=f"shape {tuple(weight.shape)}")
    if steps < 1:
        raise InputError("a Krylov space needs at least one step", found=steps)
    return single(weight.detach())


def _normal(n: int, seed: int, like: Tensor) -> Tensor:
    """One Gaussian row: unlike one of signs, it is orthogonal to no simple structure (a matrix of ones)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n, generator=generator).to(device=like.device, dtype=like.dtype)


def signs(shape: tuple[int, int], seed: int, like: Tensor) -> Tensor:
    """Rademacher rows from a generator of their own, equal on every device and rank."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, shape, generator=generator)
    return (2 * bits - 1).to(device=like.device, dtype=like.dtype)
