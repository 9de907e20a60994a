"""How many directions a spectrum has: soft and hard counts, named by formula.

Each takes singular values s on the last axis, (..., k), in any order and float dtype, computes in float64
and returns (...). Common rules: NaN or Inf gives NaN; no value at all (k = 0) gives NaN, since nothing was
measured; an all-zero spectrum has rank 0; a negative value raises InputError (a ValueError), or gives
NaN under ``vmap``, where values cannot be read. All are unchanged when s is rescaled, and

    stable <= participation <= energy effective <= effective <= k,    stable <= nuclear <= effective.

Baselines at initialisation are far from k (a square Gaussian matrix: effective 0.805 n, srank 0.896 n,
stable n / 4): compare with the same network when fresh, never with k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double, refuse_negative

#: relative slack of the cumulative sum in `srank`: float64 rounding, not a change of the definition
_TIE = 1e-10


class SpectrumStatistics(NamedTuple):
    """What is read from one spectrum, each as the function of that name; see `spectrum_statistics`."""

    spectral_concentration: Tensor
    effective_rank: Tensor
    stable_rank: Tensor
    participation_ratio: Tensor
    srank: Tensor


def spectrum_statistics(singular_values: Tensor, delta: float = 0.01) -> SpectrumStatistics:
    """`spectral_concentration`, `effective_rank`, `stable_rank`, `participation_ratio` and `srank` at once.

    The values are those of the functions; the spectrum is checked and scaled once.

    Args:
        singular_values: (..., k).
        delta: of `srank`.

    Returns:
        `SpectrumStatistics` of (...) float64 tensors.

    >>> spectrum_statistics(torch.tensor([2.0, 1.0])).stable_rank.item()
    1.25
    """
    s, zero = _spectrum(singular_values)
    energy = s.square()
    total, square = s.sum(-1), energy.sum(-1)
    return SpectrumStatistics(
        torch.where(zero, torch.nan, 1 / total),
        _rank(_exp_entropy(s), zero),
        _rank(square, zero),
        _rank(square.square() / energy.square().sum(-1), zero),
        _count((s, zero), delta),
    )


def effective_rank(singular_values: Tensor) -> Tensor:
    """Entropy effective rank: exp(H(p)) with p_i = s_i / sum_j s_j.

    Roy & Vetterli 2007. A soft count of directions, in [1, k]. A square i.i.d. Gaussian matrix has about
    0.805 n. Some code reports the entropy itself under this name.

    >>> round(effective_rank(torch.ones(8)).item(), 6)
    8.0
    """
    s, zero = _spectrum(singular_values)
    return _rank(_exp_entropy(s), zero)


def energy_effective_rank(singular_values: Tensor) -> Tensor:
    """Entropy effective rank of the energies: exp(H(p)) with p_i = s_i^2 / sum_j s_j^2, in [1, k].

    Its logarithm is the von Neumann entropy of the normalised Gram matrix.

    >>> round(energy_effective_rank(torch.tensor([2.0, 1.0])).item(), 4)
    1.6494
    """
    s, zero = _spectrum(singular_values)
    return _rank(_exp_entropy(s.square()), zero)


def stable_rank(singular_values: Tensor) -> Tensor:
    """Stable rank: sum_i s_i^2 / s_1^2 = ||W||_F^2 / ||W||_2^2, in [1, k].

    A square Gaussian matrix has about n / 4. Not the 99 % count that some papers call stable rank: that is
    `srank`.

    >>> stable_rank(torch.tensor([2.0, 1.0])).item()
    1.25
    """
    s, zero = _spectrum(singular_values)
    return _rank(s.square().sum(-1), zero)


def srank(singular_values: Tensor, delta: float = 0.01) -> Tensor:
    """srank_delta: the least k whose k largest values hold 1 - delta of sum_i s_i.

    Kumar et al. 2021 (of the features of the last hidden layer, uncentred). Ties are decided with a relative
    slack of 1e-10, so that n equal values give ceil((1 - delta) n).

    Args:
        singular_values: (..., k).
        delta: share left out, in [0, 1).

    Returns:
        (...), float64 holding a whole number in [1, k], 0 for a zero matrix, NaN as in the module's rules.

    >>> srank(torch.ones(100)).item(), srank(torch.tensor([9.0, 0.9, 0.05])).item()
    (99.0, 2.0)
    """
    return _count(_spectrum(singular_values), delta)


def pca_rank(singular_values: Tensor, delta: float = 0.01) -> Tensor:
    """The least k whose k largest values hold 1 - delta of sum_i s_i^2 (Yang et al. 2019).

    Also called approximate rank.

    >>> pca_rank(torch.tensor([9.0, 0.9, 0.05])).item()
    1.0
    """
    s, zero = _spectrum(singular_values)
    return _count((s.square(), zero), delta)


def participation_ratio(singular_values: Tensor) -> Tensor:
    """Participation ratio: (sum_i s_i^2)^2 / sum_i s_i^4 = ||W||_F^4 / ||W^T W||_F^2, in [1, k].

    >>> participation_ratio(torch.tensor([2.0, 1.0])).item() == 25 / 17
    True
    """
    s, zero = _spectrum(singular_values)
    energy = s.square()
    return _rank(energy.sum(-1).square() / energy.square().sum(-1), zero)


def nuclear_rank(singular_values: Tensor) -> Tensor:
    """Nuclear rank: sum_i s_i / s_1, in [1, k]; the reciprocal of `spectral_concentration`.

    >>> nuclear_rank(torch.tensor([2.0, 1.0])).item()
    1.5
    """
    s, zero = _spectrum(singular_values)
    return _rank(s.sum(-1), zero)


def spectral_concentration(singular_values: Tensor) -> Tensor:
    """Share of the largest value: s_1 / sum_i s_i, in [1/k, 1]; high where the spectrum has collapsed.

    A weak detector: 10 equal directions out of 100, and one of 10 beside 99 ones, both give about 0.1 with
    effective ranks of 10 and 88. Report it beside `effective_rank` and `stable_rank`. A square Gaussian
    matrix has 2.356 / n.

    Returns:
        (...). An all-zero spectrum has no largest share: NaN, since 0 would read as perfectly spread.

    >>> round(spectral_concentration(torch.tensor([2.0, 1.0])).item(), 6)
    0.666667
    """
    s, zero = _spectrum(singular_values)
    return torch.where(zero, torch.nan, 1 / s.sum(-1))


def numerical_rank(
    singular_values: Tensor, larger_side: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numerical rank: #{i : s_i > max(m, n) * eps * s_1}.

    Args:
        singular_values: (..., k).
        larger_side: max(m, n) of the matrix; default k (right for square ones).
        dtype: the dtype that the matrix was stored in, whose eps decides. Weights rounded to bf16 have
            far larger noise than float32: pass what they were rounded to.

    >>> numerical_rank(torch.tensor([1.0, 0.5, 1e-9])).item()
    2.0
    """
    s, zero = _spectrum(singular_values)
    tolerance = (larger_side or s.shape[-1]) * torch.finfo(dtype).eps
    count = (s > tolerance).to(s.dtype).sum(-1)
    return _rank(torch.where(s.isnan().any(-1), torch.nan, count), zero)


