"""The cohort engine: methods × seeds of one MLP protocol as one program, run folders as of the loop."""

from supple.bench.cohort.engine import REFUSED, run_cohort, supports
from supple.bench.cohort.group import rhythm
from supple.bench.cohort.stack import Stack

__all__ = ["REFUSED", "Stack", "rhythm", "run_cohort", "supports"]
