"""Attention heads as units: which rows of queries, keys and values, and which columns of the output, are one head.

Channels of query and key that meet in one score belong to one head; so do the value channels that this score
weighs. Heads that share keys or values (grouped queries) are one unit: none of them can be re-born alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from supple.topology.graph import Edge, Heads, IntArray, Layer, Refusal, Topology
from supple.topology.ids import FIRST, PARAM
from supple.topology.record import Attention
from supple.topology.tracer import Tracer

KIND = "heads"


Unit = tuple[str, int]  # layer, position in the layer


def find_heads(tracer: Tracer, places: dict[tuple[int, int], Unit]) -> tuple[Heads, ...]:
    """The heads of every attention of the trace; ``places``: (site, unit of the site) -> unit of a layer."""
    groups: dict[tuple[str, ...], list[tuple[frozenset[Unit], ...]]] = {}
    for event in tracer.record.attentions:
        for row in _rows(tracer, event, places):
            layers = tuple(sorted({layer for part in row for layer, _ in part}))
            groups.setdefault(layers, []).append(row)
    found = (_heads(rows) for rows in groups.values())
    return tuple(h for h in found if h is not None)


def _rows(
    tracer: Tracer, event: Attention, places: dict[tuple[int, int], Unit]
) -> list[tuple[frozenset[Unit], ...]]:
    """For each head the units behind its queries, keys and values."""
    if event.value is None or len(event.query) != len(event.key):
        return []
    seen: dict[bytes, tuple[frozenset[Unit], ...]] = {}
    for query, key, value in zip(event.query, event.key, event.value, strict=True):
        tag = b"|".join((query.tobytes(), key.tobytes(), value.tobytes()))
        if tag not in seen:
            seen[tag] = tuple(_units(tracer, ids, places) for ids in (query, key, value))
    return list(seen.values())


def _units(tracer: Tracer, ids: IntArray, places: dict[tuple[int, int], Unit]) -> frozenset[Unit]:
    atoms = tracer.table.atoms(ids[(ids >= FIRST) & (ids < PARAM)].tolist())
    pairs = zip(atoms.site.tolist(), atoms.unit.tolist(), strict=True)
    return frozenset(places[p] for p in pairs if p in places)


def _heads(rows: list[tuple[frozenset[Unit], ...]]) -> Heads | None:
    """One `Heads`, or None where the scores have no weights of their own behind them."""
    merged = _merge(rows)
    parts = [sorted({layer for row in merged for layer, _ in row[i]}) for i in range(3)]
    if not all(parts):
        return None
    members = tuple(dict.fromkeys(layer for part in parts for layer in part))
    name = f"{_common(members)}#{KIND}"
    if len(members) != 3 or any(len(p) != 1 for p in parts):
        return Heads(name, members, reason="queries, keys and values are not one layer each")
    units = []
    for i in range(3):
        counts = {len(row[i]) for row in merged}
        if len(counts) != 1:
            return Heads(name, members, reason=f"heads of different width in {parts[i][0]}")
        units.append(np.array([sorted(u for _, u in row[i]) for row in merged], np.int64))
    order = np.argsort(units[2][:, 0], kind="stable")
    return Heads(name, members, tuple(u[order] for u in units))


def _merge(rows: list[tuple[frozenset[Unit], ...]]) -> list[tuple[frozenset[Unit], ...]]:
    """Join rows that share a unit until no two do."""
    merged: list[tuple[frozenset[Unit], ...]] = []
    for row in rows:
        mine = frozenset().union(*row)
        touching = [m for m in merged if not mine.isdisjoint(frozenset().union(*m))]
        merged = [m for m in merged if m not in touching]
        merged.append(tuple(frozenset().union(*(m[i] for m in (*touching, row))) for i in range(3)))
    return merged


def _common(names: tuple[str, ...]) -> str:
    """The longest module path that all layer names share."""
    paths = [name.partition("#")[0].split(".") for name in names]
    shared = [level[0] for level in zip(*paths, strict=False) if len(set(level)) == 1]
    return ".".join(shared)


# -- heads among the layers -------------------------------------------------------------------------
def with_heads(topology: Topology) -> Topology:
    """The same topology with a layer of kind "heads" for each attention whose heads can be told apart.

    A unit of it is a head: its incoming weights are its rows of queries, keys and values, its outgoing ones
    the columns that read its value channels.

    >>> from supple.models import GPT
    >>> from supple.topology import trace
    >>> import torch
    >>> model = GPT(11, context=8, dim=12, heads=3, depth=1)
    >>> with_heads(trace(model, torch.zeros(2, 8, dtype=torch.long))).layers["blocks.0.attention.qkv#heads"].units
    3
    """
    layers, edges, refusals = dict(topology.layers), list(topology.edges), list(topology.refusals)
    for heads in topology.heads:
        if heads.reason or heads.name in layers:
            continue
        members = [topology.layers[name] for name in heads.members]
        layers[heads.name] = _layer(heads, members)
        for name, units in zip(
            heads.members, heads.units, strict=True
        ):  # queries and keys that are read elsewhere, too
            edges += [_edge(heads, units, edge) for edge in topology.consumers(name)]
        refusals += [replace(r, layer=heads.name) for r in topology.refusals if r.layer in heads.members]
        refusals += _uncovered(heads, members)
    return replace(topology, layers=layers, edges=tuple(edges), refusals=tuple(refusals))


def _layer(heads: Heads, members: list[Layer]) -> Layer:
    value = members[2]
    return replace(
        value,
        name=heads.name,
        kind=KIND,
        units=len(heads),
        rows=np.arange(len(heads)),
        part="",
        activation=None,
        norms=(),
        gate_partner=None,
        output=any(m.output for m in members),
        stream=next((m.stream for m in members if m.stream is not None), None),
        trainable=all(m.trainable for m in members),
        lock=next((m.lock for m in members if m.lock), None),
        fan_in=sum(m.fan_in for m in members),
        members=tuple(zip(heads.members, heads.units, strict=True)),
    )


def _edge(heads: Heads, units: IntArray, edge: Edge) -> Edge:
    """The columns that read these (H, m) units of a member, gathered by head."""
    width = edge.columns.shape[1]
    by_unit: dict[int, IntArray] = dict(zip(edge.units.tolist(), edge.columns, strict=True))
    nothing = np.full(width, -1, np.int64)
    columns = np.stack([np.concatenate([by_unit.get(u, nothing) for u in row]) for row in units.tolist()])
    rows = None if edge.rows is None else edge.rows[:1].repeat(len(heads), axis=0)
    return replace(edge, producer=heads.name, units=np.arange(len(heads)), columns=columns, rows=rows)


def _uncovered(heads: Heads, members: list[Layer]) -> list[Refusal]:
    """Units of a member that no head holds would be left behind; refuse."""
    found = []
    for layer, units in zip(members, heads.units, strict=True):
        if len(np.unique(units)) != layer.units:
            reason = f"units of {layer.name} belong to no head"
            found.append(Refusal(layer.module, reason, "attention", heads.name))
    return found


def member_units(layer: Layer, units: IntArray) -> dict[str, IntArray]:
    """Units of a layer, or of the members of heads: layer name -> positions in it, ascending."""
    if not layer.members:
        return {layer.name: units}
    return {name: np.unique(rows[units]) for name, rows in layer.members}