def _spectrum(singular_values: Tensor) -> tuple[Tensor, Tensor]:
    """(s / s_1 in float64, NaN where unusable; True where all are zero)."""
    if singular_values.dim() < 1:
        raise InputError("a spectrum needs an axis of singular values", found="a scalar")
    s = refuse_negative(double(singular_values), "a singular value")
    if s.shape[-1] == 0:
        s = s.new_full((*s.shape[:-1], 1), torch.nan)
    s = torch.where(s.isfinite().all(-1, keepdim=True), s, torch.nan)
    top = s.amax(-1, keepdim=True)
    zero = (top == 0).squeeze(-1)
    return s / torch.where(top == 0, 1, top), zero


def _rank(value: Tensor, zero: Tensor) -> Tensor:
    return torch.where(zero, 0, value)


def _exp_entropy(mass: Tensor) -> Tensor:
    total = mass.sum(-1, keepdim=True)
    p = mass / torch.where(total == 0, 1, total)
    return torch.exp(-torch.special.xlogy(p, p).sum(-1))


def _count(spectrum: tuple[Tensor, Tensor], delta: float) -> Tensor:
    if not 0 <= delta < 1:
        raise InputError("delta is the share of the spectrum left out, in [0, 1)", found=delta)
    mass, zero = spectrum
    held = mass.sort(-1, descending=True).values.cumsum(-1)
    enough = (1 - delta) * held[..., -1:] * (1 - _TIE)
    count = (held < enough).to(mass.dtype).sum(-1) + 1
    return _rank(torch.where(held[..., -1].isnan(), torch.nan, count), zero)
