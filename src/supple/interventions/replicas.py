"""What penalties that run the network again share: the bare network, its pass outside a compiler, sums over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def bare(model: nn.Module) -> nn.Module:
    """The network below torch.compile and DistributedDataParallel, whose passes start no collective."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner


def eager(network: nn.Module) -> AbstractContextManager[Any]:
    """Within it a network that was compiled in place runs as it is written."""
    compiled = getattr(network, "_compiled_call_impl", None) is not None
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def filled(gradients: Sequence[Tensor | None] | None, like: Iterable[Tensor]) -> list[Tensor]:
    """Zeros in place of missing gradients: every rank sums the same shapes, also one without a term."""
    tensors = list(like)
    found = gradients or [None] * len(tensors)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, tensors, strict=True)]


def summed(gradients: Sequence[Tensor], *numbers: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Sums over all ranks in one collective, in float32: of the gradients in their own shapes, and of vectors."""
    flat = torch.cat([*(g.flatten().float() for g in gradients), *numbers])
    dist.all_reduce(flat)
    parts = flat.split([*(g.numel() for g in gradients), *(n.numel() for n in numbers)])
    shaped = [p.view_as(g) for p, g in zip(parts, gradients, strict=False)]
    return shaped, list(parts[len(gradients) :])
