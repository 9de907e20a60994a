"""A method of your own, from outside Supple: the smallest complete example.

It re-draws the weakest hidden unit of every layer every ``every`` steps, through the shared reset engine, which
takes care of consumers, norms and the optimizer's state. Put the class in your package and name
it in the entry point group ``supple.interventions``; then ``supple.interventions.create("WeakestUnit")`` finds
it, and the tests in ``tests/contract/test_interventions.py`` apply to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from supple.errors import AttachError
from supple.interventions import Handle, Intervention, plan_reset
from supple.status import Mechanism
from supple.topology import trace


@dataclass(frozen=True)
class WeakestUnit(Intervention):
    """Every ``every`` steps the unit with the smallest outgoing weights is re-born, in each layer."""

    every: int = 100

    mechanism: ClassVar[Mechanism | None] = Mechanism.DEAD_UNITS
    evidence: ClassVar[str] = "unverified"
    source: ClassVar[str] = "an example"

    def attach(self, model: nn.Module, optimizer: Any, *, inputs: Any = None) -> WeakestUnitHandle:
        if inputs is None:
            raise AttachError("WeakestUnit needs to see the network", do="pass inputs=, a small batch")
        return WeakestUnitHandle(self, model, optimizer, inputs)


class WeakestUnitHandle(Handle):
    """Has no state besides the clock that `Handle` keeps."""

    def __init__(self, intervention: WeakestUnit, model: nn.Module, optimizer: Any, inputs: Any) -> None:
        self.topology = trace(model, inputs)
        super().__init__(intervention, model, optimizer)

    def _after_step(self, optimizer: Optimizer) -> None:
        if optimizer is not self.optimizers[0] or not self.due(self.intervention.every):
            return
        chosen = {}
        for layer in self.topology.hidden:
            edges = self.topology.consumers(layer.name)
            if self.topology.reset_refusal(layer.name) is None and len(edges) == 1:
                weight = self.model.get_parameter(edges[0].weight).detach().transpose(0, edges[0].dim)
                strength = weight.flatten(1).abs().sum(1)[torch.from_numpy(edges[0].columns)].sum(1)
                chosen[layer.name] = torch.from_numpy(edges[0].units)[strength.argmin()][None]
        plan_reset(self.model, self.optimizers, self.topology, chosen, seed=0, step=self.step).apply_()
