"""What is measured of one matrix: spectrum, ranks, norms, and whether its storage format drowns them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from supple import functional as F
from supple.errors import InputError
from supple.records import Record
from supple.scan.matrices import COARSE, EXACT_SIDE, Matrix
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


def measure(
    matrix: Matrix, run: str, step: int, instruments: tuple[str, ...] = INSTRUMENTS, estimate: bool = False
) -> list[Record]:
    """Records of one matrix; an empty or non-finite one gives INVALID rows with the reason.

    ``estimate`` takes `supple.functional.estimated_spectrum_statistics` where the short side is longer than
    `EXACT_SIDE`; what needs the whole spectrum is not measured there.
    """
    values = matrix.values

    def row(name: str, value: float, **more: Any) -> Record:
        return Record(name, value, layer=matrix.layer, part=matrix.part, run=run, step=step, **more)

    # NaN where there is one; a mask of all values takes twenty times as long
    low, high = torch.aminmax(values)
    if not bool(low.isfinite() & high.isfinite()):
        bad = values.numel() - int(torch.isfinite(values).sum())
        reason = f"{bad} of {values.numel()} values are NaN or Inf"
        return [row(name, math.nan, status=Status.INVALID.value, note=reason) for name in instruments]
    side = min(values.shape)
    if (estimate or matrix.estimate) and side > EXACT_SIDE:
        return _estimated(matrix, run, step, instruments)
    s = F.singular_values(values)
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
        "weight_rms": [("", math.sqrt(square_sum / math.prod(matrix.size)))],
        "below_noise_floor": [("fraction", noisy)],
    }
    return [
        row(name, value, variant=variant, samples=side, note=note)
        for name in instruments
        for variant, value in table[name]
    ]


def _estimated(matrix: Matrix, run: str, step: int, instruments: tuple[str, ...]) -> list[Record]:
    """Records with the relative error that the estimate states of itself."""
    values, side = matrix.values, min(matrix.values.shape)
    found = F.estimated_spectrum_statistics(values)
    size = float(found.frobenius_norm)
    notes = [matrix.note, "all values are zero" if not size else ""]
    rank, top, nuclear = (float(v) for v in (found.effective_rank, found.sigma_max, found.nuclear_norm))
    rank_error, top_error, nuclear_error = (
        float(e) / v if v else 0.0
        for e, v in (
            (found.effective_rank_error, rank), (found.sigma_max_error, top), (found.nuclear_norm_error, nuclear),
        )
    )  # fmt: skip
    if size and not rank_error:
        more = _hidden(values, matrix.dtype, size / nuclear)
        nuclear_error, rank_error = nuclear_error + more[0], more[1]
    table: dict[str, tuple[list[tuple[str, float]], float]] = {
        "sigma_ratio": ([("", top / nuclear if nuclear else 0.0)], top_error + nuclear_error),
        "sigma_max": ([("", top)], top_error),
        "effective_rank": (_both(rank, side), rank_error),
        "stable_rank": (_both(float(found.stable_rank), side), 2 * top_error),
        "weight_norm": ([("", size)], 0.0),
        "weight_rms": ([("", size / math.sqrt(math.prod(matrix.size)))], 0.0),
    }
    note = "; ".join(n for n in notes if n)
    rows: list[Record] = []
    for name in instruments:
        if name not in table:
            rows.append(
                Record(name, math.nan, layer=matrix.layer, part=matrix.part, run=run, step=step,
                       status=Status.NOT_MEASURED.value, note="it needs the whole spectrum; leave the estimate out")
            )  # fmt: skip
            continue
        forms, error = table[name]
        rows += [
            Record(name, value, layer=matrix.layer, part=matrix.part, variant=variant, run=run, step=step,
                   error=error, samples=side, note=note)
            for variant, value in forms
        ]  # fmt: skip
    return rows


def _hidden(values: Tensor, dtype: str, flatness: float) -> tuple[float, float]:
    """Relative errors of nuclear norm and effective rank of a matrix that a few directions seem to hold in full.

    The rounding of a 16-bit format adds k small directions that float32 products cannot tell from nothing: a share
    p = sqrt(k) * rounding * ||W||_F / S of the nuclear norm S, and at most p (ln(k / p) + 1) of entropy.
    """
    spacing = COARSE.get(dtype) or widened_from(values)
    if spacing is None:
        return 0.0, 0.0
    k = min(values.shape)
    share = min(1.0, math.sqrt(k) * ROUNDING * spacing * flatness)
    return share, math.expm1(share * (math.log(k / share) + 1))


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
