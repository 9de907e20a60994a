"""Labels that flip, labels that are noisy, and concepts that shift abruptly or gradually, on MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import sourced
from supple.bench.protocols.images import HERE, ImageProtocol
from supple.streams import Change, Gradual, Held, LabelNoise, PermuteLabels, PermutePixels

FORM = "label flipping as in Lewandowski et al. 2024 (arXiv 2406.06811), whose sizes are not known here"
SHIFT = "gradual against abrupt shift as in arXiv 2602.09234, whose sizes are not known here"


@dataclass(frozen=True, kw_only=True)
class LabelFlipping(ImageProtocol):
    """The classes exchange their labels by a new permutation in every task; judged on the test images.

    >>> LabelFlipping.preset("small").tasks
    60
    """

    name: ClassVar[str] = "label-flipping-mnist"
    title: ClassVar[str] = "Label flipping (MNIST)"
    description: ClassVar[str] = "the classes of MNIST exchange their labels in every task"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "day": {},
        "small": {"tasks": 60, "samples": 1600},
        "demo": {"tasks": 5, "samples": 800},
    }

    tasks: int = sourced(400, HERE)
    batch: int = sourced(16, HERE)
    epochs: int = sourced(2, HERE)
    data: str = sourced("mnist", HERE)
    samples: int = sourced(12_000, HERE)
    standardise: bool = sourced(False, f"{HERE}: scaled to [0, 1]")
    inputs: int = sourced(784, "MNIST: 28 × 28 pixels")
    hidden: tuple[int, ...] = sourced((100, 100), HERE)
    outputs: int = sourced(10, "MNIST: ten classes")
    optimizer: str = sourced("adam", HERE)
    lr: float = sourced(3e-3, f"{HERE}, not tuned")

    def changes(self) -> Sequence[Change]:
        return [PermuteLabels(self.outputs)]


@dataclass(frozen=True, kw_only=True)
class NoisyLabels(LabelFlipping):
    """Half of the labels are drawn anew, other images in every task; judged on what was to be learned, noise too."""

    name: ClassVar[str] = "label-noise-mnist"
    title: ClassVar[str] = "Label noise (MNIST)"
    description: ClassVar[str] = "half of MNIST's labels random, other images in every task"
    test_split: ClassVar[bool] = False
    epochs: int = sourced(10, HERE)
    samples: int = sourced(1200, HERE)
    share: float = sourced(0.5, f"{HERE}: share of the labels")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "day": {},
        "small": {"tasks": 40, "samples": 800},
        "demo": {"tasks": 5, "samples": 160},
    }

    def changes(self) -> Sequence[Change]:
        return [LabelNoise(self.outputs, self.share)]


@dataclass(frozen=True, kw_only=True)
class GradualShift(LabelFlipping):
    """From one pixel permutation to the next by interpolation, in ``over`` tasks; the abrupt twin jumps.

    >>> GradualShift.preset("small").over
    5
    """

    name: ClassVar[str] = "concept-shift-gradual"
    title: ClassVar[str] = "Concept shift by gradual interpolation"
    description: ClassVar[str] = "MNIST interpolated from one pixel permutation to the next"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "day": {},
        "small": {"tasks": 75, "samples": 1600},
        "demo": {"tasks": 5, "samples": 800},
    }
    epochs: int = sourced(1, HERE)
    over: int = sourced(5, f"{SHIFT}; chosen here")

    def changes(self) -> Sequence[Change]:
        return []

    def finish(self) -> Sequence[Change]:
        return [Gradual(PermutePixels(), self.over)]


@dataclass(frozen=True, kw_only=True)
class AbruptShift(GradualShift):
    """The same permutations at the same times, each held for ``over`` tasks."""

    name: ClassVar[str] = "concept-shift-abrupt"
    title: ClassVar[str] = "Abrupt concept shift"
    description: ClassVar[str] = "MNIST under a pixel permutation that jumps every five tasks"

    def finish(self) -> Sequence[Change]:
        return [Held(PermutePixels(), self.over)]
