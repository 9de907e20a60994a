"""Instruments on units: dormant, dead, always on, saturated, GraMa in both forms, cloned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from supple import functional as F
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.scales import NO_GRADIENT, inactive_scores, scale_rows
from supple.observe.views import LayerView
from supple.records import Record

OUTPUT_LAYER = "an output layer: its units are never scored"
EMBEDDING = "an embedding has one row per token, not per unit"
BARE = "a bare parameter that is added has no incoming weights"
MINIMUM_RESPONSES = 16  # samples x positions below which a share of units says nothing
CLONE_COSINE = 0.95
_CLONE_ROWS, _CLONE_UNITS = 4096, 4096  # responses and units beyond which the cosine matrix is not built
#: exactly zero when off
_SILENT_OPS = frozenset(
    ["relu", "threshold", "clamp", "clamp_min", "hardshrink", "softshrink", "gate", "glu"]
)
#: off where negative, almost but not exactly zero there
_SOFT_OPS = frozenset(["gelu", "silu", "mish", "hardswish", "elu", "celu"])

#: form of a score -> the array that holds it
_ARRAYS = {"": "dormant_scores", "preactivation,": "grama_scores"}

Judged = Tensor | str  # (U,) 0, 1 or NaN per unit; or why the layer was not judged


def fractions(
    probe: Probe,
    name: str,
    variant: str,
    judge: Callable[[LayerView], Judged],
    array: str = "",
    note: str = "",
) -> Iterator[Record]:
    """A row per layer with the share of flagged units, and the pooled share over all judged units."""
    flags: list[Tensor] = []
    skipped: list[str] = []
    for view in probe.layers:
        judged = excluded(view) or judge(view)
        if isinstance(judged, str):
            yield probe.unmeasured(name, judged, view, variant=variant)
            if not excluded(view):
                skipped.append(f"{view.name}: {judged}")
            continue
        link = f"{array}/{view.name}" if array and f"{array}/{view.name}" in probe.arrays else ""
        yield probe.record(name, judged.double().mean(), view, variant=variant, array=link, note=note)
        flags.append(judged)
    if not flags:
        yield probe.unmeasured(name, skipped[0] if skipped else "no hidden layer with units", variant=variant)
        return
    if skipped:
        note = "; ".join(
            x for x in (note, f"over {len(flags)} of {len(flags) + len(skipped)} hidden layers") if x
        )
    yield probe.record(name, torch.cat([f.double().cpu() for f in flags]).mean(), variant=variant, note=note)


def excluded(view: LayerView) -> str:
    """Why the units of a layer are never scored; empty where they are."""
    if view.layer.output:
        return OUTPUT_LAYER
    if not view.table:
        return ""
    return EMBEDDING if view.layer.kind == "embedding" else BARE


def _responses(view: LayerView) -> Judged:
    if view.post is None:
        return view.reason
    seen = view.post.shape[0] * view.post.shape[2]
    return view.post if seen >= MINIMUM_RESPONSES else _too_few(seen)


def _too_few(seen: int) -> str:
    return f"needs at least {MINIMUM_RESPONSES} responses (samples x positions), saw {seen}"


@instrument("dormant", "economy", ["units"], ["dormant"], minimum=2)
def dormant(probe: Probe) -> Iterable[Record]:
    """tau-dormant share of units (Sokar et al. 2023), from values after the first nonlinearity."""

    def score(view: LayerView) -> Judged:
        values = _responses(view)
        return values if isinstance(values, str) else F.dormant_scores(values)

    yield from _below(probe, "dormant", "", _remember(probe, "dormant_scores", score), (0.025, 0.1))


def _remember(
    probe: Probe, array: str, score: Callable[[LayerView], Judged]
) -> Callable[[LayerView], Judged]:
    """The scores of each layer computed once and kept as an array."""
    known: dict[str, Judged] = {}

    def look(view: LayerView) -> Judged:
        if view.name not in known:
            known[view.name] = found = score(view)
            if isinstance(found, Tensor):
                probe.keep(array, view, found)
        return known[view.name]

    return look


def _below(
    probe: Probe,
    name: str,
    form: str,
    score: Callable[[LayerView], Judged],
    taus: Iterable[float],
) -> Iterator[Record]:
    for tau in taus:

        def judge(view: LayerView, tau: float = tau) -> Judged:
            s = score(view)
            return s if isinstance(s, str) else torch.where(s.isnan(), s, (s <= tau).to(s.dtype))

        yield from fractions(probe, name, f"{form}tau={tau:g}", judge, _ARRAYS.get(form, ""))


@instrument("grama", "economy", ["units", "gradients"], ["grama"], minimum=2)
def grama(probe: Probe) -> Iterable[Record]:
    """Share of units with little gradient (GraMa, Liu et al. 2025): pre-activation, weight row, norm scale.

    The entries of a norm's scale are units with one weight each; their rows carry the path of the norm.
    """

    def preactivation(view: LayerView) -> Judged:
        return _grama(probe, view, view.pre_grad, "preactivation")

    def weight(view: LayerView) -> Judged:
        if view.layer.kind == "conv_transpose" and view.groups > 1:
            return "rows of a grouped transposed convolution are shared by units of several groups"
        return _grama(probe, view, view.weight_grad, "weight")

    yield from _below(
        probe, "grama", "preactivation,", _remember(probe, "grama_scores", preactivation), (0.025, 0.1)
    )
    yield from _below(probe, "grama", "weight,", weight, (0.025,))
    yield from scale_rows(probe, (0.025,), MINIMUM_RESPONSES)


def _grama(probe: Probe, view: LayerView, grad: Tensor | None, kind: str) -> Judged:
    if grad is None:
        if kind == "preactivation" and view.layer.module not in view.taps.pre:
            return view.taps.reason_of(view.layer.module)
        return NO_GRADIENT
    before = view.pre_grad
    if before is not None and before.shape[0] * before.shape[2] < MINIMUM_RESPONSES:
        return _too_few(before.shape[0] * before.shape[2])
    return inactive_scores(probe, grad, kind, view.unit_dim if kind == "weight" else 1)


@instrument("dead", "economy", ["units"], ["dead", "always_on"], minimum=2)
def dead(probe: Probe) -> Iterable[Record]:
    """Units that never fire on the probe, and units that fire on every sample of it.

    Exactly zero for ReLU and its kin and for gates; never above zero for GELU, SiLU and their kin; not
    defined for activations without an off state.
    """

    def never(view: LayerView) -> Judged:
        h = _on(view)
        return h if isinstance(h, str) else F.dead_units(h)

    def always(view: LayerView) -> Judged:
        h = _on(view)
        return h if isinstance(h, str) else F.always_on(h)

    yield from fractions(probe, "dead", "", never)
    yield from fractions(probe, "always_on", "", always)


def _on(view: LayerView) -> Judged:
    h = _responses(view)
    if isinstance(h, str):
        return h
    ops = set(view.op.split("+"))
    if ops <= _SILENT_OPS or (ops == {"hardtanh"} and bool((h >= 0).all())):
        return h.abs() if ops & {"gate", "glu"} else h
    return h.clamp(min=0) if ops <= _SILENT_OPS | _SOFT_OPS else f"{view.op} has no off state"


@instrument("saturated", "economy", ["units"], ["saturated"], minimum=2)
def saturated(probe: Probe) -> Iterable[Record]:
    """Share of tanh and sigmoid units that are saturated on at least 95 % of the probe, and of all their responses."""

    def scores(view: LayerView) -> Judged:
        h = _responses(view)
        if isinstance(h, str):
            return h
        if view.op not in ("tanh", "sigmoid"):
            return f"{view.op} does not saturate on both sides"
        return F.saturation_scores(h, kind=view.op)

    def units(view: LayerView) -> Judged:
        share = scores(view)
        return (
            share if isinstance(share, str) else torch.where(share.isnan(), share, (share >= 0.95).double())
        )

    yield from fractions(probe, "saturated", "", units)
    yield from fractions(probe, "saturated", "responses", scores)


@instrument("cloned", "standard", ["units"], ["cloned"], minimum=32)
def cloned(probe: Probe) -> Iterable[Record]:
    """Share of units with a twin: |correlation| of responses above 0.95 (cf. arXiv 2510.00304)."""

    def judge(view: LayerView) -> Judged:
        h = _responses(view)
        if isinstance(h, str):
            return h
        if h.shape[1] > _CLONE_UNITS:
            return f"{h.shape[1]} units: more than {_CLONE_UNITS} are not compared"
        rows = h.movedim(1, -1).flatten(0, 1)
        rows = rows[:: -(-rows.shape[0] // _CLONE_ROWS)]
        likeness = F.cloned_units(rows)
        return torch.where(likeness.isnan(), likeness, (likeness > CLONE_COSINE).to(likeness.dtype))

    yield from fractions(probe, "cloned", "", judge, note=f"|correlation| > {CLONE_COSINE:g}")
