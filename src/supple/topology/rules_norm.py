"""Normalisations pass ids one to one; their affine entries belong to the units they met."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from supple.topology.graph import IntArray
from supple.topology.ids import FIRST, Kind, squeeze_repeats
from supple.topology.record import Affine
from supple.topology.shadow import Paths
from supple.topology.tracer import Operation, Tracer, rule

LABELS = {
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
}


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "native_group_norm",
    "native_layer_norm",
    "_fused_rms_norm",
)
def normalise(tr: Tracer, op: Operation) -> None:
    """Batch, group, layer and RMS norms."""
    x = op["input"]
    trailing = len(op["normalized_shape"]) if op["normalized_shape"] is not None else 0
    label = LABELS.get(op.name, "batch_norm")
    ids, paths = tr.features(x, -1 if trailing else 1)
    for extra in op.outputs[1:]:
        tr.shadows.constant(extra)
    out = op.outputs[0]
    if ids is None:
        tr.touch(op["weight"], "scale")
        tr.touch(op["bias"], "shift")
        tr.shadows.constant(out)
        return
    places, found = _by_entry(ids, trailing)
    _record(tr, op, places, found, paths)
    tr.shadows.write(out, ids, {site: path.shifted(label) for site, path in paths.items()})


def _by_entry(ids: Tensor, trailing: int) -> tuple[IntArray, IntArray]:
    """Unique (affine entry, id) pairs."""
    if trailing:
        axes = tuple(range(ids.dim() - trailing, ids.dim()))
        small = squeeze_repeats(ids, keep=lambda d: d in axes).flatten(-trailing)
    else:
        small = squeeze_repeats(ids, keep=lambda d: d == 1).movedim(1, -1)
    flat = small.reshape(-1, small.shape[-1]).numpy()
    if flat.shape[0] == 1:
        return np.arange(flat.shape[1]), flat[0].copy()
    entries = np.broadcast_to(np.arange(flat.shape[1]), flat.shape)
    pairs = np.unique(np.stack([entries.reshape(-1), flat.reshape(-1)]), axis=1)
    return pairs[0], pairs[1]


def _record(tr: Tracer, op: Operation, places: IntArray, found: IntArray, paths: Paths) -> None:
    real = found >= FIRST
    names: dict[str, str | None] = {"weight": None, "bias": None}
    neutral = 1.0
    index = places
    for which, role in (("weight", "scale"), ("bias", "shift")):
        tensor = op[which]
        if not tr.is_weights(tensor):
            continue
        elements = tr.known(tensor).reshape(-1)
        parameter = tr.parameters.only(elements)
        tr.touch(tensor, role)
        if parameter is None:
            tr.record.suspect(
                tr.place,
                "a norm with assembled parameters",
                op.name,
                tr.table.sources_of(found[real].tolist()),
            )
            continue
        item = tr.parameters.items[parameter]
        names[which] = item.name
        index = item.flat(elements.numpy())[places]
        if role == "scale":
            neutral = neutral_scale(tr, op, tensor, parameter, found[real])
    running = tuple(n for n in (_buffer(tr, op["running_mean"]), _buffer(tr, op["running_var"])) if n)
    if running and names["weight"] is None:
        index = places
    tr.record.affine.append(
        Affine(tr.place, names["weight"], names["bias"], running, index[real], found[real], paths, neutral)
    )


def neutral_scale(tr: Tracer, op: Operation, scale: Tensor, parameter: int, met: IntArray) -> float:
    """What the parameter behind a scale must hold for 1; the units that it met are refused where none can say."""
    neutral = tr.parameters.neutral(tr.known(scale), scale, parameter)
    if neutral is None:
        reason = (
            f"a scale is computed from {tr.parameters.items[parameter].name}, whose fresh value is unknown"
        )
        tr.record.suspect(tr.place, reason, op.name, tr.table.sources_of(np.unique(met).tolist()))
    return 1.0 if neutral is None else neutral


def _buffer(tr: Tracer, tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return None
    return tr.buffers.get(tr.shadows.key(tensor))


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "_masked_softmax")
def soften(tr: Tracer, op: Operation) -> None:
    """Softmax over channels is a nonlinearity; over positions it leaves them as they are."""
    x = op["self"]
    ids, paths = tr.features(x, -1)
    if ids is None:
        tr.spread(op, None)
        return
    label = op.name.strip("_").replace("safe_", "").replace("masked_", "")
    varies = squeeze_repeats(ids).shape[int(op["dim"])] > 1 if ids.dim() else False
    nodes = np.unique(squeeze_repeats(ids).numpy())
    nodes = nodes[nodes >= FIRST]
    strong = bool((~np.isin(tr.table.kind(nodes), (Kind.STAT, Kind.SCORE))).any())
    if varies and strong:
        tr.record.activate(nodes, paths, label)
        paths = {s: p.activated(label, True) for s, p in paths.items()}
    elif strong:  # over positions: a zero in is not a zero out
        paths = tr.step(paths, label, True)
    tr.spread(op, ids, paths)
