"""The same from a shell: `supple demo`, `diagnose`, `scan`, `bench` and `report`.

One module a command: a frozen dataclass whose fields are the options and whose ``run`` returns the exit
status. 0: done; 1: a finding at or above ``--fail-on``; 2: it could not run, with one message on stderr.
"""

from __future__ import annotations

from supple.cli.main import main

__all__ = ["main"]
