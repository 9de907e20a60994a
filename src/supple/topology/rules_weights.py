"""Weights at work: matrix products, convolutions, embeddings read columns and emit units."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from supple.topology.graph import IntArray
from supple.topology.ids import CONST, FIRST, LOST, PARAM, Kind, squeeze_repeats
from supple.topology.parameters import is_weight_layer
from supple.topology.record import Consumption, Site
from supple.topology.rules_attention import mix, score
from supple.topology.shadow import Path, Paths
from supple.topology.tracer import Operation, Tracer, rule

NO_BLOCKS: IntArray = np.zeros(0, np.int64)


class Matrix:
    """An operand (K, N) as rows and columns of one parameter; ``reason`` says why it is not."""

    def __init__(self, tr: Tracer, operand: Tensor, prefer: tuple[int, int] = (1, 0)) -> None:
        """``operand`` is 2-D: contracted axis first, emitted axis second.

        ``prefer`` names the two dimensions of the parameter where an axis of length 1 leaves them open.
        """
        self.reason = ""
        meta = tr.shadows.meta(operand)
        lines = [tr.known(operand[:, :1]), tr.known(operand[:1, :])]
        index = tr.parameters.only(torch.cat([x.reshape(-1) for x in lines]))
        if index is None:
            self.reason = "its weight is assembled from several parameters"
            return
        self.index, self.parameter = index, tr.parameters.items[index]
        self.computed = bool(meta and meta.computed)
        if meta and meta.ids is not None:
            whole = tr.known(operand)
            if tr.parameters.only(whole) != index or not tr.parameters.is_grid(whole, index):
                self.reason = "its weight is a rearranged parameter"
                return
        self._orient([x.reshape(-1).numpy() for x in lines], prefer)

    def _orient(self, lines: list[IntArray], prefer: tuple[int, int]) -> None:
        k, n = (self.parameter.coordinates(line) for line in lines)
        vary_k = [d for d, c in enumerate(k) if (c != c[0]).any()]
        vary_n = [d for d, c in enumerate(n) if (c != c[0]).any()]
        if len(vary_k) > 1 or len(vary_n) > 1 or len(k) < 2 or set(vary_k) & set(vary_n):
            self.reason = "its units span several dimensions of the parameter"
            return
        open_dims = [d for d in (*prefer, *range(len(k))) if d not in (*vary_k, *vary_n)]
        self.in_dim = vary_k[0] if vary_k else open_dims[0]
        self.unit_dim = vary_n[0] if vary_n else next(d for d in (prefer[1], *open_dims) if d != self.in_dim)
        self.columns, self.rows = k[self.in_dim], n[self.unit_dim]


@rule("mm", "bmm", "mv", "addmm", "baddbmm", "addmv", "linear", "dot", "vdot")
def contract(tr: Tracer, op: Operation) -> None:
    """All matrix products, as left (…, M, K) times right (…, K, N)."""
    left, right, bias = _operands(op)
    out = (op.written or op.outputs)[0]
    shape = (*left.shape[:-1], right.shape[-1])
    if tr.is_weights(left) and tr.is_weights(right):
        rank = [_weight_rank(tr, t) for t in (left, right)]
        if rank[0] == rank[1]:  # a low-rank product, or a token times a bare matrix: cannot be told
            opaque(tr, op, "a product of two parameters")
            return
        swap = rank[0] > rank[1]
    else:
        swap = tr.is_weights(left)
    if tr.is_weights(left) or tr.is_weights(right):
        x, w = (right.mT, left.mT) if swap else (left, right)
        found = _apply_weight(tr, op, x, w, bias)
        if found is None:
            return
        ids, paths = found
        ids = ids.reshape(-1, 1) if swap else ids.reshape(1, -1)
    elif tr.has_features(left) and tr.has_features(right):
        ids, paths = _two_features(tr, op, left, right)
    else:
        ids, paths = _fixed(tr, left, right)
        if ids is None:
            tr.spread(op, torch.tensor(LOST) if _lost(tr, op) else None)
            return
    ids, paths = _add_bias(tr, op, ids, paths, bias, shape)
    tr.shadows.write(out, ids.expand(shape).reshape(out.shape), paths)


def _operands(op: Operation) -> tuple[Tensor, Tensor, Any]:
    """Left, right, and what is added."""
    names = {
        "linear": ("input", "weight", "bias"),
        "addmm": ("mat1", "mat2", "self"),
        "baddbmm": ("batch1", "batch2", "self"),
        "addmv": ("mat", "vec", "self"),
        "mv": ("self", "vec", ""),
        "dot": ("self", "tensor", ""),
        "vdot": ("self", "other", ""),
    }
    a, b, c = names.get(op.name, ("self", "mat2", ""))
    left, right = op[a], op[b]
    if op.name == "linear":
        right = right.mT
    right = right.unsqueeze(-1) if right.dim() == 1 else right
    left = left.unsqueeze(0) if left.dim() == 1 else left
    return left, right, op[c] if c else None


def _apply_weight(tr: Tracer, op: Operation, x: Tensor, w: Tensor, bias: Any) -> tuple[Tensor, Paths] | None:
    """x (…, M, K) times a parameter (…, K, N)."""
    if w.dim() == 3 and (w.shape[0] == 1 or w.stride(0) == 0):
        w = w[0]
    matrix = Matrix(tr, w) if w.dim() == 2 else None
    if matrix is None or matrix.reason:
        if tr.ids(x) is None:  # a norm of the weight itself, as in spectral_norm
            tr.touch(w, "parametrisation")
            tr.spread(op, torch.tensor(tr.table.weak(Kind.STAT, frozenset())))
            return None
        reason = matrix.reason if matrix else "one matrix for each batch entry"
        opaque(tr, op, reason)
        return None
    _empty(tr, op, x)
    ids, paths = tr.features(x, -1)
    stack = tuple(tr.stack)
    site = tr.record.site(matrix.parameter, matrix.index, matrix.unit_dim, "linear", stack)
    _note(tr, site, matrix.computed, matrix.in_dim, matrix.parameter.tensor.shape[matrix.in_dim])
    if ids is not None:
        site.calls[matrix.rows] += 1
        columns, found = _by_channel(ids, -1)
        keep = np.zeros(site.units, np.int64)
        keep[matrix.rows] = 1
        _consume(tr, site, matrix.columns[columns], found, np.flatnonzero(keep), NO_BLOCKS, 0, paths)
    emitted = torch.from_numpy(matrix.rows) + site.start
    return emitted, {site.index: Path()}


def _empty(tr: Tracer, op: Operation, x: Tensor) -> None:
    """What would have been read by a layer that got no sample cannot be seen."""
    if not x.numel():
        tr.record.refuse(tr.place, "data-dependent shape: no data reached this layer", op.name)


def _note(tr: Tracer, site: Site, computed: bool, in_dim: int, fan_in: int) -> None:
    site.in_dim, site.fan_in = in_dim, fan_in
    tr.parameters.items[site.parameter].roles.add("weight")
    if computed:
        site.lock = "its weight is recomputed from parameters in every forward pass, so that edits vanish"


def _by_channel(ids: Tensor, axis: int) -> tuple[IntArray, IntArray]:
    """Unique (channel, id) pairs of a tensor of ids."""
    moved = ids.movedim(axis, -1)
    moved = squeeze_repeats(moved, keep=lambda d: d == moved.dim() - 1).reshape(-1, moved.shape[-1])
    channels = torch.arange(moved.shape[-1]).expand(moved.shape)
    if moved.shape[0] == 1:
        return channels.reshape(-1).numpy(), moved.reshape(-1).numpy().copy()
    different, inverse = torch.unique(moved, return_inverse=True)
    keys = torch.unique(channels * len(different) + inverse)
    return (keys // len(different)).numpy(), different[keys % len(different)].numpy()


def _consume(
    tr: Tracer,
    site: Site,
    columns: IntArray,
    ids: IntArray,
    rows: IntArray,
    blocks: IntArray,
    block_size: int,
    paths: Paths,
) -> None:
    lost = np.setdiff1d(columns[ids == LOST], columns[ids >= FIRST])
    if len(lost):
        tr.record.refuse(tr.place, "origin lost", "tensor made outside the trace")
    real = (ids >= FIRST) & (ids < PARAM)
    tr.record.carry(paths)
    blocks = blocks[real] if block_size else blocks
    tr.record.consumed.append(
        Consumption(site.index, columns[real], ids[real], rows, blocks, block_size, paths, tr.place)
    )


def _two_features(tr: Tracer, op: Operation, left: Tensor, right: Tensor) -> tuple[Tensor, Paths]:
    a, b = squeeze_repeats(tr.known(left)), squeeze_repeats(tr.known(right))
    weak = [_no_channels(tr, x) for x in (a, b)]
    if all(weak) and not tr.sources(left, right):
        return torch.tensor(tr.table.input).reshape(1, 1), {}
    if weak[0] and not weak[1]:
        return mix(tr, op, a, b, left, right)
    if weak[1] and not weak[0]:
        ids, paths = mix(tr, op, b.mT, a.mT, right, left)
        return ids.mT, paths
    over_k = a.shape[-1] > 1 or left.shape[-1] == 1, b.shape[-2] > 1 or right.shape[-2] == 1
    across = a.shape[-2] > 1 or b.shape[-1] > 1
    if all(over_k) and not across and not any(weak):
        return score(tr, a, b), {}
    sources = tr.sources(left, right)
    tr.record.suspect(tr.place, "opaque operation", op.name, sources)
    return torch.tensor(tr.table.opaque(sources)).reshape(1, 1), {}


def _no_channels(tr: Tracer, ids: Tensor) -> bool:
    """Scores, statistics and inputs weigh the positions of what they are multiplied with."""
    kinds = tr.table.kind(_nodes(ids))
    return len(kinds) > 0 and bool(np.isin(kinds, (Kind.STAT, Kind.SCORE, Kind.INPUT)).all())


def _nodes(ids: Tensor) -> IntArray:
    flat = np.unique(ids.numpy())
    return flat[flat >= FIRST]


def _fixed(tr: Tracer, left: Tensor, right: Tensor) -> tuple[Tensor | None, Paths]:
    """A product with a constant matrix: positions mixed keep their channel, mixed channels do not."""
    flip = tr.has_features(left)
    x = left.mT if flip else right
    if not tr.has_features(x):
        return None, {}
    ids = squeeze_repeats(tr.known(x))
    paths = tr.step(tr.paths(x), "fixed_mix")
    if ids.shape[-2] > 1:
        ids, paths = torch.tensor(tr.table.weak(Kind.STAT, tr.sources(x))).reshape(1, 1), {}
    return (ids.mT if flip else ids), paths


def _lost(tr: Tracer, op: Operation) -> bool:
    return any(tr.shadows.meta(t) is None for t in op.tensors)


def _add_bias(
    tr: Tracer, op: Operation, ids: Tensor, paths: Paths, bias: Any, shape: tuple[int, ...]
) -> tuple[Tensor, Paths]:
    if not isinstance(bias, Tensor) or op["beta"] == 0:
        return ids, paths
    extra = tr.ids(bias)
    if extra is None:
        return ids, paths
    if not tr.is_weights(bias):
        return tr.table.union(ids, extra, Kind.SUM), {**tr.paths(bias), **paths}
    attach_bias(tr, ids, extra)
    return ids, paths


def attach_bias(tr: Tracer, ids: Tensor, elements: Tensor) -> None:
    """Make a parameter the bias of the site that has just emitted ``ids``, entry by unit."""
    index = tr.parameters.only(elements)
    units, entries = (squeeze_repeats(x).reshape(-1).numpy() for x in (ids, elements))
    sites, which = tr.table.pair(units) if (units >= FIRST).all() else (NO_BLOCKS, NO_BLOCKS)
    if not len(sites) or tr.table.kind(units).any():
        for i in tr.parameters.of(elements):
            tr.parameters.items[i].roles.add("opaque:bias of an unresolved weight")
        return
    site = tr.record.sites[int(sites[0])]
    if index is None:
        site.lock = site.lock or "its bias is assembled from several parameters"
        for i in tr.parameters.of(elements):
            tr.parameters.items[i].roles.add("bias")
        return
    parameter = tr.parameters.items[index]
    parameter.roles.add("bias")
    if np.array_equal(parameter.flat(entries), which):
        site.bias = parameter.name
    else:
        site.lock = site.lock or "its bias is not in the order of its units"


def _weight_rank(tr: Tracer, tensor: Tensor) -> int:
    """How sure a parameter is a weight: 2 of the layer under way, 1 of a layer, 0 a bare one."""
    for index in tr.parameters.of(tr.known(tensor[(slice(0, 1),) * tensor.dim()])):
        module, attribute = tr.parameters.items[index].owner(tuple(tr.stack))
        if attribute.endswith("weight") and is_weight_layer(tr.modules[module]):
            return 2 if module == tr.place else 1
    return 0


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
def convolve(tr: Tracer, op: Operation) -> None:
    """A convolution, grouped, depthwise or transposed: input channel c is a column, by group."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    groups, transposed = int(op["groups"]), bool(op["transposed"])
    out = op.outputs[0]
    if not tr.is_weights(weight):
        _fixed_convolution(tr, op, x, weight, groups)
        return
    matrix = Matrix(tr, _corner(weight, transposed), (0, 1) if transposed else (1, 0))
    sliced = not matrix.reason and len(matrix.rows) != matrix.parameter.tensor.shape[matrix.unit_dim]
    if matrix.reason or (groups > 1 and (transposed or sliced)):
        opaque(tr, op, matrix.reason or "a transposed or sliced convolution in groups")
        return
    kind = "conv_transpose" if transposed else "conv"
    site = tr.record.site(matrix.parameter, matrix.index, matrix.unit_dim, kind, tuple(tr.stack))
    window = int(np.prod(weight.shape[2:]))
    _note(tr, site, matrix.computed, matrix.in_dim, matrix.parameter.tensor.shape[matrix.in_dim] * window)
    _empty(tr, op, x)
    ids, paths = tr.features(x, 1)
    if ids is not None:
        site.calls[matrix.rows] += 1
        channels, found = _by_channel(ids, 1)
        per_group = x.shape[1] // groups
        blocks = channels // per_group if groups > 1 else NO_BLOCKS
        size = site.units // groups if groups > 1 else 0
        columns = matrix.columns[channels % per_group]
        _consume(tr, site, columns, found, matrix.rows, blocks, size, paths)
    emitted = (torch.from_numpy(matrix.rows) + site.start).reshape(-1, *[1] * (out.dim() - 2))
    if isinstance(bias, Tensor) and (elements := tr.ids(bias)) is not None:
        attach_bias(tr, emitted, elements)
    tr.shadows.write(out, emitted, {site.index: Path()})


