"""Who plays which role: the arms that are fixed beforehand, and the one that the diagnosis chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supple.diagnose import DiagnosisReport
    from supple.diagnose.types import PrescriptionLine

#: trained before the diagnosis: the network that wears, the healthy reference, the model without depth
BEFORE = {"worn": "plain", "reference": "fresh", "linear": "linear"}
#: fixed before anything was measured: the best-known fix, and the fix for another mechanism
FAMOUS, MISMATCHED = "cbp", "cchain"
#: architectural prescriptions -> the method that builds the network that way
ARCHITECTURES = {"CReLU": "crelu", "DeepFourier": "fourier"}


@dataclass(frozen=True)
class Cast:
    """A method in its role, with settings that override the protocol's."""

    role: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        from supple.bench import methods

        return methods.get(self.method).title

    def words(self) -> str:
        """The settings that the diagnosis chose, as text."""
        return ", ".join(f"{k} {v}" for k, v in self.settings.items())


def before() -> list[Cast]:
    return [Cast(role, method) for role, method in BEFORE.items()]


def after(reports: Sequence[DiagnosisReport]) -> list[Cast]:
    """The arms of the second part; a prescription that is one of the fixed arms takes that arm's place."""
    chosen = prescribed(reports)
    fixed = [Cast("famous", FAMOUS), Cast("mismatched", MISMATCHED)]
    if chosen is None:
        return fixed
    return [chosen, *(c for c in fixed if c.method != chosen.method)]


def prescribed(reports: Sequence[DiagnosisReport]) -> Cast | None:
    """What most of the reports prescribe first, among what can be run here; None without any."""
    votes = [cast for cast in (first_line(r) for r in reports) if cast is not None]
    if not votes:
        return None
    counts = Counter((c.method, c.words()) for c in votes)
    best = max(counts.values())
    return next(c for c in votes if counts[c.method, c.words()] == best)


def first_line(report: DiagnosisReport) -> Cast | None:
    """The first primary line of the prescription that has a method."""
    for line in report.prescription.primary:
        method = method_of(line)
        if method is not None:
            settings = {} if line.intervention in ARCHITECTURES else dict(line.settings)
            return Cast("prescribed", method, settings)
    return None


def method_of(line: PrescriptionLine) -> str | None:
    """The bench method that carries out a line."""
    from supple.bench.methods import METHODS

    if line.intervention in ARCHITECTURES:
        return ARCHITECTURES[line.intervention]
    for method in METHODS.values():
        if method.intervention == line.intervention:
            return method.name
    return None
