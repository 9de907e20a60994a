"""What a spectrum would be by chance: of samples without structure, and of the rounding of a storage format.

A rank is small for two reasons that are nobody's collapse: too few samples (rank <= min(N, U)), and values
that drown in rounding. Both have a null to compare with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from supple.errors import InputError

#: rms of the rounding error over the rms of the values, per unit of number spacing at 1: measured on Gaussian
#: matrices (0.2116 to 0.2131 for bf16 and fp16, 96 x 200 and 1000 x 1000)
_ROUNDING = 0.2125
#: distance between neighbouring numbers at 1 of the formats whose rounding shows in a spectrum
_SPACING = {
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
    torch.float8_e4m3fn: 2.0**-3,
    torch.float8_e5m2: 2.0**-2,
}
#: mean of the Tracy-Widom law of order 1
_TRACY_WIDOM_MEAN = -1.2065335745820
_GRID = 4096  # cells of the integral of the Marchenko-Pastur density


def null_singular_values(samples: int, units: int) -> Tensor:
    """Singular values that an (N, U) matrix of independent standard normal entries has, in the limit law.

    The min(N, U) mid-quantiles of the Marchenko-Pastur law with ratio min / max; nothing is drawn. Any rank of
    them is the rank that features *without* any structure would show with so few samples: a measured rank is
    divided by it (null-corrected), so that a short probe does not look like a collapse. Against drawn matrices
    the effective rank is right to 2 % from 16 on the short side, to 0.5 % from 32 at two samples a unit.

    Args:
        samples: N >= 1 (one less where the features are centred).
        units: U >= 1.

    Returns:
        (min(N, U),) float64, descending.

    Raises:
        InputError: a side below 1.

    >>> s = null_singular_values(64, 32)
    >>> s.shape, round(float(s.square().sum()) / (64 * 32), 2)
    (torch.Size([32]), 1.0)
    """
    if min(samples, units) < 1:
        raise InputError("a matrix has at least one sample and one unit", found=f"{samples} x {units}")
    short, long = sorted((samples, units))
    ratio = short / long
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # x = low + (high - low) sin^2: the density times dx is smooth in the angle, also where the square law
    # (ratio 1) is singular at 0
    angle = (torch.arange(_GRID, dtype=torch.float64) + 0.5) * (math.pi / 2 / _GRID)
    x = low + (high - low) * angle.sin().square()
    weight = (angle.sin() * angle.cos()).square() / x
    cumulative = weight.cumsum(0) / weight.sum()
    middle = (torch.arange(short, dtype=torch.float64) + 0.5) / short
    index = torch.searchsorted(cumulative, middle).clamp(1, _GRID - 1)
    a, b = cumulative[index - 1], cumulative[index]
    share = ((middle - a) / (b - a)).clamp(0, 1)
    quantile = x[index - 1] + share * (x[index] - x[index - 1])
    return (long * quantile).sqrt().flip(0)


def null_largest_singular_value(samples: int, units: int) -> float:
    """Mean of the largest singular value of an (N, U) matrix of independent standard normal entries.

    sqrt(mu - 1.2065 tau) with mu = (sqrt(N - 1) + sqrt(U))^2 and tau = sqrt(mu) (1 / sqrt(N - 1) + 1 / sqrt(U))^(1/3):
    the Tracy-Widom law of order 1 (Johnstone 2001, theorem 1.1), -1.2065 being its mean. It lies a little below
    the edge sqrt(N) + sqrt(U). Against drawn matrices right to 1 % from 16 on the short side.

    Args:
        samples: N >= 2. units: U >= 1.

    Raises:
        InputError: a smaller side.

    >>> round(null_largest_singular_value(1024, 1024), 2), round(2 * 1024**0.5, 2)
    (63.74, 64.0)
    """
    if samples < 2 or units < 1:
        raise InputError("a spectrum needs two samples and one unit", found=f"{samples} x {units}")
    a, b = math.sqrt(samples - 1), math.sqrt(units)
    tau = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return math.sqrt((a + b) ** 2 + _TRACY_WIDOM_MEAN * tau)


def rounding_floor(rows: int, columns: int, rms: float, dtype: torch.dtype) -> float:
    """About the largest singular value that the rounding of a storage format alone makes.

    A rounding error of relative size e on every entry is a random matrix with singular values up to about
    e * rms(W) * (sqrt(m) + sqrt(n)). Singular values below it say nothing about the weight: an exact rank-5
    matrix stored in bf16 has srank 47. An estimate for entries of one scale; rows and columns of very different
    scale go beyond it (1.4 times on a product of Gaussian factors of rank 5).

    Args:
        rows, columns: the shape of the matrix.
        rms: root mean square of its entries.
        dtype: the format that it was stored in.

    Returns:
        >= 0, in the unit of the singular values; 0 for float32 and wider, whose rounding does not show.

    >>> round(rounding_floor(512, 512, 1.0, torch.bfloat16), 4), rounding_floor(512, 512, 1.0, torch.float32)
    (0.0751, 0.0)
    """
    spacing = _SPACING.get(dtype, 0.0)
    return _ROUNDING * spacing * rms * (math.sqrt(rows) + math.sqrt(columns))
