"""Independent copies of a live network: no wrapper, no hooks of others, no shared state."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import Tensor, nn

from supple.errors import InputError
from supple.topology.parameters import refuse_scripted

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile`` and (Distributed)DataParallel wrappers.

    >>> net = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(net)) is net
    True
    """
    refuse_scripted(model)
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def clean_copy(model: nn.Module) -> nn.Module:
    """A deep copy that carries none of the hooks that others put on the model.

    Hooks of `torch` itself stay: old-style weight normalisation and pruning compute weights in them. So do
    hooks that are marked with ``part_of_the_model``: forget gates compute in one.

    Raises:
        InputError: the model cannot be copied.

    >>> net = nn.Linear(2, 2)
    >>> _ = net.register_forward_hook(lambda *_: None)
    >>> len(clean_copy(net)._forward_hooks)
    0
    """
    model = unwrap(model)
    memo: dict[int, object] = {}
    for module in model.modules():
        keep = {k for name in _HOOKS for k, h in getattr(module, name).items() if _computes(h)}
        for name in _HOOKS:
            hooks = getattr(module, name)
            # deepcopy asks the memo first: it never walks into what a foreign hook refers to
            kept = {k: h for k, h in hooks.items() if k in keep}
            memo[id(hooks)] = OrderedDict(copy.deepcopy(kept))
        for value in vars(module).values():
            # computed weights (pruning, old weight normalisation) and kept activations hang on a graph
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            "the model cannot be copied",
            found=f"{type(error).__name__}: {error}",
            do="make copy.deepcopy(model) work (often a module keeps a lock or an open file)",
        ) from error


def _computes(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.") or getattr(hook, "part_of_the_model", False)
