"""Acrobot as one numpy batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from supple.streams.rl.vector import Array, VectorEnv


class VectorAcrobot(VectorEnv):
    """Two-link swing-up (Sutton 1996) with the constants of Gym's Acrobot-v1 ("book" dynamics, one RK4
    step of 0.2 s): reward -1 per step, 0 on the step whose tip rises above one link length.

    >>> VectorAcrobot(copies=2, seed=0).reset().shape
    (2, 6)
    """

    observation_size = 6
    actions = 3

    DT, GRAVITY = 0.2, 9.8
    SPIN_LIMITS = (4 * np.pi, 9 * np.pi)

    def __init__(self, copies: int = 16, limit: int = 400, seed: int = 0) -> None:
        super().__init__(copies, limit, seed)

    def _start(self, n: int) -> Array:
        return self.rng.uniform(-0.1, 0.1, (n, 4))

    def _rate(self, state: Array, torque: Array) -> Array:
        """Time derivative; both links have mass, length and inertia 1, centres at one half."""
        a, b, da, db = state.T
        g = self.GRAVITY
        d1 = 0.25 + (1 + 0.25 + np.cos(b)) + 2.0
        d2 = 0.25 + 0.5 * np.cos(b) + 1.0
        phi2 = 0.5 * g * np.cos(a + b - np.pi / 2)
        phi1 = -0.5 * db**2 * np.sin(b) - db * da * np.sin(b) + 1.5 * g * np.cos(a - np.pi / 2) + phi2
        ddb = (torque + d2 / d1 * phi1 - 0.5 * da**2 * np.sin(b) - phi2) / (0.25 + 1.0 - d2**2 / d1)
        dda = -(d2 * ddb + phi1) / d1
        return np.stack([da, db, dda, ddb], axis=1)

    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        torque = actions.astype(np.float64) - 1.0
        s, h = self.state, self.DT
        k1 = self._rate(s, torque)
        k2 = self._rate(s + h / 2 * k1, torque)
        k3 = self._rate(s + h / 2 * k2, torque)
        k4 = self._rate(s + h * k3, torque)
        s = s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        s[:, :2] = (s[:, :2] + np.pi) % (2 * np.pi) - np.pi
        for column, bound in zip((2, 3), self.SPIN_LIMITS, strict=True):
            s[:, column] = s[:, column].clip(-bound, bound)
        self.state = s
        done = -np.cos(s[:, 0]) - np.cos(s[:, 1] + s[:, 0]) > 1.0
        return np.where(done, 0.0, -1.0), done

    def observe(self) -> Array:
        a, b, da, db = self.state.T
        return np.stack([np.cos(a), np.sin(a), np.cos(b), np.sin(b), da, db], axis=1)
