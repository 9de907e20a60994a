"""Look without touching: random state, buffers, gradients and flags come back bit for bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextlib.contextmanager
def rng_guard() -> Iterator[None]:
    """Restore the random state of torch (CPU and every accelerator in use), numpy and Python on exit.

    >>> before = torch.get_rng_state()
    >>> with rng_guard():
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    cpu, python, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    devices = _accelerator_states()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(legacy)
        for restore in devices:
            restore()


def _accelerator_states() -> list[Callable[[], None]]:
    """One restoring function per accelerator that is already in use; none is woken up."""
    restores: list[Callable[[], None]] = []
    for module in (torch.cuda, torch.xpu):
        if module.is_initialized():
            for index in range(module.device_count()):
                state = module.get_rng_state(index)
                restores.append(lambda m=module, s=state, i=index: m.set_rng_state(s, i))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restores.append(lambda: torch.mps.set_rng_state(mps))
    return restores


@contextlib.contextmanager
def guard(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None, *, evaluate: bool = False
) -> Iterator[None]:
    """Restore everything a probe pass may touch, bit for bit, also when the body raises.

    Random states, buffers (the same objects with the same values; new ones are dropped), ``.grad`` of every
    parameter of the model and the optimizers (the same object, None stays None; empty inside),
    ``requires_grad``, and the training flag of every submodule, set directly so that an overridden
    ``train()`` cannot interfere. Parameters are not copied: nothing inside may write them. Python
    attributes that a forward pass changes are out of reach. Inside, gradients are enabled, also under
    ``no_grad`` or ``inference_mode``.

    Args:
        model: any module.
        optimizer: adds parameters that the optimizers hold and the model does not.
        evaluate: put every submodule into eval mode inside.

    >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    >>> with guard(model):
    ...     _ = model(torch.randn(8, 3))
    >>> model[0].num_batches_tracked.item(), model[0].running_mean.tolist()
    (0, [0.0, 0.0, 0.0])
    """
    modules = list(model.modules())
    flags = [m.training for m in modules]
    buffers = [
        (m, {k: (b, None if b is None else b.detach().clone(), _version(b)) for k, b in m._buffers.items()})
        for m in modules
    ]
    parameters = _parameters(model, optimizer)
    kept = [(p, p.grad, p.requires_grad) for p in parameters]
    with rng_guard():
        try:
            for parameter in parameters:
                parameter.grad = None
            if evaluate:
                for module in modules:
                    module.training = False
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            for parameter, grad, wanted in kept:
                parameter.grad = grad
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)
            _restore_buffers(buffers)


def _parameters(model: nn.Module, optimizer: Any) -> list[Tensor]:
    optimizers = (
        [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    )
    held = [p for opt in optimizers for group in opt.param_groups for p in group["params"]]
    return list({id(p): p for p in (*model.parameters(), *held)}.values())


def _version(buffer: Tensor | None) -> int:
    return 0 if buffer is None or buffer.is_inference() else buffer._version


_Saved = tuple[Tensor | None, Tensor | None, int]


def _restore_buffers(saved: list[tuple[nn.Module, dict[str, _Saved]]]) -> None:
    with torch.no_grad():
        for module, buffers in saved:
            for name in set(module._buffers) - set(buffers):
                del module._buffers[name]
            for name, (buffer, value, version) in buffers.items():
                # written only where it changed: a write would invalidate graphs that saved the buffer (and
                # batch norm updates its statistics without telling, so the version alone is not enough)
                module._buffers[name] = buffer
                if buffer is None or value is None:
                    continue
                if _version(buffer) != version or not torch.equal(buffer, value):
                    buffer.copy_(value)
