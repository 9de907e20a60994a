"""One rule per mechanism: which evidence must agree, against the twin, for the mechanism to be present."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

from supple.diagnose import thresholds as limit
from supple.diagnose.compare import Comparison, agreeing, all_of, compare
from supple.diagnose.panel import GRAMA_VARIANT, Panel, binomial_error
from supple.diagnose.types import Evidence, Finding
from supple.status import Mechanism, Status


def _unmeasured(mechanism: Mechanism, panel: Panel, instrument: str, variant: str = "") -> Finding:
    status, reason = panel.trouble(instrument, variant)
    return Finding(mechanism, status, reason=reason)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def dead_units(panel: Panel) -> Finding:
    """GraMa at the pre-activation against the twin, pooled, inside residual branches and layer by layer; and units
    that never fire, which a norm behind the layer hides from the gradient. The tau-dormant share is shown beside.
    """
    pooled = panel.compare("grama", limit.GRAMA, variant=GRAMA_VARIANT)
    if not pooled.usable:
        return _unmeasured(Mechanism.DEAD_UNITS, panel, "grama", GRAMA_VARIANT)
    layers, silent = _dead_layers(panel), _silent(panel)
    ill = [c for c in (*layers, _inside(panel), silent) if c is not None and c.status is Status.PRESENT]
    status = Status.PRESENT if ill else pooled.status
    where = tuple(c.evidence.layer for c in layers if c.statistic > limit.GRAMA.value)
    if status is Status.ABSENT:
        where = ()
    elif not where and silent is not None and status is Status.PRESENT:
        where = tuple(x.name for x in panel.hidden if panel.value("dead", x.name) > limit.GRAMA.value)
    severity = _clip(max([pooled.statistic, *(c.statistic for c in ill)]))
    beside = [
        _beside(panel, "dormant", "tau=0.025", "misses units behind skip connections"),
        _beside(panel, "dead", "", "never fires on the probe"),
    ]
    evidence = (
        pooled.evidence,
        *(e for e in beside if e),
        *(c.evidence for c in layers if c.statistic > 0.1),
    )
    share, twin = pooled.evidence.value, pooled.evidence.reference
    reason = f"{share:.0%} of the hidden units get next to no gradient, {twin:.0%} in the twin"
    if status is Status.PRESENT and pooled.status is not Status.PRESENT:
        reason += f"; concentrated in {', '.join(where)}" if where else ""
    if silent is not None and silent in ill:
        reason += f"; {silent.evidence.value:.0%} never fire, {silent.evidence.reference:.0%} in the twin"
        evidence = (*evidence, silent.evidence)
    if status is Status.PRESENT and _fires(panel):
        reason += "; but most of them fire: reset a moment ago, or bypassed by a skip connection"
    return Finding(Mechanism.DEAD_UNITS, status, severity, where, evidence, reason=reason)


def _silent(panel: Panel) -> Comparison | None:
    """Units that never fire on the probe, if their responses are next to nothing as well."""
    dormant = panel.compare("dormant", limit.GRAMA, variant="tau=0.025")
    never = panel.compare("dead", limit.GRAMA)
    return never if dormant.status is Status.PRESENT and never.usable else None


def _inside(panel: Panel) -> Comparison | None:
    """GraMa pooled over the units that are on no residual stream: what is dead there is thinned out in the whole."""
    layers = [x for x in panel.hidden if x.stream is None]
    if len(layers) == len(panel.hidden):
        return None

    def share(of: Callable[[str], float]) -> float:
        known = [(of(x.name), x.units) for x in layers]
        known = [(v, n) for v, n in known if not math.isnan(v)]
        units = sum(n for _, n in known)
        return sum(v * n for v, n in known) / units if units else math.nan

    own = share(lambda name: panel.value("grama", name, GRAMA_VARIANT))
    twins = [share(lambda name, t=t: t.value("grama", name, GRAMA_VARIANT)) for t in panel.twins]
    units = sum(x.units for x in layers)
    found = compare(
        "grama inside branches",
        own,
        twins,
        limit.GRAMA,
        error=binomial_error(own, units),
        samples=panel.samples,
    )
    return found if found.usable else None


def _fires(panel: Panel) -> bool:
    """Whether activations look as alive as the twin's."""
    dormant = panel.compare("dormant", limit.GRAMA, variant="tau=0.025")
    return dormant.usable and dormant.statistic < limit.GRAMA.value / 2


def _dead_layers(panel: Panel) -> list[Comparison]:
    found = []
    for layer in panel.hidden:
        value = panel.value("grama", layer.name, GRAMA_VARIANT)
        if math.isnan(value) or layer.units < limit.SMALLEST_SIDE:
            continue
        error = max(binomial_error(value, layer.units), panel.errors.get(("grama", layer.name), 0.0))
        found.append(panel.compare("grama", limit.GRAMA_LAYER, layer.name, GRAMA_VARIANT, error=error))
    return [c for c in found if c.usable]


