"""Where do results live? Run folders with a manifest, append-only records, checkpoints replaced
atomically, checksums, and resume after a kill at any moment. Reading a run never executes code:
JSON and safetensors only.
"""

from supple.store.read import StoredRun, load
from supple.store.run import Run

__all__ = ["Run", "StoredRun", "load"]
