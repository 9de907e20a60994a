"""Element-wise operators: sums, gates, nonlinearities, and bare scales and shifts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from supple.topology.ids import FIRST, LEFT, LOST, RIGHT, Kind, squeeze_repeats
from supple.topology.parameters import Parameter
from supple.topology.record import Affine, flat_unique
from supple.topology.rules_norm import neutral_scale
from supple.topology.shadow import Path, Paths, merge_paths
from supple.topology.tracer import RULES, Operation, Tracer, rule

#: operator -> (name, whether f(0) differs from 0)
NONLINEAR: dict[str, tuple[str, bool]] = {
    "relu": ("relu", False),
    "relu6": ("relu6", False),
    "leaky_relu": ("leaky_relu", False),
    "_prelu_kernel": ("prelu", False),
    "rrelu_with_noise": ("rrelu", False),
    "elu": ("elu", False),
    "celu": ("celu", False),
    "selu": ("selu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", False),
    "mish": ("mish", False),
    "softplus": ("softplus", True),
    "log_sigmoid_forward": ("logsigmoid", True),
    "tanh": ("tanh", False),
    "sigmoid": ("sigmoid", True),
    "hardtanh": ("hardtanh", False),
    "hardswish": ("hardswish", False),
    "hardsigmoid": ("hardsigmoid", True),
    "hardshrink": ("hardshrink", False),
    "softshrink": ("softshrink", False),
    "threshold": ("threshold", True),
    "sin": ("sin", False),
    "cos": ("cos", True),
    "exp": ("exp", True),
    "expm1": ("expm1", False),
    "log": ("log", True),
    "log1p": ("log1p", False),
    "abs": ("abs", False),
    "pow": ("pow", False),
    "sqrt": ("sqrt", False),
    "rsqrt": ("rsqrt", True),
    "reciprocal": ("reciprocal", True),
    "erf": ("erf", False),
    "sign": ("sign", False),
    "clamp": ("clamp", True),
    "clamp_min": ("clamp", True),
    "clamp_max": ("clamp", True),
    "maximum": ("maximum", True),
    "minimum": ("minimum", True),
    "fmod": ("fmod", False),
    "remainder": ("remainder", False),
    "round": ("round", False),
    "floor": ("floor", False),
    "ceil": ("ceil", False),
}
COPIES = frozenset({"_to_copy", "clone", "contiguous", "detach", "to"})
COMPARE = frozenset({"gt", "ge", "lt", "le", "eq", "ne"})
#: what hand-written products are called: the parts seen in the activated factor -> the whole
COMPOSITES = (({"softplus", "tanh"}, "mish"), ({"pow", "tanh"}, "gelu"), ({"erf"}, "gelu"))
COMPOSITES_LAST = (({"sigmoid"}, "silu"), ({"clamp"}, "hardswish"), ({"hardtanh"}, "hardswish"))


@rule("*pointwise")
def pointwise(tr: Tracer, op: Operation) -> None:
    """Unions of the operands' ids, by what the operator does with them."""
    operands = [t for t in op.tensors if tr.ids(t) is not None]
    features = [t for t in operands if not tr.is_weights(t)]
    if not features:
        _weights_only(tr, op, operands)
        return
    shape = (op.written or op.outputs)[0].shape
    weights = [t for t in operands if tr.is_weights(t)]
    known = [t for t in features if tr.has_features(t)]
    if weights and (_all_of(tr, features, Kind.STAT) or _is_table(tr, weights, known)):
        _weights_only(tr, op, weights)
        return
    extra = [_bare(tr, op, w, known, shape) for w in weights]
    parts = [(_expand(tr.ids(t), shape), tr.paths(t)) for t in features]
    parts += [e for e in extra if e is not None]
    _foreign_statistics(tr, op, parts)
    _combine(tr, op, parts, learned=bool(weights))


