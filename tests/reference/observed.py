"""Every row on units, weights and features, in numpy float64 from recorded values: one layer at a time.

Shapes: responses (N, U, P), weight matrices (rows, columns), one per group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tests.reference import spectra, units

Key = tuple[str, str, str, str]  # instrument, layer, part, variant


@dataclass
class Observed:
    """One layer as a recorder saw it; None for what it has not."""

    name: str
    part: str = ""
    hidden: bool = True
    table: bool = False
    op: str = ""  # the first nonlinearity
    post: np.ndarray | None = None  # (N, U, P) after it
    pre_grad: np.ndarray | None = None  # (N, U, P)
    matrices: list[np.ndarray] = field(default_factory=list)  # one per group
    weight_grad: np.ndarray | None = None  # (U, fan-in)


def rows(layers: list[Observed], scales: dict[str, np.ndarray]) -> dict[Key, float]:
    """All values that must be measured; ``scales`` are the gradients of the norms' scales."""
    out: dict[Key, float] = {}
    flags: dict[tuple[str, str], list[np.ndarray]] = {}

    def judge(instrument: str, layer: str, part: str, variant: str, flagged: np.ndarray) -> None:
        out[instrument, layer, part, variant] = float(np.mean(flagged))
        flags.setdefault((instrument, variant), []).append(np.asarray(flagged, np.float64))

    for x in layers:
        if x.hidden and not x.table:
            for instrument, variant, flagged in [*_activations(x), *_gradients(x)]:
                judge(instrument, x.name, x.part, variant, flagged)
    for name, grad in scales.items():
        g = np.abs(grad.reshape(-1).astype(np.float64))
        judge("grama", name, "", "norm,tau=0.025", g / g.mean() <= 0.025)
    for (instrument, variant), found in flags.items():
        out[instrument, "*", "", variant] = float(np.mean(np.concatenate(found)))
    _spectra(layers, out)
    _norms(layers, out)
    _features(layers, out)
    return out


def _activations(x: Observed) -> list[tuple[str, str, np.ndarray]]:
    if x.post is None:
        return []
    score = units.dormant_scores(x.post)
    found = [("dormant", f"tau={tau:g}", score <= tau) for tau in (0.025, 0.1)]
    if x.op in ("relu", "gate"):  # exactly zero when off
        h = np.abs(x.post) if x.op == "gate" else x.post
        found += [("dead", "", units.dead(h)), ("always_on", "", units.always_on(h))]
    if x.op in ("gelu", "silu", "elu"):  # off where negative
        found += [
            ("dead", "", (x.post <= 0).all((0, 2)).astype(float)),
            ("always_on", "", units.always_on(x.post)),
        ]
    if x.op in ("tanh", "sigmoid"):
        share = units.saturated(x.post, x.op)
        found += [("saturated", "", share >= 0.95), ("saturated", "responses", share)]
    found.append(("cloned", "", units.cloned(x.post) > 0.95))
    return found


def _gradients(x: Observed) -> list[tuple[str, str, np.ndarray]]:
    found = []
    if x.pre_grad is not None:
        score = units.grama_scores(x.pre_grad, "preactivation", 1)
        found += [("grama", f"preactivation,tau={tau:g}", score <= tau) for tau in (0.025, 0.1)]
    if x.weight_grad is not None:
        score = units.grama_scores(x.weight_grad, "weight", 0)
        found.append(("grama", "weight,tau=0.025", score <= 0.025))
    return found


def numbers(s: np.ndarray) -> dict[tuple[str, str], float]:
    """What is read from singular values (descending): (name, variant) -> value."""
    s = s.astype(np.float64)
    energy = s**2
    ranks = {
        ("effective_rank", ""): spectra.effective_rank(s),
        ("stable_rank", ""): energy.sum() / energy[0],
        ("participation_ratio", ""): energy.sum() ** 2 / (energy**2).sum(),
        ("srank", "delta=0.01"): float(spectra.srank(s, 0.01)),
    }
    relative = {(n, f"{v},relative" if v else "relative"): value / len(s) for (n, v), value in ranks.items()}
    return {("sigma_ratio", ""): s[0] / s.sum(), **ranks, **relative}


def _spectra(layers: list[Observed], out: dict[Key, float]) -> None:
    pooled: dict[tuple[str, str], list[float]] = {}
    for x in layers:
        if not x.matrices or min(x.matrices[0].shape) == 1:
            continue
        found = []
        for group, w in enumerate(x.matrices):
            s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
            values = {("sigma_max", ""): s[0], ("sigma_min", ""): s[-1], **numbers(s)}
            values |= {("below_noise_floor", ""): 0.0, ("below_noise_floor", "floor"): 0.0}
            found.append(values)
            if len(x.matrices) > 1:
                out.update({(n, x.name, f"group{group}", v): y for (n, v), y in values.items()})
        for name, variant in found[0]:
            mean = float(np.mean([f[name, variant] for f in found]))
            out[name, x.name, x.part, variant] = mean
            if x.hidden and not x.table and variant != "floor":
                pooled.setdefault((name, variant), []).append(mean)
    merge = {"sigma_max": max, "sigma_min": min}
    for (name, variant), values in pooled.items():
        out[name, "*", "", variant] = float(merge.get(name, np.mean)(values))


def _norms(layers: list[Observed], out: dict[Key, float]) -> None:
    for table in (False, True):
        chosen = [x for x in layers if x.matrices and x.table == table]
        squares = [sum((w.astype(np.float64) ** 2).sum() for w in x.matrices) for x in chosen]
        sizes = [sum(w.size for w in x.matrices) for x in chosen]
        for x, square, size in zip(chosen, squares, sizes, strict=True):
            out["weight_norm", x.name, x.part, ""] = float(np.sqrt(square))
            out["weight_rms", x.name, x.part, ""] = float(np.sqrt(square / size))
        if chosen:
            variant = "embedding" if table else ""
            out["weight_norm", "*", "", variant] = float(np.sqrt(sum(squares)))
            out["weight_rms", "*", "", variant] = float(np.sqrt(sum(squares) / sum(sizes)))


def _features(layers: list[Observed], out: dict[Key, float]) -> None:
    pooled: dict[tuple[str, str], list[float]] = {}
    for x in layers:
        if x.post is None or not x.hidden or len(x.post) < 2 * x.post.shape[1]:
            continue
        mean = x.post.mean(-1)
        for form, matrix in (("raw", mean), ("centred", mean - mean.mean(0))):
            for (name, variant), value in numbers(np.linalg.svd(matrix, compute_uv=False)).items():
                full = (f"feature_{name}", ",".join(p for p in (form, variant) if p))
                out[full[0], x.name, x.part, full[1]] = value
                pooled.setdefault(full, []).append(value)
    for (name, variant), values in pooled.items():
        out[name, "*", "", variant] = float(np.mean(values))
