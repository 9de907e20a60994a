"""Continuous continual backpropagation: every unit is pulled towards a fresh one, the useless ones further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError
from supple.interventions.handle import Optimizers
from supple.interventions.registry import register
from supple.interventions.reset_checks import Initials
from supple.interventions.reset_methods import UnitReset
from supple.interventions.resetting import ResetHandle
from supple.interventions.schedule import Schedule
from supple.interventions.sums import incoming_means
from supple.status import Mechanism
from supple.topology.graph import Layer, Topology


@register
@dataclass(frozen=True)
class CCBP(UnitReset):
    """After every step u <- decay u + (1 - decay) g_i / mean_k g_k, g_i the mean |dL/dW_in[i, :]|; and at times::

        r = rate f(u);  W_in <- (1 - r) W_in + r fresh;  W_out <- (1 - r) W_out;  u <- 1

    with f(u) = min(2 sigmoid(-steepness (u - 1)), 1): a unit of average gradient is pulled with the full rate.
    McCutcheon et al. (ICLR 2026 submission). The paper's text could not be read; formula and defaults are those
    of code that follows it, hence ``evidence = "unverified"``. ``curve="sigmoid"`` is the form of the package
    ccbp-pytorch, sigmoid(-steepness (u - 1)): half the rate at u = 1. That package also pulls biases and adds
    their gradient to u; neither is done here. No maturity; optimizer state, biases and norms are kept.
    ``handle.utilities`` has u by layer. A layer without gradient signal keeps its u.

    Args:
        rate: largest share of a unit that is replaced, in [0, 1].
        every: steps between two pulls (also a callable step -> bool, or "task").
        decay: of the running utility, in [0, 1).
        steepness: of the sigmoid.
        curve: "capped" or "sigmoid".
        initial: law of the fresh rows, see `supple.fresh.draw`; or the model's initial state_dict.
        layers: names of the layers to act on; None is every hidden layer that can be reset.
        units: kinds of units, see `supple.interventions.reset_methods.UnitReset`; the default is ("inner",).
        seed: of the random draws.
    """

    rate: float = 0.015
    every: Schedule = 1000
    decay: float = 0.99
    steepness: float = 16.0
    curve: Literal["capped", "sigmoid"] = "capped"
    initial: Initials = "auto"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    cost: ClassVar[str] = "low"
    evidence: ClassVar[str] = "unverified"
    source: ClassVar[str] = "McCutcheon et al., Continuous continual backpropagation, ICLR 2026 submission"

    def __post_init__(self) -> None:
        self._check(rate=(0.0, 1.0), decay=(0.0, 1.0), steepness=(0.0, float("inf")))
        if self.decay == 1.0 or self.curve not in ("capped", "sigmoid"):
            raise InputError(
                "decay must be below 1 and the curve 'capped' or 'sigmoid'",
                found=(self.decay, self.curve),
                where=self.name,
            )

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> CCBPHandle:
        return CCBPHandle(self, model, optimizer, inputs, topology)


class CCBPHandle(ResetHandle):
    """Attached CCBP; ``utilities`` has the running utility of every unit by layer."""

    method: CCBP
    standing = True

    def __init__(
        self, intervention: CCBP, model: nn.Module, optimizer: Optimizers, inputs: Any, topology: Any
    ) -> None:
        self.method, self.every = intervention, intervention.every
        self.utilities: dict[str, Tensor] = {}
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _prepare(self) -> None:
        for layer in [x for group in self.layers for x in group]:
            if layer.gate_partner:
                self._drop(layer, "no rate is published for the two halves of a gated unit")
                continue
            weight = self.built.parameters[layer.weight]
            dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
            self.utilities[layer.name] = torch.ones(layer.units, dtype=dtype, device=weight.device)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer) -> None:
        if self.engine is None:
            return
        for layer in self.layers[self.optimizers.index(optimizer)]:
            size = incoming_means(self.built.topology, layer, lambda n: self.built.parameters[n].grad)
            if size is None:
                continue
            share = size / size.mean()
            if bool(torch.isfinite(share).all()):
                self.utilities[layer.name].lerp_(share, 1.0 - self.method.decay)

    def _act(self, layers: list[Layer]) -> bool:
        position = next(i for i, group in enumerate(self.layers) if group is layers)
        if position not in self.owed:
            return True
        self.owed.discard(position)
        method, rates = self.method, {}
        for layer in layers:
            share = torch.sigmoid(-method.steepness * (self.utilities[layer.name] - 1.0))
            rates[layer.name] = method.rate * (
                share if method.curve == "sigmoid" else (2 * share).clamp(max=1)
            )
        plan = self.built.plan_blend(rates, seed=method.seed, step=self.step + 1, initial=method.initial)
        self._apply(plan)
        for layer in layers:
            self.utilities[layer.name].fill_(1.0)
        return True

    def _own_state(self) -> dict[str, Any]:
        return {"utilities": {n: u.clone() for n, u in self.utilities.items()}}

    def _load_own(self, state: dict[str, Any]) -> None:
        if set(state["utilities"]) != set(self.utilities):
            raise InputError("the state holds other layers", found=sorted(state["utilities"]))
        for name, value in state["utilities"].items():
            self.utilities[name].copy_(value)
