"""What a policy shows beside the mechanisms: saturation, and whether it is exploration that fails.

A collapsed agent may have live units, a full rank and an unchanged weight norm: its logits have run away and it
no longer explores. That is no mechanism of a loss of plasticity, so it is reported apart. The thresholds are not
calibrated in the lab: they were read off the collapses of the small CartPole suite (entropy 0.000, largest logit 10 to
45), and that of the entropy is checked on other seeds of it, with sensitivity and specificity, in
``docs/results/rl-gym.md``. Those of deviations and bounded actions have not been checked against any suite.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from supple.diagnose.text import STATUS_WORDS, evidence_text, wrap
from supple.diagnose.types import Evidence, Finding, plain
from supple.errors import InputError
from supple.status import Status

Kind = Literal["logits", "means", "bounded", "values"]
Name = Literal["policy_saturation", "exploration_failure", "value_over_estimation"]

ENTROPY = 0.05  # share of the largest possible entropy
DEVIATION = 0.01  # share of half the range of an action
ROOM = 0.05  # share of action entries that are not at a bound
AT_BOUND = 0.99
CERTAIN = 0.99


@dataclass(frozen=True)
class PolicyFinding:
    """One statement about the policy, with a status as in a diagnosis."""

    name: Name
    status: Status
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        row = plain(dataclasses.asdict(self))
        return {**row, "evidence": [e.to_dict() for e in self.evidence]}


@dataclass(frozen=True)
class PolicyReport:
    """The findings about a policy; ``print(report)`` has them in words."""

    findings: tuple[PolicyFinding, ...]

    def finding(self, name: str) -> PolicyFinding:
        """The finding of this name; an unknown one lists the known ones."""
        for found in self.findings:
            if found.name == name:
                return found
        raise InputError(f"no finding about {name!r}", do=f"choose one of {[f.name for f in self.findings]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain types throughout."""
        return {"findings": [found.to_dict() for found in self.findings]}

    def __str__(self) -> str:
        lines: list[str] = []
        for found in self.findings:
            lines.append(f"{found.name.replace('_', ' '):<22} {STATUS_WORDS[found.status]}")
            lines += wrap(found.reason, "    ") if found.reason else []
            for e in found.evidence:
                lines += wrap(evidence_text(e), "    - " if e.decides else "    · ", "      ")
            lines += wrap("what to do: " + found.advice, "    ") if found.advice else []
        return "\n".join(lines)


def policy_report(
    outputs: Tensor,
    kind: Kind,
    *,
    deviation: Tensor | None = None,
    half_range: Tensor | None = None,
    loss: Finding | None = None,
    falls_short: bool | None = None,
) -> PolicyReport:
    """Policy saturation, exploration failure, and what is not measured.

    **Policy saturation** is PRESENT where the 95 % interval of the mean over states lies below the threshold, ABSENT
    above it: for logits the entropy H(π(·|x)) / log A, 0.05; for Gaussian means the standard deviation / half the
    range of the action, 0.01; for bounded actions the share of entries with |a| < 0.99, 0.05. A policy that has
    learned its task for good is saturated too: saturation says that it no longer tries anything, not that it is wrong.
    **Exploration failure** is told from a loss of plasticity by learning: PRESENT where the policy is saturated,
    returns fall short of a fresh agent's, and the network learns new random tasks as well as its twin does.
    **Value over-estimation** is not measured: it needs returns of the present policy from the states of the probe.

    Args:
        outputs: (N, A) logits, means, actions in [-1, 1] ("bounded": a squashed policy) or action values.
        kind: "logits", "means", "bounded", "values"; a greedy policy on values has no entropy: NOT MEASURED.
        deviation: (N, A) standard deviations, for "means".
        half_range: (A,) half the width of each action, for "means".
        loss: the finding "plasticity_loss" of a diagnosis of the policy's network.
        falls_short: whether returns stay below those of a fresh agent on this task; None: unknown.

    Raises:
        InputError: an unknown kind, outputs that are not (N, A), deviations or ranges of another shape.

    >>> import torch
    >>> report = policy_report(torch.tensor([[30.0, 0.0], [25.0, 0.0]]), "logits")
    >>> report.finding("policy_saturation").status
    <Status.PRESENT: 'present'>
    >>> report.finding("value_over_estimation").status
    <Status.NOT_MEASURED: 'not_measured'>
    """
    if outputs.dim() != 2 or not outputs.numel():
        raise InputError("the outputs of a policy are (N, A)", found=tuple(outputs.shape))
    if kind not in ("logits", "means", "bounded", "values"):
        raise InputError("unknown kind of outputs", found=kind, do="logits, means, bounded or values")
    for what, given, shape in (
        ("deviation", deviation, outputs.shape),
        ("half_range", half_range, outputs.shape[1:]),
    ):
        if given is not None and given.shape != shape:
            raise InputError(
                f"{what} does not fit the outputs", found=tuple(given.shape), do=f"{tuple(shape)}"
            )
    saturation = _saturation(outputs.detach().double().cpu(), kind, deviation, half_range)
    value = PolicyFinding(
        "value_over_estimation",
        Status.NOT_MEASURED,
        "it needs returns of the present policy from these states",
    )
    return PolicyReport((saturation, _exploration(saturation, loss, falls_short), value))


