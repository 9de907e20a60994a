"""Several processes: replicas stay equal to the last bit, shards are refused before anything is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = Path(__file__).parents[2]


def _ranks(kind: str, world: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank holds at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                kind,
                str(r),
                str(world),
                str(folder / "meet"),
                str(folder / "end"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for r in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(
                timeout=600
            )  # on a busy machine a rank may wait long for its turn
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:  # ranks wait for one another: none may be left behind
            process.kill()
    return [json.loads((folder / f"end.{r}").read_text(encoding="utf-8")) for r in range(world)]


@pytest.mark.parametrize("world", [2, 4])
def test_replicas_reset_the_same_units_and_stay_equal(world: int, tmp_path: Path) -> None:
    ends = _ranks("replicated", world, tmp_path)
    for name, first in ends[0].items():
        assert all(end[name] == first for end in ends), name
        assert first["spread"] == 0.0, name
        assert first["events"], name
    assert len(ends[0]["cbp"]["events"]) >= 100


def test_sharded_parameters_are_refused_or_give_the_result_of_one_process(tmp_path: Path) -> None:
    for end in _ranks("sharded", 2, tmp_path):
        for name, result in end.items():
            assert "DTensor" in result["refused"] if "refused" in result else result["difference"] < 1e-6, (
                name
            )
            if name not in ("hare", "fire"):
                assert "refused" in result, name
