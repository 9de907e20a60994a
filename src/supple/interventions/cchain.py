"""C-CHAIN: damp what an update does to the outputs on inputs that were not in its batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from supple import fresh
from supple.errors import AttachError, InputError
from supple.functional import churn
from supple.interventions.handle import Optimizers
from supple.interventions.past_batches import Batch, Capture, PastBatches, flatten, quiet_pass
from supple.interventions.penalty import Gradients, Penalty, PenaltyHandle
from supple.interventions.registry import register
from supple.interventions.replicas import bare, eager, filled, several, summed
from supple.status import Mechanism


@dataclass
class Reference:
    """A reference batch and the outputs on it before the last update."""

    batch: Batch
    outputs: Tensor
    uses: int  # steps for which this batch has served


class CChainHandle(PenaltyHandle["CChain"]):
    """Owns past inputs, the reference batch with its outputs before the update, and the running means."""

    def __init__(self, intervention: CChain, model: nn.Module, optimizer: Optimizers) -> None:
        super().__init__(intervention, model, optimizer)
        self.device = next(model.parameters()).device
        self.network = bare(model)
        self.past = PastBatches(self.rule.memory, self.rule.batch_from == "reservoir", self.rule.seed)
        self.reference: Reference | None = None
        self._next: Reference | None = None
        self._now: Tensor | None = None  # outputs on the reference batch at the present parameters
        self._in_penalty: Tensor | None = None  # D of this step by the form that it came in
        self._in_gradient: Tensor | None = None
        self._clear_means()
        self._cap_told = False

    def prepare(self, inputs: Any) -> None:
        if self.rule.batch_from == "inputs":
            if inputs is None:
                raise AttachError(
                    'CChain(batch_from="inputs") needs the batch', do="attach(..., inputs=batch)"
                )
            args, kwargs = as_call(inputs)
            batch, self.past.layout = flatten(args, kwargs, -1)
            self.past.batches.append(batch)
            return
        # On the outermost module: a hook there runs outside the graph that torch.compile made.
        self._removers.append(
            self.model.register_forward_pre_hook(Capture(self.model, self._receive), with_kwargs=True)
        )

    def _receive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.past.add(args, kwargs, self.step)

    # -- the term ---------------------------------------------------------------------------------
    def term(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        if self.reference is None:
            return None
        if self.rule.by_loss and self._loss_step != self.step:
            raise AttachError(
                "CChain(by_loss=True) needs the loss of every update and has not seen that of this one",
                do="call handle.observe_loss(loss) before the step, or leave by_loss out",
            )
        after = self._outputs(self.reference.batch)
        self._now = after.detach()
        return self.rule.distance(self.reference.outputs, after)

    def _outputs(self, batch: Batch) -> Tensor:
        layout = batch.layout or self.past.layout
        if layout is None:
            raise AttachError(
                "CChain holds past inputs but has seen no training pass since its state was loaded",
                do="run the model in training mode before optimizer.step()",
            )
        args, kwargs = layout.build(batch.tensors)
        with quiet_pass(self.network, self.rule.seed, self.device), eager(self.network):
            return self.rule.select(self.network(*args, **kwargs))

    def _before_step(self, optimizer: Optimizer) -> None:
        if optimizer is self.optimizers[0]:
            self._check_fed()
        super()._before_step(optimizer)
        if optimizer is self.optimizers[0]:
            in_loss = not self.rule.hook or self._index(optimizer) in self._in_loss
            distance = self._in_penalty if in_loss else self._in_gradient
            self._in_penalty = self._in_gradient = None
            if distance is not None and self.rule.target is not None:  # a fixed coefficient needs no means
                self._remember(distance, self._loss)
            self._next = self._following()

    def _after_step(self, optimizer: Optimizer) -> None:
        super()._after_step(optimizer)
        if optimizer is self.optimizers[0]:
            self.reference, self._next, self._now = self._next, None, None

    def _check_fed(self) -> None:
        if self.step >= 2 and not self.past.batches:
            raise AttachError(
                "CChain has seen no training pass of the model",
                do='attach before torch.compile and call the model itself, or use batch_from="inputs"',
            )
        if self.rule.target is not None and self.step >= self.rule.start and not self.losses_seen:
            raise AttachError(
                "CChain(target=...) needs the task's loss for its coefficient and has seen none",
                do="call handle.observe_loss(loss) once per step, or give a fixed coef",
            )

    def _following(self) -> Reference | None:
        """The reference for the next step, at the parameters that the coming update will leave."""
        old = self.reference
        if old is not None and (self.rule.batch_from == "inputs" or old.uses < self.rule.refresh):
            if self._now is not None:  # one forward serves both: now is the next step's before
                return Reference(old.batch, self._now, old.uses + 1)
            batch, uses = old.batch, old.uses + 1
        else:
            rng = fresh.generator(self.rule.seed, self.step, "CChain", "cpu")
            # Not from the batches of the step under way, whose update is the one to be damped.
            drawn = self.past.draw(self.step, self.rule.fraction, rng)
            if drawn is None:
                return None
            batch, uses = drawn, 1
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return Reference(batch, self._outputs(batch).detach(), uses)

    def observe_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Tell the inputs of a training batch, where the training does not call the model itself."""
        self._receive(args, kwargs)

    def penalty(self) -> Tensor:
        self._value = None
        scaled = super().penalty()
        self._in_penalty = self._value
        return scaled

    # -- the coefficient --------------------------------------------------------------------------
    def observe_loss(self, loss: Tensor | float) -> None:
        """Tell the task's loss of this step; ``target`` and ``by_loss`` need it."""
        told = torch.as_tensor(loss, device=self.device).detach().abs()
        self._loss = told if told.dtype == torch.float64 else told.float()
        self._loss_step = self.step
        self.losses_seen += 1

    def coefficient(self) -> Tensor | float:
        rule = self.rule
        if rule.target is None:
            return rule.coef * self._loss if rule.by_loss else rule.coef
        ratio = self.loss_window.nanmean() / (self.churn_window.nanmean() + 1e-8)
        value = (rule.target * ratio).clamp(min=rule.floor, max=rule.cap)
        return torch.where(value.isfinite() & (self.filled >= rule.start), value, rule.coef)

    def _remember(self, distance: Tensor, loss: Tensor) -> None:
        """Put one (churn, loss) pair into the windows; what is not finite does not count."""
        slot = self.filled % self.rule.window
        nan = torch.full_like(distance, math.nan)
        self.churn_window[slot] = torch.where(distance.isfinite(), distance, nan)
        self.loss_window[slot] = torch.where(loss.isfinite(), loss, nan)
        self.filled += 1
        if self.filled % self.rule.window == 0 and not self._cap_told:
            value = float(self.coefficient())
            if value >= self.rule.cap:
                self._cap_told = True
                warnings.warn(
                    f"CChain: the coefficient reached its cap of {self.rule.cap:g} at step {self.step}; "
                    "the churn is small beside the loss, and a larger coefficient would freeze the network",
                    stacklevel=2,
                )

    def _clear_means(self) -> None:
        self.churn_window = torch.full((self.rule.window,), math.nan, device=self.device)
        self.loss_window = self.churn_window.clone()
        self.filled = 0
        self.losses_seen = 0
        self._loss = torch.full((), math.nan, device=self.device)
        self._loss_step = -1  # the step that the loss belongs to

    def task(self, name: str | None = None) -> None:
        super().task(name)
        if self.rule.restart:
            self._clear_means()
            self.reference = None

    # -- the gradient, over ranks -----------------------------------------------------------------
    def _gradients(self, parameters: Mapping[str, Tensor]) -> Gradients | None:
        self._value = None
        found = super()._gradients(parameters)
        distance = self._value
        if self.rule.sync and several():
            # The batch is this rank's own and .grad has been reduced already. Every rank takes part,
            # also one without a term, or the others would wait for it.
            nan = torch.full((), math.nan, device=self.device)
            own = filled(found, parameters.values())
            found, distance, self._loss = average(own, nan if distance is None else distance, self._loss)
        self._in_gradient = distance
        return found

    # -- state ------------------------------------------------------------------------------------
    def _state(self) -> dict[str, Any]:
        kept = self.reference
        return {
            "batches": [b.state() for b in self.past.batches],
            "seen": self.past.seen,
            "reference": None
            if kept is None
            else {"batch": kept.batch.state(), "outputs": kept.outputs.clone(), "uses": kept.uses},
            "churn_window": self.churn_window.clone(),
            "loss_window": self.loss_window.clone(),
            "loss": self._loss.clone(),
            "filled": self.filled,
            "losses_seen": self.losses_seen,
            "cap_told": self._cap_told,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        windows = [state.pop(key).detach().clone().to(self.device) for key in ("churn_window", "loss_window")]
        if any(len(w) != self.rule.window for w in windows):
            raise InputError("the window has another length", found=len(windows[0]), do=f"{self.rule.window}")
        loss = state.pop("loss").detach().clone().to(self.device)
        counts = [int(state.pop(key)) for key in ("filled", "losses_seen", "cap_told", "seen")]
        batches = [Batch.restore(b, self.device) for b in state.pop("batches")]
        kept, reference = state.pop("reference"), None
        if kept is not None:
            outputs = kept["outputs"].detach().clone().to(self.device)
            reference = Reference(Batch.restore(kept["batch"], self.device), outputs, int(kept["uses"]))
        super()._load_state(state)  # everything was read: from here on nothing can fail
        self.churn_window, self.loss_window = windows
        self._loss, self.reference, self._next, self._now = loss, reference, None, None
        self.filled, self.losses_seen, self._cap_told = counts[0], counts[1], bool(counts[2])
        self.past.seen = counts[3]
        self.past.batches.clear()
        self.past.batches.extend(batches)


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of positional or a mapping of keyword arguments, as (args, kwargs)."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def average(
    gradients: list[Tensor], distance: Tensor, loss: Tensor
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Mean over ranks: of the gradients over all of them, of churn and loss over those that have one."""
    numbers = torch.stack([distance.float(), loss.float()])
    known = numbers.isfinite()
    numbers = torch.where(known, numbers, torch.zeros_like(numbers))
    totals, (total, count) = summed(gradients, numbers, known.float())
    means = torch.where(count > 0, total / count, torch.full_like(total, math.nan))
    world = dist.get_world_size()
    shaped = [(t / world).to(g.dtype) for t, g in zip(totals, gradients, strict=True)]
    return cast("list[Tensor | None]", shaped), means[0], means[1]


def _joined(outputs: Any, dim: int) -> Tensor | None:
    """Means and logarithms of deviations on one axis, None where the first two outputs are no such pair."""
    pair = [x for x in outputs[:2] if isinstance(x, Tensor)]
    if len(pair) < 2 or pair[0].shape != pair[1].shape:
        return None
    return torch.cat(pair, dim)


@register
@dataclass(frozen=True, kw_only=True)
class CChain(Penalty):
    """J + λ · D(f(B; θ_{t−1}), f(B; θ)) at θ = θ_t, for a batch B of inputs that the updates did not use.

    Mechanism: NTK degeneration, seen as churn: how far an update moves the outputs on inputs outside its
    batch. To first order the gradient is G (θ_t − θ_{t−1}), with G the Gauss–Newton matrix on B: the term
    damps the last step where it changes other outputs. Source: Tang, Obando-Ceron, Castro, Courville,
    Berseth, ICML 2025, arXiv 2506.00592. Cost: two forward passes and one backward pass over B
    (``fraction`` shrinks B, ``refresh > 1`` saves one forward). Memory: ``memory`` batches, one output.

    The reference is the parameters before the last update, never the present ones, whose gradient is zero.
    The authors keep a list of deep copies for that; here the outputs on the next batch are taken just
    before the step moves, which is the same number. The first two updates run without the term (as in their
    PPO code; one with ``batch_from="inputs"``). Both passes run in eval behaviour: dropout is not counted as
    churn and no buffer moves.

    Where paper and code differ: for discrete policies the code uses cross entropy, −Σ p_old log p_new,
    which is KL plus the entropy of the old outputs: the same gradient, but not zero when nothing changed, so
    its automatic coefficient is another. The authors' target β = 1e4 belongs to that form and **freezes a
    classifier**; β of about 0.01 to 0.1 belongs to ``mse``. They must not be mixed.

    Args:
        kind: "kl" (default) and "ce" on logits, "mse" on any output, "gaussian" on (means, logarithms of standard
            deviations) of a policy (see `supple.functional.churn`).
        class_dim: axis of the classes in the outputs; 1 for (N, C, H, W).
        coef: λ; 10 helped most of {1, 10, 100, 1000} on random labels (1000 froze the network). With
            ``target`` it is the coefficient until ``start`` steps have been seen.
        target: β of λ = β · mean|loss| / (mean D + 1e-8), clamped to [floor, cap]; None keeps λ fixed. 1e-3
            was best for KL on random labels (1e-2 froze). Needs ``handle.observe_loss(loss)`` per step.
        by_loss: λ = coef · |loss of this update| instead, which keeps the term in proportion: CHAIN for SAC, where the
            loss is mean|min Q − α log π| and coef 5e-4 with "gaussian", and for TD3 (Tang & Berseth, NeurIPS 2024,
            arXiv 2409.04792). Needs ``handle.observe_loss(loss)`` before each step; not together with ``target``.
        cap: upper bound of λ, 100. The published code has none, and λ runs away: a larger λ lowers D, which
            raises λ. Reaching it is warned about once.
        floor: lower bound of λ; 1 in the PPO codes, 0 here.
        window: number of steps in the two running means (50 iterations in the Gym code).
        start: steps before the first adaptation (10 in the Gym code).
        fraction: part of a past batch that is used, in (0, 1]. Needs samples on axis 0.
        refresh: steps for which one reference batch serves; 1 is the published form.
        memory: number of past training batches kept, of which one is drawn (2: the previous one).
        batch_from: "recent" draws from the last ``memory`` batches, "reservoir" from an even sample of as many of
            all batches of the run; "inputs" always uses the batch given to ``attach(inputs=)``, a probe.
        output: picks the tensor out of the model's output; by default the tensor itself, ``.logits``, or
            the first element (with "gaussian" the first two, joined).
        restart: ``handle.task()`` restarts λ and the reference (three of the four published codes do).
        sync: average the gradient over the ranks of the default process group, if there is one.
        seed: of the draw of reference batches.

    >>> model = nn.Linear(4, 3)
    >>> handle = CChain(coef=1.0).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> handle.penalty().item()  # no update has been made
    0.0
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = CChainHandle
    mechanism: ClassVar[Mechanism | None] = Mechanism.NTK_DEGENERATION
    cost: ClassVar[str] = "medium"
    level: ClassVar[int] = 1
    source: ClassVar[str] = "Tang et al., ICML 2025, arXiv 2506.00592"

    coef: float = 10.0
    kind: Literal["kl", "mse", "ce", "gaussian"] = "kl"
    class_dim: int = -1
    target: float | None = None
    by_loss: bool = False
    cap: float = 100.0
    floor: float = 0.0
    window: int = 50
    start: int = 10
    fraction: float = 1.0
    refresh: int = 1
    memory: int = 8
    batch_from: Literal["recent", "reservoir", "inputs"] = "recent"
    restart: bool = True
    sync: bool = True
    seed: int = 0
    output: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("kl", "mse", "ce", "gaussian"):
            raise InputError("unknown kind", found=self.kind, do='choose "kl", "mse", "ce" or "gaussian"')
        if self.batch_from not in ("recent", "reservoir", "inputs"):
            choices = 'choose "recent", "reservoir" or "inputs"'
            raise InputError("unknown batch_from", found=self.batch_from, do=choices)
        if not 0.0 < self.fraction <= 1.0:
            raise InputError("fraction must lie in (0, 1]", found=self.fraction)
        if min(self.window, self.start, self.refresh) < 1 or self.memory < 2:
            raise InputError("window, start and refresh must be at least 1, memory at least 2", found=self)
        if not 0.0 <= self.floor <= self.cap or not math.isfinite(self.cap):
            raise InputError("need 0 <= floor <= cap, finite", found=(self.floor, self.cap))
        if self.target is not None and not (math.isfinite(self.target) and self.target > 0):
            raise InputError("target must be positive and finite", found=self.target)
        if self.target is not None and self.by_loss:
            raise InputError("target and by_loss are two rules for one coefficient", do="leave one out")

    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        return handle.term(parameters)

    def distance(self, before: Tensor, after: Tensor) -> Tensor:
        """D between the outputs before and after the last update."""
        return churn(before, after, self.kind, self.class_dim)

    def select(self, outputs: Any) -> Tensor:
        """The tensor of the model's output that the churn is about."""
        if self.output is not None:
            picked = self.output(outputs)
        elif self.kind == "gaussian" and isinstance(outputs, (tuple, list)):
            picked = _joined(outputs, self.class_dim)
        elif isinstance(outputs, Tensor):
            picked = outputs
        elif hasattr(outputs, "logits"):
            picked = outputs.logits
        elif isinstance(outputs, Mapping) and "logits" in outputs:
            picked = outputs["logits"]
        else:
            picked = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else None
        if not isinstance(picked, Tensor):
            raise InputError(
                "cannot tell which output to compare", found=type(outputs).__name__, do="pass output=callable"
            )
        return picked
