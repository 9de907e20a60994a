"""Whether what a user hands to an intervention is of the type that its field says: asked before anything else."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from supple.errors import InputError


def check_settings(method: Any) -> None:
    """Refuse a setting of another type than its annotation, and NaN.

    A list does where a tuple is asked for and a whole number where a float is; classes of other kinds are left to
    the method.

    >>> from supple.interventions import ReDo
    >>> ReDo(layers="fc1")
    Traceback (most recent call last):
        ...
    supple.errors.InputError: a setting of ReDo has the wrong type; found: 'fc1'; where: layers; do: give tuple[str, ...] | None
    """  # noqa: E501
    hints = _hints(type(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name in hints and not fits(value, hints[field.name]):
            raise InputError(
                f"a setting of {type(method).__name__} has the wrong type",
                found=repr(value)[:80],
                where=field.name,
                do=f"give {field.type}",
            )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):  # names that only a type checker sees: nothing can be said
        return {}


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of the hinted type, as far as numbers, strings, tuples and callables go.

    >>> fits(3, float), fits("3", float), fits(True, int), fits(["a"], tuple[str, ...]), fits("a", tuple[str, ...])
    (True, False, False, True, False)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        listed = isinstance(value, (tuple, list))
        return listed and all(fits(item, args[0]) for item in typing.cast(Collection[object], value))
    if origin is Callable:
        return callable(value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is Mapping or hint is Tensor:
        return isinstance(value, origin or hint)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    return True


def check_known(name: str, cls: type, settings: Collection[str]) -> None:
    """Refuse settings that a method does not have."""
    own = [field.name for field in dataclasses.fields(cls) if field.init]
    unknown = sorted(set(settings) - set(own))
    if unknown:
        raise InputError(
            f"{name} has no such setting", found=", ".join(unknown), do=f"choose of {', '.join(own)}"
        )


def check_model(model: object, name: str) -> None:
    """An intervention is attached to a module."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name} is attached to a model",
            found=type(model).__name__,
            where="model",
            do="pass the torch.nn.Module whose parameters the optimizer has",
        )
