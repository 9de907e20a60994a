"""From the events of a trace to layers, edges, streams, refusals and coverage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from torch import nn

from supple.topology.coverage import cover
from supple.topology.edges import build_edges, readings
from supple.topology.graph import Edge, IntArray, Layer, Norm, Refusal, Topology
from supple.topology.heads import find_heads
from supple.topology.ids import FIRST, Kind
from supple.topology.record import Affine, Site
from supple.topology.shadow import Path
from supple.topology.tracer import Tracer

NO_PART = ""


class Parts:
    """How the units of each site fall into blocks: query, key, value; gate and value; or one block."""

    def __init__(self, tracer: Tracer) -> None:
        self.table, self.sites = tracer.table, tracer.record.sites
        self.labels = [np.full(s.units, NO_PART, dtype="<U8") for s in self.sites]
        self.partners: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.qk: set[tuple[int, str, int, str]] = set()
        self.gates: set[tuple[int, int, int, int]] = set()
        for value in tracer.record.values:
            self._mark(value, "v")
        for query, key in tracer.record.pairs:
            self._mark(query, "q")
            self._mark(key, "k")
        self._gates()
        for labels in self.labels:
            labels[:] = np.where(labels == NO_PART, "rest", labels) if len(set(labels)) > 1 else NO_PART

    def _mark(self, ids: IntArray, label: str) -> None:
        found = self.table.atoms(ids.tolist())
        for index in np.unique(found.site).tolist():
            self.labels[index][found.unit[found.site == index]] = label

    def _gates(self) -> None:
        """A product of two units; within one packed weight the halves get names."""
        for left, right, active in self.table.gates:
            pair = np.array([left, right], np.int64)
            if (self.table.kind(pair) != Kind.UNIT).any():
                continue
            (sa, sb), (ua, ub) = self.table.pair(pair)
            self.gates.add((int(sa), int(ua), int(sb), int(ub)))
            if sa == sb and ua != ub:
                names = ("gate", "value") if active == 0 else ("value", "gate")
                self.labels[sa][ua], self.labels[sb][ub] = names

    def of(self, index: int) -> list[str]:
        return list(dict.fromkeys(self.labels[index].tolist()))  # in the order of their rows

    def units(self, index: int, part: str) -> IntArray:
        return np.flatnonzero(self.labels[index] == part)

    def name(self, index: int, part: str) -> str:
        return self.sites[index].name + (f"#{part}" if part else "")


def assemble(tracer: Tracer, model: nn.Module) -> Topology:
    """Everything that the trace found, in the public types."""
    parts = Parts(tracer)
    _suspects(tracer)
    tracer.table.loosen_gates()
    read = readings(tracer)
    edges = build_edges(tracer, parts, read)
    streams = _streams(tracer, parts)
    norms = _norms(tracer, parts)
    gate, qk = _gate_partners(parts, edges), _qk_partners(tracer, parts)
    layers: dict[str, Layer] = {}
    for site in tracer.record.sites:
        for part in parts.of(site.index):
            name = parts.name(site.index, part)
            layers[name] = _layer(tracer, parts, site, part, streams, norms, gate.get(name), qk.get(name))
    return Topology(
        layers=layers,
        edges=edges,
        refusals=_refusals(tracer, parts),
        coverage=cover(tracer, model, layers),
        streams={k: tuple(v) for k, v in _by_stream(layers).items()},
        heads=find_heads(tracer, _places(parts)),
    )


def _places(parts: Parts) -> dict[tuple[int, int], tuple[str, int]]:
    """(site, unit of the site) -> (layer, position in the layer)."""
    out: dict[tuple[int, int], tuple[str, int]] = {}
    for index in range(len(parts.sites)):
        for part in parts.of(index):
            name = parts.name(index, part)
            units = parts.units(index, part).tolist()
            out.update({(index, unit): (name, i) for i, unit in enumerate(units)})
    return out


def _suspects(tracer: Tracer) -> None:
    record, table = tracer.record, tracer.table
    if table.absorbed:
        record.suspect("", "acts on attention scores", "add", frozenset(table.absorbed))


def _layer(
    tracer: Tracer,
    parts: Parts,
    site: Site,
    part: str,
    streams: dict[int, int],
    norms: dict[tuple[int, str], list[Norm]],
    gate: str | None,
    qk: str | None,
) -> Layer:
    parameter = tracer.parameters.items[site.parameter]
    units = parts.units(site.index, part)
    acts = sorted(name for name, mask in site.activations().items() if mask[units].any())
    lock = site.lock or _two_roles(tracer, site)
    return Layer(
        name=parts.name(site.index, part),
        module=site.module,
        kind=site.kind,
        weight=parameter.name,
        bias=site.bias,
        units=len(units),
        rows=units,
        unit_dim=site.unit_dim,
        fan_in=site.fan_in,
        part=part,
        activation="+".join(acts) or None,
        norms=tuple(norms.get((site.index, part), ())),
        output=bool(site.output[units].any()),
        stream=streams.get(site.index),
        gate_partner=gate,
        qk_partner=qk,
        aliases=parameter.names[1:],
        trainable=parameter.tensor.requires_grad,
        calls=max(int(site.calls[units].max(initial=0)), 1),
        lock=lock,
    )


def _two_roles(tracer: Tracer, site: Site) -> str | None:
    same = [s for s in tracer.record.sites if s.parameter == site.parameter and s is not site]
    if same:
        return f"its weight also serves as {', '.join(s.name for s in same)}"
    return None


def _streams(tracer: Tracer, parts: Parts) -> dict[int, int]:
    """Connected components of the sites that were found under one sum."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for group in tracer.table.links:
        first, *rest = sorted(group)
        root(first)
        for other in rest:
            parent[root(other)] = root(first)
    roots = sorted({root(x) for x in parent})
    return {x: roots.index(root(x)) for x in parent}


