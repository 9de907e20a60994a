"""Experiment trackers behind one small protocol: ``log(values, step)`` and ``close()``.

Give one to a monitor, ``Monitor(..., sinks=[TensorBoard("runs/a")])``; any object with these two methods
serves as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from supple.integrations._need import need


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """What can be drawn: NaN and Inf are left out (they stay in the records with their status).

    >>> finite({"a": 1.0, "b": float("nan")})
    {'a': 1.0}
    """
    return {k: float(v) for k, v in values.items() if math.isfinite(v)}


class TensorBoard:
    """Writes scalars through ``torch.utils.tensorboard`` (extra ``tensorboard``)."""

    def __init__(self, log_dir: str) -> None:
        need("tensorboard", "tensorboard")
        self._writer: Any = need("torch.utils.tensorboard", "tensorboard").SummaryWriter(log_dir)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in finite(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Logs to a Weights & Biases run: the given one, or a new one (extra ``wandb``)."""

    def __init__(self, run: Any = None, **init: Any) -> None:
        self._own = run is None
        self._run: Any = need("wandb", "wandb").init(**init) if run is None else run

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**finite(values), "supple/step": step})

    def close(self) -> None:
        if self._own:
            self._run.finish()


class MLflow:
    """Logs metrics to the active MLflow run (extra ``mlflow``)."""

    def __init__(self) -> None:
        self._mlflow: Any = need("mlflow", "mlflow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        # MLflow allows a narrower set of characters in metric names than the records use
        clean = {"".join(c if c.isalnum() or c in "_-. /" else "_" for c in k): v for k, v in values.items()}
        self._mlflow.log_metrics(finite(clean), step=step)

    def close(self) -> None:
        """The run belongs to the caller; nothing is to be closed."""


class Trackio:
    """Logs to a Trackio project (extra ``trackio``)."""

    def __init__(self, project: str, **init: Any) -> None:
        self._trackio: Any = need("trackio", "trackio")
        self._trackio.init(project=project, **init)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log({**finite(values), "supple/step": step})

    def close(self) -> None:
        self._trackio.finish()
