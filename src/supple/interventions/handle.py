"""An attached intervention: its hooks, its state, and the watch over which optimizer steps."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from supple.errors import AttachError, InputError, SuppleError
from supple.interventions.compensation import compensation_of, hold, release
from supple.interventions.schedule import Schedule
from supple.interventions.states import check_state, misfit
from supple.stepping import bare, closure_of, skips

if TYPE_CHECKING:
    from supple.interventions.base import Intervention

Optimizers: TypeAlias = Optimizer | Sequence[Optimizer]

STATE_VERSION = 1


def optimizer_list(optimizer: Optimizers) -> list[Optimizer]:
    """One optimizer or several, as a list without shells; anything else is refused by type."""
    several = isinstance(optimizer, Collection) and not isinstance(optimizer, str)
    given: list[object] = list(optimizer) if several else [optimizer]
    items = [bare(item) for item in given if isinstance(item, Optimizer)]
    wrong = [type(item).__name__ for item in given if not isinstance(item, Optimizer)]
    if wrong or not items:
        raise InputError(
            "optimizer must be a torch.optim.Optimizer or a list of them",
            found=", ".join(wrong) or "an empty list",
            where="optimizer",
            do="pass the optimizer whose step() your loop calls, or all of them",
        )
    return items


def _check_owners(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Each optimizer must train something of this model."""
    owned = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        if not any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            raise AttachError(
                "the optimizer holds no parameter of the model",
                found=type(optimizer).__name__,
                do="pass the model whose parameters() the optimizer was built with",
            )


#: attached handles, which are asked before every step of any optimizer; weak, so that none is kept alive
_ATTACHED: weakref.WeakSet[Handle] = weakref.WeakSet()
#: the one hook on all optimizers, made with the first handle; it stays, since torch may be walking through its
#: hooks when the last handle goes
_WATCHING: list[Any] = []


