"""Where a number came from: interned ids, and the algebra that joins them.

Every element of every tensor carries one int64 id. ``CONST`` is a number without origin, ``LOST`` one
whose origin was not seen, ids from ``FIRST`` on are nodes of the table below, ids from ``PARAM`` on are
elements of parameters. A node is an atom (a unit of a layer, the network's input, an opaque result, a
statistic, an attention score) or joins two nodes (sum, product, other). Joins are interned and
directed: nothing is ever closed over, so what happened upstream on a stream stays upstream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from supple.topology.graph import IntArray

CONST, LOST, FIRST = 0, 1, 2
PARAM = 1 << 40

Sources = frozenset[int]  # indices of sites (layers) that an id depends on
NOTHING: Sources = frozenset()


class Kind(IntEnum):
    UNIT = 0  # a = site, b = unit
    INPUT = 1
    OPAQUE = 2
    STAT = 3  # a reduction over channels: loses against any id with an origin
    SCORE = 4  # an attention score: absorbs what is added to it
    SUM = 5  # from here on a, b are nodes
    GATE = 6
    MIX = 7


#: bits of a join: whether a column that reads it reads the left / right side alone
LEFT, RIGHT = 1, 2


class Table:
    """All ids of one trace."""

    def __init__(self) -> None:
        self._size = 0
        self._kind = np.zeros(1024, np.int8)
        self._bits = np.zeros(1024, np.int8)
        self._a = np.zeros(1024, np.int64)
        self._b = np.zeros(1024, np.int64)
        self.sources: list[Sources] = []
        self._interned: dict[tuple[int, int, int, int], int] = {}
        self._weak: dict[tuple[int, Sources], int] = {}
        self.links: set[Sources] = set()  # sites found together under one sum
        self.gates: list[tuple[int, int, int]] = []  # (left, right, side that was activated: -1, 0, 1)
        self.absorbed: set[int] = set()  # sites whose units were lost in an attention score
        self.input = self._append(Kind.INPUT, 0, 0, NOTHING)

    # -- atoms ----------------------------------------------------------------------------------
    def _reserve(self, count: int) -> int:
        start, self._size = self._size, self._size + count
        while self._size > len(self._kind):
            for name in ("_kind", "_bits", "_a", "_b"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        return start

    def _append(self, kind: Kind, a: int, b: int, sources: Sources, bits: int = 0) -> int:
        at = self._reserve(1)
        self._kind[at], self._a[at], self._b[at], self._bits[at] = kind, a, b, bits
        self.sources.append(sources)
        return at + FIRST

    def units(self, site: int, count: int) -> int:
        """Ids for the units of a site, in order; returns the first."""
        start = self._reserve(count)
        self._kind[start : self._size] = Kind.UNIT
        self._a[start : self._size] = site
        self._b[start : self._size] = np.arange(count)
        self.sources.extend([frozenset({site})] * count)
        return start + FIRST

    def opaque(self, sources: Sources) -> int:
        return self._append(Kind.OPAQUE, len(self.sources), 0, sources)

    def weak(self, kind: Kind, sources: Sources) -> int:
        """The statistic, or the attention score, of a set of sites."""
        key = (int(kind), sources)
        if key not in self._weak:
            self._weak[key] = self._append(kind, 0, 0, sources)
        return self._weak[key]

    # -- reading --------------------------------------------------------------------------------
    def kind(self, ids: IntArray) -> IntArray:
        """Kind of each node id."""
        return self._kind[ids - FIRST].astype(np.int64)

    def pair(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """The two fields of each node id: (site, unit) of a unit."""
        return self._a[ids - FIRST], self._b[ids - FIRST]

    def sources_of(self, ids: Iterable[int]) -> Sources:
        """Every site that any of these ids depends on."""
        found = {self.sources[i - FIRST] for i in ids if FIRST <= i < PARAM}
        return frozenset().union(*found)

    # -- joining --------------------------------------------------------------------------------
    def join(self, p: int, q: int, kind: Kind, bits: int = 0, active: int = -1) -> int:
        """The id of something computed from p and q (two different node ids)."""
        kinds = {self._kind[p - FIRST], self._kind[q - FIRST]}
        sources = self._merge(self.sources[p - FIRST], self.sources[q - FIRST])
        if Kind.SCORE in kinds:
            for strong in (p, q):
                if self._kind[strong - FIRST] not in (Kind.SCORE, Kind.STAT):
                    self.absorbed |= self.sources[strong - FIRST]
            return self.weak(Kind.SCORE, sources)
        if Kind.STAT in kinds:
            if kinds <= {Kind.STAT, Kind.INPUT}:
                return self.weak(Kind.STAT, sources)
            return q if self._kind[p - FIRST] == Kind.STAT else p
        key = (int(kind), bits, p, q)
        if key not in self._interned:
            self._interned[key] = self._append(kind, p, q, sources, bits)
            if kind is Kind.GATE:
                self.gates.append((p, q, active))
            elif len(sources) > 1 or (sources and kinds & {Kind.INPUT, Kind.OPAQUE}):
                self.links.add(sources)
        return self._interned[key]

    def _merge(self, a: Sources, b: Sources) -> Sources:
        return a if b <= a else b if a <= b else a | b

    def union(self, a: Tensor, b: Tensor, kind: Kind, bits: int = 0, active: int = -1) -> Tensor:
        """Element by element `join` of two id tensors; constants give way, lost ones too."""
        a, b = torch.broadcast_tensors(squeeze_repeats(a), squeeze_repeats(b))
        plain = torch.where(a >= FIRST, a, torch.where(b >= FIRST, b, torch.maximum(a, b)))
        both = (a >= FIRST) & (b >= FIRST) & (a != b)
        if not both.any():
            return plain
        left, li = torch.unique(a[both], return_inverse=True)
        right, ri = torch.unique(b[both], return_inverse=True)
        keys, inverse = torch.unique(li * len(right) + ri, return_inverse=True)
        ls, rs = left[keys // len(right)].tolist(), right[keys % len(right)].tolist()
        joined = [self.join(p, q, kind, bits, active) for p, q in zip(ls, rs, strict=True)]
        plain[both] = torch.tensor(joined, dtype=torch.int64)[inverse]
        return plain

    def loosen_gates(self) -> None:
        """A unit that multiplies several others is not read alone by any column behind a product."""
        partners: dict[int, set[int]] = defaultdict(set)
        for left, right, _ in self.gates:
            for one, other in ((left, right), (right, left)):
                if self.sources[other - FIRST]:
                    partners[one].add(other)
        many = {node for node, others in partners.items() if len(others) > 1}
        for (kind, _, left, right), node in self._interned.items():
            if kind == Kind.GATE:
                keep = (0 if left in many else LEFT) | (0 if right in many else RIGHT)
                self._bits[node - FIRST] &= keep

    # -- expanding ------------------------------------------------------------------------------
    def atoms(self, ids: list[int]) -> Expanded:
        """All atoms behind ids, wherever they were found."""
        nodes = np.array(ids, np.int64)
        return self.expand(np.zeros_like(nodes), nodes)

    def expand(self, place: IntArray, ids: IntArray) -> Expanded:
        """All atoms behind ids, each with the place (a column, an affine entry) where it was found."""
        alone = np.ones(len(ids), bool)
        done: list[tuple[IntArray, IntArray, np.ndarray]] = []
        while len(ids):
            joint = self.kind(ids) >= Kind.SUM
            done.append((place[~joint], ids[~joint], alone[~joint]))
            place, ids, alone = place[joint], ids[joint], alone[joint]
            left, right = self.pair(ids)
            bits = self._bits[ids - FIRST]
            place, ids, alone = _dedupe(
                np.concatenate([place, place]),
                np.concatenate([left, right]),
                np.concatenate([alone & ((bits & LEFT) > 0), alone & ((bits & RIGHT) > 0)]),
            )
        if not done:
            return Expanded(self, place, ids, alone)
        return Expanded(self, *_dedupe(*(np.concatenate(x) for x in zip(*done, strict=True))))


class Expanded:
    """Atoms by place: ``place``, ``site``, ``unit``, ``alone`` for units, and what else was there."""

    def __init__(self, table: Table, place: IntArray, ids: IntArray, alone: np.ndarray) -> None:
        kind = table.kind(ids)
        unit = kind == Kind.UNIT
        self.place, self.alone, self.ids = place[unit], alone[unit], ids[unit]
        self.site, self.unit = table.pair(self.ids)
        weak = (kind == Kind.STAT) | (kind == Kind.SCORE)
        self.weak = table.sources_of(ids[weak].tolist())


def _dedupe(place: IntArray, ids: IntArray, alone: np.ndarray) -> tuple[IntArray, IntArray, np.ndarray]:
    """One row for each (place, id); alone only where every row was."""
    if not len(ids):
        return place, ids, alone
    order = np.lexsort((alone, ids, place))  # not-alone rows first, and the first row is kept
    place, ids, alone = place[order], ids[order], alone[order]
    first = np.r_[True, (np.diff(place) != 0) | (np.diff(ids) != 0)]
    return place[first], ids[first], alone[first]


def squeeze_repeats(ids: Tensor, keep: Callable[[int], bool] | None = None) -> Tensor:
    """Cut every axis along which the ids do not vary to length 1 (most axes: samples, positions).

    >>> squeeze_repeats(torch.tensor([[5, 6], [5, 6]])).shape
    torch.Size([1, 2])
    """
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and not (keep and keep(dim)):
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
    return ids
