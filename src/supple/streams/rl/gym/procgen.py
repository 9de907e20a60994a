"""One level of a ProcGen game as a gymnasium environment (extra ``rl-procgen``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from supple.errors import InputError, need
from supple.streams.rl.gym.base import gymnasium
from supple.streams.rl.published import PROCGEN as GAMES


class ProcgenLevel(gymnasium.Env):  # type: ignore[misc]
    """A single level of one of the 16 games: 64 x 64 RGB, 15 actions.

    ProcGen starts the next episode by itself and never shows the last observation of the old one: the observation
    of a step that terminates is the first of the next episode. Its own time limit counts as termination.

    Args:
        game: one of the 16 names.
        level: the seed of the level (``start_level``); the only level that is played.
        mode: "hard" (Tang et al. 2025) or "easy".

    Raises:
        InputError: an unknown game or mode, a negative level.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's convention
    render_mode = None

    def __init__(self, game: str, level: int = 0, mode: str = "hard") -> None:
        if game not in GAMES or mode not in ("easy", "hard") or level < 0:
            raise InputError(
                "no such ProcGen level",
                found=(game, level, mode),
                do=f"a game of {', '.join(GAMES)}; easy or hard",
            )
        self._make = need("procgen", "rl-procgen").ProcgenGym3Env
        self.game, self.level, self.mode = game, level, mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(15)
        self._env: Any = None
        self._at_start = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._env is None:
            self.close()
            self._env = self._make(
                num=1, env_name=self.game, num_levels=1, start_level=self.level, distribution_mode=self.mode,
                rand_seed=0 if seed is None else seed % 2**31,
            )  # fmt: skip
        elif not self._at_start:
            self._env.act(np.array([-1], dtype=np.int32))  # ProcGen's own sign for "end this episode"
        self._at_start = True
        return self._look()[1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._env.act(np.array([action], dtype=np.int32))
        reward, observation, self._at_start = self._look()
        return observation, reward, self._at_start, False, {}

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _look(self) -> tuple[float, Any, bool]:
        reward, observation, first = self._env.observe()
        return float(reward[0]), np.array(observation["rgb"][0]), bool(first[0])
