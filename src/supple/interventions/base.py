"""The contract of every intervention.

An intervention is a frozen description (hyper-parameters only). ``attach`` checks everything, then
hooks the optimizer and returns a `Handle`, which owns all state. Standing penalties act in the
optimizer's step pre-hook, resets and perturbations in the step post-hook, never inside backward.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from supple.errors import SuppleError
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.schedule import Schedule, check_schedule
from supple.interventions.settings import check_model, check_settings
from supple.status import Mechanism


def _attach_checked(attach: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with a look at model and optimizer before it."""

    @functools.wraps(attach)
    def checked(method: Intervention, model: nn.Module, optimizer: Optimizers, **others: Any) -> Any:
        check_model(model, method.name)
        optimizer_list(optimizer)
        return attach(method, model, optimizer, **others)

    return checked


def _fields_checked(own: Callable[..., None]) -> Callable[..., None]:
    """A subclass's own checks, whose words are closer to the matter, and those of the types around them."""

    @functools.wraps(own)
    def checked(method: Intervention) -> None:
        try:
            own(method)
        except SuppleError:
            raise
        except Exception:  # it stumbled over a type
            _check_fields(method)
            raise
        _check_fields(method)

    return checked


def _check_fields(method: Intervention) -> None:
    for field in dataclasses.fields(method):
        if field.type in (Schedule, "Schedule"):
            check_schedule(getattr(method, field.name), field.name, boundary=method.at_boundary)
    check_settings(method)


@dataclasses.dataclass(frozen=True)
class Intervention(abc.ABC):
    """Base class of every method: hyper-parameters as dataclass fields, facts as class attributes.

    Types of settings, of the model and of the optimizers are checked for every subclass, beside its own checks.
    """

    mechanism: ClassVar[Mechanism | None] = None  # the mechanism it addresses
    cost: ClassVar[str] = "low"  # "low" | "medium" | "high"
    level: ClassVar[int] = 1  # the solution level: 1 training trick, 2 spectral / frequency, 3 architecture
    evidence: ClassVar[str] = "published"  # or "unverified"
    source: ClassVar[str] = ""  # the paper
    at_boundary: ClassVar[bool] = False  # whether it can act between two steps: every="boundary"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, around in (("__post_init__", _fields_checked), ("attach", _attach_checked)):
            if name in vars(cls):
                setattr(cls, name, around(vars(cls)[name]))

    def __post_init__(self) -> None:
        _check_fields(self)

    @property
    def name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> Handle:
        """Check everything, then hook; ``inputs`` (a small batch) lets the trace happen at once."""

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters as plain types."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name, **{k: v if not callable(v) else repr(v) for k, v in fields.items()}}
