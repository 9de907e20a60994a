"""Mountain car as one numpy batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from supple.streams.rl.vector import Array, VectorEnv


class VectorMountainCar(VectorEnv):
    """Drive out of a valley (Moore 1990) with the constants of Gym's MountainCar-v0: reward -1 per step, the episode
    ends at position 0.5. The action pushes to the left, not at all, or to the right.

    >>> VectorMountainCar(copies=2, seed=0).reset().shape
    (2, 2)
    """

    observation_size = 2
    actions = 3

    LEFT, RIGHT, GOAL, SPEED_LIMIT, FORCE, GRAVITY = -1.2, 0.6, 0.5, 0.07, 0.001, 0.0025

    def __init__(self, copies: int = 16, limit: int = 400, seed: int = 0) -> None:
        super().__init__(copies, limit, seed)

    def _start(self, n: int) -> Array:
        return np.stack([self.rng.uniform(-0.6, -0.4, n), np.zeros(n)], axis=1)

    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        position, speed = self.state.T
        speed = speed + (actions - 1) * self.FORCE - np.cos(3 * position) * self.GRAVITY
        speed = speed.clip(-self.SPEED_LIMIT, self.SPEED_LIMIT)
        position = (position + speed).clip(self.LEFT, self.RIGHT)
        speed = np.where((position <= self.LEFT) & (speed < 0), 0.0, speed)  # the wall at the left
        self.state = np.stack([position, speed], axis=1)
        return np.full(self.copies, -1.0), position >= self.GOAL

    def observe(self) -> Array:
        return self.state.copy()
