"""What do weights on disk say? Checkpoints are streamed tensor by tensor, never executed, and compared
round against round.
"""

from __future__ import annotations

from supple.scan.measure import INSTRUMENTS
from supple.scan.report import Failure, ScanReport
from supple.scan.run import scan
from supple.scan.sources import Checkpoint, open_checkpoint, read_state
from supple.scan.trend import Trend

__all__ = [
    "INSTRUMENTS", "Checkpoint", "Failure", "ScanReport", "Trend", "open_checkpoint", "read_state", "scan",
]  # fmt: skip
