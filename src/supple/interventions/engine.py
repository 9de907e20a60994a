"""The reset engine: check everything, then write everything, or nothing.

A unit is re-born by four writes: its incoming row (and bias) is drawn afresh, its entries in the norm layers
that belong to it return to scale 1 and shift 0 (running mean 0, variance 1), the columns that read it become
zero (or are kept), and the optimizer's state of exactly those slices becomes that of a fresh optimizer.
Layers are handled in the order of the trace, as in the published loops: where the column of one reset unit
crosses the row of a later one, the row's fresh value stands (that unit's own outgoing weights are zero).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError, TopologyError
from supple.fresh import Initial, check_initial, draw, generator, rule_for
from supple.interventions.base import Optimizers, optimizer_list
from supple.interventions.compensation import compensation_of
from supple.interventions.slices import Slice, along
from supple.topology.graph import Edge, Layer, Norm, Topology

Outgoing: TypeAlias = Literal["zero", "keep"]
Bias: TypeAlias = Literal["zero", "fresh"]
#: one law for every layer, or the initial `state_dict` of the model, whose laws are read off
Initials: TypeAlias = Initial | Mapping[str, Tensor]


@dataclass(frozen=True)
class ResetEvent:
    """Units of one layer that were re-born after optimizer step ``step``.

    ``removed`` is the share of the consumers' weights that this set to zero: the largest
    ‖W_out[:, units]‖ / ‖W_out‖ of all consumers, a bound on the change of the function in weights; None where
    outgoing weights are not zeroed. ``change`` is what it did to the outputs, measured, where the handle was
    given a probe: ‖f_after(x) - f_before(x)‖ / ‖f_before(x)‖ of all resets of this step together.
    """

    step: int
    layer: str
    units: tuple[int, ...]
    outgoing: str
    removed: float | None = field(default=None, compare=False)
    change: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LayerSkipped:
    """A layer that was left alone at a step on which it was due, and why."""

    step: int
    layer: str
    reason: str


@dataclass(frozen=True)
class _Write:
    """What happens to ``target[where.at]``: ``values`` replaces it, or keep * target[where.at] + values does.

    ``optimizer`` is the owner whose state of the slice is cleared; None for buffers and where state is kept.
    """

    name: str
    target: Tensor
    where: Slice
    values: Tensor | float
    optimizer: Optimizer | None = None
    keep: Tensor | float = 0.0


def _write(target: Tensor, where: Slice, values: Tensor | float) -> None:
    """The only place where a reset changes a tensor of the model."""
    target[where.at] = values


def _restore(target: Tensor, at: tuple[Any, ...], values: Tensor) -> None:
    target[at] = values


@dataclass
class ResetPlan:
    """Everything that will be written, checked and drawn. ``str(plan)`` lists it; nothing is written yet."""

    events: list[ResetEvent]
    writes: list[_Write] = field(repr=False)
    applied: bool = False

    def __str__(self) -> str:
        lines = [
            f"{e.layer}: {len(e.units)} unit(s) {list(e.units)}, outgoing {e.outgoing}" for e in self.events
        ]
        return "\n".join(lines) or "no unit is reset"

    @torch.no_grad()
    def apply_(self) -> list[ResetEvent]:
        """Write the plan, parameters and optimizer state together.

        An exception at any write puts every tensor back bit for bit and is raised again.
        """
        if self.applied:
            raise InputError("this plan was applied already", do="call plan_reset again")
        with ExitStack() as undo:
            for write in self.writes:
                now = write.target[write.where.at]
                undo.callback(_restore, write.target, write.where.at, now)
                mixed = isinstance(write.keep, Tensor) or write.keep != 0.0
                values = write.keep * now + write.values if mixed else write.values
                _write(write.target, write.where, values)
                if write.optimizer is not None:
                    self._clear(write, write.optimizer, undo)
            for write in self.writes:
                if write.optimizer is not None and rule_for(write.optimizer).ageing is not None:
                    compensation_of(write.optimizer).mark(write.optimizer, write.target, write.where)
            undo.pop_all()
        self.applied = True
        return self.events

    @staticmethod
    def _clear(write: _Write, optimizer: Optimizer, undo: ExitStack) -> None:
        rule = rule_for(optimizer)
        for slot, at in rule.slices(optimizer, write.target, write.where.at):
            undo.callback(_restore, slot, at, slot[at])
        rule.clear_(optimizer, write.target, write.where.at)


class ResetEngine:
    """The names and owners of a model's parameters, kept so that a plan costs little when many are made."""

    def __init__(self, model: nn.Module, optimizers: Optimizers, topology: Topology) -> None:
        self.model, self.topology = model, topology
        self.optimizers = optimizer_list(optimizers)
        self.parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self.buffers: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._refusals: dict[str, str | None] = {}
        self.owners: dict[Tensor, Optimizer] = {}
        for optimizer in reversed(self.optimizers):
            for group in optimizer.param_groups:
                self.owners.update(dict.fromkeys(group["params"], optimizer))

    # -- checks ---------------------------------------------------------------------------------
    def refusal(self, name: str, outgoing: Outgoing = "zero", initial: Initials = "auto") -> str | None:
        """Why units of this layer cannot be reset, or None. Raises `OptimizerRuleError`."""
        layer = self.topology.layers.get(name)
        if layer is None:
            return "the topology has no such layer"
        pair = [layer, *([self.topology.layers[layer.gate_partner]] if layer.gate_partner else [])]
        for part in pair:  # the two halves of a gated unit are re-born together
            reason = (
                self._topology_refusal(part.name)
                or self._structure_refusal(part)
                or self._parameters_refusal(part, outgoing)
                or self._initial_refusal(part, initial)
            )
            if reason is not None:
                return reason
        return None

    def _topology_refusal(self, name: str) -> str | None:
        """The topology does not change: asked once for each layer."""
        if name not in self._refusals:
            self._refusals[name] = self.topology.reset_refusal(name)
        return self._refusals[name]

    def _structure_refusal(self, layer: Layer) -> str | None:
        module = self.modules.get(layer.module)
        if module is None:
            return f"the model has no module {layer.module!r}"
        if layer.aliases:
            return f"its weight is tied to {', '.join(layer.aliases)}"
        leaf = layer.weight.rpartition(".")[2]
        own = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        if (own and leaf != "weight") or hasattr(module, "parametrizations"):
            return "its weight is recomputed from other parameters (weight_norm, parametrize, prune)"
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            return "units of a grouped transposed convolution are not mapped to its bias"
        if layer.units != len(layer.rows):
            return "its units are not rows of its weight one by one"
        return None

    def _parameters_refusal(self, layer: Layer, outgoing: Outgoing) -> str | None:
        names = [layer.weight, *([layer.bias] if layer.bias else [])]
        for norm in layer.norms:
            names += [n for n in (norm.scale, norm.shift) if n]
            for buffer in norm.running:
                if buffer not in self.buffers:
                    return f"the model has no buffer {buffer!r}"
                if buffer.rpartition(".")[2] not in _RUNNING:
                    return f"no fresh value is known for the statistic {buffer!r}"
        if outgoing == "zero":
            for edge in self.topology.consumers(layer.name):
                names.append(edge.weight)
                consumer = self.topology.layers.get(edge.consumer)
                if consumer is not None and consumer.aliases:
                    return f"its consumer {edge.consumer!r} has a tied weight"
        return next((r for r in map(self._parameter_refusal, names) if r), None)

    def _parameter_refusal(self, name: str) -> str | None:
        param = self.parameters.get(name)
        if param is None:
            return f"the model has no parameter {name!r}: it is recomputed or was replaced"
        distributed = sys.modules.get("torch.distributed.tensor")
        if distributed is not None and isinstance(param, distributed.DTensor):
            return f"{name!r} is a DTensor; edits of a sharded tensor by index are lost"
        if param.is_meta or not param.is_floating_point() or param.layout != torch.strided:
            return f"{name!r} is not a dense floating-point tensor on a real device"
        if not param.requires_grad:
            return f"{name!r} is frozen"
        if param not in self.owners:
            return f"{name!r} is held by none of the optimizers; give all of them"
        optimizer = self.owners[param]
        return rule_for(optimizer).refusal(optimizer, param)

    def _initial_refusal(self, layer: Layer, initial: Initials) -> str | None:
        if isinstance(initial, Mapping):
            return None if layer.weight in initial else f"the initial state has no {layer.weight!r}"
        return check_initial(self.modules[layer.module], initial)

    # -- plan -----------------------------------------------------------------------------------
    def plan(
        self,
        selection: Mapping[str, Tensor],
        *,
        seed: int,
        step: int,
        outgoing: Outgoing = "zero",
        initial: Initials = "auto",
        bias: Bias = "fresh",
        means: Mapping[str, Tensor] | None = None,
    ) -> ResetPlan:
        """See `plan_reset`."""
        if outgoing not in ("zero", "keep") or bias not in ("zero", "fresh"):
            raise InputError("outgoing is 'zero' or 'keep', bias 'zero' or 'fresh'", found=(outgoing, bias))
        chosen: dict[str, Tensor] = {}
        for name, units in selection.items():
            reason = self.refusal(name, outgoing, initial)
            if reason is not None:
                raise TopologyError(f"units of layer {name!r} cannot be reset", found=reason, where=name)
            chosen[name] = self._units(name, units)
            partner = self.topology.layers[name].gate_partner
            if partner is not None and len(chosen[name]):
                chosen[partner] = torch.unique(torch.cat([chosen.get(partner, chosen[name]), chosen[name]]))
        writes: list[_Write] = []
        events: list[ResetEvent] = []
        for name in self.topology.layers:  # one order for every rank, that of the trace
            units = chosen.get(name)
            if units is None or not len(units):
                continue
            layer = self.topology.layers[name]
            writes += self._incoming(layer, units, seed, step, initial, bias)
            removed = None
            if outgoing == "zero":
                removed = self._removed(layer, units)
                writes += self._outgoing(layer, units, means)
            events.append(ResetEvent(step, name, tuple(units.tolist()), outgoing, removed))
        return ResetPlan(events, writes)

    def _removed(self, layer: Layer, units: Tensor) -> float:
        """The largest share of a consumer's weight that these units' columns are."""
        shares = []
        for edge in self.topology.consumers(layer.name):
            weight = self.parameters[edge.weight].detach()
            columns = weight[edge_slice(edge, units).to(weight.device).at]
            norms = torch.stack([torch.linalg.vector_norm(t.float()) for t in (columns, weight)])
            shares.append(norms[0] / norms[1].clamp(min=torch.finfo(torch.float32).tiny))
        return float(torch.stack(shares).max()) if shares else 0.0

    def plan_layers(
        self,
        names: Sequence[str],
        *,
        seed: int,
        step: int,
        initial: Initials = "auto",
        bias: Bias = "fresh",
    ) -> ResetPlan:
        """All rows of whole layers, outputs included; what reads them is kept."""
        writes: list[_Write] = []
        events: list[ResetEvent] = []
        for name in names:
            reason = self.layer_refusal(name, initial)
            if reason is not None:
                raise TopologyError(f"layer {name!r} cannot be reset", found=reason, where=name)
            layer = self.topology.layers[name]
            writes += self._incoming(layer, torch.arange(layer.units), seed, step, initial, bias)
            events.append(ResetEvent(step, name, tuple(range(layer.units)), "keep"))
        return ResetPlan(events, writes)

    def layer_refusal(self, name: str, initial: Initials = "auto") -> str | None:
        """Why a whole layer cannot be reset, or None. Raises `OptimizerRuleError`."""
        layer = self.topology.layers.get(name)
        if layer is None:
            return "the topology has no such layer"
        return (
            layer.lock
            or self._structure_refusal(layer)
            or self._parameters_refusal(layer, "keep")
            or self._initial_refusal(layer, initial)
        )

    def plan_blend(
        self, rates: Mapping[str, Tensor], *, seed: int, step: int, initial: Initials = "auto"
    ) -> ResetPlan:
        """W_in <- (1 - r) W_in + r fresh and W_out <- (1 - r) W_out, r (U,) a rate of each unit.

        Biases, norms and optimizer state are kept. Layers in the order of the trace, each on the result of
        the ones before it. Events list the units with r > 0; ``outgoing`` is "shrink".
        """
        writes: list[_Write] = []
        events: list[ResetEvent] = []
        for name in self.topology.layers:
            if name not in rates or not bool((rates[name] > 0).any()):
                continue
            reason = self.refusal(name, "zero", initial)
            if reason is not None:
                raise TopologyError(f"units of layer {name!r} cannot be reset", found=reason, where=name)
            layer, rate = self.topology.layers[name], rates[name]
            writes += self._blend_incoming(layer, rate, seed, step, initial)
            for unit_rates, where, edge in self._by_column(layer, rate):
                weight = self.parameters[edge.weight]
                keep = 1.0 - _along(unit_rates.to(weight), edge.dim, weight.dim(), where)
                writes.append(_Write(edge.weight, weight, where.to(weight.device), 0.0, keep=keep))
            units = torch.nonzero(rate > 0).flatten().tolist()
            events.append(ResetEvent(step, name, tuple(units), "shrink"))
        return ResetPlan(events, writes)

    def _blend_incoming(
        self, layer: Layer, rate: Tensor, seed: int, step: int, initial: Initials
    ) -> list[_Write]:
        units = torch.arange(layer.units)
        fresh = self._incoming(replace(layer, bias=None, norms=()), units, seed, step, initial, "zero")
        mixed = []
        for write in fresh:
            share = _along(rate.to(write.target), layer.unit_dim, write.target.dim(), write.where)
            mixed.append(replace(write, values=share * write.values, keep=1.0 - share, optimizer=None))
        return mixed

    def _by_column(self, layer: Layer, rate: Tensor) -> list[tuple[Tensor, Slice, Edge]]:
        """For each consumer: the rate of the unit behind each of the positions that a slice names."""
        found = []
        for edge in self.topology.consumers(layer.name):
            columns = torch.from_numpy(edge.columns)
            units = torch.from_numpy(edge.units)[:, None].expand_as(columns)
            if edge.rows is None:
                keep = columns >= 0
                found.append((rate[units[keep].to(rate.device)], Slice(edge.dim, columns[keep]), edge))
                continue
            rows = torch.from_numpy(edge.rows)[:, :, None]
            first, second = torch.broadcast_tensors(rows, columns[:, None, :])
            owner = units[:, None, :].expand_as(first)
            keep = (first >= 0) & (second >= 0)
            pair = (first[keep], second[keep]) if edge.dim == 1 else (second[keep], first[keep])
            found.append((rate[owner[keep].to(rate.device)], Slice(0, *pair), edge))
        return found

    def _units(self, name: str, units: Tensor) -> Tensor:
        units = torch.as_tensor(units)
        count = self.topology.layers[name].units
        whole = units.dim() == 1 and not units.is_floating_point() and units.dtype != torch.bool
        if not whole or (len(units) and (int(units.min()) < 0 or int(units.max()) >= count)):
            raise InputError(
                "units are integer positions in a layer",
                found=f"{units.dtype} {tuple(units.shape)} {units.tolist()[:8]}",
                where=name,
                do=f"give a one-dimensional LongTensor with values from 0 to {count - 1}",
            )
        return torch.unique(units.to("cpu", torch.int64))

    def _owned(self, name: str, where: Slice, values: Tensor | float) -> _Write:
        param = self.parameters[name]
        return _Write(name, param, where.to(param.device), values, self.owners[param])

    def _incoming(
        self, layer: Layer, units: Tensor, seed: int, step: int, initial: Initials, bias: Bias
    ) -> list[_Write]:
        module = self.modules[layer.module]
        rows = torch.from_numpy(layer.rows)[units]
        writes = []
        for name, where in (
            (layer.weight, Slice(layer.unit_dim, rows)),
            (layer.bias, Slice(0, rows)),
        ):
            if name is None:
                continue
            if name == layer.bias and bias == "zero":
                writes.append(self._owned(name, where, 0.0))
                continue
            law = initial.get(name, "auto") if isinstance(initial, Mapping) else initial
            keyed = generator(seed, step, f"{layer.name}/{name.rpartition('.')[2]}")
            fresh = draw(module, name.rpartition(".")[2], keyed, law)
            writes.append(self._owned(name, where, fresh[where.to(fresh.device).at]))
        for norm in layer.norms:
            writes += self._norm(norm, units)
        return writes

    def _norm(self, norm: Norm, units: Tensor) -> list[_Write]:
        index = torch.from_numpy(norm.index)[units]
        where = Slice(0, index[index >= 0])  # -1: the norm does not see this unit
        writes = [self._owned(n, where, v) for n, v in ((norm.scale, 1.0), (norm.shift, 0.0)) if n]
        for name in norm.running:
            buffer = self.buffers[name]
            writes.append(_Write(name, buffer, where.to(buffer.device), _RUNNING[name.rpartition(".")[2]]))
        return writes

    def _outgoing(self, layer: Layer, units: Tensor, means: Mapping[str, Tensor] | None) -> list[_Write]:
        writes = []
        for edge in self.topology.consumers(layer.name):
            where = edge_slice(edge, units)
            if means is not None and len(where.index):
                writes.append(self._bias_transfer(edge, where, means))
            writes.append(self._owned(edge.weight, where, 0.0))
        return writes

    def _bias_transfer(self, edge: Edge, where: Slice, means: Mapping[str, Tensor]) -> _Write:
        """Move the units' average contribution into the consumer's bias: b += sum_c W[:, c] mean(x_c)."""
        consumer = self.topology.layers[edge.consumer]
        reason = transfer_refusal(consumer, edge)
        if reason is not None or consumer.bias is None or edge.consumer not in means:
            raise TopologyError(
                "the mean contribution of a unit cannot move into its consumer's bias",
                found=reason or f"no mean input of {edge.consumer!r} was given",
                where=edge.consumer,
                do="switch the bias transfer off",
            )
        weight, bias = self.parameters[edge.weight], self.parameters[consumer.bias]
        columns = weight.detach()[where.to(weight.device).at]
        taps = columns.flatten(2).sum(-1) if columns.dim() > 2 else columns
        if edge.dim == 0:
            taps = taps.T
        mean = means[edge.consumer].to(bias)[where.index.to(bias.device)]
        everywhere = Slice(0, torch.arange(len(bias), device=bias.device))
        return _Write(consumer.bias, bias, everywhere, taps @ mean, keep=1.0)


