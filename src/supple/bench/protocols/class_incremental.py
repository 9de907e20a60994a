"""Class-incremental CIFAR-100, and five classes and one in turn (5+1 CIFAR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from supple.bench.protocols.base import sourced
from supple.bench.protocols.images import HERE, KUMAR, LOP, NATURE, SHORT, ImageProtocol, decayed, shrunk
from supple.streams import Change, GrowClasses, ManyThenOne, Task


@dataclass(frozen=True, kw_only=True)
class ClassIncremental(ImageProtocol):
    """Five more classes of CIFAR-100 per task, the old data kept, the outputs of later classes masked.

    Of the published recipe, the steps of the learning rate within a task, the weight decay, the augmentation, the
    validation split and the early stopping are not part of this protocol.

    >>> ClassIncremental.preset("paper").tasks
    20
    """

    name: ClassVar[str] = "class-incremental-cifar100"
    title: ClassVar[str] = "Class-incremental CIFAR-100"
    description: ClassVar[str] = "five more classes of CIFAR-100 per task, old data kept, ResNet-18"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "settings": {
                "cbp": {"replacement_rate": 1e-5, "maturity": 1000, "utility": "contribution"},
                "l2": decayed(5e-4),
                "shrink_perturb": shrunk(5e-4, 1e-5),
            }
        },
        "day": {"epochs": 10, "network": "resnet8"},
        "small": {"epochs": 1, "network": "convnet"},
        "demo": {"epochs": 1, "network": "convnet", "tasks": 2},
    }

    tasks: int = sourced(20, f"{NATURE}: 20 increments of 5 classes")
    batch: int = sourced(90, NATURE)
    epochs: int = sourced(200, NATURE + SHORT)
    data: str = sourced("cifar100", NATURE)
    samples: int = sourced(0, f"{NATURE}: all")
    step: int = sourced(5, f"{NATURE}: classes an increment")
    standardise: bool = sourced(True, NATURE)
    inputs: int = sourced(3072, "3 × 32 × 32 values")
    network: str = sourced("resnet18", f"{NATURE}: 3×3 stem without pooling{SHORT}")
    hidden: tuple[int, ...] = sourced((), "the network has its own widths")
    outputs: int = sourced(100, f"{NATURE}: 100 outputs from the start")
    optimizer: str = sourced("momentum", f"{NATURE}: SGD with momentum .9")
    lr: float = sourced(0.02, f"{HERE}: the second of the published steps .1, .02, .004, .0008")
    settings: dict[str, dict[str, Any]] = sourced(  # noqa: RUF009 (returns a field)
        {},
        f"the methods' own; paper: {NATURE}, {LOP}: cbp replacement rate 1e-5, maturity 1000, contribution; l2 is the "
        "weight decay 5e-4 of every published arm; shrink_perturb that with noise 1e-5",
    )

    def changes(self) -> Sequence[Change]:
        return [GrowClasses(self.step)]

    def answers(self, task: Task, outputs: Tensor) -> Tensor:
        """The outputs of the classes seen so far; all of them where nobody says which task this is."""
        if self.iid or self.hidden_boundaries:
            return outputs
        return outputs[..., : self.step * (task.index + 1)]


@dataclass(frozen=True, kw_only=True)
class FivePlusOne(ImageProtocol):
    """Classes of CIFAR-100 not seen before, five and one in turn, 780 steps a task.

    >>> protocol = FivePlusOne.preset("paper")
    >>> protocol.tasks, protocol.batch, protocol.steps_per_task(2500)
    (30, 32, 780)
    """

    name: ClassVar[str] = "five-plus-one-cifar"
    title: ClassVar[str] = "5+1 CIFAR"
    description: ClassVar[str] = "new classes of CIFAR-100, five and one in turn"
    test_split: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"epochs": 2, "batch": 16},
        "demo": {"epochs": 1, "tasks": 4, "batch": 16},
    }

    tasks: int = sourced(30, KUMAR)
    batch: int = sourced(32, KUMAR)
    epochs: int = sourced(10, f"{KUMAR}: 780 steps a task{SHORT}")
    data: str = sourced("cifar100", KUMAR)
    samples: int = sourced(0, f"{KUMAR}: all images of a class")
    standardise: bool = sourced(True, f"{HERE}: channel by channel")
    inputs: int = sourced(3072, "3 × 32 × 32 values")
    network: str = sourced(
        "convnet", f"{HERE}: the network of Continual ImageNet; published: two convolutions, 5×5, 16 channels"
    )
    hidden: tuple[int, ...] = sourced((), "the network has its own widths")
    outputs: int = sourced(100, f"{KUMAR}: all classes")
    optimizer: str = sourced("adam", KUMAR)
    lr: float = sourced(1e-3, f"{KUMAR}: one of the rates of its sweep")

    def changes(self) -> Sequence[Change]:
        return [ManyThenOne(5)]