def _saturation(x: Tensor, kind: Kind, deviation: Tensor | None, half_range: Tensor | None) -> PolicyFinding:
    largest = Evidence(f"max_abs_{kind}", float(x.abs().max()), samples=len(x), decides=False)
    name: Name = "policy_saturation"
    if not bool(x.isfinite().all()):
        return PolicyFinding(name, Status.INVALID, "the policy returns NaN or Inf")
    if kind == "values":
        reason = "a greedy policy on action values has no entropy; it explores outside of its network"
        return PolicyFinding(name, Status.NOT_MEASURED, reason, (largest,))
    if kind == "logits":
        log_p = x.log_softmax(1)
        scores = -(log_p.exp() * log_p).sum(1) / math.log(max(2, x.shape[1]))
        certain = float((log_p.exp().amax(1) > CERTAIN).double().mean())
        shown = (largest, Evidence("certain_states", certain, samples=len(x), decides=False))
        return _judged(scores, "entropy", ENTROPY, "share of log(number of actions)", shown)
    if kind == "bounded":
        scores = (x.abs() < AT_BOUND).double().mean(1)
        return _judged(scores, "unsaturated_share", ROOM, "action entries away from their bounds", (largest,))
    if deviation is None or half_range is None or not bool(half_range.isfinite().all()):
        reason = "no standard deviation, or actions without bounds"
        return PolicyFinding(name, Status.NOT_MEASURED, reason, (largest,))
    if not bool(deviation.isfinite().all()):
        return PolicyFinding(name, Status.INVALID, "the policy's deviations are NaN or Inf", (largest,))
    scores = (deviation.detach().double().cpu() / half_range.detach().double().cpu()).mean(1)
    return _judged(scores, "relative_deviation", DEVIATION, "of half the range of the actions", (largest,))


def _judged(
    scores: Tensor, name: str, threshold: float, note: str, shown: tuple[Evidence, ...]
) -> PolicyFinding:
    n, mean = len(scores), float(scores.mean())
    margin = 1.96 * float(scores.std()) / math.sqrt(n) if n > 1 else math.inf
    lo, hi = mean - margin, mean + margin
    status = Status.INCONCLUSIVE
    if hi < threshold:
        status = Status.PRESENT
    elif lo > threshold:
        status = Status.ABSENT
    words = {
        Status.PRESENT: "on these states the policy no longer tries anything else",
        Status.ABSENT: "the policy still tries other actions on these states",
        Status.INCONCLUSIVE: "the interval straddles the threshold",
    }
    deciding = Evidence(name, mean, lo, hi, threshold=threshold, samples=n, note=note)
    return PolicyFinding("policy_saturation", status, words[status], (deciding, *shown))


def _exploration(saturation: PolicyFinding, loss: Finding | None, falls_short: bool | None) -> PolicyFinding:
    """Told apart from a loss of plasticity by what the network can still learn."""
    name: Name = "exploration_failure"
    undecided = (Status.NOT_MEASURED, Status.INVALID, Status.INCONCLUSIVE)
    if loss is None or loss.status in undecided:
        why = "no diagnosis was given" if loss is None else f"its step 0 is {STATUS_WORDS[loss.status]}"
        return PolicyFinding(
            name,
            Status.NOT_MEASURED,
            f"only a trainability probe can tell it from a loss of plasticity; {why}",
        )
    if loss.status is Status.PRESENT:
        reason = (
            "the network itself has lost plasticity; whether it also explores too little shows after a repair"
        )
        return PolicyFinding(name, Status.INCONCLUSIVE, reason, advice="repair the network first")
    if falls_short is False:
        return PolicyFinding(name, Status.ABSENT, "returns are those of a fresh agent")
    if saturation.status in undecided:
        return PolicyFinding(
            name, Status.INCONCLUSIVE, f"policy saturation is {STATUS_WORDS[saturation.status]}"
        )
    if saturation.status is Status.ABSENT:
        reason = "the network learns and the policy tries other actions; low returns have another cause"
        return PolicyFinding(name, Status.INCONCLUSIVE if falls_short else Status.ABSENT, reason)
    if falls_short is None:
        reason = "the network learns and the policy is saturated: fine if the task is solved"
        return PolicyFinding(name, Status.INCONCLUSIVE, reason, advice="compare returns with a fresh agent's")
    return PolicyFinding(
        name,
        Status.PRESENT,
        "the network learns as well as its twin, but the policy gives it nothing new to learn from",
        advice="explore more (entropy bonus, noise) or renew the networks at a switch, before its first rollout; not a "
        "reset of units",
    )
