"""The same labelled images in every task, seen through a new permutation of pixels: MNIST, CIFAR, Tiny-ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import sourced
from supple.bench.protocols.images import HERE, LOP, NATURE, SHORT, ImageProtocol, decayed, shrunk
from supple.streams import Change, PermutePixels

#: of each published sweep the value in the middle, but for continual backprop: the rate that the text speaks of
SWEPT = {
    "cbp": {"replacement_rate": 1e-6, "maturity": 100, "utility": "adaptable"},
    "l2": decayed(1e-4),
    "shrink_perturb": shrunk(1e-4, 1e-5),
}


@dataclass(frozen=True, kw_only=True)
class PermutedMnist(ImageProtocol):
    """Online permuted MNIST: 800 permutations, each of 60,000 images once, accuracy before each update.

    >>> paper = PermutedMnist.preset("paper")
    >>> paper.tasks, paper.batch, paper.hidden, paper.steps_per_task(60_000)
    (800, 1, (2000, 2000, 2000), 60000)
    """

    name: ClassVar[str] = "permuted-mnist"
    title: ClassVar[str] = "Online permuted MNIST"
    description: ClassVar[str] = "a new pixel permutation of MNIST per task, one pass each"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"settings": SWEPT},
        "day": {"hidden": (100, 100, 100), "batch": 16, "lr": 0.03},
        "small": {"hidden": (64, 64), "batch": 16, "lr": 0.1, "tasks": 60, "samples": 3200},
        "demo": {"hidden": (64, 64), "batch": 16, "lr": 0.1, "tasks": 10, "samples": 1600},
    }

    tasks: int = sourced(800, NATURE + SHORT)
    batch: int = sourced(1, NATURE + SHORT)
    epochs: int = sourced(1, f"{NATURE}: each image once")
    data: str = sourced("mnist", NATURE)
    samples: int = sourced(0, f"{NATURE}: all 60,000{SHORT}")
    standardise: bool = sourced(False, f"{NATURE}: scaled to [0, 1]")
    inputs: int = sourced(784, "MNIST: 28 × 28 pixels")
    hidden: tuple[int, ...] = sourced((2000, 2000, 2000), NATURE + SHORT)
    outputs: int = sourced(10, "MNIST: ten classes")
    optimizer: str = sourced("sgd", NATURE)
    lr: float = sourced(3e-3, f"{NATURE}: of .01, .003, .001{SHORT}")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {},
        f"the methods' own; paper: {NATURE}, {LOP}, which hold sweeps: cbp replacement rate of 1e-4, 1e-5, 1e-6, "
        "adaptable contribution; l2 weight decay of 1e-3, 1e-4, 1e-5; shrink_perturb weight decay 1e-4, noise of "
        "1e-4, 1e-5, 1e-6",
    )

    def changes(self) -> Sequence[Change]:
        return [PermutePixels()]


@dataclass(frozen=True, kw_only=True)
class PermutedCifar10(PermutedMnist):
    """CIFAR-10 with a new permutation of its 3,072 values per task, for an MLP."""

    name: ClassVar[str] = "permuted-cifar10"
    title: ClassVar[str] = "Permuted CIFAR-10"
    description: ClassVar[str] = "a new permutation of CIFAR-10's pixels per task, one pass each"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "day": {},
        "small": {"tasks": 60, "samples": 4000},
        "demo": {"tasks": 5, "samples": 1600},
    }

    tasks: int = sourced(400, HERE)
    batch: int = sourced(16, HERE)
    data: str = sourced("cifar10", "the data set of this protocol")
    standardise: bool = sourced(True, f"{HERE}: channel by channel")
    inputs: int = sourced(3072, "3 × 32 × 32 values")
    hidden: tuple[int, ...] = sourced((100, 100), HERE)
    optimizer: str = sourced("adam", HERE)
    lr: float = sourced(1e-3, f"{HERE}, not tuned")
    settings: dict[str, dict[str, Any]] = sourced({}, "the methods' own")  # noqa: RUF009 (returns a field)


@dataclass(frozen=True, kw_only=True)
class PermutedCifar100(PermutedCifar10):
    """CIFAR-100 with a new permutation of its 3,072 values per task, for an MLP."""

    name: ClassVar[str] = "permuted-cifar100"
    title: ClassVar[str] = "Permuted CIFAR-100"
    description: ClassVar[str] = "a new permutation of CIFAR-100's pixels per task, one pass each"
    data: str = sourced("cifar100", "the data set of this protocol")
    outputs: int = sourced(100, "CIFAR-100: its fine classes")


@dataclass(frozen=True, kw_only=True)
class PermutedTinyImageNet(PermutedCifar10):
    """Tiny-ImageNet at 32 × 32 with a new permutation of its 3,072 values per task, for an MLP."""

    name: ClassVar[str] = "permuted-tiny-imagenet"
    title: ClassVar[str] = "Permuted Tiny-ImageNet"
    description: ClassVar[str] = "a new permutation of Tiny-ImageNet's pixels per task, one pass each"
    data: str = sourced("tiny-imagenet-32", "the data set of this protocol, down-sampled")
    outputs: int = sourced(200, "Tiny-ImageNet: its classes")
