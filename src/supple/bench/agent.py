"""An agent that learns one task after another: what a run of a reinforcement-learning protocol computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supple.agents import PPO, Iteration
from supple.agents.plain import arrays, plain
from supple.bench.agent_probe import SAMPLES, trainability
from supple.bench.learner import Learner, TaskResult
from supple.errors import InputError
from supple.interventions.cchain import CChainHandle
from supple.streams import generator

if TYPE_CHECKING:
    from supple.bench.protocols.control import Control
    from supple.bench.spec import RunSpec


@dataclass
class AgentTask:
    """A task of an agent: its place, and the last experience in it, which the instruments look at."""

    index: int
    name: str
    length: int  # environment steps
    updates: int
    seed: int
    seen: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.length

    def steps(self, size: int, epochs: int = 1) -> int:
        """Updates of the networks in the task."""
        return self.updates

    def probe(self, size: int) -> tuple[Tensor, Tensor]:
        """A keyed sample of the last rollout: observations, and the columns that the loss reads."""
        if self.seen is None:
            raise InputError("a task has no experience before it was learned", where=self.name)
        x, y = self.seen
        rows = torch.randperm(len(x), generator=generator(self.seed, "probe"))[:size]
        return x[rows], y[rows]


class AgentTasks(Sequence[AgentTask]):
    """The tasks of a protocol by index. The environment itself belongs to the learner."""

    def __init__(self, protocol: Control, seed: int) -> None:
        self.protocol, self.seed = protocol, seed

    def __len__(self) -> int:
        return self.protocol.tasks

    def task(self, index: int) -> AgentTask:
        """Task ``index``, before any experience in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"task {index} of {len(self)} tasks")
        p = self.protocol
        return AgentTask(index, f"task-{index}", p.samples, p.updates, self.seed)

    def __getitem__(self, index: int) -> AgentTask:  # type: ignore[override]
        return self.task(index + len(self) if index < 0 else index)


class AgentLearner(Learner):
    """`Learner` with an agent in an environment: a task is so many iterations of rollout and updates.

    The metric of a task is the mean return of the episodes that ended in it ("online"), and of the last ones
    ("end", a tenth of them, at least one for each copy). The environment and the draws of actions go on from task to
    task, for the fresh reference too; every task begins with new episodes.
    """

    protocol: Control

    def __init__(self, spec: RunSpec) -> None:
        self.protocol = spec.protocol  # type: ignore[assignment]
        self.env = self.protocol.environment(spec.seed)
        self.generator = torch.Generator().manual_seed(generator(spec.seed, "actions").initial_seed())
        self.last_returns: list[float] = []
        super().__init__(spec)

    def _begin(self, task: int) -> None:
        super()._begin(task)
        self.agent = PPO(
            self.env, self.protocol.settings_of_agent(), net=self.model, optimizer=self.optimizers[0]
        )
        self.agent.generator = self.generator
        if isinstance(self.handle, CChainHandle):
            self.agent.on_loss.append(self.handle.observe_loss)

    def start(self, task: int) -> None:
        """Cross the boundary: the environment shows the next task, from new episodes on."""
        super().start(task)
        self.env.task(task)
        self.agent.observation = self.env.reset()

    def learn(self, task: AgentTask) -> TaskResult:  # type: ignore[override]
        """All iterations of a task."""
        found = [self.agent.iterate() for _ in range(self.protocol.iterations)]
        returns = [r for i in found for r in i.returns]
        if not returns:
            raise InputError("no episode ended in a task", where=task.name, do="take more steps a task")
        self.last_returns = returns[-max(len(returns) // 10, self.env.copies) :]
        self.steps += sum(i.updates for i in found)
        rollout = self.agent.rollout
        assert rollout is not None  # there was an iteration
        task.seen = (rollout.observations, rollout.columns)
        losses = [i.policy_loss + self.protocol.value * i.value_loss for i in found]
        extra = _last(found)
        if task.index in self.spec.measured():
            extra |= self._trainability(task)
        return TaskResult(fmean(returns), fmean(losses), len(returns), 0, extra)

    def _trainability(self, task: AgentTask) -> dict[str, float]:
        """How well both networks still learn random targets, beside fresh ones."""
        x, key = task.probe(SAMPLES)[0], 1000 * self.spec.seed + task.index

        def fresh(part: str) -> Callable[[int], nn.Module]:
            return lambda i: getattr(self.method.build(self.protocol, self.spec.seed, 10_000 + i), part)

        policy, value = self.model.get_submodule("policy"), self.model.get_submodule("value")
        actions = self.protocol.outputs
        lr = self.protocol.lr
        return {
            "policy_trainability": trainability(policy, fresh("policy"), x, actions, lr, key),
            "policy_trainability_with_unlearning": trainability(
                policy, fresh("policy"), x, actions, lr, key, unlearn=True
            ),
            "value_trainability": trainability(value, fresh("value"), x, 0, lr, key),
        }

    def score(self, task: AgentTask) -> float:  # type: ignore[override]
        """Mean return of the last episodes of the task."""
        return fmean(self.last_returns)

    def state_dict(self) -> dict[str, Any]:
        env = plain(self.env.state_dict())
        return {**super().state_dict(), "environment": env, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.env.load_state_dict(arrays(state["environment"]))
        self.generator.set_state(state["generator"])


def _last(found: Sequence[Iteration]) -> dict[str, float]:
    """What the policy is at the end of a task: mean entropy and largest logit of the last tenth of its iterations."""
    last = found[-max(1, len(found) // 10) :]
    return {
        "policy_entropy": fmean(i.entropy for i in last),
        "policy_max_logit": fmean(i.max_logit for i in last),
        "value_loss": fmean(i.value_loss for i in last),
    }