def _by_stream(layers: dict[str, Layer]) -> dict[int, list[str]]:
    out: dict[int, list[str]] = defaultdict(list)
    for layer in layers.values():
        if layer.stream is not None:
            out[layer.stream].append(layer.name)
    return out


def _norms(tracer: Tracer, parts: Parts) -> dict[tuple[int, str], list[Norm]]:
    """For each layer the affine entries that its units met, one `Norm` for each entry of a unit."""
    out: dict[tuple[int, str], list[Norm]] = defaultdict(list)
    for event in _joined(tracer.record.affine):
        found = tracer.table.expand(event.places, event.ids)
        for index in np.unique(found.site).tolist():
            mine = found.site == index
            path = event.paths.get(index, Path())
            for part in parts.of(index):
                units = parts.units(index, part)
                rank = np.full(parts.sites[index].units, -1)
                rank[units] = np.arange(len(units))
                chosen = np.flatnonzero(mine)
                chosen = chosen[rank[found.unit[chosen]] >= 0]
                for entry in _one_by_one(rank[found.unit[chosen]], found.place[chosen], len(units)):
                    norm = Norm(
                        module=event.module,
                        scale=event.scale,
                        shift=event.shift,
                        index=entry,
                        running=event.running,
                        before_activation=None in path.acts,
                        shared=not bool(found.alone[chosen].all()),
                        neutral=event.neutral,
                    )
                    if not any(_same_norm(norm, other) for other in out[index, part]):
                        out[index, part].append(norm)
    return out


def _joined(events: list[Affine]) -> list[Affine]:
    """A hand-written norm multiplies, then adds: one event for both where they met the same units."""
    out: list[Affine] = []
    for event in events:
        last = out[-1] if out else None
        if last and last.module == event.module and _halves(last, event):
            out[-1] = replace(last, shift=event.shift)
            continue
        out.append(event)
    return out


