"""What attached reset methods share: the trace (at once or on the first training pass), engine, log and clock."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from supple import topology as tp
from supple.errors import AttachError, InputError
from supple.fresh import rule_for
from supple.interventions import compensation
from supple.interventions.base import Intervention
from supple.interventions.engine import ResetEngine
from supple.interventions.followers import check_follower, mirror_
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.hooks import OwnHook
from supple.interventions.matrices import refuse_sharded
from supple.interventions.meter import Meter
from supple.interventions.reset_checks import Bias, Initials, Outgoing
from supple.interventions.reset_layers import refuse_compiled, unwanted, way_out
from supple.interventions.reset_plan import LayerSkipped, ResetEvent, ResetPlan
from supple.interventions.schedule import Schedule, check_schedule
from supple.topology.graph import Layer, Topology

_PROBE = 2  # samples of the first training batch that the trace runs on


class ResetHandle(Handle):
    """An attached reset method.

    ``log`` lists `ResetEvent` (which units, and what it did) and `LayerSkipped`; `survival` tells which of them
    lasted; ``topology`` is the trace, ``skipped`` maps the layers that are never reset to the reason. `follow`
    lets target networks have the same resets. Each optimizer's step acts on the layers whose weights it holds.
    Subclasses implement `_prepare` (once the layers are known) and `_act`.
    """

    standing = False  # True: acts on every step of every optimizer
    every: Schedule = 1
    outgoing: Outgoing = "zero"
    bias: Bias = "zero"

    def __init__(
        self, intervention: Intervention, model: nn.Module, optimizer: Optimizers, inputs: Any, topology: Any
    ) -> None:
        refuse_compiled(model)
        refuse_sharded(model, intervention.name)
        check_schedule(self.every, boundary=intervention.at_boundary)
        for opt in optimizer_list(optimizer):
            rule_for(opt)
        self.log: list[ResetEvent | LayerSkipped] = []
        self.skipped: dict[str, str] = {}
        self.topology: Topology | None = None
        self.layers: list[list[Layer]] = []  # by optimizer
        self.engine: ResetEngine | None = None
        replicas = isinstance(model, DistributedDataParallel)
        self.inner: nn.Module = model.module if replicas else model
        self.meter = Meter(model.process_group if replicas else None)
        self.owed: set[int] = set()  # optimizers whose layers are due and have not been acted on
        self._waiting: dict[str, Any] | None = None
        self._lazy: Any = None
        self._probe: Any = None
        self._followers: list[nn.Module] = []
        super().__init__(intervention, model, optimizer)
        with ExitStack() as undo:
            undo.callback(self.detach)
            if topology is None and inputs is not None:
                topology = tp.trace(self.inner, tp.shrink(inputs, _PROBE))
            if topology is not None:
                self._build(topology)
            else:
                self._lazy = self.inner.register_forward_pre_hook(OwnHook(self._first_pass), with_kwargs=True)
            undo.pop_all()

    # -- what a subclass does -------------------------------------------------------------------
    def _prepare(self) -> None:
        """Install what measures; move layers that cannot be measured to ``skipped`` through `_drop`."""
        raise AttachError("a reset method must say what it measures", found=type(self).__name__)

    def _act(self, layers: list[Layer]) -> bool:
        """Choose and reset units of these layers; False if the measurement is still missing."""
        raise AttachError("a reset method must say how it acts", found=type(self).__name__)

    @property
    def built(self) -> ResetEngine:
        """The engine, once the network is known."""
        if self.engine is None:
            raise AttachError(f"{self.intervention.name} has not seen the network yet", do="train one step")
        return self.engine

    @property
    def device(self) -> torch.device:
        return next(self.inner.parameters()).device

    # -- the trace ------------------------------------------------------------------------------
    def _first_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._lazy.remove()
        self._lazy = None
        with ExitStack() as undo:
            undo.callback(self.detach)
            small = tp.shrink((args, kwargs), _PROBE)
            self._build(tp.trace(self.inner, small, forward=lambda m, batch: m(*batch[0], **batch[1])))
            undo.pop_all()

    def _build(self, topology: Topology) -> None:
        kinds = getattr(self.intervention, "units", ("inner",))
        if "heads" in kinds:
            topology = tp.with_heads(topology)
        self.topology = topology
        self.engine = engine = ResetEngine(self.inner, self.optimizers, topology, "stream" in kinds)
        self.layers = [[] for _ in self.optimizers]
        partners: set[str] = set()
        initial = getattr(self.intervention, "initial", "auto")
        wanted = getattr(self.intervention, "layers", None)
        for name in wanted or ():
            if name not in topology.layers:
                raise AttachError(f"no layer {name!r} in the model", do=f"choose of {list(topology.layers)}")
        for layer in self._candidates(topology) if wanted is None else [topology.layers[n] for n in wanted]:
            if layer.name in partners:
                continue
            reason = unwanted(topology, layer, kinds) or self._refusal(engine, layer, initial)
            if reason is not None:
                self.skipped[layer.name] = reason
                continue
            partners.update([layer.gate_partner] if layer.gate_partner else [])
            owner = engine.owners[engine.parameters[layer.weight]]
            self.layers[self.optimizers.index(owner)].append(layer)
        self._prepare()
        refused = [n for n in wanted or () if n in self.skipped]
        if refused or not any(self.layers):
            reasons = self.skipped if not refused else {n: self.skipped[n] for n in refused}
            raise AttachError(
                f"{self.intervention.name} finds no layer whose units it could reset"
                if not refused
                else f"{self.intervention.name} cannot reset the layers that were asked for",
                found="; ".join(f"{n}: {r}" for n, r in reasons.items()) or "no hidden layer",
                do=way_out(topology, kinds, reasons),
            )
        if self._waiting is not None:
            self._restore(self._waiting)
            self._waiting = None
        self._arm()

    def _candidates(self, topology: Topology) -> list[Layer]:
        """The layers to act on if the user names none."""
        # outputs are named only when they are asked for, and refused like anything else
        return list(topology.hidden)

    def _refusal(self, engine: ResetEngine, layer: Layer, initial: Initials) -> str | None:
        return engine.refusal(layer.name, self.outgoing, initial)

    def _drop(self, layer: Layer, reason: str) -> None:
        self.skipped[layer.name] = reason
        for group in self.layers:
            if layer in group:
                group.remove(layer)

    # -- the clock ------------------------------------------------------------------------------
    def _arm(self) -> None:
        """Decide, before its forward pass, whether the coming step acts."""
        if self.due(self.every):
            self.owed = {i for i, group in enumerate(self.layers) if group}
        self.meter.active = self.standing or bool(self.owed)

    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before = self.step
        super()._post(optimizer, args, kwargs)
        if self.step != before:
            self._arm()

    def task(self, name: str | None = None) -> None:
        super().task(name)
        if self.engine is not None:
            self._arm()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        if self.engine is None:
            raise AttachError(
                f"{self.intervention.name} has seen no training forward pass of the model before this step",
                do="pass inputs= to attach, and attach before torch.compile; train with model.train()",
            )
        position = self.optimizers.index(optimizer)
        if not self.layers[position]:
            return
        if self.standing:
            self._act(self.layers[position])
        elif position in self.owed and self._act(self.layers[position]):
            self.owed.discard(position)
            self.meter.active = bool(self.owed)

    def _reset(self, selection: Mapping[str, Tensor], means: Mapping[str, Tensor] | None = None) -> None:
        """Re-birth of the chosen units now, with the method's own settings."""
        if self.engine is None or not any(len(u) for u in selection.values()):
            return
        plan = self.engine.plan(
            selection,
            seed=getattr(self.intervention, "seed", 0),
            step=self.step + 1,
            outgoing=self.outgoing,
            initial=getattr(self.intervention, "initial", "auto"),
            bias=self.bias,
            means=means,
        )
        self._apply(plan)

    def _apply(self, plan: ResetPlan) -> None:
        """Write a plan and log it, with the change of the outputs if there is a probe."""
        before = self._outputs()
        events = plan.apply_()
        for network in self._followers:
            mirror_(plan, network)
        after = self._outputs()
        if before is not None and after is not None:
            change = float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))
            events = [replace(e, change=change) for e in events]
        self.log += events

    def follow(self, *networks: nn.Module) -> None:
        """From now on each reset is made in these networks too: the target networks of an agent.

        They are copies of the model, older or averaged. A unit that is re-born in the model is re-born in them with
        the same fresh incoming weights and the same zeros (or rates) on what reads it; all other weights stay as
        they are, so a target keeps its age. Without it a target goes on with the old units until its next copy. Not
        part of the state: call it again after the state was loaded.

        Raises:
            InputError: a parameter or running statistic of the model is missing there, or has another shape;
                no network is followed then.
        """
        for network in networks:
            check_follower(self.inner, network, self.intervention.name)
        self._followers += [n for n in dict.fromkeys(networks) if all(n is not f for f in self._followers)]

    # -- what a reset did -----------------------------------------------------------------------
    def probe(self, inputs: Any) -> None:
        """From now on each reset measures its change of the outputs on these inputs (None: no longer).

        Two forward passes in eval mode per step that resets; the random state is not touched.
        """
        self._probe = inputs

    def _outputs(self) -> Tensor | None:
        """(P,) all outputs on the probe as one vector, or None without one."""
        if self._probe is None:
            return None
        with tp.undisturbed(self.inner):
            found = [t for t in tp.leaves(tp.call(self.inner, self._probe)) if t.is_floating_point()]
        return torch.cat([t.flatten().double() for t in found])

    def survival(self) -> list[tuple[ResetEvent, float]]:
        """Each reset of the log with the share of its units that have not been reset again since."""
        later: dict[str, set[int]] = {}
        found: list[tuple[ResetEvent, float]] = []
        for event in reversed(self.log):
            if isinstance(event, ResetEvent):
                again = later.setdefault(event.layer, set())
                alive = sum(u not in again for u in event.units)
                found.append((event, alive / len(event.units) if event.units else 1.0))
                again.update(event.units)
        return found[::-1]

    def _missing(self, paths: list[str]) -> bool:
        """The step was due and nothing was measured: say so, and try again at the next step."""
        silent = [p for p in paths if not self.meter.gauges[p].count]
        self._skip(
            ", ".join(silent),
            "no training pass (with finite gradients) since the last step; the next one counts",
        )
        return False

    def _skip(self, layer: str, reason: str) -> None:
        self.log.append(LayerSkipped(self.step + 1, layer, reason))

    # -- state ----------------------------------------------------------------------------------
    def _own_state(self) -> dict[str, Any]:
        """What a subclass keeps besides the meter."""
        return {}

    def _load_own(self, state: dict[str, Any]) -> None:
        if state:
            raise InputError("unknown key(s) in the state of the handle", found=sorted(state))

    def _names(self) -> dict[Tensor, str]:
        return {p: n for n, p in self.inner.named_parameters()}

    def _state(self) -> dict[str, Any]:
        if self.engine is None and self._waiting is not None:
            return dict(self._waiting)
        names = self._names()
        return {
            "owed": sorted(self.owed),
            "meter": self.meter.state(),
            "own": None if self.engine is None else self._own_state(),  # None: the network was not seen yet
            "compensation": [compensation.state_of(o, names) for o in self.optimizers],
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        unknown = set(state) ^ {"owed", "meter", "own", "compensation"}
        if unknown or len(state["compensation"]) != len(self.optimizers):
            raise InputError(
                "this state does not fit the handle", found=sorted(unknown) or "another number of optimizers"
            )
        blank = state["own"] is None
        if blank and self.engine is not None and self.step:
            raise InputError("this state is of a handle that had seen nothing", do="attach anew instead")
        names = self._names()
        for optimizer, ages in zip(self.optimizers, state["compensation"], strict=True):
            compensation.load_state(optimizer, names, ages)
        if blank:
            self._waiting = None
        elif self.engine is None:
            self._waiting = state
        else:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.owed = set(state["owed"])
        self.meter.load(state["meter"], self.device)
        self._load_own(state["own"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.engine is not None:
            self._arm()

    def detach(self) -> None:
        super().detach()
        self.meter.remove()
        if self._lazy is not None:
            self._lazy.remove()
            self._lazy = None