def _ask_handles(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for handle in list(_ATTACHED):
        handle._meet(optimizer)


class Handle:
    """An attached intervention: the hooks, the state, the log.

    Subclasses implement `_before_step` and `_after_step` (either may do nothing), and put every piece
    of state that influences a later step into `_state` / `_load_state`. With several optimizers the
    handle follows the first one's steps for its clock and sees all of them in `_before_step`.
    """

    #: a closure recomputes the gradients after the pre-hook; only a handle that adds none may allow it
    refuses_closure: bool = True

    def __init__(self, intervention: Intervention, model: nn.Module, optimizer: Optimizers) -> None:
        self.intervention: Any = intervention  # subclasses name its class
        self.model = model
        self.optimizers = optimizer_list(optimizer)
        self.step = 0  # completed steps of the first optimizer
        self.task_index = 0
        self.task_started = False  # a boundary was announced and no step has been made since
        self.attached = True
        self._removers: list[Any] = []
        self._modules = list(model.modules())
        self._signature = self._sign()
        #: optimizers known to hold none of our parameters, with the number of parameters they had then
        self._strangers: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._stepping = False
        self._in_closures = False  # whether `gradients_ready` is called inside the closure of each step
        self._ready: set[int] = set()  # optimizers of which it was, in the step that is under way
        _check_owners(model, self.optimizers)
        for opt in self.optimizers:
            hold(opt)
            self._removers.append(opt.register_step_pre_hook(self._pre))
            self._removers.append(opt.register_step_post_hook(self._post))
        if not _WATCHING:
            _WATCHING.append(register_optimizer_step_pre_hook(_ask_handles))
        _ATTACHED.add(self)

    # -- what a subclass does -------------------------------------------------------------------
    def _before_step(self, optimizer: Optimizer) -> None:
        """Runs with gradients ready and parameters not yet moved."""

    def _after_step(self, optimizer: Optimizer) -> None:
        """Runs after the parameters moved."""

    def _at_boundary(self) -> None:
        """Runs in `task` of an intervention with ``every="boundary"``."""

    def _state(self) -> dict[str, Any]:
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:
        if state:
            raise InputError("unknown key(s) in the state of the handle", found=sorted(state))

    # -- hooks ----------------------------------------------------------------------------------
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inside = closure_of(args, kwargs) is not None
        if inside and self.refuses_closure and not self._in_closures:
            raise AttachError(
                f"{self.intervention.name} cannot act in optimizer.step(closure)",
                found="a closure, which recomputes the gradients after this hook",
                do="call backward() yourself and then optimizer.step(), or add handle.penalty() to the loss",
            )
        if self._sign() != self._signature:
            raise AttachError(
                f"the parameters of the optimizer changed after {self.intervention.name} was attached",
                do="detach the handle and attach the intervention again",
            )
        self._stepping = True
        later = inside and self._in_closures
        if not (later or id(optimizer) in self._ready or skips(optimizer)):
            self._before_step(optimizer)

    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stepping = False
        ready = id(optimizer) in self._ready
        self._ready.discard(id(optimizer))
        if skips(optimizer):
            return
        if self._in_closures and closure_of(args, kwargs) is not None and not ready:
            raise AttachError(
                f"{self.intervention.name} did not see the gradients of this step",
                found="a closure in which gradients_ready() was not called",
                do="call handle.gradients_ready(optimizer) in the closure, after backward()",
            )
        self._after_step(optimizer)
        if optimizer is self.optimizers[0]:
            self.step += 1
            self.task_started = False

    def _meet(self, optimizer: Optimizer) -> None:
        """Another optimizer is about to step: if it moves our parameters, ours was swapped behind our back."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._strangers.get(optimizer) == count or any(optimizer is own for own in self.optimizers):
            return
        if self._stepping and self._under_way():
            return  # while ours steps it may call another inside itself (SAM, Lookahead, accelerate)
        held = {id(p) for own in self.optimizers for group in own.param_groups for p in group["params"]}
        meets = any(id(p) in held for group in optimizer.param_groups for p in group["params"])
        if meets and not self._wrapped_by(optimizer) and not self._superseded_on(optimizer):
            raise AttachError(
                f"{self.intervention.name} is attached to another optimizer of these parameters",
                found=f"a step of {type(optimizer).__name__}, attached to "
                + " and ".join(type(own).__name__ for own in self.optimizers),
                do="detach the handle and attach the intervention to the new optimizer, or to both",
            )
        self._strangers[optimizer] = count

    def _under_way(self) -> bool:
        """Whether a step of ours is on the stack: one that raised left ``_stepping`` behind."""
        frame = inspect.currentframe()
        while frame is not None:
            if any(frame.f_locals.get("self") is own for own in self.optimizers):
                return True
            frame = frame.f_back
        self._stepping = False
        return False

    def _index(self, optimizer: Optimizer) -> int:
        """Its position among our optimizers."""
        return next(i for i, known in enumerate(self.optimizers) if known is optimizer)

    def _wrapped_by(self, optimizer: Optimizer) -> bool:
        """Whether it holds one of ours (SAM, Lookahead), whose step is then part of its own."""
        return any(value is own for value in vars(optimizer).values() for own in self.optimizers)

    def _superseded_on(self, optimizer: Optimizer) -> bool:
        """Whether the same intervention was attached anew to it: this handle was left behind with its optimizer."""
        return any(
            type(other.intervention) is type(self.intervention)
            and any(optimizer is x for x in other.optimizers)
            for other in list(_ATTACHED)
        )

    def _sign(self) -> list[int]:
        """Identities of every parameter, submodule and held parameter; walked by hand, as every step asks."""
        signature: list[int] = []
        for module in self._modules:
            signature.extend(map(id, module._parameters.values()))
            signature.extend(map(id, module._modules.values()))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                signature.extend(map(id, group["params"]))
        return signature

    # -- what a user calls ----------------------------------------------------------------------
    def inside_closures(self) -> None:
        """For loops that compute gradients in ``optimizer.step(closure)``, Lightning's above all: from now on the
        closure calls `gradients_ready` after its backward pass, and steps with a closure are not refused.
        """
        self._in_closures = True

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """Act on the gradients now, inside the closure of a step, instead of before it; see `inside_closures`.

        Raises:
            AttachError: called twice in one step (an optimizer that evaluates its closure more than once), or of
                an optimizer that the intervention is not attached to.
        """
        if not any(optimizer is own for own in self.optimizers):
            raise AttachError(
                f"{self.intervention.name} is not attached to this optimizer", found=type(optimizer).__name__
            )
        if id(optimizer) in self._ready:
            raise AttachError(
                f"{self.intervention.name} acts once in a step",
                found=f"{type(optimizer).__name__} evaluated its closure more than once",
            )
        self._ready.add(id(optimizer))
        if not skips(optimizer):
            compensation_of(optimizer).ready(optimizer)
            self._before_step(optimizer)

    def task(self, name: str | None = None) -> None:
        """Announce a task boundary; ``"task"`` schedules act on the first step that follows, ``"boundary"`` now."""
        self.task_index += 1
        self.task_started = True
        if getattr(self.intervention, "every", None) == "boundary":
            self._at_boundary()

    def due(self, every: Schedule) -> bool:
        """Whether the step that is under way is one on which the schedule acts."""
        if isinstance(every, str):
            return self.task_started and every == "task"
        if callable(every):
            return bool(every(self.step + 1))
        return (self.step + 1) % every == 0

    def penalty(self) -> Tensor:
        """The term to add to the loss when the hook form cannot be used; zero for non-penalties."""
        return torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """Versioned, tensors and plain types only; holds all that later steps depend on."""
        return {
            "version": STATE_VERSION,
            "name": self.intervention.name,
            "step": self.step,
            "task_index": self.task_index,
            "task_started": self.task_started,
            "state": self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; refuses another intervention's or another version's state."""
        if state.get("name") != self.intervention.name or state.get("version") != STATE_VERSION:
            raise InputError(
                f"this state does not belong to {self.intervention.name} (version {STATE_VERSION})",
                found=f"{state.get('name')!r} (version {state.get('version')!r})",
            )
        kept = copy.deepcopy(self.state_dict())
        try:
            self._load_state(dict(state["state"]))
            check_state(state, kept, self.intervention.name)
        except BaseException as error:  # a state that does not fit must not be left half loaded
            self._load_state(kept["state"])
            if isinstance(error, SuppleError) or not isinstance(error, Exception):
                raise
            check_state(state, kept, self.intervention.name)
            raise misfit(self.intervention.name, f"{type(error).__name__}: {error}") from error
        self.step = int(state["step"])
        self.task_index = int(state["task_index"])
        self.task_started = bool(state["task_started"])

    def detach(self) -> None:
        """Remove every hook; calling it twice is harmless."""
        for remover in self._removers:
            remover.remove()
        self._removers.clear()
        _ATTACHED.discard(self)
        if self.attached:
            self.attached = False
            for optimizer in self.optimizers:
                release(optimizer)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()
