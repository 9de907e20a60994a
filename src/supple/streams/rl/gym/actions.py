"""A change of what the agent's actions do."""

from __future__ import annotations

from typing import Any

import numpy as np

from supple.streams.rl.gym.base import TaskChange, gymnasium, permutation


class ActionPermutation(TaskChange):
    """Permutes the actions, anew per task; the first task keeps their order.

    Discrete actions change their meaning (action a does what action order[a] did); the entries of a Box
    of actions change places, which needs the same bounds for all of them.

    Raises:
        InputError: another space of actions, or entries with different bounds.

    >>> import gymnasium
    >>> env = ActionPermutation(gymnasium.make("Acrobot-v1"), seed=0)
    >>> env.order.tolist()
    [0, 1, 2]
    >>> env.task(1); sorted(env.order.tolist())
    [0, 1, 2]
    """

    def __init__(self, env: Any, seed: int = 0) -> None:
        super().__init__(env, seed)
        space, spaces = env.action_space, gymnasium.spaces
        if isinstance(space, spaces.Discrete):
            self.size = int(space.n)
        elif isinstance(space, spaces.Box) and len(space.shape) == 1:
            if len(set(space.low.tolist())) > 1 or len(set(space.high.tolist())) > 1:
                raise self._refuse(
                    "needs the same bounds for all entries", space, "rescale the actions first"
                )
            self.size = int(space.shape[0])
        else:
            raise self._refuse("needs Discrete or one-dimensional Box actions", space, "flatten them first")
        self._apply()

    def _apply(self) -> None:
        self.order = permutation(self.seed, self.index, "action", self.size)

    def action(self, action: Any) -> Any:
        """What the environment is told when the agent chooses ``action``."""
        space = self.env.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return space.dtype.type(self.order[int(action) - space.start] + space.start)
        return np.asarray(action)[self.order]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(self.action(action))
