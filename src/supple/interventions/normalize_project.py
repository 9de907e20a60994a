"""Normalise and project: norms before every nonlinearity, and weights of constant norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.matrices import inventory, refuse_sharded
from supple.interventions.penalty import held_parameters
from supple.interventions.registry import register
from supple.interventions.schedule import Schedule, check_schedule
from supple.status import Mechanism

INSERT = "insert them before the optimizer is built: supple.nn.insert_norms_(model, inputs)"


@register
@dataclass(frozen=True, kw_only=True)
class NormalizeAndProject(Intervention):
    """W_l ← W_l · ‖W_l(0)‖ / ‖W_l‖ after a step on which ``every`` is due, in a network with norms.

    Mechanism: weight growth. Behind a norm the scale of a weight changes nothing but the size of its steps
    (the effective rate falls with ‖W‖²); the projection holds it. Cost: two norms per matrix and action. Source:
    Lyle, Zheng, Khetarpal, van Hasselt, Pascanu, Martens, Dabney, "Normalization and effective learning rates in
    reinforcement learning", arXiv 2407.01800.

    The method is both halves: a norm before every nonlinearity, and the projection. Without the norms the projection
    alone restricts what the network can be, so a hidden layer without one is refused (``supple.nn.insert_norms_``
    inserts them; ``norms="ignore"`` projects all the same, which is not the published method though some libraries
    give it that name). The output layer and biases are not projected; the biases that a norm makes redundant are
    left in place. ‖W(0)‖ are the Frobenius norms at attach, one per matrix. The implicit decay of the learning rate
    is gone with the growth of the weights: give the run a schedule (the authors found one that follows the growth to
    suffice).

    Args:
        every: number of steps, or a callable step → bool; 1. Every 1,000 steps is nearly as good (same paper).
        norms: "require" or "ignore".

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU(), nn.Linear(2, 1))
    >>> norm = float(model[0].weight.norm())
    >>> opt = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> handle = NormalizeAndProject().attach(model, opt, inputs=torch.randn(4, 2))
    >>> model(torch.randn(4, 2)).sum().backward(); opt.step()
    >>> abs(float(model[0].weight.norm()) - norm) < 1e-6
    True
    """

    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "low"
    level: ClassVar[int] = 3
    source: ClassVar[str] = "Lyle et al., arXiv 2407.01800"

    every: Schedule = 1
    norms: str = "require"

    def __post_init__(self) -> None:
        check_schedule(self.every)
        if self.norms not in ("require", "ignore"):
            raise InputError("unknown choice of norms", found=self.norms, do='use "require" or "ignore"')

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None
    ) -> NormalizeAndProjectHandle:
        """Check that every hidden layer has its norm, then hook. ``inputs`` is needed for the trace."""
        refuse_sharded(model, self.name)
        if inputs is None:
            raise AttachError(
                "NormalizeAndProject traces the network", do="attach(..., inputs=a small batch)"
            )
        from supple.topology import trace

        topology = trace(model, inputs)
        bare = [
            x.name for x in topology.layers.values()
            if not x.output and x.kind != "embedding" and x.activation is not None and not x.norms
        ]  # fmt: skip
        if bare and self.norms == "require":
            raise AttachError(
                "NormalizeAndProject needs a norm before every nonlinearity",
                found=f"none behind {', '.join(bare[:5])}"
                + (f" and {len(bare) - 5} more" if bare[5:] else ""),
                do=INSERT,
            )
        return NormalizeAndProjectHandle(
            self, model, optimizer, inventory(model, output=False, topology=topology)
        )


class NormalizeAndProjectHandle(Handle):
    """Keeps the norms at attach; projects each weight in the post-hook of the optimizer that moved it.

    The first optimizer has the clock: those that step after it act on the same of its steps.
    """

    refuses_closure = False

    def __init__(
        self, intervention: NormalizeAndProject, model: nn.Module, optimizer: Optimizers, parts: Any
    ) -> None:
        super().__init__(intervention, model, optimizer)
        self._held = held_parameters(model, self.optimizers)
        held = {n: p for table in self._held for n, p in table.items()}
        names = {
            next(iter(m.parameters)) for m in parts.matrices if m.parameters == {m.name.partition("#")[0]}
        }
        self.skipped: dict[str, str] = {
            **parts.skipped,
            **{m.name: "parametrised: what is stored is not the weight" for m in parts.matrices
               if m.parameters != {m.name.partition("#")[0]}},
        }  # fmt: skip
        self._weights: dict[str, Tensor] = {n: held[n] for n in sorted(names & set(held))}
        self._due = False  # whether the step of the first optimizer that was made last was one to act on
        if not self._weights:
            self.detach()
            raise AttachError("NormalizeAndProject finds no hidden weight to project", found=self.skipped)
        self.norms = {n: _norm(w) for n, w in self._weights.items()}
        zero = [n for n, norm in self.norms.items() if not float(norm) > 0]
        if zero:
            self.detach()
            raise AttachError("a weight of norm zero cannot be projected", where=", ".join(zero))

    def _after_step(self, optimizer: Optimizer) -> None:
        if optimizer is self.optimizers[0]:
            self._due = self.due(self.intervention.every)
        if self._due:
            index = self._index(optimizer)
            self._project([n for n in self._weights if n in self._held[index]])

    def apply_(self) -> None:
        """Project now. A weight that became zero or is not finite is left as it is."""
        self._project(self._weights)

    @torch.no_grad()
    def _project(self, chosen: Iterable[str]) -> None:
        for name in chosen:
            weight = self._weights[name]
            norm = _norm(weight)
            factor = self.norms[name] / norm  # 0 where the norm is Inf
            if weight.requires_grad and bool(norm.isfinite() & factor.isfinite()):
                weight.mul_(factor.to(weight.dtype))

    def _state(self) -> dict[str, Any]:
        return {"norms": {n: x.clone() for n, x in self.norms.items()}, "due": self._due}

    def _load_state(self, state: dict[str, Any]) -> None:
        norms, due = dict(state.pop("norms")), bool(state.pop("due"))
        super()._load_state(state)
        if set(norms) != set(self.norms):
            raise InputError("the state belongs to other weights", found=sorted(set(norms) ^ set(self.norms)))
        self.norms = {n: x.detach().clone().to(self.norms[n]) for n, x in norms.items()}
        self._due = due


def _norm(weight: Tensor) -> Tensor:
    """Frobenius norm in float64: row by row, one long float32 sum loses digits."""
    rows = weight.detach().flatten(1)
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(1, dtype=wide).sum().sqrt()