@rule("where", "masked_fill")
def choose(tr: Tracer, op: Operation) -> None:
    """A condition that only depends on the network's input is a mask, not a producer."""
    condition = op["mask"] if op.name == "masked_fill" else op["condition"]
    if tr.sources(condition) or tr.is_weights(op["self"]) or tr.is_weights(op["other"]):
        pointwise(tr, op)
        return
    shape = (op.written or op.outputs)[0].shape
    chosen = [t for t in (op["self"], op["other"], op["value"]) if isinstance(t, Tensor)]
    parts = [(_expand(tr.ids(t), shape), tr.paths(t)) for t in chosen if tr.ids(t) is not None]
    if not parts and tr.has_features(condition):
        parts = [(_expand(tr.ids(condition), shape), {})]
    _combine(tr, op, parts)


def _combine(tr: Tracer, op: Operation, parts: list[tuple[Tensor, Paths]], learned: bool = False) -> None:
    if not parts:
        tr.spread(op, None)
        return
    if op.name in ("addcmul", "addcdiv") and len(parts) == 3:
        product = _union(tr, parts[1], parts[2], Kind.GATE if op.name == "addcmul" else Kind.MIX)
        parts = [parts[0], product]
    kind = {"add": Kind.SUM, "sub": Kind.SUM, "rsub": Kind.SUM, "addcmul": Kind.SUM, "mul": Kind.GATE}
    total = parts[0]
    for part in parts[1:]:
        total = _union(tr, total, part, kind.get(op.name, Kind.MIX))
    ids, paths = total
    composite = _composite(tr, op, parts) if op.name == "mul" and len(parts) == 2 else None
    label, offset = nonlinearity(op)
    if composite:
        paths = {s: Path(frozenset({composite}), (*p.ops, composite)) for s, p in paths.items()}
    elif label and (len(parts) == 1 or op.name in ("maximum", "minimum", "pow")):
        tr.record.activate(_nodes(ids), paths, label)
        paths = {s: p.activated(label, offset) for s, p in paths.items()}
    else:
        if learned and len(parts) == 1:
            tr.spread(op, ids, {site: path.shifted("") for site, path in paths.items()})
            return
        constant = len(parts) == 1 and op.name in ("add", "sub", "rsub")
        name = "compare" if op.name in COMPARE else op.name if len(parts) > 1 else ""
        paths = tr.step(paths, name, constant)
    tr.spread(op, ids, paths)


def _union(
    tr: Tracer, left: tuple[Tensor, Paths], right: tuple[Tensor, Paths], kind: Kind
) -> tuple[Tensor, Paths]:
    bits, active = 0, -1
    if kind is Kind.GATE:
        loose = [any(p.offset for p in paths.values()) for _, paths in (left, right)]
        bits = (0 if loose[0] else LEFT) | (0 if loose[1] else RIGHT)
        busy = [bool(paths) and all(None not in p.acts for p in paths.values()) for _, paths in (left, right)]
        active = busy.index(True) if busy.count(True) == 1 else -1
    return tr.table.union(left[0], right[0], kind, bits, active), merge_paths(left[1], right[1])


def nonlinearity(op: Operation) -> tuple[str, bool]:
    """The name of the nonlinearity that an operator is, or an empty string."""
    label, offset = NONLINEAR.get(op.name, ("", False))
    if op.name in ("clamp", "clamp_min") and op["min"] == 0 and op["max"] is None:
        return "relu", False
    if op.name == "hardtanh" and (op["min_val"], op["max_val"]) == (0, 6):
        return "relu6", False
    if op.name == "pow" and op["exponent"] == 1:
        return "", False
    if op.name == "elu" and op["scale"] not in (1, None):
        return "selu", False
    return label, offset


def _composite(tr: Tracer, op: Operation, parts: list[tuple[Tensor, Paths]]) -> str | None:
    """x * g(x), written by hand: one nonlinearity, not a gate between two layers."""
    (a, pa), (b, pb) = parts
    if set(pa) != set(pb) or not pa or not torch.equal(*torch.broadcast_tensors(a, b)):
        return None
    raw = [all(None in p.acts for p in paths.values()) for paths in (pa, pb)]
    seen = {o for paths in (pa, pb) for p in paths.values() for o in p.ops}
    ids = _nodes(a)
    if all(raw) and "compare" in seen:
        tr.record.activate(ids, merge_paths(pa, pb), "masked")
        return "masked"
    if all(raw):
        if op["self"] is op["other"]:
            tr.record.activate(ids, pa, "pow")
            return "pow"
        seen -= {"add", "mul"}
        if "pow" not in seen:
            return None
    elif raw[0] == raw[1]:
        return None
    name = next((n for p, n in (*COMPOSITES, *COMPOSITES_LAST) if p <= seen), "*".join(sorted(seen)))
    acts = {x for paths in (pa, pb) for p in paths.values() for x in p.acts if x}
    tr.record.rename_activation(ids, acts, name)
    return name


