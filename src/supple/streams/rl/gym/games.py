"""Games brought to one shape, so that they can follow each other: MinAtar and Atari."""

from __future__ import annotations

from typing import Any

import numpy as np

from supple.errors import InputError, need
from supple.streams.rl.gym.base import Wrapper, gymnasium


class PadChannels(Wrapper):
    """A MinAtar state (10, 10, c) with empty channels added up to ``channels``, as float32 in [0, 1].

    Raises:
        InputError: more channels than there is room for, or a state of another rank.
    """

    def __init__(self, env: Any, channels: int = 10) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        if len(shape) != 3 or shape[2] > channels:
            raise InputError(f"no room for this state in {channels} channels", found=shape)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (*shape[:2], channels), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._pad(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._pad(observation), float(reward), bool(terminated), bool(truncated), info

    def _pad(self, observation: Any) -> Any:
        padded = np.zeros(self.observation_space.shape, dtype=np.float32)
        padded[..., : observation.shape[-1]] = observation
        return padded


def minatar(game: str, channels: int = 10) -> Any:
    """A MinAtar game with all six actions and ``channels`` channels; ``game`` as registered: "SpaceInvaders".

    >>> minatar("Asterix").observation_space.shape
    (10, 10, 10)
    """
    if f"MinAtar/{game}-v1" not in gymnasium.registry:
        need("minatar.gym", "rl").register_envs()
    # its own generator is not gymnasium's, which the checker would report at every make
    env = gymnasium.make(f"MinAtar/{game}-v1", use_minimal_action_set=False, disable_env_checker=True)
    return PadChannels(env, channels)


def atari(game: str) -> Any:
    """An Atari game with the usual reductions: all 18 actions, sticky actions 0.25, 4 frames per action, grey,
    84 x 84, the last 4 frames. Machado et al. 2018 (arXiv 1709.06009) for the first two."""
    need("cv2", "rl-atari")
    gymnasium.register_envs(need("ale_py", "rl-atari"))
    env = gymnasium.make(
        f"ALE/{game}-v5", frameskip=1, full_action_space=True, repeat_action_probability=0.25
    )
    reduced = gymnasium.wrappers.AtariPreprocessing(env, noop_max=0, frame_skip=4, screen_size=84)
    return gymnasium.wrappers.FrameStackObservation(reduced, 4)
