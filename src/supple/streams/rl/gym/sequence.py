"""One environment that runs a sequence of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from supple.errors import InputError
from supple.streams import keys
from supple.streams.rl.gym.base import Recorded, Wrapper, check_index, gymnasium, next_change


class TaskSequence(Wrapper, Recorded):
    """A sequence of tasks behind one environment: one that changes, or a chain of different ones.

    The switch is asked for by `task`, or comes by itself after every ``every`` steps of this environment (of each
    copy in a vector environment), to the last task at most. A **told** boundary cuts the running episode
    (``truncated``) and the next `reset` begins the new task; ``info["task"]`` has the task the step was made in.
    An **untold** one comes without a sign: a changing environment changes in the middle of the episode, a chain goes
    on with the next environment when the episode ends; ``info["hidden_task"]`` is for your plots alone.

    What a task looks like depends on its index (and the seeds of the changes inside) alone. A new environment of a
    chain that is reset without a seed takes one from (seed, the last seed of a reset, index), so that a run
    repeats itself and the copies of a vector environment stay different.

    Args:
        env: an environment with something inside that has ``task(index)`` (`ObservationOffset`, …), or a sequence
            of factories, one per task; a factory's own changes are told the index too.
        every: steps per task; None switches only when told by `task`.
        tasks: number of tasks of a changing environment; None has no end. A chain has as many as factories.
        told: whether the agent is told of the boundaries.
        seed: for the environments of a chain.

    Raises:
        InputError: nothing that changes, no factory, environments of a chain with different spaces (each distinct
            factory is called once to see), an index out of range.

    >>> import gymnasium
    >>> from supple.streams.rl.gym import ObservationOffset
    >>> env = TaskSequence(ObservationOffset(gymnasium.make("CartPole-v1")), every=5, tasks=2)
    >>> _ = env.reset(seed=0)
    >>> [env.step(0)[3] for _ in range(5)]  # the fifth step is the last of the first task
    [False, False, False, False, True]
    >>> env.reset()[1]["task"]
    1
    """

    def __init__(
        self,
        env: Any | Sequence[Callable[[], Any]],
        *,
        every: int | None = None,
        tasks: int | None = None,
        told: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value in (("every", every), ("tasks", tasks)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"TaskSequence: {name} is a whole number of at least 1", found=repr(value))
        self._factories = None if isinstance(env, gymnasium.Env) else _factories(env, tasks)
        first: Any = env
        if self._factories is None:
            if next_change(env) is None:
                raise InputError(
                    "nothing in this environment changes with the task", found=str(env),
                    do="wrap it in ObservationOffset, DynamicsShift, …, or give a sequence of factories",
                )  # fmt: skip
        else:
            tasks = len(self._factories)
            first = _first(self._factories)
        Recorded.__init__(self, every=every, tasks=tasks, told=told, seed=seed)
        Wrapper.__init__(self, first)
        # the agent lives with these objects (they carry the sampler), whichever environment is inside
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.every, self.tasks, self.told, self.seed = every, tasks, told, seed
        self.index = 0
        self._clock = 0  # steps in the current task
        self._next: int | None = None  # a switch that waits for its moment
        self._by_clock = False  # whether that switch came by itself
        self._last_seed: int | None = None
        self._fresh = self._factories is not None  # an environment that no reset has seeded yet
        self._inform(0)

    @property
    def spec(self) -> Any:
        """gymnasium's recipe to make it again; None for a chain, whose factories it cannot hold."""
        return None if self._factories is not None else super().spec

    def task(self, index: int) -> None:
        """Ask for a task; it begins as the class says, and its steps are counted from there."""
        self._next, self._by_clock = check_index(index, self.tasks), False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._switch()
        if seed is not None:
            self._last_seed = seed
        elif self._fresh and self._last_seed is not None:
            key = keys.generator(self.seed, "reset", self._last_seed, self.index)
            seed = key.initial_seed() % 2**31
        self._fresh = False
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._with_task(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._with_task(info)
        self._clock += 1
        last = self.tasks is not None and self.index + 1 >= self.tasks
        if self._next is None and self.every is not None and self._clock >= self.every and not last:
            self._next, self._by_clock = self.index + 1, True
        if self._next is not None:
            if self.told:
                truncated = truncated or not terminated
            elif self._factories is None:
                self._switch()
        return observation, reward, terminated, truncated, info

    def _with_task(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "task" if self.told else "hidden_task": self.index}

    def _switch(self) -> None:
        """Make the switch that waits, if one does."""
        if self._next is None:
            return
        new, self._next = self._next, None
        # a chain may overrun its boundary to the end of an episode; the next one stays where it was
        self._clock = self._clock - (self.every or 0) if self._by_clock else 0
        if self._factories is not None and new != self.index:
            self.env.close()
            self.env, self._fresh = self._factories[new](), True
        self.index = new
        self._inform(new)

    def _inform(self, index: int) -> None:
        inner = next_change(self.env)
        if inner is not None:
            inner.task(index)


def _factories(given: Any, tasks: int | None) -> list[Callable[[], Any]]:
    if not isinstance(given, Sequence) or not given or not all(callable(f) for f in given):
        found = "an empty sequence" if isinstance(given, Sequence) and not given else type(given).__name__
        raise InputError(
            "a task sequence is made of an environment or of factories, one per task", found=found
        )
    if tasks is not None and tasks != len(given):
        raise InputError("a chain has one task per factory", found=f"tasks={tasks}, {len(given)} factories")
    return list(given)


def _first(factories: list[Callable[[], Any]]) -> Any:
    """The first environment, after a look at the spaces of all of them."""
    first = factories[0]()
    seen = {factories[0]}
    for index, factory in enumerate(factories):
        if factory in seen:
            continue
        seen.add(factory)
        other = factory()
        for space in ("observation_space", "action_space"):
            mine, its = getattr(first, space), getattr(other, space)
            if mine != its:
                raise InputError(
                    f"the tasks of a chain need one {space}", found=f"{mine} and {its}", where=f"task {index}",
                    do="pad or crop them to one shape",
                )  # fmt: skip
        other.close()
    return first
