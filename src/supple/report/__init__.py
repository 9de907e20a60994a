"""What does it look like? Tables, figures and one offline HTML file, drawn from findings and records
that were measured elsewhere; nothing is measured here.
"""

from __future__ import annotations

from supple.report.comparison import Comparison, ComparisonPage, Course, drawings, latex, write_comparison
from supple.report.data import Arm, Spread, Story
from supple.report.overall import OverallPart
from supple.report.page import write_diagnosis, write_story
from supple.report.scan import write_scan
from supple.report.words import verdict

__all__ = [
    "Arm",
    "Comparison",
    "ComparisonPage",
    "Course",
    "OverallPart",
    "Spread",
    "Story",
    "drawings",
    "latex",
    "verdict",
    "write_comparison",
    "write_diagnosis",
    "write_scan",
    "write_story",
]