def _halves(first: Affine, second: Affine) -> bool:
    """Whether a bare scale is followed by a bare shift of the same entries."""
    bare = first.shift is None and second.scale is None and not second.running
    return bare and np.array_equal(first.ids, second.ids) and np.array_equal(first.places, second.places)


def _same_norm(a: Norm, b: Norm) -> bool:
    same = (a.module, a.scale, a.shift) == (b.module, b.scale, b.shift)
    return same and np.array_equal(a.index, b.index)


def _one_by_one(units: IntArray, places: IntArray, count: int) -> list[IntArray]:
    """Split (unit, place) pairs into maps that have one place for each unit (-1: none)."""
    if not len(units):
        return []
    order = np.lexsort((places, units))
    units, places = units[order], places[order]
    starts = np.r_[0, np.flatnonzero(np.diff(units)) + 1]
    turn = np.arange(len(units)) - np.repeat(starts, np.diff(np.r_[starts, len(units)]))
    out = []
    for k in range(int(turn.max()) + 1):
        entry = np.full(count, -1, np.int64)
        entry[units[turn == k]] = places[turn == k]
        out.append(entry)
    return out


def _gate_partners(parts: Parts, edges: tuple[Edge, ...]) -> dict[str, str]:
    """Two layers whose units multiply one to one, in the same order, and act in no other way."""
    met: dict[str, dict[str, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))
    position = [np.zeros(s.units, np.int64) for s in parts.sites]
    for index in range(len(parts.sites)):
        for part in parts.of(index):
            units = parts.units(index, part)
            position[index][units] = np.arange(len(units))
    for sa, ua, sb, ub in parts.gates:
        a = parts.name(sa, str(parts.labels[sa][ua]))
        b = parts.name(sb, str(parts.labels[sb][ub]))
        met[a][b].add((int(position[sa][ua]), int(position[sb][ub])))
        met[b][a].add((int(position[sb][ub]), int(position[sa][ua])))
    out: dict[str, str] = {}
    for a, others in met.items():
        b, pairs = next(iter(others.items()))
        single = a != b and len(others) == len(met[b]) == 1
        if single and all(i == j for i, j in pairs) and _readers(edges, a) == _readers(edges, b):
            out[a] = b
    return out


def _readers(edges: tuple[Edge, ...], producer: str) -> set[tuple[str, int, int]]:
    """(consumer, unit, column) of everything that reads a layer."""
    return {
        (e.consumer, int(unit), int(column))
        for e in edges
        if e.producer == producer
        for unit, columns in zip(e.units, e.columns, strict=True)
        for column in columns
    }


def _qk_partners(tracer: Tracer, parts: Parts) -> dict[str, str]:
    out: dict[str, str] = {}
    for query, key in tracer.record.pairs:
        names = []
        for ids in (query, key):
            found = tracer.table.atoms(ids[ids >= FIRST].tolist())
            sides = {
                parts.name(s, str(parts.labels[s][u]))
                for s, u in zip(found.site.tolist(), found.unit.tolist(), strict=True)
            }
            names.append(sorted(sides))
        for a, b in ((names[0], names[1]), (names[1], names[0])):
            out.update({x: b[0] for x in a if b})
    return out


def _refusals(tracer: Tracer, parts: Parts) -> tuple[Refusal, ...]:
    """Refusals by layer; a packed layer is refused block by block."""
    by_site = {s.name: s.index for s in parts.sites}
    for parameter in tracer.parameters.items:
        if not parameter.roles:
            module, _ = parameter.owner()
            tracer.record.refuse(module, "not used in this forward pass", "", parameter.name)
    out: list[Refusal] = []
    for refusal in tracer.record.all_refusals():
        index = by_site.get(refusal.layer)
        names = [parts.name(index, p) for p in parts.of(index)] if index is not None else [refusal.layer]
        out.extend(Refusal(refusal.path, refusal.reason, refusal.op, name) for name in names)
    return tuple(out)
