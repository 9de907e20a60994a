"""Per-sample gradients of the whole network for the parameters that no hook accounts for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils import _pytree as pytree

from supple.errors import InputError
from supple.observe.kernel_sums import Kernel
from supple.topology import call

Forward = Callable[[nn.Module, Any], Any]


class _Caller(nn.Module):
    """The model as a function of its inputs, so that its parameters can be exchanged for a call."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self._call = model, forward

    def forward(self, inputs: Any) -> Tensor:
        return call(self.model, inputs, self._call)


def add_by_samples(
    kernel: Kernel,
    model: nn.Module,
    inputs: Any,
    forward: Forward | None,
    parameters: Mapping[str, nn.Parameter],
    budget: int,
) -> None:
    """Add the parameters' part: ``vmap`` of per-sample gradients, or a loop where ``vmap`` does not go."""
    if not parameters:
        return
    one = _Samples(inputs, kernel.n)
    _refuse_coupling(model, one, inputs, forward)
    caller = _Caller(model, forward)
    for group in _groups(kernel, parameters, budget):
        try:
            gradients = _by_vmap(kernel, caller, one, group)
        except RuntimeError:
            # data-dependent control flow, an operation without a batching rule, a recurrent kernel
            gradients = _by_loop(kernel, caller, one, group)
        for g in gradients:
            kernel.add_gradients(g)


class _Samples:
    """Inputs as leaves that carry the sample axis and leaves that do not."""

    def __init__(self, inputs: Any, n: int) -> None:
        self.leaves, self.spec = pytree.tree_flatten(inputs)
        self.n = n
        self.batched = [isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == n for x in self.leaves]
        if not any(self.batched):
            raise InputError(
                "no input tensor has the samples on its first axis, so they cannot be taken one by one",
                found=[tuple(x.shape) for x in self.leaves if isinstance(x, Tensor)],
            )

    def mapped(self) -> list[Tensor]:
        return [x for x, b in zip(self.leaves, self.batched, strict=True) if b]

    def rebuild(self, mapped: list[Tensor]) -> Any:
        """Inputs of a batch of one from the leaves of one sample."""
        parts = iter(mapped)
        leaves = [next(parts)[None] if b else x for x, b in zip(self.leaves, self.batched, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)

    def sample(self, i: int) -> Any:
        return self.rebuild([x[i] for x in self.mapped()])

    def twice(self, i: int) -> Any:
        """Inputs of a batch of two that holds sample i twice."""
        leaves = [x[[i, i]] if b else x for x, b in zip(self.leaves, self.batched, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def _refuse_coupling(model: nn.Module, one: _Samples, inputs: Any, forward: Forward | None) -> None:
    """A sample beside its own copy must give the output that it gives in the batch."""
    # a copy, since batch statistics refuse a batch of one
    with torch.no_grad():
        together = call(model, inputs, forward)
        for i in {0, one.n - 1}:
            alone = call(model, one.twice(i), forward)[0]
            gap = (alone - together[i]).abs().amax()
            size = together.abs().amax()
            if not bool(gap <= min(1e4 * torch.finfo(together.dtype).eps, 0.05) * size):
                raise InputError(
                    "samples influence one another, so there is no gradient per sample",
                    found=f"an output that changes by {float(gap):.3g} with the rest of the batch",
                    do="use running statistics in BatchNorm, or a norm over each sample",
                )


def _groups(
    kernel: Kernel, parameters: Mapping[str, nn.Parameter], budget: int
) -> Iterator[dict[str, Tensor]]:
    """Parameters whose per-sample gradients fit the budget together; at least one at a time."""
    group: dict[str, Tensor] = {}
    held = 0
    for name, p in parameters.items():
        size = kernel.n * kernel.cotangents * p.numel() * p.element_size()
        if group and held + size > budget:
            yield group
            group, held = {}, 0
        group["model." + name] = p.detach()
        held += size
    yield group


def _by_vmap(kernel: Kernel, caller: _Caller, one: _Samples, group: dict[str, Tensor]) -> list[Tensor]:
    def outputs(parameters: dict[str, Tensor], *mapped: Tensor) -> Tensor:
        return functional_call(caller, parameters, (one.rebuild(list(mapped)),)).reshape(-1)

    def scalar(parameters: dict[str, Tensor], *mapped: Tensor) -> Tensor:
        return outputs(parameters, *mapped).sum() * kernel.c**-0.5

    derive = grad(scalar) if kernel.kind == "scalar" else jacrev(outputs)
    axes = (None, *[0] * len(one.mapped()))
    with torch.no_grad():  # no graph into the parameters that are not of this group
        found = vmap(derive, in_dims=axes)(group, *one.mapped())
    if kernel.kind == "scalar":
        return [g.reshape(1, kernel.n, -1) for g in found.values()]
    return [g.transpose(0, 1).reshape(kernel.c, kernel.n, -1) for g in found.values()]


def _by_loop(kernel: Kernel, caller: _Caller, one: _Samples, group: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: p.clone().requires_grad_() for name, p in group.items()}
    rows: list[list[Tensor]] = []
    for i in range(kernel.n):
        out = functional_call(caller, leaves, (one.sample(i),)).reshape(1, -1)
        per_cotangent = [
            torch.autograd.grad(out[0], list(leaves.values()), v, retain_graph=True, materialize_grads=True)
            for v in kernel.cotangent(out.detach(), 0, kernel.cotangents)[:, 0]
        ]
        rows.append(
            [torch.stack(parts).reshape(kernel.cotangents, -1) for parts in zip(*per_cotangent, strict=True)]
        )
    return [torch.stack(parts, 1) for parts in zip(*rows, strict=True)]
