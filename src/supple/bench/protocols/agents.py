"""Protocols in which an agent makes its own data: what the bench asks of one, whatever the algorithm."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor, nn

from supple.agents import DQN, PPO
from supple.bench.optimizers import SEVERAL
from supple.bench.protocols.base import Protocol
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.bench.agent import AgentLearner, AgentTasks
    from supple.bench.spec import RunSpec

Agent: TypeAlias = PPO | DQN
#: for values that are chosen here and in no paper
HERE = "chosen here"


class Taught(NamedTuple):
    """A part of the network that the trainability probe teaches: two classes, or so many values."""

    path: str  # of the module; "" is the whole network
    classes: int = 0
    values: int = 1
    unlearn: bool = False  # also without the old answers subtracted


@dataclass(frozen=True, kw_only=True)
class AgentProtocol(Protocol, abc.ABC):
    """An agent in an environment that changes from task to task.

    A subclass makes the environment and the agent, and says what the agent's iterations show. The metric is the
    return: the mean over the episodes that end in a task.
    """

    metric: ClassVar[str] = "return"
    even_tasks: ClassVar[bool] = False
    supervised: ClassVar[bool] = False

    iterations: int
    steps_per_iteration: int
    copies: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "steps_per_iteration", "copies"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", found=getattr(self, name), where=self.name)
        if self.optimizer in SEVERAL:
            raise InputError(
                "an agent has one optimizer", found=f"{self.optimizer} is several", where=self.name
            )
        if self.iid:
            raise InputError("an agent makes its own data: there is no i.i.d. control", where=self.name)

    @property
    def samples(self) -> int:
        """Environment steps of a task."""
        return self.iterations * self.steps_per_iteration

    @property
    @abc.abstractmethod
    def updates(self) -> int:
        """Updates of a task."""

    @abc.abstractmethod
    def environment(self, seed: int) -> Any:
        """All copies of the environment, at task 0; ``task(index)`` changes it."""

    @abc.abstractmethod
    def agent(self, env: Any, model: nn.Module, optimizer: Any, before: Any = None) -> Agent:
        """The agent of a network and its optimizer; ``before``: the one whose life it goes on with, if any."""

    @abc.abstractmethod
    def seen(self, agent: Any) -> tuple[Tensor, Tensor]:
        """The last experience of the task: observations, and the columns that `loss` reads."""

    @abc.abstractmethod
    def told(self, found: Sequence[Any]) -> tuple[float, dict[str, float]]:
        """(mean loss, further rows) of the iterations of a task."""

    @abc.abstractmethod
    def taught(self) -> Mapping[str, Taught]:
        """What the trainability probe teaches, by the name of its rows."""

    def carried(self, agent: Any) -> dict[str, Any]:
        """What the agent takes into the next task beside network and optimizer: tensors and plain types."""
        return {}

    def restore(self, agent: Any, state: Mapping[str, Any]) -> None:
        """Inverse of `carried`."""

    def learner(self, spec: RunSpec) -> AgentLearner:
        from supple.bench.agent import AgentLearner

        return AgentLearner(spec)

    def sequence(self, seed: int) -> AgentTasks:  # type: ignore[override]
        from supple.bench.agent import AgentTasks

        return AgentTasks(self, seed)


def last(found: Sequence[Any]) -> Sequence[Any]:
    """The last tenth of the iterations, at least one.

    >>> last(range(25))
    range(23, 25)
    """
    return found[-max(1, len(found) // 10) :]
