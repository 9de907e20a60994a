"""Collecting experience, and generalised advantage estimation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from supple.errors import InputError


@dataclass(frozen=True)
class Rollout:
    """A flat batch of experience: (N, d) observations and (N,) everything else."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    targets: Tensor
    returns: tuple[float, ...]

    @functools.cached_property
    def columns(self) -> Tensor:
        """(N, 4): actions, their log probabilities at the time, advantages, targets of the values."""
        parts = (self.actions.to(self.targets.dtype), self.log_probs, self.advantages, self.targets)
        return torch.stack(parts, 1)


def advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, done: Tensor, g: float, k: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016): A_t = δ_t + γ k (1 - done_t) A_{t+1}.

    All arguments (T, n). ``next_values`` are zero where the task terminated and the value of the final
    observation where the time limit cut the episode; ``done`` is 1 at either.

    >>> one = torch.ones(2, 1)
    >>> advantages(one, 0 * one, 0 * one, 0 * one, 1.0, 1.0).flatten().tolist()
    [2.0, 1.0]
    """
    delta = rewards + g * next_values - values
    result = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        running = delta[t] + g * k * (1 - done[t]) * running
        result[t] = running
    return result


def check_step(step: Any) -> None:
    """Refuse a step with NaN or Inf, before a network learns from it.

    Raises:
        InputError: an observation or a reward that is not finite.
    """
    for name in ("observation", "final", "reward"):
        values = getattr(step, name)
        if not np.isfinite(values).all():
            raise InputError(
                f"the environment's {name} is not finite",
                found=f"NaN or Inf in {np.count_nonzero(~np.isfinite(values))} of {np.size(values)} numbers",
            )


@torch.no_grad()
def collect(
    env: Any,
    net: nn.Module,
    observation: npt.NDArray[np.float64],
    steps: int,
    generator: torch.Generator,
    *,
    scale: float,
    gamma: float,
    trace: float,
) -> tuple[Rollout, npt.NDArray[np.float64]]:
    """Run ``steps`` steps of every copy; the flat rollout and the next observation.

    Images are flattened, and all numbers take the dtype of the network.
    """
    dtype = next(net.parameters()).dtype
    columns: dict[str, list[Tensor]] = {k: [] for k in ("x", "a", "p", "v", "r", "d", "term", "final")}
    returns: list[float] = []
    for _ in range(steps):
        x = torch.as_tensor(observation, dtype=dtype).flatten(1)
        logits, value = net(x)
        log_probs = logits.log_softmax(-1)
        action = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
        step = env.step(action.numpy())
        check_step(step)
        ended = step.terminated | step.truncated
        for key, item in (
            ("x", x),
            ("a", action),
            ("p", log_probs.gather(1, action[:, None]).squeeze(1)),
            ("v", value),
            ("r", torch.as_tensor(step.reward * scale, dtype=dtype)),
            ("d", torch.as_tensor(ended, dtype=dtype)),
            ("term", torch.as_tensor(step.terminated, dtype=dtype)),
            ("final", torch.as_tensor(step.final, dtype=dtype).flatten(1)),
        ):
            columns[key].append(item)
        returns.extend(step.returns)
        observation = step.observation
    table = {k: torch.stack(v) for k, v in columns.items()}
    final_values = net(table["final"].flatten(0, 1))[1].view_as(table["r"]) * (1 - table["term"])
    advantage = advantages(table["r"], table["v"], final_values, table["d"], gamma, trace)
    rollout = Rollout(
        table["x"].flatten(0, 1),
        table["a"].flatten(),
        table["p"].flatten(),
        advantage.flatten(),
        (advantage + table["v"]).flatten(),
        tuple(returns),
    )
    return rollout, observation