def _along(values: Tensor, dim: int, dims: int, where: Slice) -> Tensor:
    """(m,) one value for each position of the slice, shaped to multiply what ``where.at`` picks."""
    if where.cells is not None:  # two axes were picked as one
        return values.view(-1, *([1] * (dims - 2)))
    return values.view(*([1] * dim), -1, *([1] * (dims - dim - 1)))


_RUNNING = {"running_mean": 0.0, "running_var": 1.0}


def transfer_refusal(consumer: Layer, edge: Edge) -> str | None:
    """Why a mean contribution cannot move into the bias of this consumer, or None."""
    if consumer.bias is None:
        return f"{consumer.name!r} has no bias"
    if edge.rows is not None or consumer.part:
        return f"{consumer.name!r} reads its inputs in groups or is one block of a packed weight"
    return None


def edge_slice(edge: Edge, units: Tensor) -> Slice:
    """The part of the consumer's weight that reads these units."""
    picked = torch.isin(torch.from_numpy(edge.units), units)
    columns = torch.from_numpy(edge.columns)[picked]
    if edge.rows is None:
        return along(edge.dim, columns[columns >= 0])
    rows = torch.from_numpy(edge.rows)[picked]
    pairs = torch.broadcast_tensors(rows[:, :, None], columns[:, None, :])
    keep = (pairs[0] >= 0) & (pairs[1] >= 0)
    first, second = (pairs[0][keep], pairs[1][keep])
    return Slice(0, first, second) if edge.dim == 1 else Slice(0, second, first)


