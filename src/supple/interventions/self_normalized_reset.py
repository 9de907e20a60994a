"""Self-normalized resets: a unit is re-born when it has been silent for longer than its own past makes likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.interventions.channels import Site, preactivation_site
from supple.interventions.gap_sketch import GapSketch
from supple.interventions.handle import Optimizers
from supple.interventions.registry import register
from supple.interventions.reset_checks import Initials
from supple.interventions.reset_methods import UnitReset
from supple.interventions.resetting import ResetHandle
from supple.interventions.schedule import Schedule
from supple.status import Mechanism
from supple.topology.graph import Layer, Topology


@register
@dataclass(frozen=True)
class SelfNormalizedReset(UnitReset):
    """After every step, for each unit (B samples in the step)::

        fired (z > 0 on any sample or position):  record the gap a;  a <- 0
        silent:                                   a <- a + B
        a >= T:                                   record a;  re-birth;  a <- 0

    and from time to time T <- the (1 - rejection) quantile of the unit's recorded gaps if that is below T,
    else ``expansion`` T, within [B, longest]; the record starts anew. Farias & Jozefiak 2025 (ICLR, arXiv
    2410.20098): T is where a test of level ``rejection`` gives up the hypothesis that the unit still fires.
    Incoming row from the layer's initialiser, bias 0, outgoing weights 0, optimizer state fresh.

    Read off the authors' code: a gap of 0 is not recorded, and a unit without any recorded gap gets T = B.
    The code keeps an exact histogram of ``longest`` + 1 counts per unit; here a sketch keeps 352,
    exact to 2 % below the true quantile and exact for gaps that far apart. "Firing" is a positive
    pre-activation: layers without ReLU are left out. ``handle.gaps`` and ``handle.thresholds`` are in samples.

    Args:
        rejection: level of the test, in (0, 1); 0.08 is the value of the published experiments.
        threshold: T of every unit before the first update, in samples; None is ``longest``, so that nothing
            is re-born before (the source's start is not known).
        update: when thresholds are renewed: "task", a number of steps, or a callable step -> bool.
        tasks: with ``update="task"``, at every such boundary; the authors' notebooks use 16.
        expansion: growth of T where the quantile does not lie below it.
        longest: largest gap and threshold in samples.
        initial: law of the fresh rows, see `supple.fresh.draw`.
        layers: names of the layers to act on; None is every hidden layer that can be reset.
        units: kinds of units, see `supple.interventions.reset_methods.UnitReset`; the default is ("inner",).
        seed: of the random draws.
    """

    rejection: float = 0.08
    threshold: int | None = None
    update: Schedule = "task"
    tasks: int = 16
    expansion: float = 2.0
    longest: int = 20_000
    initial: Initials = "auto"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    cost: ClassVar[str] = "medium"
    source: ClassVar[str] = "Farias & Jozefiak 2025, Self-normalized resets, ICLR, arXiv 2410.20098"

    def __post_init__(self) -> None:
        far = float("inf")
        self._check(threshold=(1, far), tasks=(1, far), expansion=(1.0, far), longest=(1, far))
        if not 0.0 < self.rejection < 1.0:
            raise InputError("rejection must lie in (0, 1)", found=self.rejection, where=self.name)

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> SelfNormalizedResetHandle:
        return SelfNormalizedResetHandle(self, model, optimizer, inputs, topology)


@dataclass
class _Silence:
    """What is remembered of the units of one layer."""

    layer: Layer
    site: Site
    gap: npt.NDArray[np.int64]  # (U,) samples since a unit fired or was born
    threshold: npt.NDArray[np.float64]  # (U,)
    sketch: GapSketch


class SelfNormalizedResetHandle(ResetHandle):
    """Attached self-normalized resets; see `SelfNormalizedReset`."""

    method: SelfNormalizedReset
    standing = True

    def __init__(
        self,
        intervention: SelfNormalizedReset,
        model: nn.Module,
        optimizer: Optimizers,
        inputs: Any,
        topology: Any,
    ) -> None:
        self.method, self.every = intervention, intervention.update
        self.units: dict[str, _Silence] = {}
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _prepare(self) -> None:
        for layer in [x for group in self.layers for x in group]:
            site = preactivation_site(self.built, layer)
            if layer.gate_partner:
                self._drop(layer, "the two halves of a gated unit have no common firing")
            elif layer.activation != "relu":
                self._drop(
                    layer, f"firing is defined for ReLU, not for {layer.activation or 'no activation'}"
                )
            elif isinstance(site, str):
                self._drop(layer, site)
            else:
                self.meter.watch_output(site, self.built.modules[site.module], positive=True)
                start = float(self.method.threshold or self.method.longest)
                n = layer.units
                gap, sketch = np.zeros(n, dtype=np.int64), GapSketch(n, self.method.longest)
                self.units[layer.name] = _Silence(layer, site, gap, np.full(n, start), sketch)

    # -- what a user reads ----------------------------------------------------------------------
    @property
    def gaps(self) -> dict[str, Tensor]:
        """Samples since each unit fired or was born, by layer."""
        return {n: torch.from_numpy(u.gap.copy()) for n, u in self.units.items()}

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """The gap at which each unit is re-born, by layer."""
        return {n: torch.from_numpy(u.threshold.copy()) for n, u in self.units.items()}

    # -- the algorithm --------------------------------------------------------------------------
    def due(self, every: Schedule) -> bool:
        counted = every != "task" or self.task_index % self.method.tasks == 0
        return counted and super().due(every)

    def _act(self, layers: list[Layer]) -> bool:
        held = [self.units[x.name] for x in layers]
        paths = [u.site.module for u in held]
        self.meter.reduce(paths, self.device)
        gauges = self.meter.gauges
        if not all(gauges[p].count for p in paths):
            return self._missing(paths)
        position = next(i for i, group in enumerate(self.layers) if group is layers)
        if position in self.owed:
            self.owed.discard(position)
            for units in held:
                self._renew(units, gauges[units.site.module].count)
        chosen = {u.layer.name: self._silent(u) for u in held}
        self._reset(chosen)
        for path in paths:
            gauges[path].clear()
        return True

    def _silent(self, units: _Silence) -> Tensor:
        """Advance the gaps by this step; the units whose silence is too long."""
        gauge = self.meter.gauges[units.site.module]
        seen = units.site.gather((gauge.sums["positive"] > 0).float(), units.layer.units)
        fired = (seen > 0).cpu().numpy()
        units.sketch.record(fired, units.gap)
        units.gap = np.where(fired, 0, units.gap + gauge.count)
        due = units.gap >= units.threshold
        units.sketch.record(due, units.gap)
        units.gap[due] = 0
        return torch.from_numpy(np.flatnonzero(due))

    def _renew(self, units: _Silence, batch: int) -> None:
        quantile = units.sketch.quantile(1.0 - self.method.rejection)
        longer = self.method.expansion * units.threshold
        new = np.where(quantile < units.threshold, quantile, longer)
        units.threshold = np.maximum(batch, np.minimum(new, self.method.longest))
        units.sketch.clear()

    # -- state ----------------------------------------------------------------------------------
    def _own_state(self) -> dict[str, Any]:
        return {
            name: {
                "gap": torch.from_numpy(u.gap.copy()),
                "threshold": torch.from_numpy(u.threshold.copy()),
                "sketch": torch.from_numpy(u.sketch.counts.copy()),
            }
            for name, u in self.units.items()
        }

    def _load_own(self, state: dict[str, Any]) -> None:
        if set(state) != set(self.units):
            raise InputError("the state holds other layers", found=sorted(state))
        for name, kept in state.items():
            units = self.units[name]
            units.gap, units.threshold, units.sketch.counts = (
                kept[key].cpu().numpy().copy() for key in ("gap", "threshold", "sketch")
            )
