"""Why a reset may not be done: asked before anything is drawn or written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.fresh import Initial, check_initial, rule_for
from supple.interventions.handle import Optimizers, optimizer_list
from supple.interventions.slices import NO_SLICE, flat_slice
from supple.layouts import is_linear
from supple.topology.graph import Layer, Norm, Topology

Outgoing: TypeAlias = Literal["zero", "keep"]
Bias: TypeAlias = Literal["zero", "fresh"]
#: one law for every layer, or the initial `state_dict` of the model, whose laws are read off
Initials: TypeAlias = Initial | Mapping[str, Tensor]
#: what the statistics of a norm return to
RUNNING = {"running_mean": 0.0, "running_var": 1.0}


def by_norm(norms: Iterable[Norm]) -> list[list[Norm]]:
    """Entries of the same affine vectors together: a norm over channels and positions has several for a unit."""
    found: dict[tuple[object, ...], list[Norm]] = {}
    for norm in norms:
        found.setdefault((norm.scale, norm.shift, norm.running), []).append(norm)
    return list(found.values())


class ResetChecks:
    """The names and owners of a model's parameters, kept so that a check costs little when many are made."""

    def __init__(
        self, model: nn.Module, optimizers: Optimizers, topology: Topology, streams: bool = False
    ) -> None:
        self.model, self.topology, self.streams = model, topology, streams
        self.optimizers = optimizer_list(optimizers)
        self.parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self.buffers: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._refusals: dict[str, str | None] = {}
        self.owners: dict[Tensor, Optimizer] = {}
        for optimizer in reversed(self.optimizers):
            for group in optimizer.param_groups:
                self.owners.update(dict.fromkeys(group["params"], optimizer))

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
        members = (self.topology.layers[member] for member, _ in layer.members)
        return next((r for m in members if (r := self._rows_refusal(m, initial))), None)

    def _rows_refusal(self, layer: Layer, initial: Initials) -> str | None:
        """Why the incoming weights of a layer cannot be drawn afresh, or None."""
        return (
            self._structure_refusal(layer)
            or self._parameters_refusal(layer, "keep")
            or self._initial_refusal(layer, initial)
        )

    def _topology_refusal(self, name: str) -> str | None:
        """The topology does not change: asked once for each layer."""
        if name not in self._refusals:
            self._refusals[name] = self.topology.reset_refusal(name, self.streams)
        return self._refusals[name]

    def _structure_refusal(self, layer: Layer) -> str | None:
        module = self.modules.get(layer.module)
        if module is None:
            return f"the model has no module {layer.module!r}"
        if layer.aliases:
            return f"its weight is tied to {', '.join(layer.aliases)}"
        leaf = layer.weight.rpartition(".")[2]
        own = is_linear(module) or isinstance(module, nn.modules.conv._ConvNd)
        if (own and leaf != "weight") or hasattr(module, "parametrizations"):
            return "its weight is recomputed from other parameters (weight_norm, parametrize, prune)"
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            return "units of a grouped transposed convolution are not mapped to its bias"
        if layer.units != len(layer.rows):
            return "its units are not rows of its weight one by one"
        return None

    def _parameters_refusal(self, layer: Layer, outgoing: Outgoing) -> str | None:
        names = [layer.weight, *([layer.bias] if layer.bias else [])]
        for same in by_norm(layer.norms):
            if reason := self._entries_refusal(same):
                return reason
        for norm in layer.norms:
            names += [n for n in (norm.scale, norm.shift) if n]
            for buffer in norm.running:
                if buffer not in self.buffers:
                    return f"the model has no buffer {buffer!r}"
                if buffer.rpartition(".")[2] not in RUNNING:
                    return f"no fresh value is known for the statistic {buffer!r}"
        if outgoing == "zero":
            for edge in self.topology.consumers(layer.name):
                names.append(edge.weight)
                consumer = self.topology.layers.get(edge.consumer)
                if consumer is not None and consumer.aliases:
                    return f"its consumer {edge.consumer!r} has a tied weight"
        return next((r for r in map(self._parameter_refusal, names) if r), None)

    def _entries_refusal(self, same: list[Norm]) -> str | None:
        """Why the entries of single units cannot be written; a vector or a matrix has a slice for all of them."""
        scale = self.parameters.get(same[0].scale or same[0].shift or "")
        if scale is None or scale.dim() < 3:
            return None
        index = torch.stack([torch.from_numpy(n.index) for n in same])
        units = (torch.unique(column[column >= 0]) for column in index.T)
        return NO_SLICE if any(flat_slice(scale.shape, u) is None for u in units) else None

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

    def layer_refusal(self, name: str, initial: Initials = "auto") -> str | None:
        """Why a whole layer cannot be reset, or None. Raises `OptimizerRuleError`."""
        layer = self.topology.layers.get(name)
        if layer is None:
            return "the topology has no such layer"
        return layer.lock or self._rows_refusal(layer, initial)
