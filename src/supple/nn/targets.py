"""Which linear layers an adapter takes: by ending, by a filter, or all that nothing else shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from supple.errors import InputError
from supple.layouts import is_conv1d, is_linear, linear_weight

Targets = Iterable[str] | Callable[[nn.Module, str], bool]


def choose_linears(model: nn.Module, targets: Targets | None) -> dict[str, nn.Module]:
    """Name -> layer of the linear layers that the targets name; None takes those whose weight is used once.

    Linear layers are ``nn.Linear`` and the Conv1D of GPT-2.

    Raises:
        InputError: a target that is not a plain linear layer, no match, or a weight that is tied,
            parametrised or not finite.

    >>> list(choose_linears(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["2"]))
    ['2']
    """
    names = None if targets is None or callable(targets) else tuple(targets)
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if names is not None:
            wanted = any(name == n or name.endswith("." + n) for n in names)
        elif callable(targets):
            wanted = bool(targets(module, name))
        else:
            wanted = (type(module) is nn.Linear or is_conv1d(module)) and uses.get(id(module.weight)) == 1
        if wanted:
            chosen[name] = _check(module, name, uses)
    if not chosen:
        raise InputError("no layer matches the targets", found=names or targets, do="name nn.Linear layers")
    return chosen


def _check(module: nn.Module, name: str, uses: dict[int, int]) -> nn.Module:
    """Refuse what cannot be adapted exactly."""
    if not is_linear(module) or hasattr(module, "parametrizations"):
        raise InputError("only a plain nn.Linear can be adapted", found=type(module).__name__, where=name)
    if uses.get(id(module.weight), 1) > 1:
        raise InputError(
            "the weight is shared with another layer", where=name, do="leave it out of the targets"
        )
    weight = linear_weight(module)
    if not weight.is_floating_point() or not torch.isfinite(weight).all():
        raise InputError("the weight is not finite floating point", found=weight.dtype, where=name)
    return module
