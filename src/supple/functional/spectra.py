"""Singular values: all of them, exactly; the largest, quickly; the ranks of huge matrices, with an error.

Matrices are (..., m, n) unless said otherwise; convolution kernels go through `weight_matrix` first. NaN or
Inf in a matrix gives NaN (torch itself raises on one and returns NaN on the other). No gradient flows
through these functions except through the ``sigma`` of `power_step`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nnf

from supple.errors import InputError
from supple.functional._precision import double, single

#: short sides up to this take one Gram product; beyond it, half of a blocked one (the Gram is symmetric)
_PLAIN_SIDE = 512
_ROW_BLOCK = 512
_CHUNK = 2048  # of the long side held in float64 at a time


def weight_matrix(weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """The matrix, or one per group, that a weight acts as on one position.

    A convolution kernel (O, I, k...) becomes (O, I * k...). Its largest singular value is a lower bound on
    the norm of the convolution: sigma <= ||conv|| <= sqrt(kh kw) sigma at stride 1. A grouped or depthwise
    kernel becomes one matrix per group, since a single one over all groups means nothing. A transposed
    convolution stores (I, O / groups, k...) and is swapped first.

    Args:
        weight: (O, I) or (O, I / groups, k...); (I, O / groups, k...) if ``transposed``.
        groups: of the convolution.
        transposed: True for ConvTranspose.

    Returns:
        (O, I * k...), or (groups, O / groups, I / groups * k...) where ``groups`` > 1.

    Raises:
        InputError: fewer than two axes, or a first axis that ``groups`` does not divide.

    >>> weight_matrix(torch.zeros(6, 2, 3, 3)).shape, weight_matrix(torch.zeros(6, 2, 3, 3), groups=3).shape
    (torch.Size([6, 18]), torch.Size([3, 2, 18]))
    >>> weight_matrix(torch.zeros(4, 6, 5), transposed=True).shape
    torch.Size([6, 20])
    """
    if weight.dim() < 2:
        raise InputError("a weight matrix needs at least two axes", found=f"shape {tuple(weight.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(
            "groups must divide the first axis of the weight", found=f"{groups} of {weight.shape[0]}"
        )
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    if transposed:
        grouped = grouped.transpose(1, 2)
    matrices = grouped.flatten(2)
    return matrices.squeeze(0) if groups == 1 else matrices


def singular_values(weight: Tensor) -> Tensor:
    """All singular values, descending, from the float64 Gram matrix of the short side.

    sqrt(eigvalsh(W W^T)), with W W^T accumulated in float64 over chunks of the long side, so that there is
    no float64 copy of W. Resolves down to 1.5e-8 of the largest value (a float32 SVD: 1.2e-7) and is 2 to 5
    times faster. A float64 matrix goes to ``svdvals``, whose resolution is 2e-16.

    Args:
        weight: (..., m, n), any float dtype; m or n may be 0. Weights rounded to bf16 have rounding noise
            that looks like extra directions.

    Returns:
        (..., min(m, n)) in float64, non-negative. NaN for every matrix that has a NaN or Inf.

    Raises:
        InputError: fewer than two axes.

    >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    if weight.dim() < 2:
        raise InputError(
            "singular values need a matrix", found=f"shape {tuple(weight.shape)}", do="use weight_matrix"
        )
    w = weight.detach()
    if w.shape[-2] > w.shape[-1]:
        w = w.mT
    if w.shape[-2] == 0:
        return double(w.new_empty(w.shape[:-1]))
    if w.dtype == torch.float64:
        finite = w.isfinite().all(-1).all(-1)
        s = torch.linalg.svdvals(torch.where(finite[..., None, None], w, 0))
        return torch.where(finite[..., None], s, torch.nan)
    gram = _gram(w)
    # the diagonal holds sums of squares: finite exactly where every entry of its row is
    finite = gram.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)
    squares = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0))
    s = squares.clamp(min=0).sqrt().flip(-1)
    return torch.where(finite[..., None], s, torch.nan)


