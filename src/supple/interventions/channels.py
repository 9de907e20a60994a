"""Where the units of a layer can be read in training: which module, which channels of its input or output.

Letters: C channels of a tensor, U units, n units on an edge, k channels per unit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supple.interventions.engine import ResetEngine
from supple.layouts import is_linear, linear_size
from supple.topology.graph import Edge, Layer

_BATCH_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Site:
    """A module at which channels can be read, and which of them belong to which unit."""

    module: str
    width: int  # C
    units: Tensor  # (n,) int64
    channels: Tensor  # (n, k) int64 into C; -1 pads
    edge: Edge | None = None

    def gather(self, values: Tensor, size: int) -> Tensor:
        """(C,) -> (U,): the sum over each unit's channels; 0 for units that are not read here."""
        n, k = self.channels.shape
        if n == size and k * n == len(values) and self._ordered:
            return values if k == 1 else values.view(n, k).sum(1)
        channels = self.channels.to(values.device)
        picked = values[channels.clamp(min=0)].masked_fill(channels < 0, 0.0).sum(1)
        return values.new_zeros(size).index_add_(0, self.units.to(values.device), picked)

    def spread(self, values: Tensor) -> Tensor:
        """(U,) -> (C,): each unit's value at all of its channels, 0 elsewhere."""
        channels = self.channels.to(values.device)
        n, k = channels.shape
        per_channel = values[self.units.to(values.device)][:, None].expand(n, k)
        keep = channels >= 0
        result = values.new_zeros(self.width)
        result[channels[keep]] = per_channel[keep]
        return result

    @functools.cached_property
    def _ordered(self) -> bool:
        """Units one after the other, each with its channels side by side: no gathering is needed."""
        n, k = self.channels.shape
        whole = torch.arange(n * k).view(n, k)
        return torch.equal(self.channels, whole) and torch.equal(self.units, torch.arange(n))


def channel_dim(module: nn.Module, value: Tensor) -> int:
    """The axis of the channels in what such a module reads or gives."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return value.dim() - len(module.kernel_size) - 1
    if isinstance(module, _BATCH_NORMS):
        return 1
    return value.dim() - 1


def _readable(module: nn.Module) -> bool:
    return (
        is_linear(module)
        or isinstance(module, (nn.modules.conv._ConvNd, *_BATCH_NORMS))
        or (isinstance(module, _LAST_NORMS) and len(module.normalized_shape) == 1)
    )


def _width(module: nn.Module, side: str) -> int:
    """Channels that a readable module reads ("in") or gives ("out")."""
    if isinstance(module, _LAST_NORMS):
        return int(module.normalized_shape[0])
    if is_linear(module):
        return linear_size(module)[side == "out"]
    names = (f"{side}_features", f"{side}_channels", "num_features", "num_channels")
    return next(int(getattr(module, n)) for n in names if hasattr(module, n))


def consumer_sites(engine: ResetEngine, layer: Layer) -> list[Site] | str:
    """The inputs of all consumers of a layer, or why they cannot be read there."""
    sites = []
    for edge in engine.topology.consumers(layer.name):
        consumer = engine.topology.layers.get(edge.consumer)
        module = None if consumer is None else engine.modules.get(consumer.module)
        if module is None or consumer is None or consumer.part or not _readable(module):
            return f"its consumer {edge.consumer!r} has no input of its own that could be read"
        parent = engine.modules.get(consumer.module.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            return f"its consumer {edge.consumer!r} is never called: {type(parent).__name__} reads the weight itself"
        channels = torch.from_numpy(edge.columns)
        width = _width(module, "in")
        if edge.rows is not None:
            groups, out = int(getattr(module, "groups", 1)), int(getattr(module, "out_channels", 0))
            group = torch.from_numpy(edge.rows)[:, :1] // max(out // groups, 1)
            channels = torch.where(channels >= 0, channels + group * (width // groups), channels)
        sites.append(Site(consumer.module, width, torch.from_numpy(edge.units), channels, edge))
    return sites


def activation_sites(engine: ResetEngine, layer: Layer) -> list[Site] | str:
    """Where a layer's activations are as the nonlinearity gave them: before a norm that follows it."""
    for norm in layer.norms if layer.stream is None else ():  # a stream is read at several depths
        if not norm.before_activation:
            module = engine.modules.get(norm.module)
            if module is None or not _readable(module):
                return f"the norm {norm.module!r} after its activation cannot be read"
            index = torch.from_numpy(norm.index)
            return [Site(norm.module, _width(module, "in"), torch.arange(layer.units), index[:, None])]
    return consumer_sites(engine, layer)


def preactivation_site(engine: ResetEngine, layer: Layer) -> Site | str:
    """The module whose output the nonlinearity reads: the layer, or the last norm before the activation."""
    module = engine.modules[layer.module]
    if layer.members:
        return "a head has no pre-activation"
    if layer.part or not (is_linear(module) or isinstance(module, nn.modules.conv._ConvNd)):
        return "its pre-activations are not the output of a module"
    path, index = layer.module, torch.from_numpy(layer.rows)
    for norm in layer.norms:
        if norm.before_activation:
            found = engine.modules.get(norm.module)
            if found is None or not _readable(found):
                return f"the norm {norm.module!r} before its activation cannot be read"
            path, module, index = norm.module, found, torch.from_numpy(norm.index)
    return Site(path, _width(module, "out"), torch.arange(layer.units), index[:, None])
