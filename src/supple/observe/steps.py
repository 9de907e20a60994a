"""What an optimizer step itself shows, read in its hooks: gradients alone, or also update against weight."""

from __future__ import annotations

import math
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

_LONG = 2**20  # entries beyond which one float32 sum loses digits


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


class GradientWatch:
    """Norms of the gradients that one optimizer is about to use, per weight and pooled.

    No probe pass, so cheap enough for every step. Rows are those of ``gradient_norm`` with the variant ``training``.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, label: str = "") -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {plain_name(n): p for n, p in unwrap(model).named_parameters()}
        self._held = {n: p for n, p in named.items() if id(p) in held}
        self._optimizer, self._variant = optimizer, f"training,{label}" if label else "training"

    def rows(self, topology: Topology | None, step: int, task: str) -> list[Record]:
        """The rows now, in the step's pre-hook."""
        where: dict[str, Any] = {"variant": self._variant, "step": step, "task": task}
        live = {n: p.grad for n, p in self._held.items() if p.grad is not None}
        if not live:
            return [_unmeasured("gradient_norm", "no parameter has a gradient", **where)]
        scale: Any = getattr(self._optimizer, "grad_scale", None)
        factor = 1 / float(scale) if isinstance(scale, Tensor) else 1.0
        norms = {n: factor * x for n, x in zip(live, _norms(list(live.values())), strict=True)}
        total = math.hypot(*norms.values())
        if not math.isfinite(total):
            where |= {"status": str(Status.INVALID), "note": "the gradient is not finite"}
            return [Record("gradient_norm", total, **where)]
        layers = topology.layers.values() if topology else ()
        whole = [x for x in layers if x.weight in norms and not x.part]
        rows = [Record("gradient_norm", norms[x.weight], layer=x.name, **where) for x in whole]
        return [*rows, Record("gradient_norm", total, **where)]


def _norms(grads: list[Tensor]) -> list[float]:
    """Euclidean norms in one transfer; long float32 sums row by row, since they lose digits."""
    short = [g for g in grads if g.numel() <= _LONG and g.layout is torch.strided]
    long = [g for g in grads if g.numel() > _LONG or g.layout is not torch.strided]
    found = iter(torch.stack([x.float() for x in torch._foreach_norm(short)]).tolist() if short else [])
    rest = iter([float(square_sum(g)) ** 0.5 for g in long])
    ids = {id(g) for g in long}
    return [next(rest if id(g) in ids else found) for g in grads]


def _ratio(changed: float, size: float, layer: str, variant: str = "") -> Record:
    if not size > 0 or changed - changed != 0:
        return _unmeasured("update_ratio", "the weight is zero or the update not finite", variant, layer)
    return Record("update_ratio", (changed / size) ** 0.5, layer=layer, variant=variant)


def _unmeasured(name: str, reason: str, variant: str, layer: str = "*", **where: Any) -> Record:
    status = str(Status.NOT_MEASURED)
    return Record(name, float("nan"), layer=layer, variant=variant, status=status, note=reason, **where)