def _weights_only(tr: Tracer, op: Operation, operands: list[Tensor]) -> None:
    """A weight recomputed from parameters keeps the ids of the largest one."""
    if not any(tr.is_weights(t) for t in operands):
        tr.spread(op, torch.tensor(LOST) if operands else None)
        return
    operands = [t for t in operands if tr.is_weights(t)]
    items = tr.parameters.items
    held = [tr.parameters.of(tr.known(t)) for t in operands]
    order = sorted(range(len(operands)), key=lambda i: -sum(items[j].tensor.numel() for j in held[i]))
    main = order[0]
    others = {j for i in order[1:] for j in held[i]} - set(held[main])
    largest = max(items[j].tensor.numel() for j in held[main])
    clash = any(items[j].tensor.numel() >= largest for j in others) or any(
        held[i] == held[main] and not torch.equal(*_same(tr, operands[i], operands[main])) for i in order[1:]
    )
    for j in others:
        items[j].roles.add("parametrisation")
    if clash:
        for j in {*others, *held[main]}:
            items[j].roles.add(f"opaque:{op.name}")
        tr.spread(op, torch.tensor(LOST))
        return
    ids = tr.known(operands[main])
    computed = op.name not in COPIES or any(m.computed for t in operands if (m := tr.shadows.meta(t)))
    for out in op.written or op.outputs:
        tr.shadows.write(out, ids.expand(out.shape), None, computed)


def _same(tr: Tracer, a: Tensor, b: Tensor) -> list[Tensor]:
    return torch.broadcast_tensors(tr.known(a), tr.known(b))


def _bare(
    tr: Tracer, op: Operation, weight: Tensor, known: list[Tensor], shape: torch.Size
) -> tuple[Tensor, Paths] | None:
    """A parameter that meets features: a scale, a shift, a bias, a slope, or a producer of its own."""
    elements = _expand(tr.ids(weight), shape)
    index = tr.parameters.only(elements)
    if index is None:
        return _unknown(tr, op, weight)
    parameter = tr.parameters.items[index]
    long = sum(n > 1 for n in parameter.tensor.shape)
    if parameter.tensor.numel() == 1 or (long == 0 and parameter.tensor.dim() == 1):
        parameter.roles.add("scalar")
        return None
    if op.name == "_prelu_kernel":
        parameter.roles.add("slope")
        return None
    scale = op.name in ("mul", "div") and long == 1
    if scale or (op.name in ("add", "sub") and parameter.tensor.dim() == 1):
        for feature in known:
            _affine(tr, op, weight, elements, feature, scale)
        parameter.roles.add("scale" if scale else "shift")
        return None
    if _all_of(tr, known, Kind.SCORE):
        parameter.roles.add("attention bias")
        return None
    axes = [_channel_axis(_expand(tr.ids(t), shape)) for t in known]
    axis = next((a for a in axes if a is not None), None)
    return _unknown(tr, op, weight) if axis is None else tr.units_of(elements, axis)


def _unknown(tr: Tracer, op: Operation, weight: Tensor) -> tuple[Tensor, Paths]:
    """Parameters that act in a way no rule resolves."""
    tr.touch(weight, f"opaque:{op.name}")
    return torch.tensor(tr.table.opaque(frozenset())), {}


def _is_table(tr: Tracer, weights: list[Tensor], known: list[Tensor]) -> bool:
    """A table of positions met by the raw input: its channels show where the sum is read."""
    tables = [t for t in weights if sum(n > 1 for n in t.shape) > 1]
    return bool(tables) and not tr.sources(*known) and _all_of(tr, known, Kind.INPUT)


