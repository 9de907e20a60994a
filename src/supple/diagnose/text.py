"""A diagnosis as text in 80 columns: the loss first, then mechanisms, what to do, and what is not known."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from supple.status import Mechanism, Status

if TYPE_CHECKING:
    from supple.diagnose.types import DiagnosisReport, Evidence, Finding, PrescriptionLine

WIDTH = 80

STATUS_WORDS = {
    Status.PRESENT: "PRESENT",
    Status.ABSENT: "absent",
    Status.INCONCLUSIVE: "inconclusive",
    Status.NOT_MEASURED: "not measured",
    Status.INVALID: "INVALID",
}

MECHANISM_WORDS = {
    Mechanism.PLASTICITY_LOSS: "loss of plasticity",
    Mechanism.FORGETTING: "forgetting",
    Mechanism.DEAD_UNITS: "dead units",
    Mechanism.RANK_COLLAPSE: "rank collapse",
    Mechanism.NTK_DEGENERATION: "NTK degeneration",
    Mechanism.SATURATION: "saturation",
    Mechanism.WEIGHT_GROWTH: "weight growth",
    Mechanism.CLONED_UNITS: "cloned units",
}


def figure(value: float) -> str:
    """Three significant digits; a dash where there is nothing.

    >>> figure(0.35678), figure(1234.5), figure(float("nan"))
    ('0.357', '1234', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def wrap(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most 80 characters, the first with one prefix and the others with another."""
    rest = " " * len(first) if rest is None else rest
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def evidence_text(e: Evidence) -> str:
    """One measured value in words.

    >>> from supple.diagnose.types import Evidence
    >>> evidence_text(Evidence("grama", 0.36, 0.3, 0.4, reference=0.05, threshold=0.2, samples=256))
    'grama 0.36 [0.3, 0.4], twin 0.05, threshold 0.2, n=256'
    """
    parts = [f"{e.name}{'' if e.layer == '*' else ' ' + e.layer} {figure(e.value)}"]
    if not math.isnan(e.lo):
        parts[0] += f" [{figure(e.lo)}, {figure(e.hi)}]"
    if not math.isnan(e.reference):
        parts.append(f"twin {figure(e.reference)}")
    if not math.isnan(e.threshold):
        parts.append(f"threshold {figure(e.threshold)}")
    if e.samples:
        parts.append(f"n={e.samples}")
    return ", ".join(parts) + (f" ({e.note})" if e.note else "")


def _row(finding: Finding) -> list[str]:
    name = MECHANISM_WORDS[finding.mechanism]
    severity = "" if finding.severity is None else f"{finding.severity:.2f}"
    where = ", ".join(finding.layers) if finding.status is Status.PRESENT else ""
    head = f"{name:<18} {STATUS_WORDS[finding.status]:<13} {severity:>8}  "
    lines = wrap(where, head, " " * len(head)) if where else [head.rstrip()]
    if finding.reason:
        lines += wrap(finding.reason, "    ")
    if finding.probability is not None:
        lines.append(f"    probability that it costs learning: {finding.probability:.2f} (from the lab)")
    for e in (x for x in finding.evidence if x.layer == "*"):
        lines += wrap(evidence_text(e), "    - " if e.decides else "    · ", "      ")
    return lines


def _line(number: int, line: PrescriptionLine) -> list[str]:
    settings = ", ".join(f"{k}={v!r}" for k, v in line.settings.items())
    head = f"{line.intervention}({settings})"
    target = "" if line.mechanism is None else f" for {MECHANISM_WORDS[line.mechanism]}"
    out = wrap(f"{head}{target}; {line.kind}, level {line.level}, cost {line.cost}", f" {number}. ", "    ")
    for label, text in (
        ("", line.text),
        ("when: ", line.trigger),
        ("evidence: ", line.evidence),
        ("mind: ", line.warning),
    ):
        if text:
            out += wrap(label + text, "    ")
    return out


def _verdict(report: DiagnosisReport) -> list[str]:
    found = next((f for f in report.findings if f.mechanism is Mechanism.PLASTICITY_LOSS), None)
    if found is None:
        return []
    words = f"Loss of plasticity: {STATUS_WORDS[found.status]}"
    if found.severity is not None:
        words += f" (severity {found.severity:.2f})"
    return wrap(words + (f". {found.reason}" if found.reason else "."))


def _weak(report: DiagnosisReport) -> list[str]:
    out = [str(x) for x in report.meta.get("weak", ())]
    out += [f"{MECHANISM_WORDS[s.mechanism]}: {s.text}" for s in report.sources if not s.certain]
    return out


def _section(title: str, items: list[str]) -> list[str]:
    return ["", title, *(line for text in items for line in wrap(text, "  - ", "    "))] if items else []


def render(report: DiagnosisReport) -> str:
    """The whole report; also `str(report)`."""
    lines = ["Supple diagnosis", "=" * WIDTH, *_verdict(report)]
    compared = report.meta.get("compared_with")
    if compared:
        lines += wrap(f"Compared with: {compared}.")
    lines += ["", f"{'mechanism':<18} {'status':<13} {'severity':>8}  where", "-" * WIDTH]
    for found in report.findings:
        if found.status is not Status.NOT_MEASURED:
            lines += _row(found)
    missing = [f for f in report.findings if f.status is Status.NOT_MEASURED]
    lines += _section("Not measured", [f"{MECHANISM_WORDS[f.mechanism]}: {f.reason}" for f in missing])
    sources = [f"{MECHANISM_WORDS[s.mechanism]} ({s.kind}): {s.text}" for s in report.sources if s.certain]
    lines += _section("Where it comes from", sources)
    lines += ["", "What to do"]
    if report.prescription.note:
        lines += wrap(report.prescription.note, "  ")
    for number, line in enumerate(report.prescription.lines, 1):
        lines += _line(number, line)
    lines += _section("Weak evidence", _weak(report))
    lines.append("")
    for text in str(report.coverage).splitlines():
        lines += wrap(text.strip(), "  " if text.startswith(" ") else "", "    ")
    return "\n".join(lines)
