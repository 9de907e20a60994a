"""How a model is fed: one rule for tensors, tuples and mappings, shared by every room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from supple.errors import InputError

#: tensor -> model(x); tuple -> model(*x); mapping -> model(**x); anything when ``forward`` is given
Inputs: TypeAlias = Any
Forward: TypeAlias = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, inputs: Inputs, forward: Forward | None = None) -> Any:
    """Run the model on a batch: tensor, tuple (positional), mapping (keyword), or by ``forward``.

    Raises:
        InputError: the inputs are none of the three and no ``forward`` says what to do with them.

    >>> import torch
    >>> call(torch.nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3))).shape
    torch.Size([5, 4])
    """
    if forward is not None:
        return forward(model, inputs)
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    raise InputError(
        "inputs must be a tensor, a tuple (model(*inputs)) or a mapping (model(**inputs))",
        found=type(inputs).__name__,
        do="wrap a list in tuple(...), or pass forward=lambda model, inputs: ...",
    )


def batch_size(inputs: Inputs) -> int | None:
    """Length of the first axis of the first tensor with at least one axis, None without such a tensor.

    >>> import torch
    >>> batch_size({"ids": torch.zeros(4, 7), "scale": torch.tensor(2.0)})
    4
    """
    for leaf in leaves(inputs):
        if leaf.dim() > 0:
            return int(leaf.shape[0])
    return None


def shrink(inputs: Inputs, n: int) -> Inputs:
    """The first n samples of any inputs that `call` takes; nesting and non-tensors are kept.

    A tensor is cut along its first axis where that axis has the length of the batch (the first axis
    of the first tensor found); others, such as a mask shared by all samples, are left whole.

    Raises:
        InputError: n < 1.

    >>> import torch
    >>> small = shrink((torch.zeros(8, 3), {"mask": torch.ones(8), "table": torch.ones(5, 5)}), 2)
    >>> small[0].shape, small[1]["mask"].shape, small[1]["table"].shape
    (torch.Size([2, 3]), torch.Size([2]), torch.Size([5, 5]))
    """
    if n < 1:
        raise InputError("cannot shrink inputs to less than one sample", found=n)
    size = batch_size(inputs)

    def cut(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[:n] if item.dim() > 0 and item.shape[0] == size else item
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*(cut(x) for x in item))
        if isinstance(item, (tuple, list)):
            return type(item)(cut(x) for x in item)
        if isinstance(item, Mapping):
            return {key: cut(value) for key, value in item.items()}
        return item

    return cut(inputs)


def leaves(item: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, (tuple, list)):
        return [leaf for x in item for leaf in leaves(x)]
    return []
