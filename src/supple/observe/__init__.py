"""What does this live network show? The probe pass that leaves the training state untouched bit for
bit, the instruments that fill records from it, the fresh twin to compare with, and the `Monitor`
that measures over a run by optimizer step hooks.
"""

from supple.observe.batch import check_batch
from supple.observe.copies import clean_copy
from supple.observe.guard import guard, rng_guard
from supple.observe.monitor import Monitor
from supple.observe.probe import Observation, observe
from supple.observe.reference import Reference, refuse_itself, resolve

__all__ = [
    "Monitor",
    "Observation",
    "Reference",
    "check_batch",
    "clean_copy",
    "guard",
    "observe",
    "refuse_itself",
    "resolve",
    "rng_guard",
]
