"""Is a diagnosis right? Networks whose illness is known by construction, and healthy ones; the truth about each
is measured by learning and by surgical repair, and the verdicts of `supple.diagnose` are held against it.
"""

from supple.bench.lab.cases import PRESETS, Case, cases
from supple.bench.lab.run import RECORDS, halves, run_lab
from supple.bench.lab.score import parts, render, summary

__all__ = ["PRESETS", "RECORDS", "Case", "cases", "halves", "parts", "render", "run_lab", "summary"]
