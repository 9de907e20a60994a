"""What identify reads: the rows of the network beside the same rows of its twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supple.diagnose.compare import Comparison, compare
from supple.diagnose.thresholds import Threshold
from supple.records import MEASURED, Record
from supple.status import Status

if TYPE_CHECKING:
    from supple.observe.probe import Observation
    from supple.topology.graph import Layer

GRAMA_VARIANT = "preactivation,tau=0.025"


@dataclass(frozen=True)
class Panel:
    """One look at the network and one at each twin, on the same probe.

    ``errors`` holds standard errors over probe samples, per (instrument, layer).
    """

    seen: Observation
    twins: Sequence[Observation]
    samples: int
    errors: dict[tuple[str, str], float] = field(default_factory=dict)

    def value(self, instrument: str, layer: str = "*", variant: str = "") -> float:
        return self.seen.value(instrument, layer, variant)

    def of_twins(self, instrument: str, layer: str = "*", variant: str = "") -> list[float]:
        return [t.value(instrument, layer, variant) for t in self.twins]

    def compare(
        self,
        instrument: str,
        threshold: Threshold,
        layer: str = "*",
        variant: str = "",
        *,
        error: float | None = None,
        decides: bool = True,
        note: str = "",
    ) -> Comparison:
        """The statistic of one row against the twins."""
        known = self.errors.get((instrument, layer), 0.0) if error is None else error
        label = f"{instrument} ({variant})" if variant else instrument
        row = self.row(instrument, layer, variant)
        return compare(
            label,
            self.value(instrument, layer, variant),
            self.of_twins(instrument, layer, variant),
            threshold,
            error=known,
            layer=layer,
            samples=row.samples if row is not None else self.samples,
            note=note,
            decides=decides,
        )

    def trouble(self, instrument: str, variant: str = "") -> tuple[Status, str]:
        """Why a pooled row has no value: its status and reason in the network, else in the twin."""
        for whose, observation in (("", self.seen), *(("on the twin: ", t) for t in self.twins[:1])):
            row = observation.records.last(instrument=instrument, layer="*", variant=variant)
            row = row or observation.records.last(instrument=instrument, layer="*")
            if row is not None and row.status != MEASURED:
                return Status(row.status), whose + (row.note or "no value")
        if not self.twins:
            return Status.NOT_MEASURED, "no reference to compare with: pass reference=factory"
        return Status.NOT_MEASURED, f"{instrument} was not measured on this network"

    @property
    def hidden(self) -> list[Layer]:
        """Layers whose units are scored."""
        return list(self.seen.topology.hidden)

    def judged_layers(self, smallest: int) -> list[Layer]:
        """Hidden layers whose weight matrix has at least ``smallest`` directions."""
        return [x for x in self.hidden if min(x.units, x.fan_in) >= smallest]

    def row(self, instrument: str, layer: str, variant: str = "") -> Record | None:
        return self.seen.records.last(instrument=instrument, layer=layer, variant=variant)


def binomial_error(share: float, units: int) -> float:
    """Standard error of a share of few units, with half a unit added so that 0 of n is not certain."""
    p = (share * units + 0.5) / (units + 1)
    return math.sqrt(p * (1 - p) / units) if units else math.nan
