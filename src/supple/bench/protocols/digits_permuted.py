"""Online permuted digits (setting D2): loss of plasticity on real data within seconds, no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import Protocol, sourced
from supple.streams import PermutedPixels, Stream

STUDY = "own feasibility study, setting D2 (measured, 3 seeds)"
WIDTH = (
    "measured here: the study had 64-64 (preset 'paper') and .854 for its fresh reference, which zeroed "
    "Adam's moments but kept the step count, about three times the learning rate; with a fresh optimizer "
    "64-64 reaches .80 to .815 and 128-128 .87"
)
SMALL_IMAGE = "scikit-learn's digits: 8 × 8 pixels, ten classes"
PENALTY = f"{STUDY}: the better of the coefficients tried"


@dataclass(frozen=True, kw_only=True)
class DigitsPermuted(Protocol):
    """All 1,797 digits, one pass per task, a new pixel permutation per task, accuracy before each update.

    Presets: ``demo`` (two hidden layers of 128), ``paper`` (of 64, as in the study), ``small`` (60 tasks).
    The small relative of online permuted MNIST (Dohare et al., Nature 2024), with Adam and batches of 16.

    >>> DigitsPermuted.preset("demo").tasks
    150
    """

    name: ClassVar[str] = "digits-permuted"
    title: ClassVar[str] = "Online permuted digits"
    description: ClassVar[str] = "a new pixel permutation of 1,797 digits per task, one pass each"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "demo": {},
        "paper": {"hidden": (64, 64)},
        "small": {"tasks": 60},
    }

    tasks: int = sourced(150, STUDY)
    batch: int = sourced(16, STUDY)
    epochs: int = sourced(1, f"{STUDY}: online, 112 full batches")
    inputs: int = sourced(64, SMALL_IMAGE)
    hidden: tuple[int, ...] = sourced((128, 128), WIDTH)
    outputs: int = sourced(10, SMALL_IMAGE)
    optimizer: str = sourced("adam", STUDY)
    lr: float = sourced(3e-3, f"{STUDY}: of 3e-4, 1e-3, 3e-3, 1e-2 the best early learner")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {
            "l2": {"coef": 5e-3},
            "spectral": {"coef": 1e-2},
            "cchain": {"coef": 1.0},
        },
        PENALTY,
    )

    def stream(self, seed: int) -> Stream:
        return PermutedPixels(tasks=self.tasks, seed=seed)
