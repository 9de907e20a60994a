"""The verdict of the demo in words, from the measured figures alone, whatever they turned out to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from supple.diagnose.types import DiagnosisReport
from supple.report.data import Arm, Spread, Story, stretch
from supple.status import Mechanism

MECHANISM_NAMES = {
    Mechanism.PLASTICITY_LOSS: "loss of plasticity",
    Mechanism.FORGETTING: "forgetting",
    Mechanism.DEAD_UNITS: "dead units",
    Mechanism.RANK_COLLAPSE: "collapse of the weight rank",
    Mechanism.NTK_DEGENERATION: "degeneration of the NTK",
    Mechanism.SATURATION: "saturation",
    Mechanism.WEIGHT_GROWTH: "growth of the weights",
    Mechanism.CLONED_UNITS: "cloned units",
}


def verdict(story: Story) -> list[str]:
    """Sentences: what was lost, what the diagnosis says, what each repair did, how sure that is."""
    lines = [_loss(story), *_diagnosis(story)]
    worn, reference = story.arm("worn"), story.arm("reference")
    for role, words in (
        ("prescribed", "What the diagnosis prescribes"),
        ("famous", "The famous fix"),
        ("mismatched", "The mismatched fix"),
    ):
        arm = story.arm(role)
        if arm is not None and worn is not None and reference is not None:
            lines.append(_repair(story, arm, words, worn, reference))
    lines += _comparison(story)
    return [line for line in lines if line]


def figures(spread: Spread) -> str:
    """Mean and range over seeds.

    >>> figures(Spread(0.832, 0.83, 0.834, 3))
    '0.83 [0.83, 0.83]'
    """
    if not spread.count:
        return "not measured"
    return f"{spread.mean:.2f} [{spread.lo:.2f}, {spread.hi:.2f}]"


def _loss(story: Story) -> str:
    worn, reference, linear = story.arm("worn"), story.arm("reference"), story.arm("linear")
    if worn is None or reference is None:
        return ""
    w, r = worn.late(story.window), reference.late(story.window)
    text = (
        f"Over the {stretch('last', story.window)} of {story.tasks} the plain network gets {figures(w)} "
        f"right at first sight, a fresh network {figures(r)}"
    )
    if linear is not None:
        text += f", a linear model {figures(linear.late(story.window))}"
    if w.hi < r.lo:
        return text + f": on every seed it learns worse than a fresh network, by {r.mean - w.mean:.2f}."
    return text + ": no loss beyond the spread of the seeds was seen here."


def _diagnosis(story: Story) -> list[str]:
    if not story.worn:
        return []
    lines = [f"Diagnosis of the worn network ({len(story.worn)} seeds): {statuses(story.worn)}."]
    if story.fresh:
        alarms = [f.mechanism for report in story.fresh for f in report.present]
        lines.append(
            "Control: on a fresh network the diagnosis reports no mechanism as present."
            if not alarms
            else f"Control: on a fresh network it reports {_join(sorted(set(alarms)))}: a false alarm."
        )
    return lines


def statuses(reports: Sequence[DiagnosisReport]) -> str:
    """Each mechanism that is present in any of the reports, with how often and where."""
    parts = []
    for mechanism, words in MECHANISM_NAMES.items():
        hits = [f for r in reports for f in r.present if f.mechanism == mechanism]
        if hits:
            where = list(dict.fromkeys(layer for f in hits for layer in f.layers))
            often = "" if len(hits) == len(reports) else f" on {len(hits)} of {len(reports)} seeds"
            parts.append(f"{words} PRESENT{often}" + (f" ({', '.join(where)})" if where else ""))
    return "; ".join(parts) or "no mechanism present"


def recovered(arm: Spread, worn: Spread, reference: Spread) -> float:
    """Share of the loss that an arm wins back: 0 as the worn network, 1 as the reference.

    >>> recovered(Spread.of([0.7]), Spread.of([0.6]), Spread.of([0.8])).__round__(6)
    0.5
    """
    gap = reference.mean - worn.mean
    return (arm.mean - worn.mean) / gap if gap > 0 else math.nan


def _repair(story: Story, arm: Arm, words: str, worn: Arm, reference: Arm) -> str:
    a, w, r = (x.late(story.window) for x in (arm, worn, reference))
    share = recovered(a, w, r)
    text = f"{words}, {arm.title}{f' ({arm.settings})' if arm.settings else ''}: {figures(a)}"
    if math.isnan(share):
        return text + "."
    if share >= 0.995:
        return text + ", as good as a fresh network."
    if a.hi < w.lo:
        return text + f", worse than the plain network by {w.mean - a.mean:.2f}."
    if a.lo <= w.hi:
        return text + ", no clear difference from the plain network."
    return text + f", {share:.0%} of the loss won back."


def _comparison(story: Story) -> list[str]:
    prescribed = story.arm("prescribed")
    if prescribed is None:
        return []
    p = prescribed.late(story.window)
    lines = []
    for role, name in (("mismatched", "the mismatched fix"), ("famous", "the famous fix")):
        other = story.arm(role)
        if other is None:
            continue
        o = other.late(story.window)
        if p.lo > o.hi:
            lines.append(f"The prescription beats {name} by {p.mean - o.mean:.2f}, on every seed.")
        elif o.lo > p.hi:
            lines.append(
                f"{name.capitalize()} beats the prescription by {o.mean - p.mean:.2f}, on every seed."
            )
        else:
            lines.append(f"Prescription and {name} cannot be told apart with {p.count} seeds.")
    return lines


def _join(words: Sequence[str]) -> str:
    return ", ".join(w.replace("_", " ") for w in words)
