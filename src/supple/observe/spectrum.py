"""Instruments on the spectra of weights: all singular values, the ranks read from them, and what is noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from supple import functional as F
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.views import LayerView
from supple.observe.weights import EMBEDDING_TABLE, merged_notes, tied_to
from supple.records import Record
from supple.status import Status

EXACT_SIDE = 2048  # short side up to which the exact spectrum is computed
#: share of singular values under the rounding floor above which ranks are flagged
NOISY_SHARE = 0.01
SINGULAR = ("sigma_ratio", "sigma_max", "sigma_min")
#: name -> variant
RANKS = {"effective_rank": "", "stable_rank": "", "participation_ratio": "", "srank": "delta=0.01"}
SPECTRAL = (*SINGULAR, *RANKS, "below_noise_floor")
_POOLED = {"sigma_max": max, "sigma_min": min}


@instrument("spectrum", "standard", ["weights"], SPECTRAL)
def spectrum(probe: Probe) -> Iterable[Record]:
    """Spectrum of each weight matrix, the numbers read from it, and the share of it that is rounding noise.

    ``sigma_ratio`` is s_1 / sum s; ``relative`` variants are divided by min(m, n). Grouped convolutions: a
    row per group (``part``) and their mean. A tied weight is measured once. Pooled rows: the mean over hidden
    layers, for ``sigma_max`` the largest and for ``sigma_min`` the smallest. Above 2048 on the short side the
    values are estimates with their error. ``below_noise_floor`` is the share of singular values that the
    rounding of a 16-bit storage format alone could have made (``floor``: that value itself).
    """
    pooled: dict[tuple[str, str], list[float]] = {}
    tied = tied_to(probe.matrices)
    for view in probe.matrices:
        for row in _layer_rows(probe, view, tied.get(view.name, "")):
            yield row
            hidden = not view.layer.output and not view.table
            if hidden and row.part == view.part and row.status == "measured" and row.variant != "floor":
                pooled.setdefault((row.instrument, row.variant), []).append(row.value)
    for name, variant in pooled or {(n, ""): [] for n in SPECTRAL}:
        values = pooled.get((name, variant), [])
        if not values:
            yield probe.unmeasured(name, "no hidden layer with a readable spectrum", variant=variant)
            continue
        merge = _POOLED.get(name, lambda v: sum(v) / len(v))
        yield probe.record(name, merge(values), variant=variant, note=f"over {len(values)} hidden layers")


def _layer_rows(probe: Probe, view: LayerView, tied: str) -> Iterator[Record]:
    reason = tied or _unreadable(view)
    if reason:
        yield from (probe.unmeasured(n, reason, view) for n in SPECTRAL)
        return
    matrix = view.matrix
    assert matrix is not None
    note = EMBEDDING_TABLE if view.table else ""
    if min(matrix.shape[-2:]) > EXACT_SIDE:
        yield from _estimated(probe, view, matrix, note)
        return
    s = F.singular_values(matrix)
    if bool(s.isnan().any()):
        invalid = str(Status.INVALID)
        yield from (
            probe.unmeasured(n, "the weight holds NaN or Inf", view, status=invalid) for n in SPECTRAL
        )
        return
    link = probe.keep("spectrum", view, s)
    if s.ndim == 1:
        yield from _numbers(probe, view, s, note, array=link)
        return
    for group, values in enumerate(s):
        yield from _numbers(probe, view, values, note, part=f"group{group}")
    yield from _numbers(probe, view, s, merged_notes(note, f"mean over {len(s)} groups"), array=link)


def _unreadable(view: LayerView) -> str:
    if view.matrix is None or view.matrix.numel() == 0:
        return "it has no weight matrix that can be read"
    if min(view.matrix.shape[-2:]) == 1:
        return "one row or column (depthwise, or a single unit): the spectrum is a single number"
    return ""


def _numbers(probe: Probe, view: LayerView, s: Tensor, note: str, **fields: str) -> Iterator[Record]:
    """The rows of a spectrum (k,), or of the means over groups of several (g, k)."""
    matrix = view.matrix
    assert matrix is not None
    k = s.shape[-1]
    rms = s.square().sum(-1).div(matrix.shape[-2] * matrix.shape[-1]).sqrt()
    floor = rms * F.rounding_floor(matrix.shape[-2], matrix.shape[-1], 1.0, matrix.dtype)
    noisy = (s < floor[..., None]).double().mean()
    if float(noisy) > NOISY_SHARE:
        note = merged_notes(
            note, f"{float(noisy):.0%} of the singular values lie below the rounding noise of {matrix.dtype}"
        )
    if not bool(s.any()):
        note = merged_notes(note, "every value is zero")
    rows = [("sigma_max", "", s[..., 0].mean()), ("sigma_min", "", s[..., -1].mean())]
    rows += [(n, v, value.mean()) for n, v, value in ranks(s)]
    for name, variant, value in rows:
        yield probe.record(name, value, view, variant=variant, note=note, samples=k, **fields)
    yield probe.record("below_noise_floor", noisy, view, note=note, samples=k, **fields)
    yield probe.record(
        "below_noise_floor", floor.mean(), view, variant="floor", note=note, samples=k, **fields
    )


def ranks(s: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """(name, variant, value) of what is read from singular values (..., k), relative ranks included."""
    found = F.spectrum_statistics(s)
    yield "sigma_ratio", "", found.spectral_concentration
    for name, variant in RANKS.items():
        value: Tensor = getattr(found, name)
        yield name, variant, value
        yield name, f"{variant},relative" if variant else "relative", value / s.shape[-1]


def _estimated(probe: Probe, view: LayerView, matrix: Tensor, note: str) -> Iterator[Record]:
    """What stochastic Lanczos quadrature gives, with its error; the rest costs too much."""
    k = min(matrix.shape[-2:])
    if matrix.ndim > 2:
        yield from (probe.unmeasured(n, "groups this large are not estimated", view) for n in SPECTRAL)
        return
    e = F.estimated_spectrum_statistics(matrix, seed=probe.seed)
    if matrix.dtype in (torch.float16, torch.bfloat16):
        note = merged_notes(note, f"{matrix.dtype} weight: small values are rounding noise")
    note = merged_notes(note, "stochastic Lanczos estimate")
    largest = float(e.sigma_max_error / e.sigma_max)
    nuclear = float(e.nuclear_norm_error / e.nuclear_norm)
    values = (
        ("sigma_ratio", float(e.sigma_max / e.nuclear_norm), nuclear + largest),
        ("sigma_max", float(e.sigma_max), largest),
        ("effective_rank", float(e.effective_rank), float(e.effective_rank_error / e.effective_rank)),
        ("stable_rank", float(e.stable_rank), 2 * largest),
        (
            "participation_ratio",
            float(e.participation_ratio),
            float(e.participation_ratio_error / e.participation_ratio),
        ),
    )
    for name, value, error in values:
        yield probe.record(name, value, view, note=note, samples=k, error=error)
        if name in RANKS:
            yield probe.record(name, value / k, view, variant="relative", note=note, samples=k, error=error)
    for name in ("sigma_min", "srank", "below_noise_floor"):
        yield probe.unmeasured(name, f"needs the exact spectrum; {k} is above {EXACT_SIDE}", view)
