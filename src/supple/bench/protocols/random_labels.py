"""A fixed set of images, new random labels per task: MNIST, CIFAR, Tiny-ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import sourced
from supple.bench.protocols.images import HERE, KUMAR, SHORT, ImageProtocol
from supple.streams import Change, DrawLabels


@dataclass(frozen=True, kw_only=True)
class RandomLabelMnist(ImageProtocol):
    """1,200 images, a new random label for each in every task, learned by heart; judged on the same images.

    >>> paper = RandomLabelMnist.preset("paper")
    >>> paper.tasks, paper.samples, paper.epochs
    (50, 1200, 400)
    """

    name: ClassVar[str] = "random-label-mnist"
    title: ClassVar[str] = "Random-label MNIST"
    description: ClassVar[str] = "1,200 fixed images of MNIST, new random labels per task"
    test_split: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "day": {"tasks": 200, "epochs": 50},
        "small": {"tasks": 20, "samples": 400, "epochs": 20},
        "demo": {"tasks": 5, "samples": 160, "epochs": 10},
    }

    tasks: int = sourced(50, KUMAR + SHORT)
    batch: int = sourced(16, KUMAR)
    epochs: int = sourced(400, KUMAR + SHORT)
    data: str = sourced("mnist", KUMAR)
    samples: int = sourced(1200, KUMAR + SHORT)
    standardise: bool = sourced(False, f"{HERE}: scaled to [0, 1]")
    inputs: int = sourced(784, "MNIST: 28 × 28 pixels")
    hidden: tuple[int, ...] = sourced((100, 100), KUMAR)
    outputs: int = sourced(10, KUMAR)
    optimizer: str = sourced("adam", KUMAR)
    lr: float = sourced(1e-3, f"{KUMAR}: one of the rates of its sweep")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {},
        f"the methods' own; {KUMAR} swept every method, and names one value alone: l2init 1e-2, which is its own",
    )

    def changes(self) -> Sequence[Change]:
        return [DrawLabels(self.outputs)]


@dataclass(frozen=True, kw_only=True)
class RandomLabelCifar10(RandomLabelMnist):
    """1,200 images of CIFAR-10 and ten random labels, for an MLP (``network`` takes another; published: a ConvNet)."""

    name: ClassVar[str] = "random-label-cifar10"
    title: ClassVar[str] = "Random-label CIFAR-10"
    description: ClassVar[str] = "1,200 fixed images of CIFAR-10, new random labels per task"
    data: str = sourced("cifar10", "the data set of this protocol")
    standardise: bool = sourced(True, f"{HERE}: channel by channel")
    inputs: int = sourced(3072, "3 × 32 × 32 values")


@dataclass(frozen=True, kw_only=True)
class RandomLabelCifar100(RandomLabelCifar10):
    """1,200 images of CIFAR-100 and 100 random labels, for an MLP."""

    name: ClassVar[str] = "random-label-cifar100"
    title: ClassVar[str] = "Random-label CIFAR-100"
    description: ClassVar[str] = "1,200 fixed images of CIFAR-100, new random labels per task"
    data: str = sourced("cifar100", "the data set of this protocol")
    outputs: int = sourced(100, "CIFAR-100: its fine classes")


@dataclass(frozen=True, kw_only=True)
class RandomLabelTinyImageNet(RandomLabelCifar10):
    """1,200 images of Tiny-ImageNet at 32 × 32 and 200 random labels, for an MLP."""

    name: ClassVar[str] = "random-label-tiny-imagenet"
    title: ClassVar[str] = "Random-label Tiny-ImageNet"
    description: ClassVar[str] = "1,200 fixed images of Tiny-ImageNet, new random labels per task"
    data: str = sourced("tiny-imagenet-32", "the data set of this protocol, down-sampled")
    outputs: int = sourced(200, "Tiny-ImageNet: its classes")
