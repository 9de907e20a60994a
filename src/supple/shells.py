"""Shells around optimizers: objects that pass ``step`` on to the optimizer inside and hold no hooks themselves."""

from __future__ import annotations

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
