"""Digits with random labels (setting A): pure memorisation, where no transfer can hide the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import Protocol, sourced
from supple.streams import RandomLabels, Stream

STUDY = "own feasibility study, setting A (measured, 3 seeds)"
SMALL_IMAGE = "scikit-learn's digits: 8 × 8 pixels, ten classes"
PENALTY = f"{STUDY}: the better of the coefficients tried"


@dataclass(frozen=True, kw_only=True)
class DigitsRandomLabels(Protocol):
    """300 fixed digits, new random labels per task, 20 epochs each.

    The small relative of random-label MNIST (Lyle et al. 2023; Kumar et al. 2023).

    >>> DigitsRandomLabels.preset("paper").epochs
    20
    """

    name: ClassVar[str] = "digits-random-labels"
    title: ClassVar[str] = "Digits with random labels"
    description: ClassVar[str] = "300 fixed digits, new random labels per task, 20 epochs each"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"demo": {}, "paper": {}, "small": {"tasks": 30}}

    tasks: int = sourced(60, STUDY)
    batch: int = sourced(16, STUDY)
    epochs: int = sourced(20, f"{STUDY}: 360 steps")
    inputs: int = sourced(64, SMALL_IMAGE)
    hidden: tuple[int, ...] = sourced((64, 64), STUDY)
    outputs: int = sourced(10, SMALL_IMAGE)
    optimizer: str = sourced("sgd", STUDY)
    lr: float = sourced(0.1, f"{STUDY}: of .01, .03, .1 the best early learner")
    samples: int = sourced(300, STUDY)
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {
            "l2": {"coef": 5e-3},
            "spectral": {"coef": 1e-2},
            "cchain": {"coef": 0.1},
        },
        PENALTY,
    )

    def stream(self, seed: int) -> Stream:
        return RandomLabels(tasks=self.tasks, seed=seed, samples=self.samples, classes=self.outputs)
