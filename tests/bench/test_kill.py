"""kill -9 at random moments of a run: started again, it ends with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked runs")
def test_runs_killed_at_random_times(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.bench.killing",
        str(tmp_path),
        "15",
        "plain",
        "fresh",
        "shrink_perturb",
    ]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    result = json.loads(out.stdout)
    assert result["wrong"] == []
    assert result["kills"] >= 15
    assert result["runs"] >= 3
