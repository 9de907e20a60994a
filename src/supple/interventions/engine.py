"""The reset engine: check everything, then write everything, or nothing.

A unit is re-born by four writes: its incoming row (and bias) is drawn afresh, its entries in the norm layers
that belong to it return to scale 1 and shift 0 (running mean 0, variance 1), the columns that read it become
zero (or are kept), and the optimizer's state of exactly those slices becomes that of a fresh optimizer.
Layers are handled in the order of the trace, as in the published loops: where the column of one reset unit
crosses the row of a later one, the row's fresh value stands (that unit's own outgoing weights are zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from supple.errors import InputError, TopologyError
from supple.fresh import draw, generator
from supple.interventions.columns import edge_slice, shaped, transfer_refusal
from supple.interventions.handle import Optimizers
from supple.interventions.reset_checks import RUNNING, Bias, Initials, Outgoing, ResetChecks, by_norm
from supple.interventions.reset_plan import ResetEvent, ResetPlan, Write
from supple.interventions.slices import NO_SLICE, Slice, flat_slice
from supple.topology.graph import Edge, Layer, Norm, Topology
from supple.topology.heads import member_units


class ResetEngine(ResetChecks):
    """Plans resets: what is written where, and the fresh values; see the head of this file."""

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
        writes: list[Write] = []
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
        writes: list[Write] = []
        events: list[ResetEvent] = []
        for name in names:
            reason = self.layer_refusal(name, initial)
            if reason is not None:
                raise TopologyError(f"layer {name!r} cannot be reset", found=reason, where=name)
            layer = self.topology.layers[name]
            writes += self._incoming(layer, torch.arange(layer.units), seed, step, initial, bias)
            events.append(ResetEvent(step, name, tuple(range(layer.units)), "keep"))
        return ResetPlan(events, writes)

    def plan_blend(
        self, rates: Mapping[str, Tensor], *, seed: int, step: int, initial: Initials = "auto"
    ) -> ResetPlan:
        """W_in <- (1 - r) W_in + r fresh and W_out <- (1 - r) W_out, r (U,) a rate of each unit.

        Biases, norms and optimizer state are kept. Layers in the order of the trace, each on the result of
        the ones before it. Events list the units with r > 0; ``outgoing`` is "shrink".
        """
        writes: list[Write] = []
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
                keep = 1.0 - shaped(unit_rates.to(weight), edge.dim, weight.dim(), where)
                writes.append(Write(edge.weight, weight, where.to(weight.device), 0.0, keep=keep))
            units = torch.nonzero(rate > 0).flatten().tolist()
            events.append(ResetEvent(step, name, tuple(units), "shrink"))
        return ResetPlan(events, writes)

    def _blend_incoming(
        self, layer: Layer, rate: Tensor, seed: int, step: int, initial: Initials
    ) -> list[Write]:
        if layer.members:
            return [
                w
                for m, rates in self._member_rates(layer, rate)
                for w in self._blend_incoming(m, rates, seed, step, initial)
            ]
        units = torch.arange(layer.units)
        fresh = self._incoming(replace(layer, bias=None, norms=()), units, seed, step, initial, "zero")
        mixed = []
        for write in fresh:
            share = shaped(rate.to(write.target), layer.unit_dim, write.target.dim(), write.where)
            mixed.append(replace(write, values=share * write.values, keep=1.0 - share, optimizer=None))
        return mixed

    def _member_rates(self, layer: Layer, rate: Tensor) -> list[tuple[Layer, Tensor]]:
        """Each layer behind heads, with the rate of the head that each of its units belongs to."""
        found = []
        for name, units in layer.members:
            member = self.topology.layers[name]
            rates = rate.new_zeros(member.units)
            rates[torch.from_numpy(units).to(rate.device)] = rate[:, None].expand(units.shape)
            found.append((member, rates))
        return found

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

    def _owned(self, name: str, where: Slice, values: Tensor | float) -> Write:
        param = self.parameters[name]
        return Write(name, param, where.to(param.device), values, self.owners[param])

    def _incoming(
        self, layer: Layer, units: Tensor, seed: int, step: int, initial: Initials, bias: Bias
    ) -> list[Write]:
        if layer.members:
            parts = member_units(layer, units.numpy()).items()
            layers = ((self.topology.layers[name], torch.from_numpy(part)) for name, part in parts)
            return [w for x, part in layers for w in self._incoming(x, part, seed, step, initial, bias)]
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
            matrix = self.parameters[name].dim() == 2 and layer.kind != "embedding"
            fresh = draw(module, name.rpartition(".")[2], keyed, law, matrix and layer.unit_dim == 1)
            writes.append(self._owned(name, where, fresh[where.to(fresh.device).at]))
        for same in by_norm(layer.norms):
            writes += self._norm(same, units)
        return writes

    def _norm(self, same: list[Norm], units: Tensor) -> list[Write]:
        """Entries of one norm back to fresh: one for each unit, or several where it has one for each position."""
        norm, index = same[0], torch.stack([torch.from_numpy(n.index) for n in same])
        spared = torch.ones(index.shape[1], dtype=torch.bool)
        spared[units] = False
        reset = torch.unique(index[:, ~spared])
        # an entry that other units use as well (one scale for all heads) stays; -1: the norm does not see the unit
        reset = reset[(reset >= 0) & ~torch.isin(reset, index[:, spared])]
        held = (norm.scale, norm.shift, *norm.running)
        shape = next((self.parameters if n in self.parameters else self.buffers)[n].shape for n in held if n)
        where = flat_slice(shape, reset)
        if where is None:
            raise TopologyError(NO_SLICE, found=f"shape {tuple(shape)}", where=norm.module)
        writes = [self._owned(n, where, v) for n, v in ((norm.scale, norm.neutral), (norm.shift, 0.0)) if n]
        for name in norm.running:
            buffer = self.buffers[name]
            writes.append(Write(name, buffer, where.to(buffer.device), RUNNING[name.rpartition(".")[2]]))
        return writes

    def _outgoing(self, layer: Layer, units: Tensor, means: Mapping[str, Tensor] | None) -> list[Write]:
        writes = []
        for edge in self.topology.consumers(layer.name):
            where = edge_slice(edge, units)
            if means is not None and len(where.index):
                writes.append(self._bias_transfer(edge, where, means))
            writes.append(self._owned(edge.weight, where, 0.0))
        return writes

    def _bias_transfer(self, edge: Edge, where: Slice, means: Mapping[str, Tensor]) -> Write:
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
        return Write(consumer.bias, bias, everywhere, taps @ mean, keep=1.0)


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
    streams: bool = False,
) -> ResetPlan:
    """Check a reset and draw its fresh values; nothing is written before `ResetPlan.apply_`.

    Args:
        model: owner of the parameters named in ``topology``.
        optimizers: one or several; together they must hold every parameter that is written.
        topology: from `supple.topology.trace`; of `supple.topology.with_heads` for heads as units.
        selection: layer name -> (k,) LongTensor of units. Partners of gated units follow on their own.
        seed, step: with the layer's name the key of the random draws; equal on every rank.
        outgoing: "zero" leaves the network's outputs unchanged if the units were silent; "keep" does not.
        initial: see `supple.fresh.draw`; a mapping is the model's initial `state_dict`: its laws are copied.
        bias: "fresh" draws the class default, "zero" is what the papers on resets use.
        means: consumer name -> mean of each of its inputs; then the mean contribution of the units moves
            into the consumer's bias (exact for constant units, except at padded borders of a convolution).
        streams: whether units on a residual stream may be reset: all that reads the stream at their channel,
            also past later blocks, is a consumer. What other layers wrote to this channel is then unread too.

    Returns:
        A `ResetPlan`. Its events list layer and units.

    Raises:
        TopologyError: a layer is unknown or cannot be reset, with the reason.
        InputError: unit positions out of range, unknown option.
        OptimizerRuleError: an optimizer without a rule, by class name.
    """
    engine = ResetEngine(model, optimizers, topology, streams)
    return engine.plan(
        selection, seed=seed, step=step, outgoing=outgoing, initial=initial, bias=bias, means=means
    )