def plan_reset(
    model: nn.Module,
    optimizers: Optimizers,
    topology: Topology,
    selection: Mapping[str, Tensor],
    *,
    seed: int,
    step: int,
    outgoing: Outgoing = "zero",
    initial: Initials = "auto",
    bias: Bias = "fresh",
    means: Mapping[str, Tensor] | None = None,
) -> ResetPlan:
    """Check a reset and draw its fresh values; nothing is written before `ResetPlan.apply_`.

    Args:
        model: owner of the parameters named in ``topology``.
        optimizers: one or several; together they must hold every parameter that is written.
        topology: from `supple.topology.trace`.
        selection: layer name -> (k,) LongTensor of units. Partners of gated units follow on their own.
        seed, step: with the layer's name the key of the random draws; equal on every rank.
        outgoing: "zero" leaves the network's outputs unchanged if the units were silent; "keep" does not.
        initial: see `supple.fresh.draw`; a mapping is the model's initial `state_dict`: its laws are copied.
        bias: "fresh" draws the class default, "zero" is what the papers on resets use.
        means: consumer name -> mean of each of its inputs; then the mean contribution of the units moves
            into the consumer's bias (exact for constant units, except at padded borders of a convolution).

    Returns:
        A `ResetPlan`. Its events list layer and units.

    Raises:
        TopologyError: a layer is unknown or cannot be reset, with the reason.
        InputError: unit positions out of range, unknown option.
        OptimizerRuleError: an optimizer without a rule, by class name.
    """
    engine = ResetEngine(model, optimizers, topology)
    return engine.plan(
        selection, seed=seed, step=step, outgoing=outgoing, initial=initial, bias=bias, means=means
    )
