"""L2-Init: a pull of every parameter towards the value it had when the handle was attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.functional import l2_init_penalty
from supple.interventions.penalty import Gradients, Penalty, PenaltyHandle, is_vector_module, total
from supple.interventions.registry import register
from supple.status import Mechanism

R = TypeVar("R", bound=Penalty)


class InitialHandle(PenaltyHandle[R]):
    """Keeps θ₀, the parameters at attach, outside the model."""

    def prepare(self, inputs: Any) -> None:
        self.initial = {n: p.detach().clone() for held in self.held for n, p in held.items()}

    def readings(self) -> dict[str, float]:
        with torch.no_grad():
            self.penalty()
        return super().readings()

    def _state(self) -> dict[str, Any]:
        return {"initial": {n: t.clone() for n, t in self.initial.items()}}

    def _load_state(self, state: dict[str, Any]) -> None:
        initial = dict(state.pop("initial", {}))
        super()._load_state(state)
        if set(initial) != set(self.initial):
            raise InputError(
                f"the state of {self.rule.name} belongs to other parameters",
                found=sorted(set(initial) ^ set(self.initial)),
            )
        for name, tensor in initial.items():
            if tensor.shape != self.initial[name].shape:
                raise InputError("θ₀ has another shape", found=tuple(tensor.shape), where=name)
        self.initial = {n: t.detach().clone().to(self.initial[n]) for n, t in initial.items()}


class L2InitHandle(InitialHandle["L2Init"]):
    """Its gradient in closed form."""

    @torch.no_grad()
    def _gradients(self, parameters: Mapping[str, Tensor]) -> Gradients | None:
        """2 · coef · (θ − θ₀): bit for bit autograd's, without its temporaries."""
        if any(p.dtype not in (torch.float32, torch.float64) for p in parameters.values()):
            return super()._gradients(parameters)  # in float32, as the base does it
        apart = torch._foreach_sub(list(parameters.values()), [self.initial[n] for n in parameters])
        return torch._foreach_mul(apart, 2.0 * self.rule.coef)


@register
@dataclass(frozen=True, kw_only=True)
class L2Init(Penalty):
    """J + coef · ‖θ − θ₀‖², θ₀ the parameters at the moment of attaching (regenerative regularisation).

    Mechanism: weight growth and dead units, by keeping the network near a state that could learn. Cost: one
    pass over the parameters and one copy of them. Source: Kumar, Marklund, Van Roy, arXiv 2308.11958.

    Attach it to the fresh network: θ₀ is what is there at attach, so on a worn network it holds the worn
    state in place. θ₀ is the initial sample itself; re-sampling it every step is much worse (same paper).
    The paper prints λ‖θ − θ₀‖² and this is that form; the authors' code has ½·λ, so its λ is 2·coef. Norm
    parameters are left out, as in their code. Under Adam this coupled form is not the decoupled one that
    some code uses (``p += lr·λ·θ₀`` after weight decay), whose fixed point is another.

    Args:
        coef: 1e-2, best almost everywhere in the paper's sweep 1e-2 … 1e-5 with Adam at 1e-3 (1e-3 on
            Continual ImageNet).
        norms: also the scales and shifts of norm layers.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> handle = L2Init(coef=1.0).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> _ = model.bias.data.add_(2.0)
    >>> round(handle.penalty().item(), 4)
    4.0
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = L2InitHandle
    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "low"
    level: ClassVar[int] = 1
    source: ClassVar[str] = "Kumar, Marklund, Van Roy, arXiv 2308.11958"

    coef: float = 1e-2
    norms: bool = False

    def covers(self, module: nn.Module, name: str) -> bool:
        return super().covers(module, name) and (self.norms or not is_vector_module(module))

    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        assert isinstance(handle, L2InitHandle)
        return total(l2_init_penalty(p, handle.initial[n]) for n, p in parameters.items())
