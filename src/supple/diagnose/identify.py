"""Step 1: which mechanisms, in an order that explains away what one mechanism fakes of another.

Dead units come first: they raise the kernel's cosine. Rank collapse comes second: a collapsed matrix starves
units of gradient without killing them. The kernel is judged last, by what these two do not explain.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean

from supple.diagnose import rules
from supple.diagnose import thresholds as limit
from supple.diagnose.panel import GRAMA_VARIANT, Panel
from supple.diagnose.types import Finding
from supple.status import Mechanism, Status

MECHANISMS = (
    Mechanism.DEAD_UNITS,
    Mechanism.RANK_COLLAPSE,
    Mechanism.NTK_DEGENERATION,
    Mechanism.SATURATION,
    Mechanism.WEIGHT_GROWTH,
    Mechanism.CLONED_UNITS,
)

ADVICE = {
    Mechanism.DEAD_UNITS: "re-initialise the units that get no gradient, and again at task boundaries",
    Mechanism.RANK_COLLAPSE: "keep the spectrum of these weights spread",
    Mechanism.NTK_DEGENERATION: "decorrelate what different inputs do to the parameters",
    Mechanism.SATURATION: "bring the units back to the slope of their activation: smaller weights",
    Mechanism.WEIGHT_GROWTH: "bound the weights: regularise towards the start, or the spectral norm",
    Mechanism.CLONED_UNITS: "re-initialise one of each pair of copies",
}


def identify(panel: Panel) -> tuple[Finding, ...]:
    """One finding per mechanism, each with a status, a severity and its evidence."""
    if not panel.twins:
        reason = (
            "no reference to compare with: pass reference=factory (a callable that builds a fresh network)"
        )
        return tuple(_without_twin(panel, m, reason) for m in MECHANISMS)
    rank = rules.rank_collapse(panel)
    dead = starved_by_rank(panel, rules.dead_units(panel), rank)
    kernel = rules.ntk_degeneration(panel)
    dead = silenced_by_kernel(panel, dead, kernel)
    kernel = behind_a_silent_layer(panel, kernel, dead)
    cloned = rules.cloned_units(panel)
    rank = made_of_copies(panel, rank, cloned)
    found = (dead, rank, kernel, rules.saturation(panel), rules.weight_growth(panel), cloned)
    small = panel.samples < limit.SMALLEST_PROBE
    return tuple(_with_advice(_too_few(f, panel.samples) if small else f) for f in found)


def starved_by_rank(panel: Panel, dead: Finding, rank: Finding) -> Finding:
    """Units of a collapsed layer that fire but get little gradient are a symptom of the rank, not dead."""
    if dead.status is not Status.PRESENT or rank.status is not Status.PRESENT:
        return dead
    silent, twins = panel.value("dead"), panel.of_twins("dead")
    if math.isnan(silent) or not twins or silent - min(twins) > limit.GRAMA.value:
        return dead
    reason = f"{dead.reason}; but they fire: a collapsed weight rank starves them of gradient"
    return dataclasses.replace(dead, status=Status.ABSENT, layers=(), reason=reason)


def silenced_by_kernel(panel: Panel, dead: Finding, kernel: Finding) -> Finding:
    """In a common mode some units always fire and the others never: these are its by-product."""
    if dead.status not in (Status.PRESENT, Status.INCONCLUSIVE) or kernel.status is not Status.PRESENT:
        return dead
    share = panel.compare("grama", limit.GRAMA, variant=GRAMA_VARIANT).statistic
    if not rules.common_mode(panel) or share > limit.BY_PRODUCT:
        return dead
    reason = f"{dead.reason}; but most others always fire: a common mode splits the units"
    return dataclasses.replace(dead, status=Status.INCONCLUSIVE, layers=(), reason=reason)


def behind_a_silent_layer(panel: Panel, kernel: Finding, dead: Finding) -> Finding:
    """Where a whole layer is silent every input moves the parameters alike: the kernel cannot be judged."""
    if kernel.status is not Status.PRESENT or dead.status is not Status.PRESENT:
        return kernel
    silent = [x.name for x in panel.hidden if panel.value("dead", x.name) >= limit.SILENT_LAYER]
    if not silent:
        return kernel
    reason = (
        f"{kernel.reason}; but {', '.join(silent)} is silent, which alone does this: look again after repair"
    )
    return dataclasses.replace(kernel, status=Status.INCONCLUSIVE, layers=(), reason=reason)


def made_of_copies(panel: Panel, rank: Finding, cloned: Finding) -> Finding:
    """Copies of units are equal rows: a rank that is no lower than they make it is their by-product."""
    if rank.status is not Status.PRESENT or cloned.status is not Status.PRESENT:
        return rank
    more = []
    for layer in rank.layers:
        twins = [t for t in panel.of_twins("effective_rank", layer, "relative") if t > 0]
        ratio = panel.value("effective_rank", layer, "relative") / fmean(twins) if twins else math.nan
        own = 1 - panel.value("cloned", layer)
        if not ratio >= limit.COPIES * own:
            more.append(layer)
    if more:
        return dataclasses.replace(rank, layers=tuple(more))
    reason = f"{rank.reason}; but copies of units alone make it so low"
    return dataclasses.replace(rank, status=Status.INCONCLUSIVE, layers=(), reason=reason)


def _without_twin(panel: Panel, mechanism: Mechanism, reason: str) -> Finding:
    instrument = {
        Mechanism.DEAD_UNITS: "grama",
        Mechanism.RANK_COLLAPSE: "effective_rank",
        Mechanism.NTK_DEGENERATION: "ntk_mean_cosine",
        Mechanism.SATURATION: "saturated",
        Mechanism.WEIGHT_GROWTH: "sigma_max",
        Mechanism.CLONED_UNITS: "cloned",
    }[mechanism]
    status, trouble = panel.trouble(instrument)
    if status is Status.INVALID:
        return Finding(mechanism, status, reason=trouble)
    return Finding(mechanism, Status.NOT_MEASURED, reason=reason)


def _too_few(finding: Finding, samples: int) -> Finding:
    if finding.mechanism in (Mechanism.RANK_COLLAPSE, Mechanism.WEIGHT_GROWTH, Mechanism.CLONED_UNITS):
        return finding  # read off the weights alone
    if finding.status not in (Status.PRESENT, Status.ABSENT):
        return finding
    reason = (
        f"{samples} probe samples are too few, at least {limit.SMALLEST_PROBE} are needed; {finding.reason}"
    )
    return dataclasses.replace(finding, status=Status.INCONCLUSIVE, reason=reason)


def _with_advice(finding: Finding) -> Finding:
    if finding.status is not Status.PRESENT:
        return finding
    return dataclasses.replace(finding, advice=ADVICE[finding.mechanism])
