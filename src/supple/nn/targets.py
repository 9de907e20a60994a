"""Which linear layers an adapter takes: by ending, by a filter, or all that nothing else shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from supple.errors import InputError
from supple.layouts import is_conv1d, is_linear, linear_weight

Targets = str | Iterable[str] | Callable[[nn.Module, str], bool]
#: set on the forward hook of an adapter, so that a second one does not come on top of it
ADAPTS = "supple_adapter"


def choose_linears(model: nn.Module, targets: Targets | None) -> dict[str, nn.Module]:
    """Name -> layer of the linear layers that the targets name; None takes those whose weight is used once.

    Linear layers are ``nn.Linear`` and the Conv1D of GPT-2; the factors of peft's adapters are none of them, the layers
    that peft keeps as ``….base_layer`` are.

    Raises:
        InputError: a target that is not a plain linear layer or has an adapter, no match, or a weight that is tied,
            parametrised, not finite or without values.

    >>> list(choose_linears(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["2"]))
    ['2']
    """
    names = None
    if targets is not None and not callable(targets):
        names = (targets,) if isinstance(targets, str) else tuple(targets)
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    chosen: dict[str, nn.Module] = {}
    factors = _peft_factors(model)
    for name, module in model.named_modules():
        if names is not None:
            wanted = any(name == n or name.endswith("." + n) for n in names)
        elif callable(targets):
            wanted = bool(targets(module, name))
        else:
            plain = type(module) is nn.Linear or is_conv1d(module)
            wanted = plain and uses.get(id(module.weight)) == 1 and id(module) not in factors
        if wanted:
            chosen[name] = _check(module, name, uses)
    if not chosen:
        raise InputError("no layer matches the targets", found=names or targets, do="name nn.Linear layers")
    return chosen


def _check(module: nn.Module, name: str, uses: dict[int, int]) -> nn.Module:
    """Refuse what cannot be adapted exactly."""
    if not is_linear(module) or hasattr(module, "parametrizations"):
        inner = is_linear(getattr(module, "base_layer", nn.Identity()))
        raise InputError(
            "only a plain nn.Linear can be adapted",
            found=f"{type(module).__module__}.{type(module).__name__}",
            where=name,
            do=f"name {name.rpartition('.')[2]}.base_layer" if inner else "leave it out of the targets",
        )
    if any(getattr(hook, ADAPTS, False) for hook in module._forward_hooks.values()):
        raise InputError("the layer has an adapter already", where=name, do="call its detach() first")
    if uses.get(id(module.weight), 1) > 1:
        raise InputError(
            "the weight is shared with another layer", where=name, do="leave it out of the targets"
        )
    weight = linear_weight(module)
    if weight.is_meta:
        raise InputError("the weight has no values", found="device meta", where=name, do="load it first")
    if not weight.is_floating_point() or not torch.isfinite(weight).all():
        raise InputError("the weight is not finite floating point", found=weight.dtype, where=name)
    return module


def _peft_factors(model: nn.Module) -> set[int]:
    """The modules inside peft's tuned layers that are no part of the base model, by id."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    kind: Any = getattr(tuners, "BaseTunerLayer", ())
    found: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, kind):
            base = {id(m) for m in getattr(layer, "base_layer", nn.Identity()).modules()}
            found |= {id(m) for m in layer.modules()} - base
    return found
