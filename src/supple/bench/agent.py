"""An agent that learns one task after another: what a run of a reinforcement-learning protocol computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supple.agents import DQN
from supple.agents.plain import arrays, plain
from supple.bench.agent_probe import SAMPLES, trainability
from supple.bench.learner import Learner, TaskResult
from supple.errors import InputError
from supple.interventions import ShrinkAndPerturb
from supple.interventions.cchain import CChainHandle
from supple.interventions.combination import CombinationHandle
from supple.interventions.fire import FIRE
from supple.streams import generator

if TYPE_CHECKING:
    from supple.bench.protocols.agents import Agent, AgentProtocol
    from supple.bench.spec import RunSpec
    from supple.interventions.handle import Handle
    from supple.interventions.schedule import Schedule

#: what rewrites every weight of a network at once
ALL_WEIGHTS = (ShrinkAndPerturb, FIRE)


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

    @property
    def judged_samples(self) -> int:
        """The environment steps of the task: an agent is judged on no data set."""
        return self.length

    def steps(self, size: int, epochs: int = 1) -> int:
        """Updates of the networks in the task."""
        return self.updates

    def probe(self, size: int) -> tuple[Tensor, Tensor]:
        """A keyed sample of the last experience: observations, and the columns that the loss reads."""
        if self.seen is None:
            raise InputError("a task has no experience before it was learned", where=self.name)
        x, y = self.seen
        rows = torch.randperm(len(x), generator=generator(self.seed, "probe"))[:size]
        return x[rows], y[rows]


class AgentTasks(Sequence[AgentTask]):
    """The tasks of a protocol by index. The environment itself belongs to the learner."""

    def __init__(self, protocol: AgentProtocol, seed: int) -> None:
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

    protocol: AgentProtocol

    def __init__(self, spec: RunSpec) -> None:
        self.protocol = spec.taught  # type: ignore[assignment]
        self.env = self.protocol.environment(spec.seed)
        self.generator = torch.Generator().manual_seed(generator(spec.seed, "actions").initial_seed())
        self.last_returns: list[float] = []
        self.index = 0
        super().__init__(spec)

    def _build(self, task: int) -> None:
        super()._build(task)
        before = getattr(self, "agent", None)
        self.agent = self.protocol.agent(self.env, self.model, self.optimizers[0], before)
        self.agent.generator = self.generator

    def _attach(self) -> None:
        super()._attach()
        if self.handle is not None:
            link(self.handle, self.agent)

    def start(self, task: int) -> None:
        """Cross the boundary: the environment shows the next task, from new episodes on."""
        super().start(task)
        self.index = task
        self.env.task(task)
        self.agent.task()
        if (
            task
            and self.handle is not None
            and rewrites_at_boundary(self.handle)
            and isinstance(self.agent, DQN)
        ):
            self.agent.sync_target()

    def learn(self, task: AgentTask) -> TaskResult:  # type: ignore[override]
        """All iterations of a task."""
        found = [self.agent.iterate() for _ in range(self.protocol.iterations)]
        returns = [r for i in found for r in i.returns]
        if not returns:
            raise InputError("no episode ended in a task", where=task.name, do="take more steps a task")
        self.last_returns = returns[-max(len(returns) // 10, self.env.copies) :]
        self.steps += sum(i.updates for i in found)
        task.seen = self.protocol.seen(self.agent)
        loss, extra = self.protocol.told(found)
        if task.index in self.spec.measured():
            extra |= self._trainability(task)
        return TaskResult(fmean(returns), loss, len(returns), 0, extra)

    def _trainability(self, task: AgentTask) -> dict[str, float]:
        """How well the networks still learn random functions of what was seen, beside fresh ones."""
        x, key = task.probe(SAMPLES)[0], 1000 * self.spec.seed + task.index
        rows: dict[str, float] = {}
        for name, part in self.protocol.taught().items():
            worn = self.model.get_submodule(part.path)
            for suffix in ("", "_with_unlearning")[: 1 + part.unlearn]:
                rows[f"{name}_trainability{suffix}"] = trainability(
                    worn, self._fresh(part.path), x, part.classes, self.protocol.lr, key,
                    values=part.values, unlearn=bool(suffix),
                )  # fmt: skip
        return rows

    def _fresh(self, path: str) -> Callable[[int], nn.Module]:
        """The i-th network of the method that learned nothing, or a part of it."""
        return lambda i: self.method.build(self.protocol, self.spec.seed, 10_000 + i).get_submodule(path)

    def score(self, task: AgentTask) -> float:  # type: ignore[override]
        """Mean return of the last episodes of the task."""
        return fmean(self.last_returns)

    def state_dict(self) -> dict[str, Any]:
        """As of every learner, with environment and agent. What the agent would take into a task to come (a replay
        buffer) is left out after the last task."""
        over = self.index + 1 == self.protocol.tasks
        return {
            **super().state_dict(),
            "environment": plain(self.env.state_dict()),
            "generator": self.generator.get_state(),
            "carried": {} if over else self.protocol.carried(self.agent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.env.load_state_dict(arrays(state["environment"]))
        self.generator.set_state(state["generator"])
        if state.get("carried"):  # absent in older runs
            self.protocol.restore(self.agent, state["carried"])


def link(handle: Handle, agent: Agent) -> None:
    """What an intervention has to do with an agent beside its network: C-CHAIN hears the loss; the target network
    has the same resets, and is copied anew after a change of all weights, which has no units to follow."""
    if isinstance(handle, CombinationHandle):
        for part in handle.handles:
            link(part, agent)
        return
    if isinstance(handle, CChainHandle):
        agent.on_loss.append(handle.observe_loss)
    if not isinstance(agent, DQN):
        return
    rule = handle.intervention
    if hasattr(handle, "follow"):
        handle.follow(agent.target)
    elif isinstance(rule, ALL_WEIGHTS):
        _sync_after(handle, agent, rule.every)


def rewrites_at_boundary(handle: Handle) -> bool:
    """Whether it rewrote every weight of the network in the call that announced the task."""
    parts = handle.handles if isinstance(handle, CombinationHandle) else [handle]
    rules = [part.intervention for part in parts]
    return any(isinstance(rule, ALL_WEIGHTS) and rule.every == "boundary" for rule in rules)


def _sync_after(handle: Handle, agent: DQN, every: Schedule) -> None:
    due = False

    def before(*_: Any) -> None:
        nonlocal due
        due = handle.due(every)  # its own hook moves the clock

    def after(*_: Any) -> None:
        if due:
            agent.sync_target()

    agent.optimizer.register_step_pre_hook(before)
    agent.optimizer.register_step_post_hook(after)  # behind the one of the handle
