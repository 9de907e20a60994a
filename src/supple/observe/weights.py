"""Instruments on weights: spectra and the ranks read from them, norms and their growth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from supple import functional as F
from supple.observe.instruments import instrument
from supple.observe.outputs import square_sum
from supple.observe.probe import Probe
from supple.observe.views import LayerView
from supple.records import Record
from supple.status import Status
from supple.topology.taps import plain_name

EXACT_SIDE = 2048  # short side up to which the exact spectrum is computed
_ABSOLUTE = ("sigma_ratio", "sigma_max", "sigma_min")
SPECTRAL = (*_ABSOLUTE, "effective_rank", "stable_rank", "srank")
_HALF = (torch.float16, torch.bfloat16)


@instrument("weight_norm", "economy", ["weights"], ["weight_norm", "weight_rms"])
def weight_norm(probe: Probe) -> Iterable[Record]:
    """Frobenius norm and root mean square of each weight; growth against a reference where there is one."""
    twin = probe.reference.twin(0) if probe.reference is not None else None
    fresh = (
        {} if twin is None else {plain_name(n): p for n, p in twin.named_parameters(remove_duplicate=False)}
    )
    total = total_fresh = 0.0
    count = 0
    for view in probe.layers:
        if view.weight is None:
            yield probe.unmeasured("weight_norm", "its weight could not be read", view)
            continue
        square = float(square_sum(view.weight))
        size = view.weight.numel()
        yield probe.record("weight_norm", square**0.5, view)
        yield probe.record("weight_rms", (square / size) ** 0.5 if size else float("nan"), view)
        total, count = total + square, count + size
        if view.layer.weight in fresh:
            before = float(square_sum(view.cut(fresh[view.layer.weight])))
            total_fresh += before
            growth = (square / before) ** 0.5 if before else float("nan")
            yield probe.record("weight_norm", growth, view, variant="growth")
    if not count:
        yield probe.unmeasured("weight_norm", "no layer with a weight was found")
        return
    yield probe.record("weight_norm", total**0.5)
    yield probe.record("weight_rms", (total / count) ** 0.5)
    if total_fresh:
        yield probe.record("weight_norm", (total / total_fresh) ** 0.5, variant="growth")


@instrument("spectrum", "standard", ["weights"], SPECTRAL)
def spectrum(probe: Probe) -> Iterable[Record]:
    """Spectrum of each weight matrix and six numbers read from it.

    ``sigma_ratio`` is s_1 / sum s; ``relative`` variants are divided by min(m, n). Grouped convolutions: a
    row per group (``part``) and their mean. Pooled rows: the mean over hidden layers, for ``sigma_max``
    the largest and for ``sigma_min`` the smallest. Above 2048 on the short side the values are estimates
    with their error.
    """
    pooled: dict[tuple[str, str], list[float]] = {}
    for view in probe.layers:
        for row in _layer_rows(probe, view):
            yield row
            hidden = not view.layer.output and view.layer.kind != "embedding"
            if hidden and row.part == view.part and row.status == "measured":
                pooled.setdefault((row.instrument, row.variant), []).append(row.value)
    for name, variant in pooled or {(n, ""): [] for n in SPECTRAL}:
        values = pooled.get((name, variant), [])
        if not values:
            yield probe.unmeasured(name, "no hidden layer with a readable spectrum", variant=variant)
            continue
        merge = {"sigma_max": max, "sigma_min": min}.get(name, lambda v: sum(v) / len(v))
        yield probe.record(name, merge(values), variant=variant, note=f"over {len(values)} hidden layers")


def _layer_rows(probe: Probe, view: LayerView) -> Iterator[Record]:
    matrix = view.matrix
    if matrix is None or matrix.numel() == 0:
        yield from (probe.unmeasured(n, "it has no weight matrix that can be read", view) for n in SPECTRAL)
        return
    short = min(matrix.shape[-2:])
    if short == 1:
        reason = "one row or column (depthwise, or a single unit): the spectrum is a single number"
        yield from (probe.unmeasured(n, reason, view) for n in SPECTRAL)
        return
    note = f"{matrix.dtype} weight: small values are rounding noise" if matrix.dtype in _HALF else ""
    if short > EXACT_SIDE:
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
    yield from _numbers(
        probe, view, s, "; ".join(x for x in (note, f"mean over {len(s)} groups") if x), array=link
    )


def _numbers(probe: Probe, view: LayerView, s: Tensor, note: str, **fields: str) -> Iterator[Record]:
    """The six numbers of a spectrum (k,), or their means over groups (g, k)."""
    k = s.shape[-1]
    ratio = F.spectral_concentration(s).mean()
    plain = zip(_ABSOLUTE, (ratio, s[..., 0].mean(), s[..., -1].mean()), strict=True)
    ranks = (
        ("effective_rank", "", F.effective_rank(s).mean()),
        ("stable_rank", "", F.stable_rank(s).mean()),
        ("srank", "delta=0.01", F.srank(s, delta=0.01).double().mean()),
    )
    for name, value in plain:
        yield probe.record(name, value, view, note=note, samples=k, **fields)
    for name, variant, value in ranks:
        yield probe.record(name, value, view, variant=variant, note=note, samples=k, **fields)
        relative = f"{variant},relative" if variant else "relative"
        yield probe.record(name, value / k, view, variant=relative, note=note, samples=k, **fields)


def _estimated(probe: Probe, view: LayerView, matrix: Tensor, note: str) -> Iterator[Record]:
    """Ratio, sigma_1, effective and stable rank by stochastic Lanczos quadrature; the rest costs too much."""
    k = min(matrix.shape[-2:])
    if matrix.ndim > 2:
        yield from (probe.unmeasured(n, "groups this large are not estimated", view) for n in SPECTRAL)
        return
    e = F.estimated_spectrum_statistics(matrix, seed=probe.seed)
    note = "; ".join(x for x in (note, "stochastic Lanczos estimate") if x)
    values = (
        ("sigma_ratio", float(e.sigma_max) / float(e.nuclear_norm), e.nuclear_norm_error),
        ("sigma_max", float(e.sigma_max), e.sigma_max_error),
        ("effective_rank", float(e.effective_rank), e.effective_rank_error),
        ("stable_rank", float(e.stable_rank), 2 * e.stable_rank * e.sigma_max_error / e.sigma_max),
    )
    for name, value, error in values:
        fields = {"note": note, "samples": k, "error": float(error)}
        yield probe.record(name, value, view, **fields)
        if name in ("effective_rank", "stable_rank"):
            yield probe.record(name, value / k, view, variant="relative", **fields)
    for name in ("sigma_min", "srank"):
        yield probe.unmeasured(name, f"needs the exact spectrum; {k} is above {EXACT_SIDE}", view)
