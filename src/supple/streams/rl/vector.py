"""The batch environment: many copies of one small task, stepped together, restarted one by one."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from supple.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """One step of all copies. ``final`` is the observation before a finished copy was restarted.

    Observations are (n, *observation_shape): (n, d) vectors or (n, channels, height, width) images.
    """

    observation: Array  # (n, *shape)
    reward: Array  # (n,)
    terminated: npt.NDArray[np.bool_]  # (n,) the task ended
    truncated: npt.NDArray[np.bool_]  # (n,) the time limit ended the episode
    final: Array  # (n, *shape)
    returns: tuple[float, ...]  # returns of the episodes that ended in this step


class VectorEnv(abc.ABC):
    """Base of the numpy environments: time limit, automatic restart, episode returns, state.

    Args:
        copies: number of environments.
        limit: steps after which an episode is truncated.
        seed: start states are drawn from this seed alone.
    """

    observation_size: int
    actions: int

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation; a vector unless a subclass says otherwise."""
        return (self.observation_size,)

    def __init__(self, copies: int, limit: int, seed: int) -> None:
        if copies < 1 or limit < 1:
            raise InputError("copies and limit must be at least 1", found=f"{copies} and {limit}")
        self.copies, self.limit = copies, limit
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.state = self._start(copies)
        self.clock = np.zeros(copies, dtype=np.int64)
        self.total = np.zeros(copies)

    @abc.abstractmethod
    def _start(self, n: int) -> Array:
        """n start states."""

    @abc.abstractmethod
    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Move ``self.state``; rewards and terminations."""

    def _restart(self, done: npt.NDArray[np.bool_]) -> None:
        """New start states for the copies that are ``done`` (n,)."""
        self.state[done] = self._start(int(done.sum()))

    def _overtime(self) -> npt.NDArray[np.bool_]:
        """(n,) copies whose episode is cut now, whatever the task says."""
        return self.clock >= self.limit

    @abc.abstractmethod
    def observe(self) -> Array:
        """What the agent sees of ``self.state``: (n, *observation_shape)."""

    def reset(self) -> Array:
        """Restart every copy."""
        self.state = self._start(self.copies)
        self.clock[:] = 0
        self.total[:] = 0.0
        return self.observe()

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """Apply one action per copy; finished copies restart at once."""
        actions = np.asarray(actions)
        if actions.shape != (self.copies,) or actions.min() < 0 or actions.max() >= self.actions:
            raise InputError(
                f"actions must be {self.copies} integers in [0, {self.actions})",
                found=f"shape {actions.shape}",
            )
        reward, terminated = self._advance(actions)
        self.clock += 1
        self.total += reward
        truncated = self._overtime() & ~terminated
        final = self.observe()
        done = terminated | truncated
        returns = tuple(float(r) for r in self.total[done])
        if done.any():
            self._restart(done)
            self.clock[done] = 0
            self.total[done] = 0.0
        return Step(self.observe(), reward, terminated, truncated, final, returns)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as plain types and arrays."""
        return {
            "state": self.state.copy(),
            "clock": self.clock.copy(),
            "total": self.total.copy(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; the state of another number of copies is refused."""
        if np.shape(state["state"]) != self.state.shape:
            raise InputError(
                "this state is of another environment",
                found=np.shape(state["state"]),
                do=f"{self.state.shape}",
            )
        self.state = np.array(state["state"], dtype=np.float64)
        self.clock = np.array(state["clock"], dtype=np.int64)
        self.total = np.array(state["total"], dtype=np.float64)
        self.rng.bit_generator.state = state["rng"]
