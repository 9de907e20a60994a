"""A constant observation offset per task: the non-stationarity of the C-CHAIN Gym suite."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from supple.errors import InputError
from supple.streams.rl.vector import Array, Step, VectorEnv


def offset_of(seed: int, index: int, scale: float, size: int | tuple[int, ...]) -> Array:
    """The offset of one task, in the given size: N(0, scale²) from (seed, index) alone, zero for the first task.

    >>> offset_of(1, 0, 2.0, 3).tolist()
    [0.0, 0.0, 0.0]
    >>> bool((offset_of(1, 4, 2.0, 3) == offset_of(1, 4, 2.0, 3)).all())
    True
    """
    if index == 0:
        return np.zeros(size)
    return np.random.Generator(np.random.PCG64([seed, index])).normal(0.0, scale, size)


class ObservationOffset:
    """Adds a vector ~ N(0, scale²) to every observation, a new one per task; the first task has none.

    Tang et al. 2025 (arXiv 2506.00592), Gym control suite: scale 2 (0.02 for MountainCar). The offset of
    task k depends on (seed, k) alone.

    >>> from supple.streams.rl import VectorCartPole
    >>> env = ObservationOffset(VectorCartPole(copies=2), scale=2.0, seed=1)
    >>> env.offset.tolist()
    [0.0, 0.0, 0.0, 0.0]
    >>> env.task(3); bool((env.offset != 0).all())
    True
    """

    def __init__(self, env: VectorEnv, scale: float = 2.0, seed: int = 0) -> None:
        if not 0.0 <= scale < float("inf"):
            raise InputError("the scale of the offsets must be 0 or more", found=scale)
        self.env, self.scale, self.seed = env, scale, seed
        self.index = 0

    @property
    def observation_size(self) -> int:
        return self.env.observation_size

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.env.observation_shape

    @property
    def actions(self) -> int:
        return self.env.actions

    @property
    def copies(self) -> int:
        return self.env.copies

    @property
    def offset(self) -> Array:
        return offset_of(self.seed, self.index, self.scale, self.observation_shape)

    def task(self, index: int) -> None:
        """Switch to the given task; the next `reset` or `step` shows its offset."""
        if index < 0:
            raise InputError("a task index is 0 or more", found=index)
        self.index = index

    def reset(self) -> Array:
        return self.env.reset() + self.offset

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        step = self.env.step(actions)
        return dataclasses.replace(
            step, observation=step.observation + self.offset, final=step.final + self.offset
        )

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "env": self.env.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = int(state["index"])
        self.env.load_state_dict(state["env"])
