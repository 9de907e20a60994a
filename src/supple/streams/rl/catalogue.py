"""The published continual reinforcement-learning suites by name, as data.

    from supple.streams.rl import suite
    env = suite("gym-cartpole").make(seed=0)          # a gymnasium environment: one task after another

Nothing is imported and no environment is built before `suite` is asked for one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

from supple.errors import InputError, MissingExtraError

Preset = Literal["paper", "day", "small"]


@dataclass(frozen=True)
class Suite:
    """A sequence of tasks with its published settings.

    ``steps`` per task by preset: only "paper" is published, "day" and "small" are shorter ones of our own
    (``source`` says where "paper" is ours too). ``settings`` are the published agent's, as facts to copy.
    ``build(seed, tasks)`` gives an environment that changes or the factories of a chain.
    """

    name: str
    source: str
    extra: str
    packages: tuple[str, ...]
    tasks: int
    steps: Mapping[str, int]
    build: Callable[[int, int], Any] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed, without importing one."""
        return tuple(p for p in self.packages if find_spec(p) is None)

    def make(
        self,
        preset: Preset = "paper",
        *,
        steps: int | None = None,
        tasks: int | None = None,
        told: bool = True,
        seed: int = 0,
    ) -> Any:
        """The suite as one `supple.streams.rl.gym.TaskSequence`.

        Args:
            preset: steps per task, unless ``steps`` says otherwise. They are those of this environment: divide
                them by the number of copies in a vector environment.
            tasks: the first so many tasks only.
            told, seed: as in `TaskSequence`; the seed also draws the tasks.

        Raises:
            MissingExtraError: a package is missing; the message has the extra.
            InputError: an unknown preset, more tasks than the suite has.
        """
        check(self)
        if preset not in self.steps:
            raise InputError(f"unknown preset {preset!r}", do=f"choose one of {', '.join(self.steps)}")
        tasks = self.tasks if tasks is None else tasks
        if not 1 <= tasks <= self.tasks:
            raise InputError(f"{self.name} has 1 to {self.tasks} tasks", found=tasks)
        made = self.build(seed, tasks)
        sequence = importlib.import_module("supple.streams.rl.gym").TaskSequence
        every = self.steps[preset] if steps is None else steps
        return sequence(made, every=every, tasks=tasks, told=told, seed=seed)


def check(chosen: Suite) -> None:
    """Refuse what is not installed with one message that names the extra."""
    if chosen.missing:
        raise MissingExtraError(
            f"the suite {chosen.name} needs {', '.join(chosen.missing)}",
            found="not installed", do=f"pip install 'supple[{chosen.extra}]'",
        )  # fmt: skip
    if "dm_control" in chosen.packages and int(metadata.version("mujoco").split(".")[0]) >= 4:
        raise MissingExtraError(
            f"the suite {chosen.name} needs dm_control, which does not run with MuJoCo 4",
            found=f"mujoco {metadata.version('mujoco')}", do=f"pip install 'supple[{chosen.extra}]'",
        )  # fmt: skip


def suites() -> dict[str, Suite]:
    """All suites by name, installed or not.

    >>> "minatar" in suites()
    True
    """
    from supple.streams.rl.published import ALL

    return {chosen.name: chosen for chosen in ALL}


def suite(name: str) -> Suite:
    """The suite of this name, ready to be made.

    Raises:
        InputError: an unknown name; the message lists the known ones.
        MissingExtraError: a package is missing; the message has the extra.

    >>> chosen = suite("gym-cartpole")
    >>> chosen.tasks, chosen.steps["paper"]
    (10, 160000)
    """
    known = suites()
    if name not in known:
        raise InputError(f"unknown suite {name!r}", do=f"choose one of {', '.join(known)}")
    check(known[name])
    return known[name]


def factories(make: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Callable[[], Any]]:
    """One picklable factory per row of arguments."""
    from functools import partial

    return [partial(make, *row) for row in arguments]
