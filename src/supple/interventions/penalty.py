"""What every standing penalty shares: the gradient of ``coef * term`` joins ``.grad`` before the step.

A penalty R turns the loss J into J + coef · R. Adding ∇(coef · R) to ``.grad`` in the optimizer's step
pre-hook gives the same step as adding coef · R to the loss, in any loop that calls ``backward()`` and then
``step()``; the user's loss stays as it is. It acts after gradient clipping, since clipping comes before
``step()``; a user who wants the sum clipped adds ``handle.penalty()`` to the loss.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.matrices import refuse_sharded

#: decides which parameters a penalty covers: (owning module, qualified parameter name) -> bool
Filter: TypeAlias = Callable[[nn.Module, str], bool]

Gradients: TypeAlias = Sequence[Tensor | None]


def total(terms: Iterable[Tensor]) -> Tensor | None:
    """The sum of scalar terms, None without any.

    >>> total([torch.tensor(1.0), torch.tensor(2.0)]).item()
    3.0
    """
    found: Tensor | None = None
    for term in terms:
        found = term if found is None else found + term
    return found


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified parameter name -> the module that holds it, each tied parameter under its first name.

    >>> list(owners(nn.Sequential(nn.Linear(2, 1))))
    ['0.weight', '0.bias']
    """
    seen: set[int] = set()
    table: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                table[f"{path}.{name}" if path else name] = module
    return table


def is_vector_module(module: nn.Module) -> bool:
    """A module all of whose own parameters have at most one axis: norms, layer scales, learned slopes.

    Read off the shapes, so that a norm written by the user counts as one too.

    >>> is_vector_module(nn.LayerNorm(3)), is_vector_module(nn.Linear(3, 3))
    (True, False)
    """
    own = list(module.parameters(recurse=False))
    return bool(own) and all(p.dim() <= 1 for p in own)


def plain_precision(parameters: Iterable[Tensor]) -> contextlib.AbstractContextManager[Any]:
    """Autocast off for the device of the parameters: penalties are computed in float32 or better."""
    device = next((p.device.type for p in parameters), "cpu")
    return torch.autocast(device_type=device, enabled=False)


def held_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[dict[str, Tensor]]:
    """For each optimizer its parameters of the model by name; one held twice belongs to the first."""
    names = {id(p): name for name, p in model.named_parameters()}
    table: list[dict[str, Tensor]] = []
    for optimizer in optimizers:
        table.append({})
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if (name := names.pop(id(parameter), None)) is not None:
                table[-1][name] = parameter
    if not any(table):
        raise AttachError(
            "the optimizer holds no parameter of the model",
            do="pass the model whose parameters() the optimizer was built with",
        )
    return table


P = TypeVar("P", bound="Penalty")


