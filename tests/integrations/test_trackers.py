"""Trackers behind the one protocol; a missing package names its extra."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from supple.errors import MissingExtraError
from supple.integrations import trackers


def test_tensorboard_receives_finite_values(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sink = trackers.TensorBoard(str(tmp_path))
    sink.log({"loss": 0.5, "broken": float("nan")}, 3)
    sink.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]


def test_a_given_wandb_run_is_used_and_left_open() -> None:
    class Run:
        rows: list[Any] = []  # noqa: RUF012
        finished = False

        def log(self, row: Any) -> None:
            self.rows.append(row)

        def finish(self) -> None:
            self.finished = True

    run = Run()
    sink = trackers.WandB(run)
    sink.log({"grama/fc1": 0.25}, 7)
    sink.close()
    assert run.rows == [{"grama/fc1": 0.25, "supple/step": 7}]
    assert not run.finished


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, build in (("mlflow", trackers.MLflow), ("trackio", lambda: trackers.Trackio("p"))):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'supple\[{name}\]'"):
            build()
