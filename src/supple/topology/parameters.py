"""Parameters by name and by element: which row and column of which weight a number was read from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from supple.errors import InputError, TopologyError
from supple.layouts import is_conv1d
from supple.topology.graph import IntArray
from supple.topology.ids import PARAM
from supple.topology.shadow import Shadows

#: modules whose ``weight`` is a weight matrix and nothing else
WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)


@dataclass
class Parameter:
    """One parameter of the model, whatever number of names it has."""

    tensor: nn.Parameter
    names: tuple[str, ...]  # the canonical name (as in ``named_parameters``) first
    start: int  # id of its first element in storage order
    roles: set[str] = field(default_factory=set)  # what the trace saw it do

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def span(self) -> int:
        """How many storage elements lie from its first to its last."""
        sizes = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return sum((n - 1) * stride for n, stride in sizes) + 1 if self.tensor.numel() else 0

    def owner(self, stack: tuple[str, ...] = ()) -> tuple[str, str]:
        """(module path, attribute), for the name of the module under way where there are several."""
        owned = [_split(name) for name in self.names]
        for path in reversed(stack):
            for module, attribute in owned:
                if module == path:
                    return module, attribute
        return owned[0]

    def flat(self, ids: IntArray) -> IntArray:
        """The index of each element in the order of a contiguous copy."""
        strides = [prod(self.tensor.shape[d + 1 :]) for d in range(self.tensor.dim())]
        places = np.zeros_like(ids)
        for coordinate, stride in zip(self.coordinates(ids), strides, strict=True):
            places = places + coordinate * stride
        return places

    def coordinates(self, ids: IntArray) -> list[IntArray]:
        """The index along each dimension of the parameter, for element ids of this parameter."""
        offset = ids - self.start
        out: list[IntArray] = [np.zeros_like(offset)] * self.tensor.dim()
        strides = self.tensor.stride()
        for dim in sorted(range(len(strides)), key=lambda d: -strides[d]):
            if self.tensor.shape[dim] > 1:
                out[dim], offset = offset // strides[dim], offset % strides[dim]
        return out


def _split(name: str) -> tuple[str, str]:
    """Module path and attribute; a parametrisation belongs to the module that it re-parametrises."""
    path, _, attribute = name.rpartition(".")
    head, found, tail = f".{name}".partition(".parametrizations.")
    if found:
        return head.lstrip("."), tail.split(".")[0]
    for suffix in ("_orig", "_v"):  # the older weight_norm, spectral_norm and prune
        if attribute == f"weight{suffix}":
            return path, "weight"
    return path, attribute


class Parameters:
    """All parameters of a model; element ids start at ``PARAM``."""

    def __init__(self, model: nn.Module, shadows: Shadows) -> None:
        self.items: list[Parameter] = []
        names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in model.named_parameters(remove_duplicate=False):
            names[id(tensor)].append(name)
        bases: dict[int, int] = {}
        top = PARAM
        for name, tensor in model.named_parameters():
            _check(name, tensor)
            key = shadows.key(tensor)
            if key not in bases:
                bases[key] = top
                shadows.parameter(tensor, top)
                top += max(tensor.untyped_storage().nbytes() // tensor.element_size(), 1)
            start = bases[key] + int(tensor.storage_offset())
            self.items.append(Parameter(tensor, tuple(names[id(tensor)]), start))
        self.items.sort(key=lambda p: p.start)
        self._starts = np.array([p.start for p in self.items], np.int64)

    def find(self, ids: IntArray) -> list[int]:
        """Indices of the parameters that these element ids belong to."""
        return np.unique(np.searchsorted(self._starts, ids, side="right") - 1).tolist()

    def of(self, ids: Tensor) -> list[int]:
        """The same for a tensor of ids; what is not a parameter element is passed over."""
        flat = ids[ids >= PARAM] if bool((ids < PARAM).any()) else ids
        return self.find(np.unique(flat.numpy())) if flat.numel() else []

    def only(self, ids: Tensor) -> int | None:
        """The one parameter that all elements belong to, or None."""
        if not ids.numel() or bool((ids < PARAM).any()):
            return None
        low, high = ids.min().item(), ids.max().item()
        found = self.find(np.array([low, high], np.int64))
        return found[0] if len(found) == 1 else None

    def neutral(self, ids: Tensor, values: Tensor, index: int) -> float | None:
        """What a scale must hold to leave a channel as it is: 0 where the model adds 1 to it (as Gemma does).

        ``values`` is what the channels met, ``ids`` the elements behind it; None where the two go together in
        a way that is not a sum with 1 or a multiple.
        """
        own = self.items[index].tensor.detach().reshape(-1)
        own = own[torch.from_numpy(self.items[index].flat(ids.reshape(-1).numpy())).to(own.device)]
        seen = values.detach().reshape(-1)
        eps = max(
            torch.finfo(t).eps for t in (own.dtype, seen.dtype, torch.float32)
        )  # of what was computed between
        own, seen = own.double(), seen.double()
        near = 4 * eps * (1 + own.abs())
        for added in (0.0, 1.0):
            if bool(((seen - own - added).abs() <= near).all()):
                return 1.0 - added
        factor = seen[0] / own[0]
        return 1.0 if bool(((seen - factor * own).abs() <= near * factor.abs()).all()) else None

    def axes(self, ids: Tensor, index: int) -> list[tuple[int, ...]]:
        """For each axis of ``ids``, the parameter's dimensions whose coordinate varies along it."""
        parameter = self.items[index]
        out = []
        for dim in range(ids.dim()):
            line = ids
            for other in range(ids.dim()):
                if other != dim:
                    line = line.narrow(other, 0, 1)
            coordinates = parameter.coordinates(line.reshape(-1).numpy())
            out.append(tuple(d for d, c in enumerate(coordinates) if len(c) and (c != c[0]).any()))
        return out

    def is_grid(self, ids: Tensor, index: int) -> bool:
        """Whether element [i, j, …] is a sum of per-axis offsets (an outer grid of rows and columns)."""
        total = ids
        corner = ids[(0,) * ids.dim()]
        guess = corner.clone()
        for dim in range(ids.dim()):
            line = ids
            for other in range(ids.dim()):
                if other != dim:
                    line = line.narrow(other, 0, 1)
            guess = guess + (line - corner)
        return bool((guess == total).all())


def refuse_scripted(model: nn.Module) -> None:
    """TorchScript hides what its modules do.

    >>> refuse_scripted(nn.Linear(1, 1))
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "a TorchScript module cannot be looked into",
            found=type(model).__name__,
            do="pass the module that it was made from",
        )


def refuse_empty(model: nn.Module) -> None:
    """Lazy and meta parameters hold nothing yet; running a lazy module would change the caller's model.

    >>> refuse_empty(nn.Linear(1, 1))
    """
    for name, parameter in model.named_parameters():
        _check(name, parameter)


def _check(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise InputError(
            "a lazy module has no weights yet",
            found=type(tensor).__name__,
            where=name,
            do="run the model once before tracing it",
        )
    if tensor.is_meta:
        raise InputError(
            "a parameter has no data", found="device meta", where=name, do="materialise the model"
        )
    if type(tensor.data) is not Tensor:
        raise TopologyError(
            "a parameter is a tensor subclass that cannot be traced",
            found=type(tensor.data).__name__,
            where=name,
            do="trace the plain model before sharding or quantising it",
        )


def is_weight_layer(module: nn.Module) -> bool:
    """Linear (in either layout), convolution, embedding, attention projections, or a subclass of one."""
    return isinstance(module, (*WEIGHT_LAYERS, nn.MultiheadAttention)) or is_conv1d(module)
