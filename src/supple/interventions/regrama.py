"""ReGraMa: units whose gradient is a small part of the layer's mean are re-born."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError
from supple.functional import grama_scores
from supple.interventions.channels import Site, preactivation_site
from supple.interventions.handle import Optimizers
from supple.interventions.registry import register
from supple.interventions.reset_checks import Bias, Initials, Outgoing
from supple.interventions.reset_methods import UnitReset
from supple.interventions.resetting import ResetHandle
from supple.interventions.schedule import Schedule
from supple.interventions.sums import incoming_means
from supple.status import Mechanism
from supple.topology.graph import Layer, Topology


@register
@dataclass(frozen=True)
class ReGraMa(UnitReset):
    """Every ``every`` steps: units with m_i / mean_k m_k <= tau are re-born, m_i the size of their gradient.

    Liu et al. 2025 (NeurIPS, arXiv 2505.24061). ``score="weight"``: m_i is the mean over fan-in of
    |dL/dW_in[i, :]|, read off ``.grad`` (presumed official code); signs cancel over the batch, and a unit
    behind a LayerNorm has a gradient through the norm even when dead. ``score="preactivation"``:
    m_i = E|dL/dz_i|, z what the nonlinearity reads. Not the gradient after the activation: dead ReLU units
    score 0.4 to 2 with it.

    Paper and presumed code differ: outgoing weights are zeroed in the paper ("zero") and kept in the code
    ("keep": the function changes at once); the code also resets output units, never done here. A layer
    without signal is skipped and logged, never reset as a whole (the code's absolute 1e-9 would).

    Args:
        tau: threshold as a fraction of the layer's mean; the paper uses 0.01 (and 0 in one study).
        every: steps (paper: 1000), a callable step -> bool, or "task".
        score: "weight" or "preactivation".
        mode: "threshold"; "percentage" resets the floor(max_fraction U) lowest units whatever their score;
            "hybrid" is the threshold, at most floor(max_fraction U) units, lowest first.
        max_fraction: needed by the last two modes, in (0, 1].
        epsilon: a layer has no signal if its mean is at most this fraction of the largest layer's mean.
        outgoing: "zero" or "keep".
        bias: "zero" (ReDo's pipeline) or "fresh" (class default, as in the code).
        initial: law of the fresh rows, see `supple.fresh.draw`; the code uses "kaiming_uniform".
        layers: names of the layers to act on; None is every hidden layer that can be reset.
        units: kinds of units, see `supple.interventions.reset_methods.UnitReset`; the default is ("inner",).
        seed: of the random draws.
    """

    tau: float = 0.01
    every: Schedule = 1000
    score: Literal["weight", "preactivation"] = "weight"
    mode: Literal["threshold", "percentage", "hybrid"] = "threshold"
    max_fraction: float | None = None
    epsilon: float = 1e-12
    outgoing: Outgoing = "zero"
    bias: Bias = "zero"
    initial: Initials = "auto"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    cost: ClassVar[str] = "low"
    source: ClassVar[str] = "Liu et al. 2025, Measure gradients, not activations!, arXiv 2505.24061"

    def __post_init__(self) -> None:
        self._check(tau=(0.0, float("inf")), max_fraction=(0.0, 1.0), epsilon=(0.0, 1.0))
        known = {
            "score": ("weight", "preactivation"),
            "mode": ("threshold", "percentage", "hybrid"),
            "outgoing": ("zero", "keep"),
            "bias": ("zero", "fresh"),
        }
        for name, options in known.items():
            if getattr(self, name) not in options:
                raise InputError(f"{name} of {self.name} is one of {options}", found=getattr(self, name))
        if (self.mode == "threshold") != (self.max_fraction is None):
            raise InputError(
                "max_fraction belongs to the modes 'percentage' and 'hybrid', which need it",
                found=f"mode={self.mode!r}, max_fraction={self.max_fraction}",
                where=self.name,
            )

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> ReGraMaHandle:
        return ReGraMaHandle(self, model, optimizer, inputs, topology)


class ReGraMaHandle(ResetHandle):
    """Attached ReGraMa; ``scores`` has the latest score of every unit by layer."""

    method: ReGraMa

    def __init__(
        self, intervention: ReGraMa, model: nn.Module, optimizer: Optimizers, inputs: Any, topology: Any
    ) -> None:
        self.method = intervention
        self.every, self.outgoing, self.bias = intervention.every, intervention.outgoing, intervention.bias
        self.scores: dict[str, Tensor] = {}
        self.sites: dict[str, Site] = {}
        self.sizes: dict[str, Tensor] = {}  # layer -> (U,) mean gradient magnitude of the step under way
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _prepare(self) -> None:
        if self.method.score == "weight":
            return
        for layer in [x for group in self.layers for x in group]:
            for part in self._pair(layer):
                site = preactivation_site(self.built, part)
                if isinstance(site, str):
                    self._drop(layer, site)
                    break
                self.sites[part.name] = site
                self.meter.watch_output_gradient(site, self.built.modules[site.module])

    def _pair(self, layer: Layer) -> list[Layer]:
        """A layer and the other half of its gated units."""
        partner = layer.gate_partner
        return [layer] if partner is None else [layer, self.built.topology.layers[partner]]

    # -- gradient sizes -------------------------------------------------------------------------
    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer) -> None:
        position = self.optimizers.index(optimizer)
        if self.engine is None or self.method.score != "weight" or position not in self.owed:
            return
        self.sizes = {}
        for layer in [part for x in self.layers[position] for part in self._pair(x)]:
            size = incoming_means(self.built.topology, layer, lambda n: self.built.parameters[n].grad)
            if size is not None:
                self.sizes[layer.name] = size

    def _read_gauges(self, layers: list[Layer]) -> bool:
        parts = [part for x in layers for part in self._pair(x)]
        paths = list(dict.fromkeys(self.sites[p.name].module for p in parts))
        self.meter.reduce(paths, self.device)
        gauges = self.meter.gauges
        if not all(gauges[p].count for p in paths):
            return self._missing(paths)
        self.sizes = {
            p.name: self.sites[p.name].gather(gauges[self.sites[p.name].module].mean("absolute"), p.units)
            for p in parts
        }
        for path in paths:
            gauges[path].clear()
        return True

    # -- choice ---------------------------------------------------------------------------------
    def _act(self, layers: list[Layer]) -> bool:
        if self.method.score == "preactivation" and not self._read_gauges(layers):
            return False
        sizes, self.sizes = self.sizes, {}
        means = [float(s.mean()) for s in sizes.values()]
        floor = self.method.epsilon * max([m for m in means if m < torch.inf], default=0.0)
        chosen = {x.name: c for x in layers if (c := self._inactive(x, sizes, floor)) is not None}
        self._reset(chosen)
        return True

    def _inactive(self, layer: Layer, sizes: dict[str, Tensor], floor: float) -> Tensor | None:
        """The units to reset, or None where the layer cannot say."""
        parts = [p.name for p in self._pair(layer)]
        if not all(p in sizes for p in parts):
            self._skip(layer.name, "its weight has no gradient")
            return None
        # a pair of gated units is inactive where both halves are
        scores = torch.stack([self._scores(sizes[p], floor) for p in parts]).amax(0)
        self.scores[layer.name] = scores
        if not bool(torch.isfinite(scores).all()):
            self._skip(layer.name, "no gradient signal: zero, negligible beside other layers, or not finite")
            return None
        method, lowest = self.method, torch.sort(scores, stable=True).indices
        count = len(scores) if method.mode == "percentage" else int((scores <= method.tau).sum())
        if method.max_fraction is not None:
            count = min(count, int(method.max_fraction * len(scores)))
        return lowest[:count].cpu()

    @staticmethod
    def _scores(size: Tensor, floor: float) -> Tensor:
        smallest = torch.finfo(size.dtype).tiny
        return grama_scores(size, kind="weight", minimum=max(floor, smallest))
