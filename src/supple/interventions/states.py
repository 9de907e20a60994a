"""Whether a saved state fits a handle, asked before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from supple.errors import InputError


def misfit(name: str, found: str, where: str | None = None) -> InputError:
    """The one error about a state that does not fit."""
    return InputError(
        f"this state does not fit the handle of {name}",
        found=found,
        where=where,
        do="load the state_dict() of the same intervention on a model of the same shapes",
    )


def check_state(state: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """Refuse a state without the keys that every state has, or with a tensor of another shape than the handle's.

    >>> import torch
    >>> check_state({"state": {"u": torch.zeros(3)}}, {"state": {"u": torch.zeros(2)}}, "ReDo")
    Traceback (most recent call last):
        ...
    supple.errors.InputError: this state does not fit the handle of ReDo; found: shape (3,) instead of (2,); where: state.u; do: load the state_dict() of the same intervention on a model of the same shapes
    """  # noqa: E501
    missing = sorted(set(own) - set(state))
    if missing:
        raise misfit(name, f"no {', '.join(missing)}")
    _compare(state, own, name, "")


def _compare(given: object, own: object, name: str, path: str) -> None:
    """Tensors that both have at the same place are of one shape; either may have what the other has not."""
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        for key in own.keys() & given.keys():
            _compare(given[key], own[key], name, f"{path}.{key}" if path else str(key))
    elif isinstance(given, Tensor) and isinstance(own, Tensor) and given.shape != own.shape:
        raise misfit(name, f"shape {tuple(given.shape)} instead of {tuple(own.shape)}", path)
