"""Curvature of the loss: Gauss-Newton and empirical-Fisher spectra from the kernel, the top of the Hessian.

Shapes: N samples, C outputs per sample, P parameters. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double


def ggn_spectrum(kernel: Tensor, loss_hessians: Tensor) -> Tensor:
    """Non-zero spectrum of the generalised Gauss-Newton matrix sum_n J_n^T H_n J_n, from the full NTK.

    With K = J J^T of all outputs (N C, N C) and H = blockdiag(H_n), J^T H J and H^(1/2) K H^(1/2) have the same
    non-zero eigenvalues (Schraudolph 2002; the identity, not an approximation). For a cross-entropy this is the
    Fisher information; nothing of the size of P is built.

    Args:
        kernel: (N C, N C), row n C + c, as `supple.ntk` with ``kind="full"`` gives it.
        loss_hessians: (N, C, C), the second derivative of the *whole* loss with respect to the outputs of sample
            n (a mean over samples carries its 1/N here). Positive semi-definite, as a loss convex in its outputs
            has them; a negative part is cut off.

    Returns:
        (N C,) descending, >= 0. NaN throughout for NaN or Inf.

    Raises:
        InputError: shapes that do not fit.

    >>> k = torch.diag(torch.tensor([2.0, 1.0]))
    >>> ggn_spectrum(k, torch.full((2, 1, 1), 0.5)).round(decimals=6).tolist()
    [1.0, 0.5]
    """
    h = double(loss_hessians)
    n, c = _samples(kernel, h, 3)
    finite = kernel.isfinite().all() & h.isfinite().all()
    values, vectors = torch.linalg.eigh(torch.where(finite, h, 0))
    root = vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT  # (N, C, C)
    blocks = torch.where(finite, double(kernel), 0).reshape(n, c, n, c)
    weighted = torch.einsum("iab,ibjd,jde->iaje", root, blocks, root).reshape(n * c, n * c)
    spectrum = torch.linalg.eigvalsh((weighted + weighted.mT) / 2).clamp(min=0).flip(-1)
    return torch.where(finite, spectrum, torch.nan)


def gradient_gram(kernel: Tensor, loss_gradients: Tensor) -> Tensor:
    """Products of per-sample loss gradients, from the full NTK: <g_n, g_m> = r_n^T K_nm r_m.

    g_n = J_n^T r_n with r_n the derivative of sample n's loss with respect to its outputs. The cosines of this
    matrix are the gradient covariance of Lyle et al. 2023; its eigenvalues over N are those of the empirical
    Fisher (1/N) sum_n g_n g_n^T.

    Args:
        kernel: (N C, N C), row n C + c.
        loss_gradients: (N, C).

    Returns:
        (N, N) float64.

    >>> gradient_gram(torch.eye(2), torch.tensor([[1.0], [-2.0]])).diagonal().tolist()
    [1.0, 4.0]
    """
    r = double(loss_gradients)
    n, c = _samples(kernel, r, 2)
    return torch.einsum("ia,iajb,jb->ij", r, double(kernel).reshape(n, c, n, c), r)


def fisher_spectrum(kernel: Tensor, loss_gradients: Tensor) -> Tensor:
    """Non-zero spectrum of the empirical Fisher (1/N) sum_n g_n g_n^T, from the full NTK.

    The *empirical* Fisher has the gradients at the given targets; the Fisher information itself is
    `ggn_spectrum` of a cross-entropy.

    Args:
        kernel, loss_gradients: as in `gradient_gram`.

    Returns:
        (N,) descending, >= 0. NaN throughout for NaN or Inf.

    >>> fisher_spectrum(torch.eye(2), torch.tensor([[1.0], [-2.0]])).tolist()
    [2.0, 0.5]
    """
    gram = gradient_gram(kernel, loss_gradients)
    finite = gram.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, (gram + gram.mT) / 2, 0))
    return torch.where(finite, values.clamp(min=0).flip(-1) / gram.shape[0], torch.nan)


def _samples(kernel: Tensor, per_sample: Tensor, dims: int) -> tuple[int, int]:
    """N and C; a kernel that is not (N C, N C) is refused."""
    size = per_sample.shape[0] * per_sample.shape[1] if per_sample.dim() == dims else -1
    if kernel.shape != (size, size) or (dims == 3 and per_sample.shape[1] != per_sample.shape[2]):
        raise InputError(
            "the kernel must have a row for every output of every sample",
            found=f"kernel {tuple(kernel.shape)}, per sample {tuple(per_sample.shape)}",
        )
    return per_sample.shape[0], per_sample.shape[1]


class Eigenvalue(NamedTuple):
    """An extreme eigenvalue with its error; see `largest_eigenvalue`."""

    value: Tensor  #: float64 scalar
    error: Tensor  #: residual |A x - value x| of its Ritz pair: an eigenvalue of A lies within it
    steps: int  #: products that were made


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int = 20, tolerance: float = 1e-3
) -> Eigenvalue:
    """The largest (signed) eigenvalue of a symmetric matrix that is known by its products, by Lanczos.

    For the Hessian of a loss, ``product`` is one Hessian-vector product (Pearlmutter 1994). Full
    reorthogonalisation in the dtype of ``start``; the three-term matrix in float64. Unlike power iteration it
    finds the largest eigenvalue also where a negative one is larger in size, and says how far off it may be.

    Args:
        product: v (P,) -> A v (P,).
        start: (P,) non-zero.
        steps: most products that are made, >= 1.
        tolerance: stop where the residual is below this share of the value.

    Returns:
        `Eigenvalue`; never above the true value. NaN where a product is NaN or Inf.

    Raises:
        InputError: ``start`` is not a non-empty, non-zero vector, or ``steps`` < 1.

    >>> a = torch.diag(torch.tensor([3.0, 1.0, -5.0]))
    >>> found = largest_eigenvalue(lambda v: a @ v, torch.ones(3))
    >>> round(float(found.value), 4), found.steps
    (3.0, 3)
    """
    if start.dim() != 1 or not bool(start.ne(0).any()) or steps < 1:
        raise InputError(
            "Lanczos needs a non-zero start vector and at least one step",
            found=f"shape {tuple(start.shape)}, {steps} steps",
        )
    basis = [start / torch.linalg.vector_norm(start)]
    alpha: list[Tensor] = []
    beta: list[Tensor] = []
    for step in range(1, steps + 1):
        w = product(basis[-1])
        if not bool(w.isfinite().all()):
            nan = double(start.new_full((), torch.nan))
            return Eigenvalue(nan, nan, step)
        alpha.append(double(torch.dot(w, basis[-1])))
        q = torch.stack(basis)
        for _ in range(2):  # twice is enough
            w = w - q.mT @ (q @ w)
        length = torch.linalg.vector_norm(w)
        values, vectors = torch.linalg.eigh(_tridiagonal(alpha, beta))
        beta.append(double(length))
        error = beta[-1] * vectors[-1, -1].abs()
        floor = torch.finfo(start.dtype).eps * 16 * values.abs().amax()
        if bool(beta[-1] <= floor) or bool(error <= tolerance * values[-1].abs()) or len(basis) == len(start):
            return Eigenvalue(values[-1], error, step)
        basis.append(w / length)
    return Eigenvalue(values[-1], error, steps)


def _tridiagonal(alpha: list[Tensor], beta: list[Tensor]) -> Tensor:
    t = torch.diag(torch.stack(alpha))
    if beta:
        off = torch.stack(beta)
        t = t + torch.diag(off, 1) + torch.diag(off, -1)
    return t
