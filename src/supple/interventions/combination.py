"""Several interventions under one handle: spectral and resets, L2-Init and resets, in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.interventions.base import Intervention
from supple.interventions.followers import check_follower
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.registry import create, names, register
from supple.interventions.resetting import ResetHandle


@register
@dataclass(frozen=True)
class Combination(Intervention):
    """All of ``parts`` at once, each as if it were attached by itself, in this order.

    The order is that of the hooks: before the step every part acts in turn on the gradients, after it every part in
    turn on the weights. Put penalties first and resets last, so that fresh rows are not moved again in the step in
    which they are born: ``Combination([SpectralRegularization(), ReGraMa()])``. Attaching is all or nothing. One
    handle, one state, one ``penalty()`` (the sum). Cost: the sum of the parts'.

    LayerNorm with weight decay, which Lyle et al. (arXiv 2402.18762) found highly effective, is
    ``supple.nn.insert_norms_`` and the optimizer's own ``weight_decay``, or ``L2()``.

    Args:
        parts: interventions, or mappings ``{"name": ..., **settings}`` as a file has them; no two of one name.

    >>> from supple.interventions import L2Init, ReDo
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> both = Combination([L2Init(), ReDo(every=10)])
    >>> handle = both.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> [h.intervention.name for h in handle.handles]
    ['L2Init', 'ReDo']
    """

    parts: tuple[Intervention, ...] = ()

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "high"  # that of its dearest part
    source: ClassVar[str] = "Lyle et al., arXiv 2402.18762 (combinations in general)"

    def __post_init__(self) -> None:
        made = tuple(create(**part) if _named(part) else part for part in self.parts)
        object.__setattr__(self, "parts", made)
        for part in made:
            if not isinstance(part, Intervention) or isinstance(part, Combination):
                raise InputError(
                    "a combination is made of interventions", found=type(part).__name__,
                    do="pass interventions, or mappings with a name and settings; no combination of combinations",
                )  # fmt: skip
        if not made:
            raise InputError("a combination needs at least one part", do="Combination([L2Init(), ReDo()])")
        own = [part.name for part in made]
        if len(set(own)) < len(own):
            raise InputError("two parts of a combination have one name", found=names(made))

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> CombinationHandle:
        """Attach every part in order; where one refuses, those before it are detached again."""
        handles: list[Handle] = []
        with ExitStack() as undo:
            for part in self.parts:
                handles.append(part.attach(model, optimizer, inputs=inputs))
                undo.callback(handles[-1].detach)
                if any(handle._sign() != handle._signature for handle in handles):
                    raise AttachError(
                        f"{part.name} changes what the optimizer holds, after parts that have looked at it",
                        found=names(self.parts),
                        do=f"put {part.name} first",
                    )
            combined = CombinationHandle(self, model, optimizer, handles)
            undo.pop_all()
        return combined

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "parts": [part.to_dict() for part in self.parts]}


def _named(part: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a part is described by name and settings."""
    return isinstance(part, Mapping) and "name" in part


class CombinationHandle(Handle):
    """Keeps the clock, and passes everything else on to the handles of the parts."""

    def __init__(
        self, intervention: Combination, model: nn.Module, optimizer: Optimizers, handles: list[Handle]
    ) -> None:
        super().__init__(intervention, model, optimizer)
        self.handles = handles
        self.refuses_closure = any(handle.refuses_closure for handle in handles)

    def inside_closures(self) -> None:
        super().inside_closures()
        for handle in self.handles:
            handle.inside_closures()

    def gradients_ready(self, optimizer: Optimizer) -> None:
        super().gradients_ready(optimizer)
        for handle in self.handles:
            handle.gradients_ready(optimizer)

    def task(self, name: str | None = None) -> None:
        super().task(name)
        for handle in self.handles:
            handle.task(name)

    def penalty(self) -> Tensor:
        """The sum of the parts' terms."""
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for handle in self.handles:
            total = total + handle.penalty().to(total.device)
        return total

    def follow(self, *networks: nn.Module) -> None:
        """Resets are made in these networks too, see `ResetHandle.follow`; the other parts leave them alone."""
        resets = [handle for handle in self.handles if isinstance(handle, ResetHandle)]
        if not resets:
            raise InputError("no part of this combination resets units", found=names(self.intervention.parts))
        for network in networks:
            check_follower(resets[0].inner, network, self.intervention.name)
        for handle in resets:
            handle.follow(*networks)

    def detach(self) -> None:
        super().detach()
        for handle in getattr(self, "handles", []):
            handle.detach()

    def _state(self) -> dict[str, Any]:
        return {handle.intervention.name: handle.state_dict() for handle in self.handles}

    def _load_state(self, state: dict[str, Any]) -> None:
        own = {handle.intervention.name: handle for handle in self.handles}
        if set(state) != set(own):
            raise InputError(
                "the state belongs to another combination",
                found=sorted(state),
                do=f"this one is of {', '.join(own)}",
            )
        kept = self._state()
        with ExitStack() as undo:  # one that does not fit must not leave the others changed
            for name, handle in own.items():
                undo.callback(handle.load_state_dict, kept[name])
            for name, handle in own.items():
                handle.load_state_dict(state[name])
            undo.pop_all()
