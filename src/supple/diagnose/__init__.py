"""What is wrong, where, and what fits? Step 0 measures whether there is a loss at all, then identify,
locate, prescribe; thresholds live here with their provenance, as do the typed findings and the
trial that measures candidates on copies.
"""

from supple.diagnose.plan import Plan, PlanStep, plan
from supple.diagnose.run import run
from supple.diagnose.trainability import Trainability, trainability
from supple.diagnose.trial import Arm, Trial, trial
from supple.diagnose.types import (
    DiagnosisReport,
    Evidence,
    Finding,
    Prescription,
    PrescriptionLine,
    Source,
)

__all__ = [
    "Arm",
    "DiagnosisReport",
    "Evidence",
    "Finding",
    "Plan",
    "PlanStep",
    "Prescription",
    "PrescriptionLine",
    "Source",
    "Trainability",
    "Trial",
    "plan",
    "run",
    "trainability",
    "trial",
]
