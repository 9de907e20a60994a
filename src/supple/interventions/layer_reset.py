"""Layer and head resets: from time to time, whole layers start anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from supple.errors import AttachError, InputError
from supple.interventions.engine import ResetEngine
from supple.interventions.handle import Optimizers
from supple.interventions.registry import register
from supple.interventions.reset_checks import Bias, Initials
from supple.interventions.reset_methods import ResetMethod
from supple.interventions.resetting import ResetHandle
from supple.interventions.schedule import Schedule
from supple.topology.graph import Layer, Topology


@register
@dataclass(frozen=True)
class LayerReset(ResetMethod):
    """At each boundary, every weight of the named layers is drawn anew and their optimizer state made fresh.

    Without names it is the head, the layers whose units leave the network: the head reset of Nikishin et al.
    2022 (ICML, arXiv 2205.07802), who reset the last layers of an agent every 200,000 steps. With
    ``initial="zeros", bias="zero"`` it is the head reset of Dohare et al. 2024 on Continual ImageNet, where all
    methods start each task from a zero head. Norms of a layer return to scale 1 and shift 0. What reads the
    layer is kept. The function changes: give the handle a `probe` to have it measured.

    Args:
        layers: layer names (qualified module paths); None is the head.
        every: "task" (after the first step of each), a number of steps, a callable step -> bool, or "boundary": in
            ``handle.task()`` itself. An on-policy agent needs that one: its first batch of a task would else be the
            old network's, and the importance ratios to a policy that no longer exists spoil what follows.
        initial: law of the fresh weights, see `supple.fresh.draw`; or the model's initial state_dict.
        bias: "fresh" (class default) or "zero".
        seed: of the random draws.
    """

    layers: tuple[str, ...] | None = None
    every: Schedule = "task"
    initial: Initials = "auto"
    bias: Bias = "fresh"
    seed: int = 0

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "low"
    at_boundary: ClassVar[bool] = True
    source: ClassVar[str] = "Nikishin et al. 2022, The primacy bias in deep RL, arXiv 2205.07802"

    def __post_init__(self) -> None:
        if self.bias not in ("fresh", "zero"):
            raise InputError("bias is 'fresh' or 'zero'", found=self.bias, where=self.name)

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None, topology: Topology | None = None
    ) -> LayerResetHandle:
        return LayerResetHandle(self, model, optimizer, inputs, topology)


class LayerResetHandle(ResetHandle):
    """Attached layer reset; ``log`` has each of them."""

    method: LayerReset

    def __init__(
        self, intervention: LayerReset, model: nn.Module, optimizer: Optimizers, inputs: Any, topology: Any
    ) -> None:
        self.method, self.every = intervention, intervention.every
        super().__init__(intervention, model, optimizer, inputs, topology)

    def _candidates(self, topology: Topology) -> list[Layer]:
        return [x for x in topology.layers.values() if x.output]

    def _refusal(self, engine: ResetEngine, layer: Layer, initial: Initials) -> str | None:
        return engine.layer_refusal(layer.name, initial)

    def _prepare(self) -> None:
        """Nothing is measured."""

    def _act(self, layers: list[Layer]) -> bool:
        self._renew(layers, self.step + 1)
        return True

    def _at_boundary(self) -> None:
        if self.engine is None:
            raise AttachError(
                "LayerReset has not seen the network before this boundary", do="pass inputs= to attach"
            )
        for layers in filter(None, self.layers):
            self._renew(layers, self.step)

    def _renew(self, layers: list[Layer], step: int) -> None:
        method, names = self.method, [x.name for x in layers]
        self._apply(
            self.built.plan_layers(
                names, seed=method.seed, step=step, initial=method.initial, bias=method.bias
            )
        )
