"""Terms that keep weights trainable, one tensor at a time; the caller sums over tensors and multiplies.

No coefficient is inside unless the formula has one. Differentiable; float32 or better inside; NaN and Inf
pass through, so that a broken loss stays visible. A tensor without entries gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double, single


def spectral_penalty(sigma: Tensor, k: float = 2) -> Tensor:
    """Spectral regularisation: sum (sigma^k - 1)^2 over the given largest singular values.

    Lewandowski et al. 2025 (arXiv 2406.06811): one sigma_1 per weight matrix, k = 2, plain sum over layers.
    The scale vector of a normalisation is a diagonal matrix: pass |gamma|, each entry counts. sigma = 0 is
    stationary for k >= 2: a matrix of zeros is never revived.

    Args:
        sigma: (...), largest singular values, e.g. ``power_step(...).sigma``.
        k: exponent; the authors tried 1, 2, 4, 8.

    >>> spectral_penalty(torch.tensor([1.0, 2.0])).item()
    9.0
    """
    return (single(sigma).pow(k) - 1).square().sum()


def bias_penalty(bias: Tensor, k: float = 2) -> Tensor:
    """The bias term of spectral regularisation: ||b||^(2k) = (sum b^2)^k, target 0.

    A bias has one singular value, its norm. Written so that it is differentiable at 0. The exponent 2k is
    that of three independent re-implementations; a survey prints k (use k / 2 for that).

    >>> bias_penalty(torch.tensor([1.0, 1.0])).item()
    4.0
    """
    return single(bias).square().sum().pow(k)


def l2_penalty(weight: Tensor) -> Tensor:
    """||theta||^2, without the factor 1/2.

    >>> l2_penalty(torch.tensor([3.0, 4.0])).item()
    25.0
    """
    return single(weight).square().sum()


def l2_init_penalty(weight: Tensor, initial: Tensor) -> Tensor:
    """||theta - theta_0||^2 with theta_0 the actual initial draw.

    Kumar, Marklund & Van Roy 2023 (arXiv 2308.11958). The official code has an extra factor 1/2.

    Raises:
        InputError: shapes that differ.

    >>> l2_init_penalty(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])).item()
    9.0
    """
    return (single(weight) - single(_alike(weight, initial)).detach()).square().sum()


def wasserstein_penalty(weight: Tensor, initial: Tensor) -> Tensor:
    """||sort(theta) - sort(theta_0)||^2: n times the squared empirical 2-Wasserstein distance of the entries.

    Lewandowski et al. 2023 (arXiv 2312.00246). Keeps the distribution of a tensor's entries, not their
    places; the sum, not the mean, so its coefficient depends on the number of entries.

    Raises:
        InputError: shapes that differ.

    >>> wasserstein_penalty(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])).item()
    4.0
    """
    now = single(weight).flatten().sort().values
    then = single(_alike(weight, initial)).detach().flatten().sort().values
    return (now - then).square().sum()


def parseval_penalty(weight: Tensor, scale: float = 1.0) -> Tensor:
    """||W W^T - s I||_F^2, on the short side of W.

    Chung et al. 2024 multiply by (64 / width)^2 and use s = gain^2 (2 for an orthogonal initialisation with
    gain sqrt 2). W W^T of a matrix with more rows than columns can never be s I, so the short side is used.

    Args:
        weight: (m, n); see `weight_matrix` for kernels.
        scale: s.

    Raises:
        InputError: not a matrix.

    >>> parseval_penalty(torch.eye(3)).item(), parseval_penalty(torch.eye(3), scale=2.0).item()
    (0.0, 3.0)
    """
    if weight.dim() != 2:
        raise InputError("the Parseval term needs a matrix", found=f"shape {tuple(weight.shape)}")
    w = single(weight)
    if w.shape[0] > w.shape[1]:
        w = w.mT
    gram = w @ w.mT
    return (gram - scale * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).square().sum()


def feature_rank_penalty(features: Tensor) -> Tensor:
    """sigma_max(Phi)^2 - sigma_min(Phi)^2 of a feature matrix.

    Kumar et al. 2021 (arXiv 2010.14498). Eigenvalues of the float64 Gram matrix of the short side, whose
    gradient stays finite; with fewer samples than features sigma_min is that of the samples. Reported
    unstable: it can collapse features.

    Args:
        features: (N, d), uncentred.

    Returns:
        float64 scalar >= 0; NaN for NaN or Inf in the features.

    Raises:
        InputError: not a matrix.

    >>> feature_rank_penalty(torch.diag(torch.tensor([3.0, 1.0]))).item()
    8.0
    """
    if features.dim() != 2:
        raise InputError("features are a matrix (samples, features)", found=f"shape {tuple(features.shape)}")
    phi = double(features)
    if phi.shape[0] > phi.shape[1]:
        phi = phi.mT
    if phi.numel() == 0:
        return phi.sum()
    gram = phi @ phi.mT
    finite = gram.diagonal().isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, gram, 0))
    return torch.where(finite, values[-1] - values[0], torch.nan)


def _alike(weight: Tensor, initial: Tensor) -> Tensor:
    if weight.shape != initial.shape:
        raise InputError(
            "a weight is compared with its own initial value",
            found=f"shapes {tuple(weight.shape)} and {tuple(initial.shape)}",
        )
    return initial
