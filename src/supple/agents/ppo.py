"""A compact PPO for the fast suites: separate policy and value networks on a numpy batch environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from supple.agents.rollout import Rollout, collect
from supple.errors import InputError
from supple.models import MLP


class Env(Protocol):
    """What the agents need of an environment; see `supple.streams.rl`.

    Observations are (n, *observation_shape) arrays; ``observation_size`` is the product of that shape.
    """

    @property
    def observation_shape(self) -> tuple[int, ...]: ...
    @property
    def observation_size(self) -> int: ...
    @property
    def actions(self) -> int: ...
    @property
    def copies(self) -> int: ...
    def reset(self) -> npt.NDArray[np.float64]: ...
    def step(self, actions: npt.NDArray[np.int64]) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the small continual CartPole suite; the Gym control settings of Tang et al. 2025
    (arXiv 2506.00592) where they say (clip, entropy, gamma, lambda, reward scale, epochs), a shorter
    budget elsewhere (width 64, learning rate 3e-3, minibatch 100)."""

    hidden: tuple[int, ...] = (64, 64, 64)
    activation: str = "leaky_relu"
    learning_rate: float = 3e-3
    steps_per_iteration: int = 800
    minibatch: int = 100
    epochs: int = 5
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    gamma: float = 0.99
    trace: float = 0.95
    reward_scale: float = 1 / 20

    def __post_init__(self) -> None:
        wrong = {
            n: getattr(self, n)
            for n in ("steps_per_iteration", "minibatch", "epochs")
            if getattr(self, n) < 1
        }
        if wrong:
            raise InputError("counts must be positive", found=wrong, where="PPOConfig")
        # advantages are standardised within a minibatch, and one number has no deviation
        if self.minibatch < 2 or self.steps_per_iteration % self.minibatch == 1:
            raise InputError(
                "a minibatch needs at least 2 steps, the last one too",
                found=f"{self.steps_per_iteration} steps in minibatches of {self.minibatch}",
                where="PPOConfig",
            )
        if not (0 <= self.gamma <= 1 and 0 <= self.trace <= 1 and self.clip > 0):
            raise InputError(
                "need gamma and trace in [0, 1], clip above 0",
                found=(self.gamma, self.trace, self.clip),
                where="PPOConfig",
            )


@dataclass
class Iteration:
    """What one iteration showed."""

    returns: tuple[float, ...]
    entropy: float
    max_logit: float
    policy_loss: float
    value_loss: float
    updates: int = field(default=0)


def with_terms(loss: Tensor, listeners: Iterable[Callable[[Tensor], Tensor | None]]) -> Tensor:
    """The loss plus what the listeners, told of it, give in return.

    >>> with_terms(torch.tensor(1.0), [print, lambda loss: 2 * loss]).item()
    tensor(1.)
    3.0
    """
    total = loss
    for listener in listeners:
        term = listener(loss)
        total = total if term is None else total + term
    return total


class ActorCritic(nn.Module):
    """Two separate networks: policy logits (N, A) and values (N,). PyTorch's default initialiser, as in the published
    suites: under He's the first policy is nearly deterministic where observations are far from zero.
    """

    def __init__(
        self, observations: int, actions: int, hidden: tuple[int, ...], activation: str, **form: Any
    ) -> None:
        """``form``: norm and dropout of `supple.models.MLP`."""
        super().__init__()
        form.setdefault("init", "default")
        self.policy = MLP((observations, *hidden, actions), activation=activation, **form)
        self.value = MLP((observations, *hidden, 1), activation=activation, **form)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.value(x).squeeze(-1)


class PPO:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), clipped form.

    The loop is open: ``agent.net``, ``agent.optimizer`` are ordinary objects that monitors and
    interventions attach to. ``agent.generator`` drives every draw. ``agent.on_loss`` lists callables that get the
    policy's loss of each update (clipped surrogate minus entropy bonus) before ``backward()``; what they return
    (if not None) is added to the loss, as in `DQN`.

    Args:
        env: a batch environment. config: the settings. seed: of the network and of every draw.
        net, optimizer: a network (N, d) -> (logits (N, A), values (N,)) and its optimizer, made elsewhere.

    >>> from supple.streams.rl import VectorCartPole
    >>> agent = PPO(VectorCartPole(copies=4), PPOConfig(steps_per_iteration=80, minibatch=40), seed=0)
    >>> agent.iterate().updates
    10
    """

    def __init__(
        self,
        env: Env,
        config: PPOConfig | None = None,
        seed: int = 0,
        *,
        net: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.env, self.config = env, config or PPOConfig()
        if self.config.steps_per_iteration % env.copies:
            raise InputError(
                "steps_per_iteration must be a multiple of the copies of the environment",
                found=f"{self.config.steps_per_iteration} and {env.copies}",
            )
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = net or ActorCritic(
                env.observation_size, env.actions, self.config.hidden, self.config.activation
            )
        self.optimizer = optimizer or self.fresh_optimizer()
        self.on_loss: list[Callable[[Tensor], Tensor | None]] = []
        self.observation = env.reset()
        self.rollout: Rollout | None = None  # the last one

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Adam at the configured learning rate over all parameters."""
        return torch.optim.Adam(self.net.parameters(), lr=self.config.learning_rate, fused=True)

    def task(self) -> None:
        """Begin a task, after ``env.task(index)``: new episodes."""
        self.observation = self.env.reset()

    def iterate(self) -> Iteration:
        """One rollout and the updates on it."""
        c = self.config
        rollout, self.observation = collect(
            self.env,
            self.net,
            self.observation,
            c.steps_per_iteration // self.env.copies,
            self.generator,
            scale=c.reward_scale,
            gamma=c.gamma,
            trace=c.trace,
        )
        self.rollout = rollout
        return self.update(rollout)

    def update(self, rollout: Rollout) -> Iteration:
        """Epochs of clipped updates over shuffled minibatches."""
        c = self.config
        policy_loss = value_loss = entropy = torch.zeros(())
        updates = 0
        for _ in range(c.epochs):
            order = torch.randperm(len(rollout.actions), generator=self.generator)
            for rows in order.split(c.minibatch):
                policy_loss, value_loss, entropy = self.losses(rollout, rows)
                told = policy_loss - c.entropy * entropy
                loss = with_terms(told, self.on_loss) + c.value * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                updates += 1
        with torch.no_grad():
            logits = self.net(rollout.observations)[0]
        return Iteration(
            rollout.returns,
            float(torch.distributions.Categorical(logits=logits).entropy().mean()),
            float(logits.abs().max()),
            float(policy_loss.detach()),
            float(value_loss.detach()),
            updates,
        )

    def losses(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(clipped surrogate, squared value error, entropy) of a minibatch."""
        return losses(self.net(rollout.observations[rows]), rollout.columns[rows], self.config.clip)


def losses(outputs: tuple[Tensor, Tensor], columns: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """(clipped surrogate, squared value error, entropy) of outputs (logits (N, A), values (N,)).

    ``columns`` (N, 4) are those of `Rollout.columns`; advantages are standardised within the minibatch.
    """
    logits, values = outputs
    actions, old, advantage, target = columns.unbind(1)
    distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = (distribution.log_prob(actions) - old).exp()
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    return surrogate, (values - target).square().mean(), distribution.entropy().mean()
