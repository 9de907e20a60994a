"""Reports are readable, complete, and survive a round trip through JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from supple.diagnose.types import (
    DiagnosisReport,
    Evidence,
    Finding,
    Prescription,
    PrescriptionLine,
    Source,
)
from supple.errors import InputError
from supple.records import Record, Records
from supple.status import Mechanism, Status
from supple.topology.graph import Coverage, LayerCoverage


def sample_report() -> DiagnosisReport:
    evidence = Evidence("grama", 0.36, 0.3, 0.41, reference=0.05, threshold=0.2, samples=256, note="τ 0.025")
    return DiagnosisReport(
        findings=(
            Finding(
                Mechanism.PLASTICITY_LOSS, Status.PRESENT, 0.3, reason="it learns 70 % as fast as its twin"
            ),
            Finding(Mechanism.FORGETTING, Status.NOT_MEASURED, reason="no earlier task was given; " * 6),
            Finding(
                Mechanism.DEAD_UNITS, Status.PRESENT, 0.36, ("net.0", "net.2"), (evidence,), "reset them"
            ),
            Finding(Mechanism.RANK_COLLAPSE, Status.INVALID, reason="NaN in net.4"),
        ),
        coverage=Coverage(
            (
                LayerCoverage("net.0", "Linear", 10, True),
                LayerCoverage("x", "GRU", 5, False, "opaque operation"),
            )
        ),
        prescription=Prescription(
            (
                PrescriptionLine(
                    Mechanism.DEAD_UNITS,
                    "ReGraMa",
                    {"tau": 0.1, "every": "task"},
                    warning="continual backprop does not address this " * 4,
                ),
            ),
            "from the table",
        ),
        records=Records(
            [Record("loss", math.nan, status="invalid"), Record("grama", 0.36, lo=0.3, hi=math.inf)]
        ),
        arrays={"spectrum/net.2": torch.tensor([2.0, 1.0, math.nan], dtype=torch.float64)},
        sources=(Source(Mechanism.DEAD_UNITS, "activation", "relu has a dead half", ("net.0",)),),
        meta={"compared_with": "2 fresh twins", "weak": ["churn"], "seconds": 1.5},
    )


def test_text_fits_eighty_columns_and_names_everything() -> None:
    text = str(sample_report())
    assert max(map(len, text.splitlines())) <= 80
    for word in ("Loss of plasticity: PRESENT", "net.0, net.2", "ReGraMa", "Not measured", "GRU", "INVALID"):
        assert word in text
    assert text.index("Loss of plasticity") < text.index("dead units")


def test_json_round_trip_keeps_every_field(tmp_path) -> None:
    report = sample_report()
    path = tmp_path / "r.json"
    report.to_json(path)
    row = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert row["records"][0]["value"] is None
    again = DiagnosisReport.from_json(path)
    assert again.to_dict() == report.to_dict()
    assert again.findings == report.findings
    assert again.prescription == report.prescription
    assert again.arrays["spectrum/net.2"][0] == 2.0
    assert again.arrays["spectrum/net.2"][2].isnan()


def test_unknown_mechanism_field_and_version_are_refused_by_name() -> None:
    report = sample_report()
    with pytest.raises(InputError, match="rank_collapse"):
        report.finding("rot")
    assert report.finding("dead_units").layers == ("net.0", "net.2")
    with pytest.raises(InputError, match="nonsense"):
        Evidence.from_dict({"name": "x", "value": 1.0, "nonsense": 2})
    with pytest.raises(InputError, match="version"):
        DiagnosisReport.from_dict({**report.to_dict(), "version": 99})


def test_findings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        sample_report().findings[0].status = Status.ABSENT  # type: ignore[misc]
