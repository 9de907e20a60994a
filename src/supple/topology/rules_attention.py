"""Products of two activations: query-key scores, and scores that mix values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from supple.topology.graph import IntArray
from supple.topology.ids import FIRST, Kind, squeeze_repeats
from supple.topology.record import Attention
from supple.topology.shadow import Paths
from supple.topology.tracer import Operation, Tracer, rule


def score(tr: Tracer, query: Tensor, key: Tensor) -> Tensor:
    """query (…, 1, K) meets key (…, K, 1): unit i of the one acts only through unit i of the other."""
    a, b = torch.broadcast_tensors(query, key.mT)
    pairs = np.unique(np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()]), axis=1)
    real = (pairs >= FIRST).all(axis=0)
    tr.record.pairs.append((pairs[0][real], pairs[1][real]))
    sources = tr.table.sources_of(pairs[:, real].reshape(-1).tolist())
    node = tr.table.weak(Kind.SCORE, sources)
    tr.record.attentions.append(Attention(_by_head(a), _by_head(b), node))
    return torch.tensor(node).reshape(1, 1)


def _by_head(channels: Tensor) -> IntArray:
    """(…, 1, K) -> (L, K): what stands before the channels counts heads (and samples, if these are merged)."""
    return channels.reshape(-1, channels.shape[-1]).numpy().copy()


def mix(
    tr: Tracer, op: Operation, weak: Tensor, values: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Paths]:
    """Scores times values (…, S, D): a value channel keeps its id where it is the same at every position."""
    if values.shape[-2] > 1:
        sources = tr.sources(left, right)
        tr.record.suspect(tr.place, "opaque operation: values differ by position", op.name, sources)
        return torch.tensor(tr.table.opaque(sources)).reshape(1, 1), {}
    statistics = frozenset().union(
        *(tr.table.sources_of([i]) for i in np.unique(weak.numpy()) if _is(tr, int(i), Kind.STAT))
    )
    tr.record.suspect(
        tr.place, "a statistic of its units acts on others", op.name, statistics - tr.sources(right)
    )
    scores = [int(i) for i in np.unique(weak.numpy()) if _is(tr, int(i), Kind.SCORE)]
    if scores:
        _note_values(tr, values, scores)
    return values, tr.step(tr.paths(right), "attention" if scores else "mix")


def _note_values(tr: Tracer, values: Tensor, scores: list[int]) -> None:
    nodes = np.unique(values.numpy())
    tr.record.values.append(nodes[nodes >= FIRST])
    by_head = _by_head(values)
    for event in reversed(tr.record.attentions):  # the latest scores with this id
        if event.score in scores and len(event.query) == len(by_head):
            event.value = by_head
            return


def _is(tr: Tracer, node: int, kind: Kind) -> bool:
    return node >= FIRST and int(tr.table.kind(np.array([node]))[0]) == kind


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def fused_attention(tr: Tracer, op: Operation) -> None:
    """softmax(q k^T) v in one operator; q, k, v are (…, heads, positions, channels)."""
    query, key, value = (tr.features(op[n], -1)[0] for n in ("query", "key", "value"))
    tr.drop(
        op, op["attn_mask"] if op["attn_mask"] is not None else op["attn_bias"], "acts on attention scores"
    )
    for extra in op.outputs[1:]:
        tr.shadows.constant(extra)
    out = op.outputs[0]
    if query is None or key is None or value is None:
        tr.drop(op, op["value"], "attention with a constant operand")
        tr.shadows.write(out, value if value is None else squeeze_repeats(value)[..., :1, :], {})
        return
    heads = op["query"].shape[-3]
    q, k, v = (squeeze_repeats(x, keep=lambda d, x=x: d == x.dim() - 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (k, v))
    sources = tr.sources(op["query"], op["key"], op["value"])
    if q.shape[-2] > 1 or k.shape[-2] > 1 or v.shape[-2] > 1:
        tr.record.suspect(tr.place, "opaque operation: channels differ by position", op.name, sources)
        tr.shadows.write(out, torch.tensor(tr.table.opaque(sources)), {})
        return
    node = score(tr, q, k.mT)
    _note_values(tr, v, [int(node)])
    tr.shadows.write(out, v, tr.step(tr.paths(op["value"]), "attention"))
