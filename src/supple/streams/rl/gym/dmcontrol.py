"""DeepMind Control as a gymnasium environment (extra ``rl-dmc``)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from supple.errors import InputError, need
from supple.streams.rl.gym.base import gymnasium


class DMControl(gymnasium.Env):  # type: ignore[misc]
    """One task of the DeepMind control suite: state observations in the order of its specification, float32.

    An episode has 1,000 steps and ends by truncation (the discount stays 1) or, in the few tasks that have an end,
    by termination. No picture is drawn, so no OpenGL is needed (``MUJOCO_GL=disable``).

    Args:
        domain, task: as in ``dm_control.suite``, e.g. ``"walker", "run"``.

    Raises:
        InputError: a domain or task that the suite does not have.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's convention
    render_mode = None

    def __init__(self, domain: str, task: str) -> None:
        suite = need("dm_control.suite", "rl-dmc")
        if (domain, task) not in suite.ALL_TASKS:
            has = sorted(t for d, t in suite.ALL_TASKS if d == domain)
            raise InputError(
                f"the control suite has no {domain}-{task}", found=f"tasks of {domain}: {has or 'none'}"
            )
        self._random = np.random.RandomState()
        self._env = suite.load(domain, task, task_kwargs={"random": self._random})
        size = sum(math.prod(spec.shape) for spec in self._env.observation_spec().values())
        action = self._env.action_spec()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = (np.broadcast_to(x, action.shape) for x in (action.minimum, action.maximum))
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    @property
    def model(self) -> Any:
        """The MuJoCo model, which `DynamicsShift` changes."""
        return self._env.physics.model

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._random.seed(seed)
        return self._flat(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        step = self._env.step(np.asarray(action, dtype=np.float64))
        ended = bool(step.last() and step.discount == 0.0)
        return self._flat(step.observation), float(step.reward), ended, bool(step.last() and not ended), {}

    def close(self) -> None:
        self._env.close()

    @staticmethod
    def _flat(observation: Any) -> Any:
        return np.concatenate([np.ravel(x) for x in observation.values()]).astype(np.float32)
