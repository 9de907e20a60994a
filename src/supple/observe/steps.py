"""What an optimizer step itself shows, read in its hooks: gradient norm, and update against weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.observe.copies import unwrap
from supple.observe.views import square_sum
from supple.records import Record
from supple.status import Status
from supple.topology.graph import Topology
from supple.topology.taps import plain_name


def skipped(optimizer: Optimizer) -> bool:
    """True where a fused optimizer under a GradScaler was told to make no update (overflow)."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


class StepWatch:
    """One optimizer's due steps: a snapshot before, ratios after. The snapshot lives for that step only.

    ``label`` tells several optimizers of one run apart in the pooled rows.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, label: str = "") -> None:
        self._model, self._optimizer, self._label = unwrap(model), optimizer, label
        self._weights: dict[str, Tensor] = {}
        self._norm: Record | None = None

    def before(self, closure: bool) -> None:
        """Read the gradients and keep the weights."""
        self._weights = {name: p.detach().clone() for name, p in self._held().items()}
        self._norm = self._gradient_norm(closure)

    def after(self, topology: Topology | None) -> list[Record]:
        """Rows of the step just made; none where `before` did not see it."""
        weights, norm = self._weights, self._norm
        self.forget()
        if norm is None:
            return []
        now = self._held()
        rows = [norm]
        changed = total = 0.0
        layers = {x.weight: x.name for x in topology.layers.values()} if topology else {}
        for name, old in weights.items():
            delta, size = float(square_sum(now[name].detach() - old)), float(square_sum(old))
            changed, total = changed + delta, total + size
            if name in layers:
                rows.append(_ratio(delta, size, layers[name]))
        return [*rows, _ratio(changed, total, "*", self._label)]

    def forget(self) -> None:
        self._weights, self._norm = {}, None

    def _held(self) -> dict[str, Tensor]:
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return {plain_name(n): p for n, p in self._model.named_parameters() if id(p) in held}

    def _gradient_norm(self, closure: bool) -> Record:
        variant = f"training,{self._label}" if self._label else "training"
        if closure:
            reason = "step(closure) computes the gradients after this look"
            return _unmeasured("gradient_norm", reason, variant)
        scale: Any = getattr(self._optimizer, "grad_scale", None)
        squares = [square_sum(p.grad) for p in self._held().values() if p.grad is not None]
        if not squares:
            return _unmeasured("gradient_norm", "no parameter has a gradient", variant)
        norm = torch.stack([s.cpu() for s in squares]).sum().sqrt()
        # a fused optimizer under a GradScaler gets scaled gradients
        value = float(norm / scale.cpu()) if isinstance(scale, Tensor) else float(norm)
        if value - value != 0:
            note = "the gradient is not finite"
            return Record("gradient_norm", value, variant=variant, status=str(Status.INVALID), note=note)
        return Record("gradient_norm", value, variant=variant)


def _ratio(changed: float, size: float, layer: str, variant: str = "") -> Record:
    if not size > 0 or changed - changed != 0:
        return _unmeasured("update_ratio", "the weight is zero or the update not finite", variant, layer)
    return Record("update_ratio", (changed / size) ** 0.5, layer=layer, variant=variant)


def _unmeasured(name: str, reason: str, variant: str, layer: str = "*") -> Record:
    status = str(Status.NOT_MEASURED)
    return Record(name, float("nan"), layer=layer, variant=variant, status=status, note=reason)