class PenaltyHandle(Handle, Generic[P]):
    """Adds the gradient of ``coefficient() * term`` in the pre-hook, or hands the term out for the loss."""

    def __init__(self, intervention: P, model: nn.Module, optimizer: Optimizers) -> None:
        super().__init__(intervention, model, optimizer)
        self.rule = intervention
        self.refuses_closure = intervention.hook
        self.modules = owners(model)
        self.held = [
            {n: p for n, p in held.items() if intervention.covers(self.modules[n], n)}
            for held in held_parameters(model, self.optimizers)
        ]
        self._in_loss: set[int] = set()  # optimizers whose coming step has the term from the loss
        self._warned = False
        self._value: Tensor | None = None

    # -- what a stateful penalty overrides --------------------------------------------------------
    def prepare(self, inputs: Any) -> None:
        """Build the state that the term needs, before the first step; an error detaches the handle."""

    def term(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The unscaled term over these parameters, or None where there is none (yet)."""
        return self.rule.term(parameters, self)

    def coefficient(self) -> float | Tensor:
        return self.rule.coef

    # -- the two forms ----------------------------------------------------------------------------
    def penalty(self) -> Tensor:
        """``coef * term``, differentiable, for ``loss + handle.penalty()``.

        The hook form never adds the same term again: when the gradient of what is returned here flows,
        the hook stands back for that step (and says so once, unless built with ``hook=False``).
        """
        merged = {n: p for held in self.held for n, p in held.items() if p.requires_grad}
        with plain_precision(merged.values()):
            value = self.term(merged) if merged else None
            if value is None:
                return torch.zeros((), device=next(self.model.parameters()).device)
            self._value = value.detach()
            scaled = self.coefficient() * value
        if self.rule.hook and scaled.requires_grad:
            scaled.register_hook(self._mark)
        return scaled

    def _mark(self, grad: Tensor) -> None:
        self._in_loss.update(range(len(self.optimizers)))

    def _before_step(self, optimizer: Optimizer) -> None:
        if not self.rule.hook:
            return
        index = self._index(optimizer)
        if index in self._in_loss:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.rule.name}: the term came through the loss, so the hook does not add it "
                    f"again; build {self.rule.name}(hook=False) to make that permanent",
                    stacklevel=2,
                )
            return
        self._add_gradient(optimizer, {n: p for n, p in self.held[index].items() if p.requires_grad})

    def _add_gradient(self, optimizer: Optimizer, parameters: dict[str, Tensor]) -> None:
        if not parameters:
            return
        tensors = list(parameters.values())
        with plain_precision(tensors):
            gradients = self._gradients(parameters)
        if gradients is not None:
            add_to_grad(parameters, gradients, getattr(optimizer, "grad_scale", None))

    def _gradients(self, parameters: Mapping[str, Tensor]) -> Gradients | None:
        """∇(coefficient · term), None for a parameter that is not part of it; None where there is no term.

        A penalty with a cheap closed form may override this; its test compares it with this one.
        """
        with torch.enable_grad():
            value = self.term(parameters)
            if value is None or not value.requires_grad:
                return None
            self._value = value.detach()
            scaled = self.coefficient() * value
            return torch.autograd.grad(scaled, list(parameters.values()), allow_unused=True)

    def _after_step(self, optimizer: Optimizer) -> None:
        self._in_loss.discard(self._index(optimizer))

    @torch.no_grad()
    def readings(self) -> dict[str, float]:
        """The last value of the unscaled term and the coefficient; NaN where there is no term yet."""
        value = math.nan if self._value is None else float(self._value)
        return {"penalty": value, "coefficient": float(self.coefficient())}


@torch.no_grad()
def add_to_grad(parameters: Mapping[str, Tensor], gradients: Gradients, scale: Tensor | None) -> None:
    """Add each gradient to ``.grad`` (created where missing), times the scale a fused optimizer will undo."""
    into: list[Tensor] = []
    what: list[Tensor] = []
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise InputError(
                "a penalty has a dense gradient and this parameter a sparse one",
                where=name,
                do="leave it out with filter_fn, or build the embedding with sparse=False",
            )
        if scale is not None:
            gradient = gradient * scale.to(gradient.device, gradient.dtype)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # not the gradient itself: it may be expanded
        into.append(parameter.grad)
        what.append(gradient.to(parameter.grad.dtype))
    if into:
        torch._foreach_add_(into, what)


@dataclass(frozen=True, kw_only=True)
class Penalty(Intervention):
    """Base of the penalties. A new one is a dataclass with a ``term``; state goes into a handle class.

    Args:
        coef: factor of the term, ≥ 0.
        hook: True adds the gradient in the step pre-hook. False only offers ``handle.penalty()`` for
            ``loss + handle.penalty()``, the form for ``step(closure)`` and for clipping the sum.
        filter_fn: ``(module, parameter name) -> bool``; False leaves the parameter out.
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = PenaltyHandle

    coef: float = 1e-3
    hook: bool = True
    filter_fn: Filter | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and self.coef >= 0):
            raise InputError(f"{self.name}: coef must be finite and not negative", found=self.coef)

    def covers(self, module: nn.Module, name: str) -> bool:
        """Whether the parameter ``name`` of ``module`` belongs to the term."""
        return self.filter_fn is None or bool(self.filter_fn(module, name))

    @abc.abstractmethod
    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        """The scalar term, unscaled, as a differentiable function of these (named) parameters."""

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> PenaltyHandle[Any]:
        """Check, then hook the optimizer(s); each parameter counts once, with the first that holds it."""
        refuse_sharded(model, self.name)
        held_parameters(model, optimizer_list(optimizer))
        handle = self.handle_class(self, model, optimizer)
        with ExitStack() as undo:
            undo.callback(handle.detach)
            if not any(handle.held):
                raise AttachError(f"{self.name} covers no parameter of this model", do="check filter_fn")
            handle.prepare(inputs)
            undo.pop_all()
        return handle