def _corner(weight: Tensor, transposed: bool) -> Tensor:
    """The first position of the kernel as (columns, rows)."""
    while weight.dim() > 2:
        weight = weight.select(-1, 0)
    return weight if transposed else weight.t()


def _fixed_convolution(tr: Tracer, op: Operation, x: Tensor, weight: Tensor, groups: int) -> None:
    """A constant kernel (blur pooling) keeps channels where it is depthwise."""
    if tr.has_features(weight):
        opaque(tr, op)
        return
    if not tr.has_features(x):
        tr.spread(op, torch.tensor(LOST) if _lost(tr, op) else None)
        return
    ids = squeeze_repeats(tr.known(x))
    wide = ids.shape[1] > 1 or x.shape[1] == 1
    if wide and groups == x.shape[1] == weight.shape[0] and all(n == 1 for n in ids.shape[2:]):
        tr.spread(op, ids, tr.step(tr.paths(x), "fixed_conv"))
    else:
        tr.spread(op, torch.tensor(tr.table.weak(Kind.STAT, tr.sources(x))))


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embed(tr: Tracer, op: Operation) -> None:
    """An embedding emits its columns as units; looked-up features only move."""
    table = op["weight"]
    indices = op["indices"]
    tr.drop(op, indices, "used as an index")
    out = op.outputs[0]
    for other in op.outputs[1:]:
        tr.shadows.constant(other)
    if not tr.is_weights(table):
        ids = tr.ids(table)
        if ids is None:
            tr.spread(op, tr.known(indices).max() if tr.has_features(indices) else None)
        else:
            tr.shadows.write(out, ids[indices.cpu()], tr.paths(table))
        return
    matrix = Matrix(tr, table)
    if matrix.reason:
        opaque(tr, op, matrix.reason)
        return
    site = tr.record.site(matrix.parameter, matrix.index, matrix.unit_dim, "embedding", tuple(tr.stack))
    _note(tr, site, matrix.computed, matrix.in_dim, matrix.parameter.tensor.shape[matrix.in_dim])
    site.calls += 1
    tr.shadows.write(out, torch.from_numpy(matrix.rows) + site.start, {site.index: Path()})


@rule("*opaque")
def opaque(tr: Tracer, op: Operation, reason: str = "") -> None:
    """An operator without a rule: what enters is refused, what leaves is opaque."""
    sources = tr.sources(*op.tensors)
    text = f"opaque operation: {reason}" if reason else "opaque operation"
    tr.record.suspect(tr.place, text, op.name, sources)
    tr.record.carry(tr.paths(*op.tensors))
    weights = [t for t in op.tensors if tr.is_weights(t)]
    for tensor in weights:
        tr.touch(tensor, f"opaque:{op.name}" + (f" ({reason})" if reason else ""))
        for index in tr.parameters.of(tr.known(tensor)):
            parameter = tr.parameters.items[index]
            owner, attribute = parameter.owner(tuple(tr.stack))
            named = owner if attribute == "weight" and owner else parameter.name
            tr.record.refuse(tr.place, text, op.name, named)
    known = any(tr.has_features(t) for t in op.tensors)
    if not (op.written or op.outputs):
        return
    value = tr.table.opaque(sources) if known or weights else CONST
    tr.spread(op, torch.tensor(value))
