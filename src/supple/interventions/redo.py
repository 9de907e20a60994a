"""ReDo: from time to time, units that are dormant on the current batch are recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from supple.functional import dormant_scores
from supple.interventions.channels import Site, activation_sites
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
class ReDo(UnitReset):
    """Every ``every`` steps: units with E|h_i| / mean_k E|h_k| <= tau are re-born.

    Sokar et al. 2023 (ICML, arXiv 2302.12902). Incoming rows from the layer's initialiser, bias 0, outgoing
    weights 0, optimizer state of those slices fresh. A layer that is silent everywhere scores 0 everywhere:
    all of it is recycled, as in the public code. The scores come from the training batch of the step (the
    public code draws a separate batch of 64 to 2048 states): E is over samples and positions, read
    where the layer's consumers read it, after pooling. Units behind a skip connection, and units that carry
    a large but useless activation, are not seen by this score; see `ReGraMa`.

    Args:
        tau: threshold as a fraction of the layer's mean. 0.025 is the default setting and 0.1 the other one
            of the published experiments (as commented in the PyTorch port).
        every: steps (the paper's period is 1000 gradient steps), a callable step -> bool, or "task".
        initial: law of the fresh rows, see `supple.fresh.draw`; the public code uses "xavier" (JAX) or
            "kaiming_uniform" (PyTorch port).
        layers: names of the layers to act on; None is every hidden layer that can be reset.
        units: kinds of units, see `supple.interventions.reset_methods.UnitReset`; the default is ("inner",).
        seed: of the random draws.
    """

    tau: float = 0.025
    every: Schedule = 1000
    initial: Initials = "auto"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    cost: ClassVar[str] = "low"
    source: ClassVar[str] = "Sokar et al. 2023, The dormant neuron phenomenon in deep RL, arXiv 2302.12902"

    def __post_init__(self) -> None:
        self._check(tau=(0.0, float("inf")))

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> ReDoHandle:
        return ReDoHandle(self, model, optimizer, inputs, topology)


class ReDoHandle(ResetHandle):
    """Attached ReDo; ``scores`` has the latest score of every unit by layer."""

    method: ReDo

    def __init__(
        self, intervention: ReDo, model: nn.Module, optimizer: Optimizers, inputs: Any, topology: Any
    ) -> None:
        self.method, self.every = intervention, intervention.every
        self.scores: dict[str, Tensor] = {}
        self.sites: dict[str, list[Site]] = {}
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _prepare(self) -> None:
        for layer in [x for group in self.layers for x in group]:
            sites = activation_sites(self.built, layer)
            if isinstance(sites, str):
                self._drop(layer, sites)
                continue
            self.sites[layer.name] = sites
            for site in sites:
                self.meter.watch_input(site, self.built.modules[site.module])

    def _act(self, layers: list[Layer]) -> bool:
        paths = list(dict.fromkeys(s.module for x in layers for s in self.sites[x.name]))
        self.meter.reduce(paths, self.device)
        gauges = self.meter.gauges
        if not all(gauges[p].count for p in paths):
            return self._missing(paths)
        chosen = {x.name: c for x in layers if (c := self._dormant(x)) is not None}
        self._reset(chosen)
        for path in paths:
            gauges[path].clear()
        return True

    def _dormant(self, layer: Layer) -> Tensor | None:
        total: Tensor | float = 0.0
        channels: Tensor | float = 0.0
        for site in self.sites[layer.name]:
            mean = self.meter.gauges[site.module].mean("absolute")
            total = total + site.gather(mean, layer.units)
            channels = channels + site.gather(torch.ones_like(mean), layer.units)
        scores = dormant_scores(torch.as_tensor(total / channels)[None])
        self.scores[layer.name] = scores
        if not bool(torch.isfinite(scores).all()):
            self._skip(layer.name, "an activation is not finite")
            return None
        return torch.nonzero(scores <= self.method.tau).flatten().cpu()
