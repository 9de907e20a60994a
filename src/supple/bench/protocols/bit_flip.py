"""Slowly-changing regression: one slow bit flips at each boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from supple.bench.protocols.base import Protocol, sourced
from supple.bench.protocols.images import LOP, NATURE, SHORT
from supple.streams import BitFlip, Stream


@dataclass(frozen=True, kw_only=True)
class SlowRegression(Protocol):
    """20 bits, 15 of them slow, a threshold network as target, a 20-5-1 network that learns it online.

    The published figure is the squared error, here ``online_loss``; the metric is the score 1 / (1 + squared error).

    >>> paper = SlowRegression.preset("paper")
    >>> paper.tasks * paper.samples
    3000000
    """

    name: ClassVar[str] = "slow-regression"
    title: ClassVar[str] = "Slowly-changing regression (bit flip)"
    description: ClassVar[str] = "regression on 20 bits of which one slow bit flips at each boundary"
    metric: ClassVar[str] = "score"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"tasks": 100, "samples": 1000},
        "demo": {"tasks": 5, "samples": 200},
    }

    tasks: int = sourced(300, f"{NATURE}: 3M examples, a flip every 10,000{SHORT}")
    batch: int = sourced(1, NATURE)
    epochs: int = sourced(1, f"{NATURE}: each example once")
    samples: int = sourced(10_000, f"{NATURE}: examples between flips{SHORT}")
    inputs: int = sourced(21, f"{NATURE}: 20 bits and a constant")
    slow: int = sourced(15, f"{NATURE}: slow bits")
    beta: float = sourced(0.7, f"{NATURE}: of the thresholds")
    units: int = sourced(100, f"{NATURE}: threshold units of the target")
    hidden: tuple[int, ...] = sourced((5,), NATURE)
    outputs: int = sourced(1, NATURE)
    optimizer: str = sourced("sgd", f"{NATURE}: SGD and Adam")
    lr: float = sourced(0.01, f"{NATURE}: of .01, .003, .001")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {},
        f"the methods' own; {LOP}: all swept (weight decay 1e-6 to 1, noise 1e-6 to .1, replacement 1e-6 to 1e-2)",
    )

    def stream(self, seed: int) -> Stream:
        return BitFlip(
            tasks=self.tasks,
            seed=seed,
            samples=self.samples,
            bits=self.inputs - 1,
            slow=self.slow,
            units=self.units,
            beta=self.beta,
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, targets)

    def judge(self, outputs: Tensor, targets: Tensor) -> tuple[float, int]:
        wrong = (outputs - targets).double().square().sum(-1)
        finite = wrong.isfinite()
        return float(torch.where(finite, 1 / (1 + wrong), 0.0).sum()), int((~finite).sum())