def _beside(panel: Panel, instrument: str, variant: str, note: str = "") -> Evidence | None:
    value = panel.value(instrument, "*", variant)
    if math.isnan(value):
        return None
    twins = [t for t in panel.of_twins(instrument, "*", variant) if not math.isnan(t)]
    reference = fmean(twins) if twins else math.nan
    label = f"{instrument} ({variant})" if variant else instrument
    return Evidence(label, value, reference=reference, samples=panel.samples, note=note, decides=False)


def rank_collapse(panel: Panel) -> Finding:
    """Effective rank, stable rank and sigma_1 / sum sigma of one hidden matrix must agree."""
    layers = panel.judged_layers(limit.SMALLEST_SIDE)
    if not layers:
        reason = f"no hidden weight matrix with {limit.SMALLEST_SIDE} or more directions"
        return Finding(Mechanism.RANK_COLLAPSE, Status.NOT_MEASURED, reason=reason)
    judged = [(layer.name, *_rank_of(panel, layer.name)) for layer in layers]
    usable = [j for j in judged if j[2].usable]
    if not usable:
        return _unmeasured(Mechanism.RANK_COLLAPSE, panel, "effective_rank", "relative")
    ill = [j for j in usable if j[1] is Status.PRESENT]
    unsure = [j for j in usable if j[1] is Status.INCONCLUSIVE]
    status = Status.PRESENT if ill else Status.INCONCLUSIVE if unsure else Status.ABSENT
    worst = min(usable, key=lambda j: j[2].statistic)
    shown = ill or [worst]
    evidence = [e for j in shown for e in (j[2].evidence, j[3].evidence, j[4].evidence)]
    severity = _clip(1 - worst[2].statistic)
    reason = f"lowest effective rank {worst[2].statistic:.0%} of the twin's, in {worst[0]}"
    return Finding(
        Mechanism.RANK_COLLAPSE, status, severity, tuple(j[0] for j in ill), tuple(evidence), reason=reason
    )


def _rank_of(panel: Panel, layer: str) -> tuple[Status, Comparison, Comparison, Comparison]:
    effective = panel.compare("effective_rank", limit.EFFECTIVE_RANK, layer, "relative")
    stable = panel.compare("stable_rank", limit.STABLE_RANK, layer, "relative")
    ratio = panel.compare("sigma_ratio", limit.SIGMA_RATIO, layer)
    return all_of(effective.status, stable.status, ratio.status), effective, stable, ratio


def ntk_degeneration(panel: Panel) -> Finding:
    """Two inputs pull the same way, and few directions are left: more than dead units alone would do.

    In a common mode (units that always fire) less of it is enough, and where twins differ so much that neither
    interval decides, the common mode does.
    """
    always, dead = _always_excess(panel), _dead_excess(panel)
    common = always > limit.COMMON_MODE and dead <= limit.COMMON_DEAD
    mild = always > limit.MILD_COMMON_MODE and dead <= limit.BY_PRODUCT
    bound = limit.NTK_SPREAD_COMMON if common else limit.NTK_SPREAD.value
    known = 0.0 if common or mild else dead
    threshold = replace(limit.NTK_SPREAD, value=bound * (1 - known) ** limit.NTK_DEAD_POWER)
    apart = compare(
        "1 - ntk_mean_cosine",
        1 - panel.value("ntk_mean_cosine"),
        [1 - t for t in panel.of_twins("ntk_mean_cosine")],
        threshold,
        samples=_samples(panel, "ntk_mean_cosine"),
    )
    rank = panel.compare("ntk_rank99", limit.NTK_RANK)
    if not (apart.usable and rank.usable):
        return _unmeasured(Mechanism.NTK_DEGENERATION, panel, "ntk_mean_cosine")
    status = agreeing((apart, threshold), (rank, limit.NTK_RANK))
    ill = apart.statistic < threshold.value and rank.statistic < limit.NTK_RANK.value
    if status is Status.INCONCLUSIVE and ill and (common or mild):
        status = Status.PRESENT
    severity = _clip(1 - apart.statistic)
    value, reference = 1 - apart.evidence.value, 1 - apart.evidence.reference
    reason = f"two inputs move the parameters with a mean cosine of {value:.2f}, {reference:.2f} in the twin"
    if status is not Status.PRESENT and apart.hi < limit.NTK_SPREAD.value:
        reason += "; dead units alone bring it this far"
    churn = _beside(panel, "churn", "relative", "a weak detector: it barely moves until the network is dead")
    evidence = (apart.evidence, rank.evidence, *([churn] if churn else []))
    return Finding(Mechanism.NTK_DEGENERATION, status, severity, (), evidence, reason=reason)


def _dead_excess(panel: Panel) -> float:
    """How many units more than in the twin are dead."""
    excess = panel.compare("grama", limit.GRAMA, variant=GRAMA_VARIANT).statistic
    return 0.0 if math.isnan(excess) else _clip(excess)


def common_mode(panel: Panel) -> bool:
    """Whether many more of the units that fire at all fire on every input than in the twins."""
    return _always_on(panel).status is Status.PRESENT


def _always_excess(panel: Panel) -> float:
    """The share of the living units that always fire, less the twins'; 0 where the question has no meaning."""
    excess = _always_on(panel).statistic
    return 0.0 if math.isnan(excess) else excess


