"""kill -9 at any moment: the run that is started again ends with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers")
SCRIPT = Path(__file__).with_name("killing.py")


def survive(*arguments: str) -> dict:
    out = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    result = survive("calls", str(tmp_path))
    assert result["wrong"] == []
    assert result["kills"] >= 100


def test_killed_at_random_times(tmp_path: Path) -> None:
    result = survive("times", str(tmp_path), "30")
    assert result["wrong"] == []
    assert result["kills"] >= 30
