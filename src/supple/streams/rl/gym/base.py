"""What every change of a gymnasium environment has in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from supple.errors import InputError, need
from supple.streams import keys

gymnasium: Any = need("gymnasium", "rl")
Wrapper: Any = gymnasium.Wrapper
Recorded: Any = gymnasium.utils.RecordConstructorArgs


def check_index(index: Any, tasks: int | None = None) -> int:
    """A task index as int; anything but 0, 1, … (below ``tasks``) is refused.

    >>> check_index(3)
    3
    """
    whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
    if not whole or index < 0 or (tasks is not None and index >= tasks):
        most = "" if tasks is None else f" below {tasks}"
        raise InputError(f"a task index is a whole number from 0{most}", found=repr(index))
    return int(index)


def permutation(seed: int, index: int, what: str, size: int) -> np.ndarray[Any, Any]:
    """(size,) the permutation of one task, from (seed, index) alone; the identity for the first task.

    >>> permutation(0, 0, "actions", 3).tolist()
    [0, 1, 2]
    >>> sorted(permutation(0, 5, "actions", 3).tolist())
    [0, 1, 2]
    """
    import torch

    if index == 0:
        return np.arange(size)
    return torch.randperm(size, generator=keys.generator(seed, what, index)).numpy()


class TaskChange(Wrapper, Recorded):
    """Base of the wrappers that change an environment from task to task.

    ``task(index)`` switches; what task k looks like depends on (seed, k) alone, and task 0 is the environment
    as it is. The spaces are the same for all tasks, since an agent lives with one. Subclasses read
    ``self.index`` or override `_apply`, which runs when the task changes.

    Vector environments reach it by name: ``vec.env_method("task", 2)`` in Stable-Baselines3,
    ``envs.call("task", 2)`` in gymnasium.
    """

    def __init__(self, env: Any, seed: int = 0, **settings: Any) -> None:
        if not isinstance(env, gymnasium.Env):
            raise InputError(f"{type(self).__name__} wraps a gymnasium environment", found=type(env).__name__)
        Recorded.__init__(self, seed=seed, **settings)  # so that gymnasium can make it again from its spec
        Wrapper.__init__(self, env)
        self.seed, self.index = seed, 0

    def task(self, index: int) -> None:
        """Switch this and every change inside to the given task; the next `reset` or `step` shows it."""
        index = check_index(index)
        inner = next_change(self.env)
        if inner is not None:
            inner.task(index)
        self.index = index
        self._apply()

    def _apply(self) -> None:
        """Write the change of ``self.index`` into the environment, where it lives there."""

    def _refuse(self, what: str, found: Any, do: str) -> InputError:
        return InputError(f"{type(self).__name__} {what}", found=found, where=str(self.env), do=do)


def next_change(env: Any) -> Any:
    """The outermost thing at or inside ``env`` that has a method ``task``, or None."""
    while True:
        if callable(getattr(type(env), "task", None)):
            return env
        if not isinstance(env, gymnasium.Wrapper):
            return None
        env = env.env
