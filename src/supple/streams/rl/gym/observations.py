"""Changes of what the agent sees: a constant offset, a permutation of the entries."""

from __future__ import annotations

import abc
from numbers import Integral, Real
from typing import Any

import numpy as np

from supple.streams.rl.gym.base import TaskChange, gymnasium, permutation
from supple.streams.rl.offset import offset_of

Array = np.ndarray[Any, Any]


class _Observation(TaskChange, abc.ABC):
    """A change that maps the observation and nothing else."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observation(observation), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return self.observation(observation), *rest

    @abc.abstractmethod
    def observation(self, observation: Array) -> Array:
        """What the agent sees in the current task of what the environment shows."""

    def _box(self) -> Any:
        space = self.env.observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise self._refuse("needs a Box of observations", space, "flatten the observations first")
        return space


class ObservationOffset(_Observation):
    """Adds a vector ~ N(0, scale²) to every observation, a new one per task; the first task has none.

    Tang et al. 2025 (arXiv 2506.00592), Gym control suite: scale 2, 0.02 for MountainCar. The same numbers as
    `supple.streams.rl.ObservationOffset` of the numpy environments.

    Args:
        env: an environment with a Box of floating-point observations.
        scale: standard deviation of the offset, in the units of the observation.
        seed: the offset of task k depends on (seed, k) alone.
        tasks: the number of tasks, if it is known. The Box then has the tightest bounds that hold in every one of
            them; without it they are infinite, since the offsets of later tasks have no bound.

    Raises:
        InputError: observations that are not a floating-point Box; a negative scale.

    >>> import gymnasium
    >>> env = ObservationOffset(gymnasium.make("MountainCar-v0"), scale=0.02, seed=1, tasks=5)
    >>> env.task(2); bool(env.observation_space.contains(env.reset(seed=0)[0]))
    True
    """

    def __init__(self, env: Any, scale: float = 2.0, seed: int = 0, tasks: int | None = None) -> None:
        super().__init__(env, seed, scale=scale, tasks=tasks)
        space = self._box()
        if not np.issubdtype(space.dtype, np.floating):
            raise self._refuse("needs floating-point observations", space.dtype, "use ObservationPermutation")
        number = isinstance(scale, Real) and 0.0 <= scale < float("inf")
        if not number or not (tasks is None or (isinstance(tasks, Integral) and tasks >= 1)):
            raise self._refuse("needs scale >= 0 and tasks >= 1", (scale, tasks), "scale=2.0, tasks=10")
        self.scale, self.tasks = scale, tasks
        low, high = np.full_like(space.low, -np.inf), np.full_like(space.high, np.inf)
        if tasks is not None:
            offsets = [self.offset_of(index) for index in range(tasks)]
            low = np.min([space.low + offset for offset in offsets], axis=0)
            high = np.max([space.high + offset for offset in offsets], axis=0)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype)

    def offset_of(self, index: int) -> Array:
        """The offset of a task, in the shape and type of the observations."""
        space = self.env.observation_space
        flat = offset_of(self.seed, index, self.scale, int(np.prod(space.shape)))
        return flat.reshape(space.shape).astype(space.dtype)

    def task(self, index: int) -> None:
        """Switch to the given task; beyond ``tasks`` the bounds would no longer hold, so it is refused."""
        if self.tasks is not None and isinstance(index, int) and index >= self.tasks:
            raise self._refuse(f"was made for {self.tasks} tasks", index, "give a larger tasks=")
        super().task(index)

    @property
    def offset(self) -> Array:
        """The offset of the current task."""
        return self.offset_of(self.index)

    def observation(self, observation: Array) -> Array:
        if not self.index:
            return observation
        return np.asarray(observation, dtype=self.observation_space.dtype) + self.offset


class ObservationPermutation(_Observation):
    """Permutes the entries of every observation, anew per task; the first task keeps their order.

    Images are permuted pixel by pixel over all axes. Where the bounds of the entries differ, the Box has the
    loosest ones everywhere, as they must hold in every task.

    >>> import gymnasium
    >>> env = ObservationPermutation(gymnasium.make("CartPole-v1"), seed=1)
    >>> env.task(3); sorted(env.order.tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, env: Any, seed: int = 0) -> None:
        super().__init__(env, seed)
        space = self._box()
        low, high = np.full_like(space.low, space.low.min()), np.full_like(space.high, space.high.max())
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype)
        self._apply()

    def _apply(self) -> None:
        size = int(np.prod(self.env.observation_space.shape))
        self.order = permutation(self.seed, self.index, "observation", size)

    def observation(self, observation: Array) -> Array:
        observation = np.asarray(observation)
        return observation.reshape(-1)[self.order].reshape(observation.shape)
