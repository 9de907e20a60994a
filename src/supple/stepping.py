"""What a call of ``Optimizer.step`` is, seen from its hooks: whose step, with which closure, and whether it moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


def bare(optimizer: Optimizer) -> Optimizer:
    """The optimizer that takes the steps: what is inside accelerate's ``AcceleratedOptimizer``, else itself.

    Told by the hooks that every optimizer has once it is initialised, and such a shell never is.

    >>> import torch
    >>> plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    >>> bare(plain) is plain
    True
    """
    while not hasattr(optimizer, "_optimizer_step_post_hooks"):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    return optimizer


def closure_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The closure that ``step`` was given, None without one."""
    return kwargs.get("closure") or next((a for a in args if callable(a)), None)


def skips(optimizer: Optimizer) -> bool:
    """Whether this call of ``step`` will move nothing: a fused optimizer was told of infinite gradients.

    With a fused optimizer, ``GradScaler.step`` calls ``optimizer.step`` even then, and the kernel leaves
    the parameters alone; such a step does not count.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())
