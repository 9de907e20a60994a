"""What the settings of reset methods share: bounds, and the choice which kinds of units are reset."""

from __future__ import annotations

from dataclasses import dataclass, field

from supple.errors import InputError
from supple.interventions.base import Intervention

UNITS = ("inner", "stream", "heads")


@dataclass(frozen=True)
class ResetMethod(Intervention):
    """Checks that every reset method has."""

    def _check(self, **bounds: tuple[float, float]) -> None:
        """Each named field must lie in its closed interval."""
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(
                    f"{name} of {self.name} must lie in [{low}, {high}]", found=value, where=self.name
                )


@dataclass(frozen=True)
class UnitReset(ResetMethod):
    """A method that re-births single units, and the choice which kinds of them.

    ``units``: "inner", whose only readers are known; "stream", units on a residual stream, with all that reads
    the stream as consumers (see `plan_reset`); "heads", attention heads instead of single value channels.
    """

    units: tuple[str, ...] = field(default=("inner",), kw_only=True)

    def _check(self, **bounds: tuple[float, float]) -> None:
        super()._check(**bounds)
        if not self.units or not set(self.units) <= set(UNITS) or isinstance(self.units, str):
            raise InputError(
                f"units of {self.name} is a tuple of kinds of units",
                found=self.units,
                where=self.name,
                do=f"choose from {', '.join(UNITS)}, for example units=('inner', 'heads')",
            )
