"""A compact DQN (double by default) for the fast suites, on a numpy batch environment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from supple.agents.plain import arrays, plain
from supple.agents.ppo import Env, with_terms
from supple.agents.q_network import DQNConfig, q_network
from supple.agents.replay import Replay, Transitions
from supple.agents.rollout import check_step
from supple.errors import InputError

#: plain numbers of an agent that its next step depends on
COUNTERS = ("steps", "updates", "decided", "random_left")


def groups(state: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
    """For each parameter group of an optimizer's state: how many parameters, and the names of its settings."""
    return [(len(group["params"]), sorted(group)) for group in state["param_groups"]]


@dataclass
class QIteration:
    """What one iteration showed; NaN where nothing was learned in it."""

    returns: tuple[float, ...]
    epsilon: float  # after it
    loss: float  # of its last update
    mean_q: float  # mean over that batch of the largest Q of a state
    max_q: float  # the largest |Q| in it
    updates: int


class DQN:
    """Deep Q-learning (Mnih et al. 2015), with the double target (van Hasselt et al. 2016, arXiv 1509.06461):

        y = r + γ (1 - terminated) Q_target(s', argmax_a Q(s', a)),   L = mean (Q(s, a) - y)²

    The loop is open. ``agent.net`` and ``agent.optimizer`` are ordinary objects that monitors and interventions
    attach to; all passes but the one that is trained run without gradients, so nothing takes them for training.
    ``agent.generator`` drives every draw. ``agent.on_loss`` lists callables that get the loss of each update
    before ``backward()``; what they return (if not None) is added to it:

        agent.on_loss.append(handle.observe_loss)                # C-CHAIN with an automatic coefficient
        agent.on_loss.append(lambda loss: handle.penalty())      # a penalty in the loss instead of the hook

    The target network is a copy without gradients. Resets of units reach it through ``handle.follow(agent.target)``,
    which gives it the same fresh units; after what changes all weights, such as shrink and perturb, call
    `sync_target`. A target that is left alone is overwritten at the next copy anyway.

    Args:
        env: see `supple.streams.rl`. Its ``observation_dtype``, if it has one, is what the replay buffer keeps.
        config: see `DQNConfig`.
        seed: of the initial weights and of every draw; the global generator is left alone.
        net, optimizer: a network (N, *observation_shape) -> (N, actions) and its optimizer, made elsewhere. The
            target network is a copy of it.

    >>> from supple.streams.rl import VectorCartPole
    >>> agent = DQN(VectorCartPole(copies=4), DQNConfig(random_steps=40, steps_per_iteration=80), seed=0)
    >>> agent.iterate().updates
    40
    """

    def __init__(
        self,
        env: Env,
        config: DQNConfig | None = None,
        seed: int = 0,
        *,
        net: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.env, self.config = env, config or DQNConfig()
        if self.config.steps_per_iteration % env.copies or env.copies > self.config.capacity:
            raise InputError(
                "steps_per_iteration must be a multiple of the copies of the environment, capacity not less",
                found=f"{self.config.steps_per_iteration}, {self.config.capacity} and {env.copies} copies",
            )
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = net or q_network(env.observation_shape, env.actions, self.config)
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = optimizer or self.fresh_optimizer()
        kept = getattr(env, "observation_dtype", np.float32)
        self.replay = Replay(self.config.capacity, env.observation_shape, kept)
        self.on_loss: list[Callable[[Tensor], Tensor | None]] = []
        self.steps = self.updates = 0
        self.decided = 0  # transitions that were not random steps: the clock of epsilon and of the updates
        self.random_left = self.config.random_steps
        self.observation = env.reset()

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Adam at the configured learning rate over all parameters."""
        return torch.optim.Adam(self.net.parameters(), lr=self.config.learning_rate, fused=True)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's parameters; ``net`` and ``target`` may be turned to float64 in place."""
        return next(self.net.parameters()).dtype

    @property
    def epsilon(self) -> float:
        """The present share of random actions."""
        c = self.config
        gone = min(self.decided / c.epsilon_steps, 1.0)
        return c.epsilon_start + gone * (c.epsilon_end - c.epsilon_start)

    def task(self) -> None:
        """Begin a task, after ``env.task(index)``: new episodes and the random steps; buffer and ε go on."""
        self.observation = self.env.reset()
        self.random_left = self.config.random_steps

    def iterate(self) -> QIteration:
        """``steps_per_iteration`` transitions and the updates that are due in between."""
        returns: list[float] = []
        batch, loss, before = None, torch.tensor(torch.nan), self.updates
        every = self.config.update_every
        for _ in range(self.config.steps_per_iteration // self.env.copies):
            clock = self.decided
            returns.extend(self.interact())
            for _ in range(self.decided // every - clock // every):
                batch = self.replay.sample(self.config.batch, self.generator, self.dtype)
                loss = self.learn(batch)
        q = torch.full((1, 1), torch.nan)
        if batch is not None:
            with torch.no_grad():
                q = self.net(batch.observations)
        best, largest = float(q.max(1).values.mean()), float(q.abs().max())
        return QIteration(tuple(returns), self.epsilon, float(loss), best, largest, self.updates - before)

    def act(self, observation: npt.NDArray[Any]) -> Tensor:
        """(n,) ε-greedy actions; random ones during the random steps."""
        n = len(observation)
        actions = torch.randint(self.env.actions, (n,), generator=self.generator)
        if self.random_left > 0:
            return actions
        explore = torch.rand(n, generator=self.generator) < self.epsilon
        with torch.no_grad():
            greedy = self.net(torch.as_tensor(observation, dtype=self.dtype)).argmax(1)
        return torch.where(explore, actions, greedy)

    def interact(self) -> tuple[float, ...]:
        """One step of every copy into the replay buffer; the returns of the episodes that ended."""
        actions = self.act(self.observation).numpy()
        step = self.env.step(actions)
        check_step(step)
        # after a time limit the final observation still has a value; after the end of the task it has none
        self.replay.add(self.observation, actions, step.reward, step.final, step.terminated)
        self.observation = step.observation
        self.steps += len(actions)
        if self.random_left > 0:
            self.random_left = max(self.random_left - len(actions), 0)
        else:
            self.decided += len(actions)
        return step.returns

    def learn(self, batch: Transitions) -> Tensor:
        """One update on a batch; its loss."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        with_terms(loss, self.on_loss).backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.sync_target()
        return loss.detach()

    def loss(self, batch: Transitions) -> Tensor:
        """The mean squared (or Huber) temporal-difference error of a batch."""
        q = self.net(batch.observations).gather(1, batch.actions[:, None]).squeeze(1)
        error = nn.functional.mse_loss if self.config.loss == "mse" else nn.functional.smooth_l1_loss
        return error(q, self.targets(batch))

    @torch.no_grad()
    def targets(self, batch: Transitions) -> Tensor:
        """(N,) what Q of the actions taken should be."""
        values = self.target(batch.following)
        chooser = self.net(batch.following) if self.config.double else values
        value = values.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        return batch.rewards + self.config.gamma * (1 - batch.terminated) * value

    def sync_target(self) -> None:
        """Copy the network into the target network."""
        self.target.load_state_dict(self.net.state_dict())

    # -- state ------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, environment and buffer included: tensors and plain types.

        Interventions have a state of their own (``handle.state_dict()``).
        """
        return {
            "config": plain(asdict(self.config)),
            "net": copy.deepcopy(dict(self.net.state_dict())),
            "target": copy.deepcopy(dict(self.target.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "replay": self.replay.state_dict(),
            "env": plain(self.env.state_dict()),
            "observation": torch.tensor(self.observation),
            "counters": {name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, into an agent of the same settings on the same kind of environment.

        Raises:
            InputError: other settings, another network, optimizer, replay buffer or environment; nothing was changed.
        """
        own = plain(asdict(self.config))
        other = {n: v for n, v in state["config"].items() if own.get(n) != v}
        if other or set(own) != set(state["config"]):
            raise InputError(
                "this state is of an agent with other settings",
                found=other,
                do=str({n: own.get(n) for n in other}),
            )
        for name, module in (("net", self.net), ("target", self.target)):
            shapes = {n: (t.shape, t.dtype) for n, t in module.state_dict().items()}
            if shapes != {n: (t.shape, t.dtype) for n, t in state[name].items()}:
                raise InputError("this state is of another network", where=name)
        if groups(self.optimizer.state_dict()) != groups(state["optimizer"]):
            raise InputError("this state is of another optimizer", where="optimizer")
        if self.observation.shape != tuple(state["observation"].shape):
            raise InputError(
                "this state is of another environment",
                found=f"observations {tuple(state['observation'].shape)}",
                do=f"use one with {self.observation.shape}",
            )
        self.replay.check(state["replay"])
        self.env.load_state_dict(arrays(state["env"]))
        self.replay.load_state_dict(state["replay"])
        self.net.load_state_dict(state["net"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.observation = state["observation"].numpy().copy()
        for name in COUNTERS:
            setattr(self, name, int(state["counters"][name]))