def _gram(w: Tensor) -> Tensor:
    """W W^T in float64 of (..., m, n) with m <= n; only the lower triangle is right for large m."""
    m, n = w.shape[-2:]
    if m <= _PLAIN_SIDE or w.dim() > 2:
        total = double(w.new_zeros((*w.shape[:-1], m)))
        for start in range(0, n, _CHUNK):
            part = double(w[..., start : start + _CHUNK])
            total = total + part @ part.mT
        return total
    edges = list(range(0, m, _ROW_BLOCK))
    rows = [double(w.new_zeros(min(_ROW_BLOCK, m - i), min(i + _ROW_BLOCK, m))) for i in edges]
    for start in range(0, n, _CHUNK):
        part = double(w[:, start : start + _CHUNK])
        rows = [
            torch.addmm(row, part[i : i + _ROW_BLOCK], part[: i + _ROW_BLOCK].mT)
            for i, row in zip(edges, rows, strict=True)
        ]
    return torch.cat([nnf.pad(row, (0, m - row.shape[1])) for row in rows])


class PowerStep(NamedTuple):
    """One warm-started power step: an estimate of the largest singular value and its vectors."""

    sigma: Tensor  #: u . W v, never above the true value; differentiable in W alone
    u: Tensor  #: (m,) left vector
    v: Tensor  #: (n,) right vector, to start the next step from; (r, n) for a block


def power_step(weight: Tensor, v: Tensor, steps: int = 1) -> PowerStep:
    """Warm-started power iteration for penalties: sigma = u . (W v), with d sigma / d W = u v^T.

    Per step u = W v / |W v|, v = W^T u / |W^T u|; the vector is kept between training steps. One warm step
    has a median error of 2e-4; started cold it is 30 % low and its gradient points nowhere (a noisy weight
    decay), so take the first ``v`` from `largest_singular_value`, again after a reset or a load. A block
    ``v`` (r, n), r = 4, iterates with QR and cuts the 95th percentile of the error 12 to 100 times.

    Args:
        weight: (m, n), float32 or better (half types are widened); keep autocast off around the call.
        v: (n,) or (r, n), non-zero; detached.
        steps: power iterations, at least 1.

    Returns:
        ``(sigma, u, v)``; sigma follows the gradient mode and ``weight``, u and v never require grad. W = 0
        gives sigma 0 and leaves ``v`` as it was. NaN in, NaN out.

    Raises:
        InputError: shapes that do not fit, or ``steps`` < 1.

    >>> w = torch.diag(torch.tensor([3.0, 1.0]))
    >>> step = power_step(w, torch.tensor([1.0, 1.0]), steps=20)
    >>> round(step.sigma.item(), 6), step.v.round(decimals=6).tolist()
    (3.0, [1.0, 0.0])
    """
    if weight.dim() != 2 or v.shape[-1:] != weight.shape[-1:] or v.dim() not in (1, 2):
        raise InputError(
            "power_step needs a matrix (m, n) and a vector (n,) or block (r, n)",
            found=f"{tuple(weight.shape)} and {tuple(v.shape)}",
        )
    if steps < 1:
        raise InputError("power_step needs at least one step", found=steps)
    w = single(weight)
    with torch.no_grad():
        iterate = _iterate_vector if v.dim() == 1 else _iterate_block
        u, leading, v = iterate(w, v.detach().to(w.dtype))
        for _ in range(steps - 1):
            u, leading, v = iterate(w, v)
    return PowerStep(torch.dot(u, torch.mv(w, leading)), u, v)


def _iterate_vector(w: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, _ = _unit(torch.mv(w, v))
    new, norm = _unit(torch.mv(w.mT, u))
    new = torch.where(norm == 0, v, new)
    return u, new, new


def _iterate_block(w: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ``v`` span the guess. Thin products are several times faster on rows than on columns."""
    u, _ = torch.linalg.qr(nnf.linear(v, w).mT)  # (m, r)
    q, r = torch.linalg.qr((u.mT @ w).mT)  # (n, r), W^T U = Q R
    a, _, bt = torch.linalg.svd(r)
    new = (q @ a).mT
    new = torch.where(r.abs().amax() == 0, v, new)
    return u @ bt[0], new[0], new


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / |x|, |x|), zero where x is zero."""
    # Tensor.norm() over a whole float32 matrix is off by 0.3 % on CPU; over a vector it is not
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1, norm), norm


def spectral_norm_bounds(weight: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Bounds on the norm of a stride-1 convolution: sigma_1 of the kernel matrix, and sqrt(positions) times.

    Args:
        weight: (O, I, k...), one group.
        positions: number of kernel taps, kh * kw (at stride s: the product of ceil(k / s)).

    >>> low, high = spectral_norm_bounds(torch.ones(1, 1, 3, 3), positions=9)
    >>> low.item(), high.item()
    (3.0, 9.0)
    """
    sigma = singular_values(weight_matrix(weight))[..., 0]
    return sigma, sigma * positions**0.5