def _always_on(panel: Panel) -> Comparison:
    found = [_always_of_living(panel.value("always_on"), panel.value("dead"))]
    dead = panel.of_twins("dead")
    found += [_always_of_living(a, d) for a, d in zip(panel.of_twins("always_on"), dead, strict=False)]
    own, *twins = found
    return compare("always on, of living units", own, twins, limit.ALWAYS_ON, samples=panel.samples)


def _always_of_living(always_on: float, dead: float) -> float:
    return always_on / (1 - dead) if dead < 1 else math.nan


def _samples(panel: Panel, instrument: str) -> int:
    row = panel.row(instrument, "*")
    return panel.samples if row is None else row.samples


def saturation(panel: Panel) -> Finding:
    """Share of tanh or sigmoid units at their ends; the outputs' size and entropy are shown beside it."""
    beside = [_beside(panel, "max_logit", ""), _beside(panel, "entropy", "")]
    shown = tuple(e for e in beside if e)
    pooled = panel.compare("saturated", limit.SATURATED)
    if not pooled.usable:
        status, reason = panel.trouble("saturated")
        return Finding(Mechanism.SATURATION, status, None, (), shown, reason=reason)
    layers = [
        (
            x.name,
            panel.compare("saturated", limit.SATURATED, x.name, error=_unit_error(panel, x.name, x.units)),
        )
        for x in panel.hidden
    ]
    ill = [name for name, c in layers if c.status is Status.PRESENT]
    status = Status.PRESENT if ill else pooled.status
    severity = _clip(max([pooled.statistic, *(c.statistic for _, c in layers if c.status is Status.PRESENT)]))
    share, twin = pooled.evidence.value, pooled.evidence.reference
    reason = f"{share:.0%} of the bounded units sit at their ends, {twin:.0%} in the twin"
    often = panel.compare("saturated", limit.SATURATED_RESPONSES, variant="responses")
    if status is not Status.PRESENT and often.status is Status.PRESENT:
        status, severity = Status.PRESENT, _clip(often.statistic)
        reason += (
            f"; {often.evidence.value:.0%} of their responses do, {often.evidence.reference:.0%} in the twin"
        )
    evidence = (pooled.evidence, *([often.evidence] if often.usable else []), *shown)
    return Finding(Mechanism.SATURATION, status, severity, tuple(ill), evidence, reason=reason)


def _unit_error(panel: Panel, layer: str, units: int) -> float:
    value = panel.value("saturated", layer)
    return 0.0 if math.isnan(value) else binomial_error(value, units)


def weight_growth(panel: Panel) -> Finding:
    """Geometric mean over layers of sigma_1 against the twin."""
    found = []
    for layer in panel.seen.topology.layers.values():
        mine, twins = panel.value("sigma_max", layer.name), panel.of_twins("sigma_max", layer.name)
        known = [t for t in twins if math.isfinite(t) and t > 0]
        if known and mine > 0:
            found.append((layer.name, mine / fmean(known), mine, fmean(known)))
    if not found:
        return _unmeasured(Mechanism.WEIGHT_GROWTH, panel, "sigma_max")
    growth = math.exp(fmean(math.log(f[1]) for f in found))
    half = 1.96 * limit.WEIGHT_GROWTH.spread * growth
    status = _growth_status(growth - half, growth + half)
    evidence = Evidence(
        "sigma_max, geometric mean over layers, relative to the twin",
        growth, growth - half, growth + half, 1.0, limit.WEIGHT_GROWTH.value, len(found),
        "samples: layers",
    )  # fmt: skip
    where = tuple(f[0] for f in found if f[1] > limit.WEIGHT_GROWTH.value and status is not Status.ABSENT)
    reason = f"the largest singular values are {growth:.1f} times the twin's (mean over layers)"
    return Finding(Mechanism.WEIGHT_GROWTH, status, _clip(1 - 1 / growth), where, (evidence,), reason=reason)


def _growth_status(lo: float, hi: float) -> Status:
    if lo > limit.WEIGHT_GROWTH.value:
        return Status.PRESENT
    return Status.ABSENT if hi < limit.WEIGHT_GROWTH.value else Status.INCONCLUSIVE


def cloned_units(panel: Panel) -> Finding:
    """Share of units that have a near copy in their layer."""
    pooled = panel.compare("cloned", limit.CLONED)
    if not pooled.usable:
        return _unmeasured(Mechanism.CLONED_UNITS, panel, "cloned")
    where = tuple(
        x.name
        for x in panel.hidden
        if panel.compare("cloned", limit.CLONED, x.name).statistic > limit.CLONED.value
        and pooled.status is not Status.ABSENT
    )
    share, twin = pooled.evidence.value, pooled.evidence.reference
    reason = f"{share:.0%} of the units have a near copy, {twin:.0%} in the twin"
    return Finding(
        Mechanism.CLONED_UNITS,
        pooled.status,
        _clip(pooled.statistic),
        where,
        (pooled.evidence,),
        reason=reason,
    )
