"""A sequence of classes on digits: two other classes in every task, one head that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from supple.bench.protocols.base import Protocol, sourced
from supple.streams import DrawClasses, Stream, digits

HERE = "chosen here"
FORM = "the form of Continual ImageNet (Dohare et al. 2024): two classes a task"
SMALL_IMAGE = "scikit-learn's digits: 8 × 8 pixels"


@dataclass(frozen=True, kw_only=True)
class ClassSequence(Protocol):
    """Two of the ten digits in every task, several passes, for an MLP.

    >>> len(ClassSequence.preset("small").stream(0).task(0).targets.unique())
    2
    """

    name: ClassVar[str] = "class-sequence"
    title: ClassVar[str] = "Sequence of classes (MLP)"
    description: ClassVar[str] = "two other classes of digits in every task, for an MLP"
    even_tasks: ClassVar[bool] = False  # classes have different numbers of samples
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {}, "day": {"tasks": 400}, "demo": {"tasks": 20}}

    tasks: int = sourced(100, HERE)
    batch: int = sourced(16, HERE)
    epochs: int = sourced(4, f"{HERE}: about 90 steps a task")
    inputs: int = sourced(64, SMALL_IMAGE)
    hidden: tuple[int, ...] = sourced((128, 128), f"{HERE}: the network of digits-permuted")
    outputs: int = sourced(2, FORM)
    optimizer: str = sourced("adam", HERE)
    lr: float = sourced(3e-3, f"{HERE}: the rate of digits-permuted")

    def stream(self, seed: int) -> Stream:
        inputs, targets = digits()
        inputs = inputs.reshape(-1, *self.shape)
        return Stream(
            inputs, targets, changes=[DrawClasses(self.outputs, sort=True)], tasks=self.tasks, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class ClassSequenceResNet(ClassSequence):
    """The same sequence for a ResNet-8 with batch normalisation.

    >>> ClassSequenceResNet.preset("small").shape
    (1, 8, 8)
    """

    name: ClassVar[str] = "class-sequence-resnet"
    title: ClassVar[str] = "Sequence of classes (ResNet-8)"
    description: ClassVar[str] = "two other classes of digits in every task, for a ResNet-8"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {}, "day": {"tasks": 400}, "demo": {"tasks": 4}}

    network: str = sourced("resnet8", f"{HERE}: the network is what the protocol is about")
    tasks: int = sourced(40, f"{HERE}: a step takes some ten times as long as the MLP's")
    epochs: int = sourced(2, f"{HERE}: about 45 steps a task")
    lr: float = sourced(
        1e-2, "measured here: with 3e-3 hardly a unit is inactive after 40 tasks, with 1e-2 a quarter"
    )

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 8, 8)
