"""CartPole as one numpy batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from supple.streams.rl.vector import Array, VectorEnv


class VectorCartPole(VectorEnv):
    """Cart-pole balancing (Barto, Sutton & Anderson 1983) with the constants and the Euler step of
    Gym's CartPole-v1: reward 1 per step, the episode ends beyond 2.4 units or 12 degrees.

    >>> env = VectorCartPole(copies=3, seed=0)
    >>> env.reset().shape
    (3, 4)
    """

    observation_size = 4
    actions = 2

    GRAVITY, CART, POLE, HALF_LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    X_LIMIT, ANGLE_LIMIT = 2.4, 12 * np.pi / 180

    def __init__(self, copies: int = 16, limit: int = 400, seed: int = 0) -> None:
        super().__init__(copies, limit, seed)

    def _start(self, n: int) -> Array:
        return self.rng.uniform(-0.05, 0.05, (n, 4))

    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        x, v, angle, spin = self.state.T
        force = np.where(actions == 1, self.FORCE, -self.FORCE)
        total, moment = self.CART + self.POLE, self.POLE * self.HALF_LENGTH
        sin, cos = np.sin(angle), np.cos(angle)
        push = (force + moment * spin**2 * sin) / total
        spin_rate = (self.GRAVITY * sin - cos * push) / (
            self.HALF_LENGTH * (4 / 3 - self.POLE * cos**2 / total)
        )
        acceleration = push - moment * spin_rate * cos / total
        self.state = np.stack(
            [x + self.DT * v, v + self.DT * acceleration, angle + self.DT * spin, spin + self.DT * spin_rate],
            axis=1,
        )
        fell = (np.abs(self.state[:, 0]) > self.X_LIMIT) | (np.abs(self.state[:, 2]) > self.ANGLE_LIMIT)
        return np.ones(self.copies), fell

    def observe(self) -> Array:
        return self.state.copy()
