"""When an intervention acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from supple.errors import InputError

#: a number of optimizer steps, a callable step -> bool, "task" (after the first step of each new task) or, of what
#: needs no step to act, "boundary" (in the call of `Handle.task` itself)
Schedule: TypeAlias = int | str | Callable[[int], bool]


def check_schedule(every: Schedule, where: str = "every", boundary: bool = False) -> None:
    """A positive number of steps, a callable step -> bool, or "task" (and "boundary" where it is possible); anything
    else is an `InputError`."""
    if every == "boundary":
        if boundary:
            return
        raise InputError(
            "this intervention acts after a step, not at the boundary itself",
            found='"boundary"', where=where, do="every='task': after the first step of the new task",
        )  # fmt: skip
    whole = isinstance(every, int) and not isinstance(every, bool) and every > 0
    if not (whole or every == "task" or callable(every)):
        raise InputError(
            "a schedule is a positive number of steps, a callable or 'task'",
            found=every,
            where=where,
            do="for example every=1000, or every='task' together with handle.task()",
        )
