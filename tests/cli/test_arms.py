"""Who plays which role: read from the prescriptions, never assumed."""

from __future__ import annotations

from typing import Any

from supple.cli.demo.arms import after, before, first_line, prescribed
from supple.diagnose.types import DiagnosisReport, Prescription, PrescriptionLine
from supple.status import Mechanism
from supple.topology.graph import Coverage


def report(*lines: tuple[str, dict[str, Any], bool]) -> DiagnosisReport:
    made = tuple(
        PrescriptionLine(Mechanism.DEAD_UNITS, name, settings, primary=primary)
        for name, settings, primary in lines
    )
    return DiagnosisReport((), Coverage(()), Prescription(made))


REGRAMA = ("ReGraMa", {"every": "task", "tau": 0.1}, True)
SPECTRAL = ("SpectralRegularization", {"coef": 0.01}, True)


def test_the_prescription_chooses_the_arm_and_its_settings() -> None:
    cast = prescribed([report(REGRAMA)])
    assert cast is not None
    assert (cast.role, cast.method, dict(cast.settings)) == ("prescribed", "regrama", REGRAMA[1])
    assert cast.words() == "every task, tau 0.1"
    other = prescribed([report(SPECTRAL)])
    assert other is not None
    assert other.method == "spectral"


def test_alternatives_and_unknown_lines_are_passed_over() -> None:
    cast = first_line(report(("ReDo", {}, False), ("ForgettingAttention", {}, True), REGRAMA))
    assert cast is not None
    assert cast.method == "regrama"
    assert first_line(report(("ReDo", {}, False))) is None


def test_architectures_become_their_networks() -> None:
    cast = prescribed([report(("DeepFourier", {"width": "half"}, True))])
    assert cast is not None
    assert (cast.method, dict(cast.settings)) == ("fourier", {})


def test_the_majority_of_seeds_decides_and_ties_go_to_the_first() -> None:
    majority = prescribed([report(SPECTRAL), report(REGRAMA), report(REGRAMA)])
    assert majority is not None
    assert majority.method == "regrama"
    tie = prescribed([report(SPECTRAL), report(REGRAMA)])
    assert tie is not None
    assert tie.method == "spectral"


def test_nothing_prescribed_leaves_the_fixed_arms() -> None:
    assert prescribed([report(), report()]) is None
    assert [c.role for c in after([report()])] == ["famous", "mismatched"]


def test_a_prescription_that_is_a_fixed_arm_takes_its_place() -> None:
    cast = after([report(("ContinualBackprop", {"rate": 1e-3}, True))])
    assert [(c.role, c.method) for c in cast] == [("prescribed", "cbp"), ("mismatched", "cchain")]


def test_the_first_part_is_fixed() -> None:
    assert [(c.role, c.method) for c in before()] == [
        ("worn", "plain"),
        ("reference", "fresh"),
        ("linear", "linear"),
    ]
