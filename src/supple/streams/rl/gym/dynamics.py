"""A change of the world itself: friction and gravity."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch

from supple.streams import keys
from supple.streams.rl.gym.base import TaskChange

#: a range (lo, hi) of factors, or the factor of each task
Factors = tuple[float, float] | Callable[[int], float]


class DynamicsShift(TaskChange):
    """Scales friction and gravity by a factor per task; the first task of a range has factor 1.

    ``factor_k = exp(u)``, u uniform in [log lo, log hi], drawn from (seed, k) alone; the Ant of Dohare et al.
    2024 (Nature 632) has friction log-uniform in [0.02, 2]. Friction is the sliding coefficient of **every**
    geom of a MuJoCo model (column 0 of ``model.geom_friction``): MuJoCo takes the larger of two touching geoms,
    so lowering the floor's alone would change nothing. Gravity is ``model.opt.gravity``, or an attribute
    ``gravity`` or ``g`` of the environment (CartPole, MountainCar, Pendulum at the next step, LunarLander at
    the next reset).

    Args:
        env: a MuJoCo environment (gymnasium's or one with ``model``), or for gravity also a classic one.
        friction, gravity: (lo, hi), or a function task index -> factor; None leaves it alone.
        seed: of the draws.

    Raises:
        InputError: nothing to change, a range that is not 0 < lo <= hi, a factor that is not above 0,
            an environment without friction or gravity.

    >>> import gymnasium
    >>> env = DynamicsShift(gymnasium.make("CartPole-v1"), gravity=(0.5, 2.0), seed=0)
    >>> env.task(1); 4.9 <= env.unwrapped.gravity <= 19.6
    True
    >>> env.task(0); env.unwrapped.gravity
    9.8
    """

    def __init__(
        self, env: Any, *, friction: Factors | None = None, gravity: Factors | None = None, seed: int = 0
    ) -> None:
        super().__init__(env, seed, friction=friction, gravity=gravity)
        self.friction, self.gravity = friction, gravity
        if friction is None and gravity is None:
            raise self._refuse(
                "needs something to change", "None", "friction=(0.02, 2.0) or gravity=(0.5, 2.0)"
            )
        for name, given in (("friction", friction), ("gravity", gravity)):
            if given is not None and not callable(given) and not _is_range(given):
                raise self._refuse(f"needs 0 < lo <= hi for {name}", given, "e.g. (0.02, 2.0)")
        inner = env.unwrapped
        model = getattr(inner, "model", None)
        self._model: Any = model if hasattr(model, "geom_friction") else None
        self._attribute = next(
            (a for a in ("gravity", "g") if isinstance(getattr(inner, a, None), float)), ""
        )
        if friction is not None and self._model is None:
            raise self._refuse("finds no friction", inner, "friction needs a MuJoCo model")
        if gravity is not None and self._model is None and not self._attribute:
            raise self._refuse("finds no gravity", inner, "a MuJoCo model, or an attribute gravity or g")
        self._base_friction: Any = None if self._model is None else self._model.geom_friction[:, 0].copy()
        self._base_gravity: Any = (
            self._model.opt.gravity.copy()
            if self._model is not None
            else getattr(inner, self._attribute, None)
        )
        self._apply()  # a function may change the first task too

    def factor(self, what: str, index: int) -> float:
        """The factor of ``"friction"`` or ``"gravity"`` in a task; 1 in the first one and for what stays."""
        given: Factors | None = getattr(self, what)
        if given is None or (index == 0 and not callable(given)):
            return 1.0
        if callable(given):
            told = float(given(index))
            if not 0 < told < math.inf:
                raise self._refuse(
                    f"needs a factor above 0 for {what}", told, f"mend the function at {index}"
                )
            return told
        lo, hi = (math.log(x) for x in given)
        u = torch.rand((), generator=keys.generator(self.seed, what, index), dtype=torch.float64).item()
        return math.exp(lo + u * (hi - lo))

    def _apply(self) -> None:
        if self.friction is not None:
            self._model.geom_friction[:, 0] = self._base_friction * self.factor("friction", self.index)
        if self.gravity is None:
            return
        value = self._base_gravity * self.factor("gravity", self.index)
        if self._model is not None:
            self._model.opt.gravity[:] = value
        else:
            setattr(self.env.unwrapped, self._attribute, value)


def _is_range(given: Any) -> bool:
    """Whether it is (lo, hi) with 0 < lo <= hi < inf."""
    pair = isinstance(given, tuple | list) and len(given) == 2
    return pair and all(isinstance(x, Real) for x in given) and 0 < given[0] <= given[1] < math.inf
