"""The one error module: every message says what was asked, what was found, where, and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


def compose(what: str, *, found: object = None, where: str | None = None, do: str | None = None) -> str:
    """Join the four parts of a message into one sentence chain.

    >>> compose("cannot trace the model", found="float inputs", where="embed", do="pass token ids")
    'cannot trace the model; found: float inputs; where: embed; do: pass token ids'
    """
    parts = [what]
    if found is not None:
        parts.append(f"found: {found}")
    if where is not None:
        parts.append(f"where: {where}")
    if do is not None:
        parts.append(f"do: {do}")
    return "; ".join(parts)


class SuppleError(Exception):
    """Base of every error that Supple raises on purpose."""

    def __init__(
        self, what: str, *, found: object = None, where: str | None = None, do: str | None = None
    ) -> None:
        super().__init__(compose(what, found=found, where=where, do=do))
        self.what, self.found, self.where, self.do = what, found, where, do


class InputError(SuppleError, ValueError):
    """What the user handed over cannot be used: shapes, types, NaN, missing files, unknown names."""


class TopologyError(SuppleError):
    """The network, or a part of it that a request needs, could not be resolved."""


class AttachError(SuppleError, RuntimeError):
    """A monitor or an intervention cannot be attached here, or what it was attached to has changed."""


class OptimizerRuleError(SuppleError):
    """No rule says what a fresh slice of this optimizer's state is."""


class StoreError(SuppleError):
    """A run on disk is missing, damaged, or belongs to another configuration."""


class MissingExtraError(SuppleError, ImportError):
    """A feature needs a package that is not installed; the message names the extra."""


def need(module: str, extra: str) -> ModuleType:
    """The imported module, or an error that names the extra.

    >>> need("math", "none").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here", found=error, do=f"pip install 'supple[{extra}]'"
        ) from error
