"""A probe out of an agent's own buffer, without a random draw (SB3's own draws are untouched)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supple.errors import InputError

MIN_PROBE = 32  # with fewer samples an off-policy agent is not looked at


def available(agent: Any) -> int:
    """How many samples the rollout or replay buffer holds."""
    buffer = buffer_of(agent)
    if buffer is None:
        return 0
    filled = buffer.size() if is_replay(agent) else buffer.buffer_size if buffer.full else buffer.pos
    return filled * buffer.n_envs


def is_replay(agent: Any) -> bool:
    """Whether the agent learns from a replay buffer."""
    return hasattr(agent, "replay_buffer")


def buffer_of(agent: Any) -> Any:
    """The replay buffer or the rollout buffer; None before SB3 made it."""
    return (
        getattr(agent, "replay_buffer", None) if is_replay(agent) else getattr(agent, "rollout_buffer", None)
    )


def newest(agent: Any, size: int) -> tuple[Tensor, Tensor]:
    """(observations, actions) of at most ``size`` samples, as the network sees observations (normalised).

    From a rollout buffer evenly over the rollout; from a replay buffer the newest steps.

    Raises:
        InputError: the buffer is empty.
    """
    if not available(agent):
        raise InputError("nothing has been observed yet", do="let the agent make some steps first")
    buffer, envs = buffer_of(agent), buffer_of(agent).n_envs
    if is_replay(agent):
        steps = min(buffer.size(), max(1, -(-size // envs)))
        rows = (torch.arange(buffer.pos - steps, buffer.pos) % buffer.buffer_size).numpy()
    else:
        # in the middle of a rollout the rest of the buffer is empty
        rows = slice(None) if buffer.full or buffer.generator_ready else slice(0, buffer.pos)
    observations, actions = buffer.observations[rows], buffer.actions[rows]
    # SB3 flattens a rollout buffer in its first pass over the data and keeps it so until the next rollout
    if is_replay(agent) or not buffer.generator_ready:
        observations = observations.reshape(-1, *observations.shape[2:])
        actions = actions.reshape(-1, *actions.shape[2:])
    picked = torch.linspace(0, len(observations) - 1, min(size, len(observations))).long().numpy()
    observations, actions = observations[picked], actions[picked]
    normalizer = agent.get_vec_normalize_env()
    if is_replay(agent) and normalizer is not None:  # a replay buffer holds what the environment showed
        observations = normalizer.normalize_obs(observations)
    x = torch.as_tensor(observations, device=agent.device).float()
    y = torch.as_tensor(actions, device=agent.device)
    return x, y.long().flatten() if hasattr(agent.action_space, "n") else y.float()
