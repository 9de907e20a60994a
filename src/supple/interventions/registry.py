"""Interventions by name: the built-in ones and those of installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any

from supple.errors import InputError
from supple.interventions.base import Intervention
from supple.interventions.settings import check_known

_REGISTRY: dict[str, type[Intervention]] = {}


def register(cls: type[Intervention]) -> type[Intervention]:
    """Class decorator: make an intervention known by its class name."""
    known = _REGISTRY.get(cls.__name__)
    if known is not None and known is not cls:
        raise InputError(f"an intervention named {cls.__name__!r} is registered already", found=known)
    _REGISTRY[cls.__name__] = cls
    return cls


def available() -> dict[str, type[Intervention]]:
    """All interventions by name: the built-in ones and those of installed packages.

    A package registers through the entry point group ``supple.interventions``; loading the entry point
    must yield a subclass of `Intervention`.
    """
    for entry in metadata.entry_points(group="supple.interventions"):
        if entry.name not in _REGISTRY:
            loaded = entry.load()
            if not (isinstance(loaded, type) and issubclass(loaded, Intervention)):
                raise InputError(
                    f"entry point {entry.name!r} is not an Intervention", found=loaded, where=entry.value
                )
            _REGISTRY[entry.name] = loaded
    return dict(sorted(_REGISTRY.items()))


def create(name: str, **settings: Any) -> Intervention:
    """Build an intervention from its name; unknown names list the known ones."""
    table = available()
    if name not in table:
        raise InputError(f"unknown intervention {name!r}", do=f"choose one of {', '.join(table)}")
    check_known(name, table[name], settings)
    return table[name](**settings)


def names(items: Iterable[Intervention]) -> str:
    """Comma-separated names, for messages."""
    return ", ".join(i.name for i in items)