def _channel_axis(ids: Tensor) -> int | None:
    """The one axis along which the ids vary, None where there are several or none."""
    varying = [d for d, n in enumerate(ids.shape) if n > 1]
    return varying[0] if len(varying) == 1 else None


def _affine(
    tr: Tracer, op: Operation, weight: Tensor, elements: Tensor, feature: Tensor, scale: bool
) -> None:
    shape = (op.written or op.outputs)[0].shape
    ids, elements = torch.broadcast_tensors(_expand(tr.ids(feature), shape), elements)
    pairs = np.unique(np.stack([ids.reshape(-1).numpy(), elements.reshape(-1).numpy()]), axis=1)
    pairs = pairs[:, pairs[0] >= FIRST]
    index = tr.parameters.only(elements)
    if index is None or not pairs.size:
        return
    parameter = tr.parameters.items[index]
    places = parameter.flat(pairs[1])  # one dimension is longer than 1: this is its index
    paths = tr.paths(feature)
    if not scale and _is_bias(tr, parameter, pairs[0], places, paths):
        parameter.roles.add("bias")
        return
    module, _ = parameter.owner(tuple(tr.stack))
    names = (parameter.name, None) if scale else (None, parameter.name)
    neutral = neutral_scale(tr, op, weight, index, pairs[0]) if scale else 1.0
    tr.record.affine.append(Affine(module, *names, (), places, pairs[0], paths, neutral))


def _is_bias(tr: Tracer, parameter: Parameter, ids: np.ndarray, places: np.ndarray, paths: Paths) -> bool:
    """A vector added to the untouched output of a layer without bias, entry by unit, is its bias."""
    if (tr.table.kind(ids) != Kind.UNIT).any():
        return False
    sites, units = tr.table.pair(ids)
    if len(set(sites.tolist())) != 1 or (units != places).any():
        return False
    site = tr.record.sites[int(sites[0])]
    untouched = paths.get(site.index, Path()) == Path()
    whole = parameter.tensor.numel() == site.units
    if not untouched or site.bias not in (None, parameter.name) or not whole:
        return False
    site.bias = parameter.name
    return True


def _foreign_statistics(tr: Tracer, op: Operation, parts: list[tuple[Tensor, Paths]]) -> None:
    """A statistic of one layer's units that scales another layer's would vanish: refuse the former."""
    for i, (ids, _) in enumerate(parts):
        nodes = _nodes(ids)
        if not len(nodes):
            continue
        stats = nodes[tr.table.kind(nodes) == Kind.STAT]
        rest = [tr.table.sources_of(_nodes(other).tolist()) for j, (other, _) in enumerate(parts) if j != i]
        if len(stats) and rest:
            foreign = tr.table.sources_of(stats.tolist()) - frozenset().union(*rest)
            if any(len(_nodes(other)) for j, (other, _) in enumerate(parts) if j != i):
                tr.record.suspect(tr.place, "a statistic of its units acts on others", op.name, foreign)


def _all_of(tr: Tracer, tensors: list[Tensor], kind: Kind) -> bool:
    """Whether every id with an origin is of one kind (also where there is none)."""
    nodes = [_nodes(squeeze_repeats(ids)) for t in tensors if (ids := tr.ids(t)) is not None]
    return all(bool((tr.table.kind(n) == kind).all()) for n in nodes)


def _nodes(ids: Tensor | None) -> np.ndarray:
    if ids is None:
        return np.zeros(0, np.int64)
    found = flat_unique(ids)
    return found[(found >= FIRST)]


def _expand(ids: Tensor | None, shape: torch.Size) -> Tensor:
    """Small ids that broadcast to a shape (axes without variation stay short)."""
    value = torch.zeros((), dtype=torch.int64) if ids is None else squeeze_repeats(ids)
    if value.dim() < len(shape):
        value = value.reshape((1,) * (len(shape) - value.dim()) + tuple(value.shape))
    return value


# not every nonlinearity is tagged as pointwise
RULES.update(dict.fromkeys(NONLINEAR, pointwise))
