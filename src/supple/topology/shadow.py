"""Beside each storage a shadow of ids: views, slices and in-place writes need no rule of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from supple.errors import TopologyError
from supple.topology.ids import LOST, PARAM


@dataclass(frozen=True)
class Path:
    """What happened to the units of one layer between the layer and a tensor."""

    acts: frozenset[str | None] = frozenset({None})  # nonlinearities; None: also reached without one
    ops: tuple[str, ...] = ()
    offset: bool = False  # zero in no longer means zero here (a constant was added, a cosine taken)

    def then(self, op: str, offset: bool = False) -> Path:
        ops = self.ops if not op or op in self.ops else (*self.ops, op)
        return Path(self.acts, ops, self.offset or offset)

    def shifted(self, op: str) -> Path:
        """An affine map with a learned shift: before the first nonlinearity it is the unit's own."""
        return self.then(op, None not in self.acts)

    def activated(self, name: str, offset: bool) -> Path:
        acts = frozenset(name if a is None else a for a in self.acts)
        late = None not in self.acts  # before and in the first nonlinearity it is the unit's own
        return Path(acts, self.then(name).ops, late and (self.offset or offset))

    def merge(self, other: Path) -> Path:
        ops = (*self.ops, *(o for o in other.ops if o not in self.ops))
        return Path(self.acts | other.acts, ops, self.offset or other.offset)


Paths = dict[int, Path]  # site -> path


def merge_paths(*many: Paths) -> Paths:
    """One path for each site, joining where several tensors carry it."""
    out: Paths = {}
    for paths in many:
        for site, path in paths.items():
            out[site] = out[site].merge(path) if site in out else path
    return out


@dataclass
class Meta:
    """The shadow of one storage: ``ids`` flat (None: all constant), or a parameter's own elements."""

    itemsize: int
    ids: Tensor | None = None
    base: int = 0  # id of element 0 where the storage belongs to a parameter and ids are implied
    paths: Paths = field(default_factory=dict)
    weights: bool = False  # holds elements of parameters
    computed: bool = False  # … which a computation changed


class Shadows:
    """Storage -> `Meta`, found by identity; a weak reference keeps the address from being reused."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._table: dict[int, tuple[StorageWeakRef, Meta]] = {}
        self._join = join  # what the two halves of a complex number become
        self._writes = 0

    def key(self, tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def meta(self, tensor: Tensor) -> Meta | None:
        """The shadow of the tensor's storage; None where the storage was never seen."""
        entry = self._table.get(self.key(tensor))
        return entry[1] if entry else None

    def put(self, tensor: Tensor, meta: Meta) -> Meta:
        self._writes += 1
        if self._writes % 512 == 0:
            self._table = {k: v for k, v in self._table.items() if not v[0].expired()}
        self._table[self.key(tensor)] = (StorageWeakRef(tensor.untyped_storage()), meta)
        return meta

    def constant(self, tensor: Tensor) -> None:
        self.put(tensor, Meta(tensor.element_size()))

    def parameter(self, tensor: Tensor, base: int) -> None:
        self.put(tensor, Meta(tensor.element_size(), base=base, weights=True))

    def read(self, tensor: Tensor) -> Tensor | None:
        """Ids of every element, in the shape of the tensor; None where all are constant."""
        meta = self.meta(tensor)
        if meta is None:
            return torch.full((1,) * tensor.dim(), LOST).expand(tensor.shape)
        if meta.ids is None and not meta.base:
            return None
        if tensor.element_size() == 2 * meta.itemsize and tensor.is_complex() and meta.ids is not None:
            return self._complex_view(tensor, meta.ids)
        if tensor.element_size() * 2 == meta.itemsize and meta.ids is not None:
            return self._real_view(tensor, meta.ids)
        if tensor.element_size() != meta.itemsize:
            raise TopologyError("a tensor was viewed with another element size", found=tensor.dtype)
        if meta.ids is None:
            ids = torch.full((), meta.base + int(tensor.storage_offset()), dtype=torch.int64)
            for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
                shape = [1] * tensor.dim()
                shape[dim] = size
                ids = ids + (torch.arange(size) * stride).reshape(shape)
            return ids.expand(tensor.shape)
        return meta.ids.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _complex_view(self, tensor: Tensor, ids: Tensor) -> Tensor:
        stride, start = [2 * s for s in tensor.stride()], 2 * int(tensor.storage_offset())
        real = ids.as_strided(tensor.shape, stride, start)
        return self._join(real, ids.as_strided(tensor.shape, stride, start + 1)).expand(tensor.shape)

    def _real_view(self, tensor: Tensor, ids: Tensor) -> Tensor:
        twice = ids.repeat_interleave(2)
        return twice.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def write(
        self, tensor: Tensor, ids: Tensor | None, paths: Paths | None = None, computed: bool = False
    ) -> None:
        """Set the ids of a tensor (broadcast to its shape); other elements of its storage keep theirs."""
        meta = self.meta(tensor)
        numel = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
        whole = tensor.numel() == numel and tensor.is_contiguous()
        if ids is not None and not bool(ids.any()):
            ids = None
        if ids is None and (meta is None or whole):
            self.constant(tensor)
            return
        if meta is None or whole:
            meta = self.put(tensor, Meta(tensor.element_size()))
        value = torch.zeros((), dtype=torch.int64) if ids is None else ids
        if whole:
            meta.ids = value.expand(tensor.shape).reshape(-1).contiguous()
            meta.paths = dict(paths or {})
        else:
            if meta.ids is None:
                start = (
                    torch.arange(numel) + meta.base if meta.base else torch.zeros(numel, dtype=torch.int64)
                )
                meta.ids, meta.base = start, 0
            meta.ids.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(value)
            meta.paths = merge_paths(meta.paths, paths or {})
        meta.weights = bool((value >= PARAM).any()) or (meta.weights and not whole)
        meta.computed = meta.computed or computed

    def unique(self, tensor: Tensor) -> list[int]:
        """The different ids of a tensor."""
        ids = self.read(tensor)
        return [] if ids is None else np.unique(ids.numpy()).tolist()
