"""Operators that only move numbers run on the ids; reductions and pooling keep what is constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supple.topology.ids import FIRST, LOST, PARAM, Kind, squeeze_repeats
from supple.topology.operators import CONSTANTS, FLOAT_MOVES, MOVES, POOLS, REDUCTIONS, SAME_SHAPE
from supple.topology.shadow import Path, Paths, merge_paths
from supple.topology.tracer import RULES, Operation, Tracer, leaves, rule

DATA = frozenset({"self", "src", "source", "values", "tensors", "input", "data"})
INDEX = frozenset({"index", "indices", "repeats", "mask"})
FILLS = frozenset({"value", "fill"})


def move(tr: Tracer, op: Operation) -> None:
    """Run the operator on the ids of its data; an index that depends on units is refused."""
    wide = op.name in FLOAT_MOVES
    channel = _channel_axis(tr, op)
    sources = [t for name in DATA & set(op.arguments) for t in leaves(op[name])]
    for name in INDEX & set(op.arguments):
        for tensor in leaves(op[name]):
            tr.drop(op, tensor, "used as an index")
            if tensor.dtype == torch.bool and tr.sources(tensor):
                tr.record.refuse(tr.place, "data-dependent shape", op.name)

    made: list[Paths] = []

    def ids(tensor: Tensor) -> Tensor:
        found = tr.ids(tensor)
        if found is None:
            found = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        elif channel is not None and tr.is_weights(tensor):
            found, paths = tr.units_of(found, channel)
            made.append(paths)
        return found.double() if wide else found

    arguments = {n: _swap(v, ids, n) for n, v in op.arguments.items() if n in op.kwargs or v is not None}
    arguments = {n: v for n, v in arguments.items() if n not in ("dtype", "memory_format", "out")}
    arguments = {
        n: v for n, v in arguments.items() if n not in ("layout", "device", "pin_memory", "non_blocking")
    }
    if op.name in ("_to_copy", "clone", "lift_fresh_copy"):
        results: Any = ids(op["self"])
    elif op.name == "copy":
        results = ids(op["src"])
    else:
        results = _functional(op)(**arguments)
    paths = merge_paths(*(tr.paths(t) for t in sources), *made)
    if op.name == "cat":
        paths = tr.step(paths, "cat")
    computed = any(m.computed for t in sources if (m := tr.shadows.meta(t)))
    targets = op.written or op.outputs
    for target, value in zip(targets, leaves(results), strict=False):
        tr.shadows.write(target, value.long() if wide else value, paths, computed)


def _functional(op: Operation) -> Any:
    """The operator itself, out of place."""
    packet = getattr(torch.ops.aten, op.name)
    overload = op.func._schema.overload_name or "default"
    return getattr(packet, overload)


def _swap(value: Any, ids: Any, name: str) -> Any:
    """Data tensors become ids, indices come to the CPU, fill values become "no origin"."""
    if isinstance(value, Tensor):
        return ids(value) if name in DATA else 0 if name in FILLS else value.cpu()
    if isinstance(value, (list, tuple)) and any(isinstance(x, Tensor) for x in value):
        return [_swap(x, ids, name) for x in value]
    return 0 if name in FILLS and value is not None else value


def _channel_axis(tr: Tracer, op: Operation) -> int | None:
    """Where parameters and features meet in one tensor: the axis along which the features vary."""
    data = [t for name in DATA & set(op.arguments) for t in leaves(op[name])]
    features = [t for t in data if tr.has_features(t)]
    if not features or not any(tr.is_weights(t) for t in data):
        return None
    for tensor in features:
        varying = [d for d, n in enumerate(squeeze_repeats(tr.known(tensor)).shape) if n > 1]
        if len(varying) == 1:
            return varying[0]
    return features[0].dim() - 1 if features[0].dim() <= 3 else 1


def reduce(tr: Tracer, op: Operation) -> None:
    """A reduction keeps an id that is constant over the reduced axes, else it is a statistic."""
    x = op["self"] if op["self"] is not None else op["input"]
    ids = tr.ids(x)
    for other in op.tensors:
        if other is not x:
            tr.drop(op, other, "opaque operation")
    if ids is None or not x.numel():
        tr.spread(op, None)
        return
    if tr.is_weights(x):
        tr.touch(x, "parametrisation")
        tr.spread(op, torch.tensor(tr.table.weak(Kind.STAT, frozenset())))
        return
    dims = _dims(op, x.dim())
    kept = _constant_over(ids, dims)
    keep = bool(op["keepdim"])
    if kept is None:
        tr.spread(op, torch.tensor(tr.table.weak(Kind.STAT, tr.sources(x))))
        return
    shape = [1 if d in dims else n for d, n in enumerate(kept.shape)]
    small = kept.reshape(shape)
    if not keep:
        small = small.reshape([n for d, n in enumerate(shape) if d not in dims])
    tr.spread(op, small, tr.step(tr.paths(x), op.name))


def _dims(op: Operation, rank: int) -> tuple[int, ...]:
    dim = op["dim"]
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(rank))
    found = [dim] if isinstance(dim, int) else list(dim)
    return tuple(d % rank for d in found) if rank else ()


def _constant_over(ids: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    """Ids with the reduced axes cut to length 1, where they do not vary (constants do not count)."""
    if not dims:
        return ids
    high = ids.amax(dims, keepdim=True)
    real = torch.where(ids >= FIRST, ids, high.expand(ids.shape))
    return high if bool((real == high).all()) else None


def pool(tr: Tracer, op: Operation) -> None:
    """Pooling and interpolation: channels keep their ids where they do not vary over space."""
    x = op["self"] if op["self"] is not None else op["input"]
    tr.drop(op, op["grid"], "used as an index")
    ids, paths = tr.features(x, 1)
    if ids is None:
        tr.spread(op, None)
        return
    spatial = POOLS[op.name]
    kept = _constant_over(ids, tuple(range(ids.dim() - spatial, ids.dim())))
    if kept is None:
        tr.spread(op, torch.tensor(tr.table.weak(Kind.STAT, tr.sources(x))))
        return
    label = op.name.strip("_").replace("_with_indices", "")
    tr.spread(op, kept, tr.step(paths, label))


def same_shape(tr: Tracer, op: Operation) -> None:
    """Cumulative sums, sorting: fine along positions, opaque along channels."""
    ids = tr.ids(op["self"])
    rank = op["self"].dim()
    dim = -1 if op["dim"] is None else int(op["dim"])
    if ids is None:
        tr.spread(op, None)
        return
    kept = _constant_over(ids, (dim % rank,)) if rank else ids
    if kept is None or tr.is_weights(op["self"]):
        RULES["*opaque"](tr, op)
        return
    tr.spread(op, kept, tr.step(tr.paths(op["self"]), op.name))


def constant(tr: Tracer, op: Operation) -> None:
    """Factories and fills have no origin; a draw whose distribution depends on units is refused."""
    if op.name in ("bernoulli", "normal"):
        for tensor in op.tensors:
            tr.drop(op, tensor, "used as a distribution")
    tr.spread(op, None)


@rule("multinomial", "nonzero", "masked_select", "unique2", "_unique2", "unique_dim", "bincount", "histc")
def select_by_value(tr: Tracer, op: Operation) -> None:
    """The shape of the result depends on values: positions cannot be followed."""
    ids = [i for t in op.tensors if (i := tr.ids(t)) is not None]
    if any(bool((i >= FIRST).any()) for i in ids):
        tr.record.refuse(tr.place, "data-dependent shape", op.name)
    RULES["*opaque"](tr, op)


@rule("_local_scalar_dense", "is_nonzero", "equal")
def read_value(tr: Tracer, op: Operation) -> None:
    """Python reads a value: what it decides then cannot be seen."""
    for tensor in op.tensors:
        ids = tr.ids(tensor)
        if ids is not None and bool(((ids >= FIRST) & (ids < PARAM)).any()):
            tr.record.refuse(tr.place, "data-dependent control flow", op.name)
        tr.touch(tensor, "scalar")


@rule("glu")
def gated(tr: Tracer, op: Operation) -> None:
    """a * sigmoid(b), the two halves of one axis."""
    x, dim = op["self"], int(op["dim"])
    ids, paths = tr.features(x, dim)
    if ids is None:
        tr.spread(op, None)
        return
    value, gate = ids.chunk(2, dim)
    nodes = torch.unique(gate[(gate >= FIRST)]).numpy()
    tr.record.activate(nodes, paths, "sigmoid")
    joined = tr.table.union(value, gate, Kind.GATE, 3, 1)
    acts = {s: Path(p.acts | {"sigmoid"}, p.ops, p.offset) for s, p in paths.items()}
    tr.spread(op, joined, tr.step(acts, "glu"))


@rule("_weight_norm_interface")
def weight_norm(tr: Tracer, op: Operation) -> None:
    """g * v / |v|: rows and columns of v, recomputed in every pass."""
    tr.touch(op["g"], "parametrisation")
    out = op.outputs[0]
    for extra in op.outputs[1:]:
        tr.shadows.constant(extra)
    if tr.is_weights(op["v"]):
        tr.shadows.write(out, tr.shadows.read(op["v"]), None, True)
    else:
        tr.shadows.write(out, torch.tensor(LOST))


@rule("native_dropout", "alpha_dropout", "feature_dropout")
def dropout(tr: Tracer, op: Operation) -> None:
    """Dropout leaves ids alone."""
    x = op["input"]
    tr.shadows.write(op.outputs[0], tr.ids(x), tr.paths(x))
    for extra in op.outputs[1:]:
        tr.shadows.constant(extra)


RULES.update(dict.fromkeys((*MOVES, *FLOAT_MOVES), move))
RULES.update(dict.fromkeys(REDUCTIONS, reduce))
RULES.update(dict.fromkeys(POOLS, pool))
RULES.update(dict.fromkeys(SAME_SHAPE, same_shape))
RULES.update(dict.fromkeys(CONSTANTS, constant))
