"""LunarLander of gymnasium as a batch environment (extra ``rl-box2d``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from supple.errors import InputError, need
from supple.streams.rl.vector import Array, VectorEnv


class VectorLunarLander(VectorEnv):
    """Copies of gymnasium's LunarLander-v3, stepped one after the other: land between two flags, four actions.

    Every episode is seeded from this environment's own generator. The physics live in Box2D, whose world cannot be
    stored: a restored environment knows its generator and wants `reset` before the next step, as at the start
    of every task of the bench.

    Args:
        copies, limit, seed: as of every `VectorEnv`.

    Raises:
        MissingExtraError: gymnasium or Box2D is not installed.
    """

    observation_size = 8
    actions = 4

    def __init__(self, copies: int = 16, limit: int = 400, seed: int = 0) -> None:
        need("Box2D", "rl-box2d")
        make = need("gymnasium.envs.box2d.lunar_lander", "rl-box2d").LunarLander
        self.landers: list[Any] = [make() for _ in range(copies)]
        self._restored = False
        super().__init__(copies, limit, seed)

    def _start(self, n: int) -> Array:
        self._restored = False
        return np.stack([self._begin(lander) for lander in self.landers])

    def _begin(self, lander: Any) -> Array:
        seed = int(self.rng.integers(2**31))
        return np.asarray(lander.reset(seed=seed)[0], dtype=np.float64)

    def _restart(self, done: npt.NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(done):
            self.state[i] = self._begin(self.landers[i])

    def _advance(self, actions: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
        if self._restored:
            raise InputError(
                "a restored LunarLander cannot go on in mid-episode: Box2D's world is not stored",
                do="call reset() first",
            )
        steps = [lander.step(int(a)) for lander, a in zip(self.landers, actions, strict=True)]
        self.state = np.array([x for x, *_ in steps], dtype=np.float64)
        return np.array([float(r) for _, r, *_ in steps]), np.array([bool(end) for _, _, end, *_ in steps])

    def observe(self) -> Array:
        return self.state.copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._restored = True
