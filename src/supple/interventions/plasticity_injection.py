"""Plasticity injection: the head is frozen, and a fresh one learns on top of it without a jump of the output."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from supple import topology as tp
from supple.errors import AttachError, InputError
from supple.fresh import check_initial, draw, generator
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.matrices import refuse_sharded
from supple.interventions.registry import register
from supple.interventions.schedule import Schedule, check_schedule
from supple.layouts import is_linear

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_PLAIN = (nn.modules.conv._ConvNd, nn.Embedding, nn.Bilinear, *_NORMS)


@register
@dataclass(frozen=True)
class PlasticityInjection(Intervention):
    """At a boundary: head(x) <- head(x) + new(x) - start(x), with head and start frozen and only new trained.

    ``new`` and ``start`` are two copies of one freshly drawn head, so the output does not change at the moment
    of injection, while a fresh head with fresh optimizer state learns from there. Nikishin et al. 2023
    (NeurIPS, arXiv 2305.15555); the formula agrees with public code, the paper's text could not be read, hence
    ``evidence = "unverified"``. Public versions forget to give the new parameters to the optimizer, or to
    freeze the old head; here they are held by the optimizer from the moment of attaching (without gradient
    until the injection) in the parameter group of the head. A head that is one Linear layer gains a fresh
    optimizer state and nothing else: give the path of a head with a hidden layer.

    The new head belongs to the handle, not to the model's parameters or `state_dict`: clip the gradients of
    ``handle.parameters()`` too, and save the handle. Detaching after the injection writes both heads into the
    model where the head is one Linear layer, and is refused otherwise; `freeze_in` turns them into a module.
    It acts once; later boundaries do nothing.

    Args:
        head: path of the module that is frozen; None is the layer whose units leave the network, if it is one.
        every: "task" (the first boundary), a number of steps (the first multiple), or a callable step -> bool.
        seed: of the fresh head.
    """

    head: str | None = None
    every: Schedule = "task"
    seed: int = 0

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "medium"
    evidence: ClassVar[str] = "unverified"
    source: ClassVar[str] = "Nikishin et al. 2023, Deep RL with plasticity injection, arXiv 2305.15555"

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None
    ) -> PlasticityInjectionHandle:
        check_schedule(self.every)
        return PlasticityInjectionHandle(self, model, optimizer, inputs)


class InjectedHead(nn.Module):
    """old(x) + new(x) - start(x) as a module of its own; made by `PlasticityInjectionHandle.freeze_in`."""

    def __init__(self, old: nn.Module, new: nn.Module, start: nn.Module) -> None:
        super().__init__()
        self.old, self.new, self.start = old, new, start

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        # the difference first: it is exactly zero at the injection
        return self.old(*args, **kwargs) + (self.new(*args, **kwargs) - self.start(*args, **kwargs))


class PlasticityInjectionHandle(Handle):
    """Attached plasticity injection; ``injected`` tells whether it has happened."""

    intervention: PlasticityInjection

    def __init__(
        self, intervention: PlasticityInjection, model: nn.Module, optimizer: Optimizers, inputs: Any
    ) -> None:
        if isinstance(model, DistributedDataParallel):
            raise AttachError(
                "plasticity injection adds parameters whose gradients no replica would average",
                found="a DistributedDataParallel model",
                do="attach on a single process",
            )
        refuse_sharded(model, intervention.name)
        self.injected = False
        self.path = intervention.head if intervention.head is not None else _output(model, inputs)
        self.head = _head(model, self.path)
        self.new, self.start = (_fresh(self.head, self.path, intervention.seed) for _ in range(2))
        for parameter in self.start.parameters():
            parameter.requires_grad_(False)
        super().__init__(intervention, model, optimizer)
        with ExitStack() as undo:
            undo.callback(self.detach)
            self._adopt()
            undo.pop_all()
        self._signature = self._sign()
        self._removers.append(self.head.register_forward_hook(self._add, with_kwargs=True))

    def _adopt(self) -> None:
        """Give the new parameters to the group that holds the head, without another group or any state."""
        first = next(p for p in self.head.parameters() if p.requires_grad)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is first for p in group["params"]):
                    group["params"].extend(self.new.parameters())
                    self.group = group
                    return
        raise AttachError("no optimizer holds the head", found=self.path, do="give the one that trains it")

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the new head, for gradient clipping."""
        return list(self.new.parameters())

    def _add(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.injected:
            return None
        return output + (self.new(*args, **kwargs) - self.start(*args, **kwargs))

    # -- the clock ------------------------------------------------------------------------------
    def _before_step(self, optimizer: Optimizers) -> None:
        if self.injected:
            for parameter in self.head.parameters():
                parameter.grad = None  # zeros of zero_grad(set_to_none=False) would let weight decay act

    def _after_step(self, optimizer: Optimizers) -> None:
        for parameter in self.new.parameters():
            parameter.grad = None  # model.zero_grad() does not reach them
        if optimizer is self.optimizers[0] and not self.injected and self.due(self.intervention.every):
            self.inject_()

    def inject_(self) -> None:
        """Freeze the head and let the new one learn, from the next forward pass on."""
        self.injected = True
        for parameter in self.head.parameters():
            parameter.requires_grad_(False)

    # -- the end --------------------------------------------------------------------------------
    def detach(self) -> None:
        if self.attached and self.injected:
            if not isinstance(self.head, nn.Linear):
                raise AttachError(
                    "without its hooks the network would lose what the injected head learned",
                    found=f"an injected head {self.path!r} of type {type(self.head).__name__}",
                    do="call handle.freeze_in(), which turns both heads into a module of the model",
                )
            self._fold()
        self._leave()

    @torch.no_grad()
    def _fold(self) -> None:
        """A sum of linear layers is one linear layer."""
        triples = zip(self.head.parameters(), self.new.parameters(), self.start.parameters(), strict=True)
        for old, new, start in triples:
            old += new - start
            old.requires_grad_(True)

    def _leave(self) -> None:
        if self.attached and hasattr(self, "group"):
            mine = {id(p) for p in self.new.parameters()}
            self.group["params"] = [p for p in self.group["params"] if id(p) not in mine]
            for optimizer in self.optimizers:
                for parameter in self.new.parameters():
                    optimizer.state.pop(parameter, None)
        super().detach()

    def freeze_in(self) -> InjectedHead:
        """Put an `InjectedHead` in the head's place and detach; its new parameters stay with the optimizer."""
        if not self.injected:
            raise InputError("nothing was injected yet", where=self.path)
        if not self.path:
            raise InputError("the whole model is the head; wrap it in InjectedHead yourself")
        parent, _, name = self.path.rpartition(".")
        module = InjectedHead(self.head, self.new, self.start)
        super().detach()
        setattr(self.model.get_submodule(parent), name, module)
        return module

    # -- state ----------------------------------------------------------------------------------
    def _state(self) -> dict[str, Any]:
        heads = {"new": self.new, "start": self.start}
        kept = {k: {n: t.clone() for n, t in m.state_dict().items()} for k, m in heads.items()}
        return {"injected": self.injected, **kept}

    def _load_state(self, state: dict[str, Any]) -> None:
        self.new.load_state_dict(state["new"])
        self.start.load_state_dict(state["start"])
        if state["injected"] and not self.injected:
            self.inject_()


def _output(model: nn.Module, inputs: Any) -> str:
    if inputs is None:
        raise AttachError(
            "which module is the head?", do='pass head="path.of.the.head", or inputs= to find it'
        )
    found = [x.module for x in tp.trace(model, tp.shrink(inputs, 2)).layers.values() if x.output]
    if len(found) != 1:
        raise AttachError("the network has not exactly one output layer", found=found, do="pass head=")
    return found[0]


def _head(model: nn.Module, path: str) -> nn.Module:
    try:
        head = model.get_submodule(path)
    except AttributeError:
        raise AttachError("the model has no such module", found=path, where="head") from None
    if not any(p.requires_grad for p in head.parameters()):
        raise AttachError("the head has no trainable parameter", found=path)
    for name, module in head.named_modules():
        own = list(module.parameters(recurse=False))
        law = check_initial(module, "auto") if own and not isinstance(module, _NORMS) else None
        if next(module.buffers(recurse=False), None) is not None:
            reason = "its buffers would be updated three times in each pass"
        elif own and (law is not None or not (is_linear(module) or isinstance(module, _PLAIN))):
            reason = law or f"no fresh {type(module).__name__} can be drawn"
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            reason = "the copies would drop other units"
        else:
            continue
        raise AttachError(
            "this head cannot be copied", found=f"{path}.{name} ({type(module).__name__}): {reason}"
        )
    return head


def _fresh(head: nn.Module, path: str, seed: int) -> nn.Module:
    """A copy with every parameter drawn anew; equal for equal seeds."""
    new = copy.deepcopy(head)
    for hooks in (new._forward_hooks, new._forward_pre_hooks):
        hooks.clear()
    with torch.no_grad():
        for name, module in new.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                parameter.grad = None
                if isinstance(module, _NORMS):
                    parameter.fill_(1.0 if leaf == "weight" else 0.0)
                else:
                    parameter.copy_(draw(module, leaf, generator(seed, 0, f"{path}/{name}/{leaf}")))
    return new
