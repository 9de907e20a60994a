"""Data parallel: every rank has its own data, and the replicas stay equal to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What both ranks hold after the same runs."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, str(WORKER)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "meet"), str(folder / "end")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(folder / f"end.{rank}") for rank in range(2)]


SAME = (
    "cchain",
    "cchain-auto",
    "spectral",
    "feature_rank",
    "parseval",
    "wasserstein",
    "clipping",
    "trac",
    "shrink_perturb",
)


@pytest.mark.parametrize("method", SAME)
def test_replicas_stay_equal(ends, method):
    (first, a), (second, b) = (end[method] for end in ends)
    assert torch.equal(first, second)
    assert a == b
    assert torch.isfinite(first).all()


def test_without_the_reduction_they_would_drift_apart(ends):
    first, second = (end["cchain-apart"][0] for end in ends)
    assert (first - second).abs().max() > 1e-5
