"""Instruments on representations: ranks of the features after each nonlinearity, and their null."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from supple import functional as F
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.spectrum import RANKS, ranks
from supple.observe.units import excluded
from supple.observe.views import LayerView
from supple.records import Record

FORMS = ("raw", "centred")
NULL = "centred,null"
#: the limit law of the null is right to 2 % from here on the short side
NULL_SIDE = 16
FEATURE = tuple(f"feature_{n}" for n in ("sigma_ratio", *RANKS))


@instrument("features", "standard", ["units"], FEATURE, minimum=4)
def features(probe: Probe) -> Iterable[Record]:
    """Ranks of the features (N, U) after the nonlinearity: raw, centred, and corrected for few samples.

    Positions (image places, tokens, the two responses of a pair) are averaged per sample. ``relative`` is
    divided by U. Not measured with fewer than 2 U samples: rank <= min(N, U), and too few samples look like a
    collapse. ``centred,null`` is the centred effective rank over the one that features without structure
    would have with as many samples; it needs 16 units and 17 samples. Pooled: the mean over hidden layers.
    """
    pooled: dict[tuple[str, str], list[float]] = {
        ("feature_effective_rank", form): [] for form in (*FORMS, "raw,relative", "centred,relative", NULL)
    }
    for view in probe.layers:
        for row in _layer_rows(probe, view):
            yield row
            if row.status == "measured":
                pooled.setdefault((row.instrument, row.variant), []).append(row.value)
    for (name, variant), values in pooled.items():
        if values:
            mean, note = sum(values) / len(values), f"over {len(values)} hidden layers"
            yield probe.record(name, mean, variant=variant, note=note)
        else:
            reason = "no hidden layer has features with enough samples"
            yield probe.unmeasured(name, reason, variant=variant)


def _layer_rows(probe: Probe, view: LayerView) -> Iterator[Record]:
    reason = excluded(view) or (view.reason if view.post is None else "")
    if reason:
        yield from (probe.unmeasured("feature_effective_rank", reason, view, variant=f) for f in FORMS)
        return
    assert view.post is not None
    x, note = _features(view.post)
    samples, units = x.shape
    for form in FORMS:
        if samples < 2 * units:
            few = f"{units} units need at least {2 * units} samples, the probe has {samples}"
            yield probe.unmeasured("feature_effective_rank", few, view, variant=form)
            if form == "raw" or min(samples - 1, units) < NULL_SIDE:
                continue
        s = F.singular_values(_matrix(x, form, view.post.dtype))
        if samples >= 2 * units:
            for name, variant, value in ranks(s):
                full = ",".join(part for part in (form, variant) if part)
                yield probe.record(f"feature_{name}", value, view, variant=full, note=note)
        if form == "centred":
            yield _corrected(probe, view, s, note)


def _corrected(probe: Probe, view: LayerView, s: Tensor, note: str) -> Record:
    """Effective rank over that of features without structure, from as many samples."""
    assert view.post is not None
    samples, units = view.post.shape[:2]
    if min(samples - 1, units) < NULL_SIDE:
        few = f"the null needs {NULL_SIDE} units and {NULL_SIDE + 1} samples; found: {units} and {samples}"
        return probe.unmeasured("feature_effective_rank", few, view, variant=NULL)
    value = F.effective_rank(s) / _null_rank(samples - 1, units)
    return probe.record("feature_effective_rank", value, view, variant=NULL, note=note)


@functools.lru_cache(maxsize=256)
def _null_rank(samples: int, units: int) -> float:
    return float(F.effective_rank(F.null_singular_values(samples, units)))


def _features(post: Tensor) -> tuple[Tensor, str]:
    """(N, U, P) -> (N, U) in float64 and what was done with the positions."""
    if post.shape[2] == 1:
        return post[:, :, 0].double(), "one position"
    return post.mean(-1, dtype=torch.float64), f"mean over {post.shape[2]} positions"


def _matrix(x: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    """Raw or minus the mean over samples, subtracted in float64: where it dominates, float32 leaves few digits."""
    return (x - x.mean(0) if form == "centred" else x).to(dtype)
