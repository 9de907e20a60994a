"""Statistics of kernels: the NTK, gradient covariances, any symmetric positive semi-definite matrix.

Shapes: N samples, M rows of a kernel (N, or N * C for a full NTK), P parameters. All in float64. A kernel
with NaN or Inf gives NaN; no jitter is ever added.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double, readable
from supple.functional.ranks import effective_rank, srank

_ASYMMETRY = 1e-6  # of the largest entry; a kernel built in float32 stays below
_NEGATIVE = 1e-5  # of the largest eigenvalue


class KernelStatistics(NamedTuple):
    """What a kernel says about the batch; see `kernel_statistics`."""

    rank99: Tensor  #: least number of eigenvalues that hold 99 % of the trace, in [1, M]
    effective_rank: Tensor  #: exp-entropy of the eigenvalues, in [1, M]
    condition: Tensor  #: largest over smallest eigenvalue, in [1, inf]
    mean_cosine: Tensor  #: mean of K_ij / sqrt(K_ii K_jj) over i != j, in [-1, 1]
    trace: Tensor  #: sum of the eigenvalues, >= 0


def kernel_statistics(kernel: Tensor) -> KernelStatistics:
    """99 % rank, effective rank, condition number, mean cosine and trace of a kernel matrix.

    ``rank99`` is the approximate rank of the C-CHAIN paper (Tang et al. 2025): the least k whose k largest
    singular values of K hold 99 %; of K, not of the Jacobian, whose count is far larger. It grows with the
    number of samples: compare at one fixed probe. Ranks, condition and cosine do not change when K is
    rescaled. ``condition`` is inf where the smallest eigenvalue is below the float64 noise M * eps * largest.
    ``mean_cosine`` near 1 means that all samples pull the parameters the same way.

    Args:
        kernel: (M, M), symmetric positive semi-definite, any float dtype.

    Returns:
        `KernelStatistics` of float64 scalars. All NaN for NaN or Inf, and for M = 0. An all-zero kernel has
        ranks and trace 0, condition and cosine NaN. A row with K_ii = 0 has no direction and is left out of
        the cosine; with fewer than two rows left it is NaN.

    Raises:
        InputError: not square, or (where values can be read, not under ``vmap``) not symmetric or with
            clearly negative eigenvalues.

    >>> s = kernel_statistics(torch.diag(torch.tensor([3.0, 1.0])))
    >>> [round(float(x), 4) for x in s]
    [2.0, 1.7548, 3.0, 0.0, 4.0]
    """
    k = _symmetric(kernel)
    nan = k.new_full((), torch.nan)
    if k.shape[0] == 0:
        return KernelStatistics(nan, nan, nan, nan, nan)
    values = _eigenvalues(k)
    top, low = values[0], values[-1]
    noise = top * k.shape[0] * torch.finfo(k.dtype).eps
    condition = torch.where(top > 0, top / torch.where(low > noise, low, 0), torch.nan)
    trace = torch.where(values.isnan().any(), torch.nan, k.diagonal().sum())
    return KernelStatistics(
        srank(values, delta=0.01), effective_rank(values), condition, mean_cosine(k), trace
    )


def kernel_spectrum(kernel: Tensor) -> Tensor:
    """Eigenvalues of a kernel, descending, float64, rounding noise below zero set to zero.

    Args:
        kernel: (M, M), as in `kernel_statistics`, which lists the errors too.

    Returns:
        (M,); NaN throughout for a kernel with NaN or Inf.

    >>> kernel_spectrum(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).round(decimals=6).tolist()
    [3.0, 1.0]
    """
    return _eigenvalues(_symmetric(kernel))


def mean_cosine(kernel: Tensor) -> Tensor:
    """Mean of K_ij / sqrt(K_ii K_jj) over ordered pairs i != j with K_ii, K_jj > 0.

    Args:
        kernel: (M, M), as in `kernel_statistics`.

    Returns:
        float64 scalar in [-1, 1]; NaN with fewer than two rows that have a direction, and for NaN or Inf.

    >>> mean_cosine(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).item()
    0.5
    """
    cosine = normalise_kernel(kernel, by="diagonal")
    has = (cosine.diagonal() != 0).to(cosine.dtype)  # 1 on the diagonal, or 0; NaN counts and spreads
    rows = has.sum()
    pairs = rows * (rows - 1)
    total = cosine.sum() - cosine.diagonal().sum()
    return torch.where(pairs > 0, total / torch.where(pairs > 0, pairs, 1), torch.nan)


def normalise_kernel(kernel: Tensor, by: str = "trace") -> Tensor:
    """A kernel without its scale: K / tr K, or K_ij / sqrt(K_ii K_jj).

    K grows with the squared weight norms: normalise before comparing kernels of different moments.

    Args:
        kernel: (M, M).
        by: "trace" or "diagonal" (cosines; a row with K_ii = 0 becomes zero).

    Returns:
        (M, M) float64; NaN for a zero trace, and for NaN or Inf in ``kernel``.

    >>> normalise_kernel(torch.diag(torch.tensor([3.0, 1.0]))).diagonal().tolist()
    [0.75, 0.25]
    """
    k = _symmetric(kernel)
    if by == "trace":
        return k / k.diagonal().sum()
    if by != "diagonal":
        raise InputError("unknown normalisation of a kernel", found=by, do='use "trace" or "diagonal"')
    scale = k.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale == 0, 0, 1 / torch.where(scale == 0, 1, scale))
    cosine = k * inverse[:, None] * inverse[None, :]
    return torch.where(k.isfinite().all(), cosine, torch.nan)


def centre_kernel(kernel: Tensor) -> Tensor:
    """H K H with H = I - 11^T / M: the kernel of features minus their mean over the samples.

    Args:
        kernel: (M, M).

    Returns:
        (M, M) float64, rows and columns summing to zero.

    >>> centre_kernel(torch.ones(3, 3)).abs().max().item()
    0.0
    """
    k = _symmetric(kernel)
    return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()


def gradient_cosines(per_sample: Tensor) -> Tensor:
    """Cosines between per-sample loss gradients: the gradient covariance matrix of Lyle et al. 2023.

    Not the NTK, which has unnormalised products of *output* gradients; the two are often called the same.

    Args:
        per_sample: (N, P), one flattened loss gradient per sample.

    Returns:
        (N, N) float64 in [-1, 1]; a zero gradient has a zero row. NaN for NaN or Inf.

    >>> gradient_cosines(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]))[0].tolist()
    [1.0, 0.0, -1.0]
    """
    if per_sample.dim() != 2:
        raise InputError(
            "per-sample gradients are a matrix (samples, parameters)", found=f"{tuple(per_sample.shape)}"
        )
    g = double(per_sample)
    length = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    g = g / torch.where(length == 0, 1, length)
    return torch.where(g.isfinite().all(), (g @ g.mT).clamp(-1, 1), torch.nan)


def _symmetric(kernel: Tensor) -> Tensor:
    """The kernel in float64; not square or, where values can be read, not symmetric is an error."""
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1]:
        raise InputError("a kernel is a square matrix", found=f"shape {tuple(kernel.shape)}")
    k = double(kernel)
    if k.numel() and readable(k):
        gap = (k - k.mT).abs().amax()
        if bool(gap > _ASYMMETRY * k.abs().amax()):
            raise InputError("a kernel is symmetric", found=f"entries that differ by {float(gap):.3g}")
    return k


def _eigenvalues(k: Tensor) -> Tensor:
    finite = k.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, k, 0)).flip(-1)
    if values.numel() and readable(values) and bool(values[-1] < -_NEGATIVE * values[0].abs()):
        raise InputError(
            "a kernel is positive semi-definite",
            found=f"eigenvalues from {float(values[-1]):.3g} to {float(values[0]):.3g}",
        )
    return torch.where(finite, values.clamp(min=0), torch.nan)
