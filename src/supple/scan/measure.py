"""What is measured of one matrix: spectrum, ranks, norms, and whether its storage format drowns them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from supple import functional as F
from supple.errors import InputError
from supple.records import Record
from supple.scan.matrices import COARSE, Matrix
from supple.status import Status

#: name -> the quantity, in the order of the table
INSTRUMENTS = (
    "sigma_ratio", "sigma_max", "effective_rank", "stable_rank", "srank",
    "weight_norm", "weight_rms", "below_noise_floor",
)  # fmt: skip
SRANK_DELTA = 0.01
#: rms of the rounding error over the rms of the values, per unit of number spacing at 1: measured on Gaussian
#: matrices (bf16, spacing 2**-7: 1.4e-3) and near 1/sqrt(12) of the mean spacing
ROUNDING = 0.18
#: this share of singular values under the floor makes rank metrics meaningless
NOISY_SHARE = 0.01


def chosen(instruments: tuple[str, ...] | str) -> tuple[str, ...]:
    """The instruments asked for, ``"all"`` or names; an unknown name lists the known ones."""
    if instruments == "all":
        return INSTRUMENTS
    names = (instruments,) if isinstance(instruments, str) else tuple(instruments)
    unknown = [n for n in names if n not in INSTRUMENTS]
    if unknown or not names:
        raise InputError(
            "unknown instrument" if unknown else "no instrument was named",
            found=", ".join(unknown) or None,
            do=f"choose from {', '.join(INSTRUMENTS)}",
        )
    return names


def measure(matrix: Matrix, run: str, step: int, instruments: tuple[str, ...] = INSTRUMENTS) -> list[Record]:
    """Records of one matrix; an empty or non-finite one gives INVALID rows with the reason."""
    values = matrix.values

    def row(name: str, value: float, **more: Any) -> Record:
        return Record(name, value, layer=matrix.layer, part=matrix.part, run=run, step=step, **more)

    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        reason = f"{bad} of {values.numel()} values are NaN or Inf"
        return [row(name, math.nan, status=Status.INVALID.value, note=reason) for name in instruments]
    s = F.singular_values(values)
    side = min(values.shape)
    noisy = below_noise_floor(values, s, matrix.dtype)
    notes = [matrix.note, "all values are zero" if not float(s[0]) else ""]
    if noisy > NOISY_SHARE:
        notes.append(f"{noisy:.0%} of the singular values lie below the rounding noise of the storage format")
    note = "; ".join(n for n in notes if n)
    square_sum = float(s.square().sum())
    table: dict[str, list[tuple[str, float]]] = {
        "sigma_ratio": [("", float(F.spectral_concentration(s)))],
        "sigma_max": [("", float(s[0]))],
        "effective_rank": _both(float(F.effective_rank(s)), side),
        "stable_rank": _both(float(F.stable_rank(s)), side),
        "srank": [(f"delta={SRANK_DELTA}", float(F.srank(s, delta=SRANK_DELTA)))],
        "weight_norm": [("", math.sqrt(square_sum))],
        "weight_rms": [("", math.sqrt(square_sum / values.numel()))],
        "below_noise_floor": [("fraction", noisy)],
    }
    return [
        row(name, value, variant=variant, samples=side, note=note)
        for name in instruments
        for variant, value in table[name]
    ]


def _both(value: float, side: int) -> list[tuple[str, float]]:
    return [("", value), ("relative", value / side)]


def below_noise_floor(values: Tensor, s: Tensor, dtype: str) -> float:
    """Share of singular values that the rounding of the storage format alone could have made.

    A rounding error of relative size e on every entry is a random matrix with singular values up to
    ``e * rms(W) * (sqrt(m) + sqrt(n))``. Values stored in 16 bits and widened later count as 16-bit.
    """
    spacing = COARSE.get(dtype) or widened_from(values)
    if spacing is None or not float(s[0]):
        return 0.0
    m, n = values.shape
    rms = math.sqrt(float(s.square().sum()) / (m * n))
    floor = ROUNDING * spacing * rms * (math.sqrt(m) + math.sqrt(n))
    return float((s < floor).double().mean())


def widened_from(values: Tensor) -> float | None:
    """The spacing of the 16-bit format in which every value is exact, or None."""
    for name, spacing in ((torch.bfloat16, COARSE["bfloat16"]), (torch.float16, COARSE["float16"])):
        if bool((values.to(name).to(values.dtype) == values).all()):
            return spacing
    return None
