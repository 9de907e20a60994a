"""What a diagnosis, a trial and a plan ask of their arguments, refused before anything runs."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from supple.errors import InputError


def check_model(model: Any, what: str) -> None:
    """Raises InputError where ``model`` is no module, or has nothing that trains.

    >>> check_model(nn.Linear(2, 2), "a trial")
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{what} needs a torch.nn.Module",
            found=type(model).__name__,
            do="pass the network, not its weights",
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            f"{what} needs a model with a trainable parameter",
            found=f"{sum(1 for _ in model.parameters())} parameter(s), none trainable",
            where=type(model).__name__,
            do="set requires_grad on the parameters that are meant to learn",
        )


def check_budget(budget: Any, *, zero: str = "") -> float:
    """Seconds as a number; ``zero`` says what 0 stands for, without it 0 is refused.

    NaN is refused because no clock ever passes it.

    Raises:
        InputError: no number, NaN, a negative number, zero where it means nothing.

    >>> check_budget(3)
    3.0
    """
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or math.isnan(budget) or budget < 0 or (budget == 0 and not zero):
        raise InputError(
            "budget must be a positive number of seconds",
            found=repr(budget),
            where="budget",
            do=f"pass seconds, or 0 {zero}" if zero else "pass seconds, or None for the default",
        )
    return float(budget)
