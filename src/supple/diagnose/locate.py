"""Step 2: why did it arise? Activation and bypass paths for dead units; initial singular values and drift
for rank; batch against input space and task switches for the kernel. What a single checkpoint cannot tell is
said, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from supple.diagnose.architecture import BOUNDED, DEAD_ZONE, SOFT_DEAD_ZONE, Architecture, is_a
from supple.diagnose.change_point import FEWEST, GRADUAL, NONE, change_point
from supple.diagnose.types import Finding, Source
from supple.records import Record, Records
from supple.status import Mechanism, Status

if TYPE_CHECKING:
    from supple.diagnose.panel import Panel

MIN_POINTS = 6  # fewer measurements tell nothing of task switches
NO_HISTORY = "pass history=monitor to see"


def locate(
    findings: Sequence[Finding], panel: Panel, architecture: Architecture, history: Records
) -> tuple[Source, ...]:
    """Sources of every mechanism that is present."""
    sources: list[Source] = []
    for finding in findings:
        if finding.status is not Status.PRESENT:
            continue
        if finding.mechanism is Mechanism.DEAD_UNITS:
            sources += dead_sources(finding, panel, architecture, history)
        elif finding.mechanism is Mechanism.RANK_COLLAPSE:
            sources += rank_sources(finding, panel, history)
        elif finding.mechanism is Mechanism.NTK_DEGENERATION:
            sources += kernel_sources(finding, panel, history)
        elif finding.mechanism is Mechanism.WEIGHT_GROWTH:
            sources += [drift(finding, history, "sigma_max", "")]
    return tuple(sources)


def dead_sources(
    finding: Finding, panel: Panel, architecture: Architecture, history: Records
) -> list[Source]:
    """The activation of each layer, and whether a bypass hides or makes the silence."""
    layers = panel.seen.topology.layers
    groups: dict[str, list[str]] = {}
    for name in finding.layers:
        groups.setdefault(layers[name].activation or "unknown", []).append(name)
    found = [
        Source(finding.mechanism, "activation", _activation_text(act), tuple(names), act != "unknown")
        for act, names in groups.items()
    ]
    if architecture.residual:
        through = [n for n in finding.layers if layers[n].stream is not None]
        text = "skip connections carry the signal past silent units, so activations look healthy"
        if through:
            text += f"; on the stream itself: {', '.join(through)} (such units are not reset one by one)"
        found.append(Source(finding.mechanism, "bypass", text, tuple(through)))
    return [*found, drift(finding, history, "grama", "preactivation,tau=0.025")]


def _activation_text(activation: str) -> str:
    if is_a(activation, DEAD_ZONE):
        return f"{activation} passes no gradient where its input stays on the flat side"
    if is_a(activation, BOUNDED):
        return f"{activation} passes next to none at its ends: see saturation"
    if is_a(activation, SOFT_DEAD_ZONE):
        return f"{activation} fades to zero gradient far on its negative side"
    if activation == "unknown":
        return "the activation after these layers was not resolved"
    return f"{activation} has no dead zone: look for vanishing outgoing weights or masks"


def rank_sources(finding: Finding, panel: Panel, history: Records) -> list[Source]:
    """Initial singular values (from the twin), then the course of the drift."""
    found = []
    for name in finding.layers:
        values = [v for v in panel.of_twins("sigma_max", name) if math.isfinite(v)]
        if not values:
            continue
        start, now = fmean(values), panel.value("sigma_max", name)
        near = "near 1" if 0.5 <= start <= 2 else "far from 1"
        text = f"largest singular value {start:.2f} in the fresh network ({near}), {now:.2f} now"
        found.append(Source(finding.mechanism, "initialisation", text, (name,)))
    return [*found, drift(finding, history, "effective_rank", "relative")]


def kernel_sources(finding: Finding, panel: Panel, history: Records) -> list[Source]:
    """Batch against the input space; spikes of the condition number at task switches."""
    found = []
    rank = panel.value("feature_effective_rank", "*", "centred")
    if math.isfinite(rank):
        text = f"the probe of {panel.samples} samples spans about {rank:.0f} directions of the features; "
        text += "smaller training batches see only part of it (their size cannot be read off a checkpoint)"
        found.append(Source(finding.mechanism, "batch size", text, (), False))
    spikes = [
        r for r in history if r.instrument == "ntk_condition" and math.isfinite(r.value) and r.value > 0
    ]
    if len(spikes) < MIN_POINTS or len({r.task for r in spikes}) < 2:
        text = f"whether task switches spike the condition number is not known: {NO_HISTORY}"
        found.append(Source(finding.mechanism, "task switch", text, (), False))
        return found
    first = [r for before, r in pairwise(spikes) if r.task != before.task]
    others = [r for r in spikes if r not in first]
    factor = median(r.value for r in first) / median(r.value for r in others)
    text = (
        f"at task switches the condition number is {factor:.1f} times its usual value ({len(first)} switches)"
    )
    found.append(Source(finding.mechanism, "task switch", text))
    return found


def drift(finding: Finding, history: Records, instrument: str, variant: str) -> Source:
    """Gradual or sudden, from the history of one instrument; sudden changes are set against the tasks.

    Told by `change_point`: one step against one straight line.
    """
    rows = _series(history, finding, instrument, variant)
    if len(rows) < FEWEST:
        text = f"whether it came gradually or suddenly cannot be told from one checkpoint: {NO_HISTORY}"
        return Source(finding.mechanism, "drift", text, (), False)
    change = change_point([r.value for r in rows])
    span = f"from {change.before:.3g} to {change.after:.3g}"
    if change.kind == NONE:
        text = f"{instrument} shows no clear course over {len(rows)} measurements (p {change.p:.2f})"
        return Source(finding.mechanism, "drift", text, finding.layers, False)
    if change.kind == GRADUAL:
        text = f"gradual: {instrument} went {span} over {len(rows)} measurements (p {change.p:.3f})"
        return Source(finding.mechanism, "drift", text, finding.layers)
    before, after = rows[change.at - 1], rows[change.at]
    text = f"sudden: {instrument} jumped {span} at step {after.step} (p {change.p:.3f})"
    return Source(finding.mechanism, *_cause(before, after, history, text), layers=finding.layers)


def _cause(before: Record, after: Record, history: Records, text: str) -> tuple[str, str]:
    rates = [r for r in history if r.instrument == "learning_rate" and before.step <= r.step <= after.step]
    if len({r.value for r in rates}) > 1:
        return "learning rate", f"{text}, with a change of the learning rate"
    if before.task != after.task:
        return "task switch", f"{text}, at the switch to task {after.task or '?'}"
    return "drift", f"{text}, within a task: look for a learning-rate spike or a broken batch"


def _series(history: Records, finding: Finding, instrument: str, variant: str) -> list[Record]:
    rows = [
        r
        for r in history
        if r.instrument == instrument
        and r.variant == variant
        and math.isfinite(r.value)
        and r.status == "measured"
    ]
    pooled = [r for r in rows if r.layer == "*"]
    return pooled or [r for r in rows if finding.layers and r.layer == finding.layers[0]]
