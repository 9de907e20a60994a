"""Checkpoints side by side in processes: the same rows, deaths by name, nothing left running."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from supple.cli.main import main
from supple.errors import InputError
from supple.processes import Died, spread
from supple.scan import run, scan
from supple.scan.look import Job, Seen, look


def work(job: int, tell: Callable[[Any], None]) -> int:
    """Squares; 3 kills its process, 4 raises."""
    tell(("begun", job))
    if job == 3:
        os._exit(7)
    if job == 4:
        raise InputError("four is not squared", found=job)
    return job * job


def test_results_come_in_order_and_a_death_takes_one_job_only() -> None:
    heard: list[tuple[int, Any]] = []
    got = spread(work, [5, 3, 2, 6], 2, lambda place, told: heard.append((place, told)))
    assert got == [25, Died(7), 4, 36]
    assert sorted(heard) == [(0, ("begun", 5)), (1, ("begun", 3)), (2, ("begun", 2)), (3, ("begun", 6))]
    assert not mp.active_children()


def test_an_exception_of_a_job_is_raised_here_and_ends_the_others() -> None:
    with pytest.raises(InputError, match="four is not squared; found: 4"):
        spread(work, [4, 1], 2)
    assert not mp.active_children()
    with pytest.raises(InputError, match="negative"):
        spread(work, [1], -1)
    assert spread(work, [1, 2], 0) == [1, 4]


def look_or_die(job: Job, tell: Callable[[int], None]) -> Seen:
    """The real look, except that one checkpoint is fatal."""
    if "fatal" in job.path:
        os._exit(9)
    return look(job, tell)


def test_a_scan_in_processes_equals_a_scan_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for i, name in enumerate(("a", "b", "fatal", "c")):
        g = torch.Generator().manual_seed(i)
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({f"l{j}.weight": torch.randn(20, 30, generator=g) for j in range(3)}, paths[-1])
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    paths.insert(1, tmp_path / "bad.pt")
    serial = scan([p for p in paths if "fatal" not in p.name])
    monkeypatch.setattr(run, "look", look_or_die)
    done: list[tuple[str, int]] = []
    report = scan(paths, workers=2, progress=lambda label, count: done.append((label, count)))
    assert report.runs == serial.runs == ("a.safetensors", "b.safetensors", "c.safetensors")
    steps = {"a.safetensors": 0, "b.safetensors": 2, "c.safetensors": 4}
    assert {r.run: r.step for r in report.records} == steps
    strip = [{**r.to_dict(), "step": 0} for r in serial.records]
    assert [{**r.to_dict(), "step": 0} for r in report.records] == strip
    assert [Path(f.path).name for f in report.failures] == ["bad.pt", "fatal.safetensors"]
    assert "died with exit code 9" in report.failures[1].message
    assert "fatal.safetensors" in report.failures[1].message
    assert main(["scan", str(paths[0]), str(paths[1]), "--workers", "1"]) == 2
    printed = capsys.readouterr()
    assert "a.safetensors" in printed.out
    assert "1 of 2 checkpoints were not read" in printed.err
    assert sorted(done) == [(run, i) for run in report.runs for i in (1, 2, 3)]


SCRIPT = """
import signal, sys, time
from supple.processes import spread

def work(job, tell):
    tell(__import__("os").getpid())
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    spread(work, [1, 2], 2, lambda place, told: print(told, flush=True))
"""


def test_ctrl_c_ends_the_children(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    for child in children:
        for _ in range(100):
            try:
                os.kill(child, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"process {child} is still there")
